"""One run: training it, testing it again."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fmlora_dist.commands.arguments import make_parser, positive, write_text
from fmlora_dist.errors import UserError, explain_memory

__all__ = ["evaluate", "run"]


def run(argv: Sequence[str]) -> int:
    """Train one method on one sequence of tasks."""
    started = time.perf_counter()
    from fmlora_dist.config import parse_config
    from fmlora_dist.distributed import World
    from fmlora_dist.record import RunDirectory
    from fmlora_dist.run import Run
    from fmlora_dist.watching import show

    config, arguments = parse_config(argv, prog="fmlora run")
    out = arguments.out or Path("runs") / (
        f"{config.benchmark}-{config.tasks}-{config.method.name}-s{config.seed}-{config.key()[:10]}"
    )
    world = World(config.device, config.threads)
    record = RunDirectory(out)
    if world.main:
        record.check(config, resume=arguments.resume)
    if arguments.resume:
        world.connect()  # one process looks: another grid may complete the run between two looks
        if result := world.on_main(record.result):
            if world.main:
                print(f"{out} is complete: Acc {result['metrics']['acc']:.2f}")
            world.close()
            return 0
    with explain_memory():
        ready = Run(config, world, started=started)
    world.connect()
    world.on_main(lambda: record.open(config))
    try:
        if world.main and (aside := record.set_result_aside()):
            print(f"{record.result_file} cannot be read; it is now {aside.name}, and the run is repeated")
        with show(record, enabled=world.main), explain_memory():
            ready.go(record)
    except UserError as error:
        if world.main:
            with suppress(UserError):  # the disk may be full, which is what the error says
                record.event("error", message=str(error))
        raise
    finally:
        record.close()
    world.close()  # not after an error: processes that wait for this one would complain before they are ended
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Test the final model of a run on all test data."""
    parser = make_parser("evaluate", evaluate.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--batch-size", type=positive, metavar="B", help="test images of a batch (default: the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    arguments = parser.parse_args(argv)
    from fmlora_dist.restore import restore
    from fmlora_dist.run import evaluate as measure

    method, data, precision = restore(arguments.run, device=arguments.device)
    per_task = measure(method, data, precision, data.n_tasks, batch_size=arguments.batch_size)
    sizes = data.test_sizes
    figures = {
        "acc": sum(per_task) / len(per_task),
        "acc_samples": sum(a * n for a, n in zip(per_task, sizes, strict=True)) / sum(sizes),
        "per_task": per_task,
    }
    print(json.dumps(figures))
    if arguments.json:
        write_text(arguments.json, json.dumps(figures) + "\n", "json")
    return 0
