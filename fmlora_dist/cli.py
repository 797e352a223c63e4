"""The command line: `fmlora run | grid | demo | report | evaluate | prepare | verify | show | profile | list`."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from rich.console import Console

from fmlora_dist import __version__
from fmlora_dist.errors import UserError, explain_memory, nearest

__all__ = ["main"]

_PATIENCE = 30.0
"""Seconds in which the launcher has ended a process whose main process has failed."""
_STALL = "end a run that has written no event for S seconds, and try it again; 0: never (default: 1800)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 (runs of a grid failed), 2 (a user's mistake), 75 (another process works in the run's
        directory), 130 (interrupted).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["--version"]:
            print(f"fmlora {__version__}")
            return 0
        if not argv or argv[0] in ("-h", "--help"):
            print(_usage())
            return 0
        if argv[0] not in _COMMANDS:
            raise UserError(f"unknown command '{argv[0]}': {nearest(argv[0], _COMMANDS)}")
        return _COMMANDS[argv[0]](argv[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            # One line, however many processes make the same mistake: the main one says it, and the launcher ends the
            # others then. Only a mistake of this process alone (its own GPU, its own file) lets it live on.
            time.sleep(_PATIENCE)
        print(f"fmlora: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fmlora: interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130


def run(argv: Sequence[str]) -> int:
    """Train one method on one sequence of tasks."""
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
    if arguments.resume and (result := record.result()):
        if world.main:
            print(f"{out} is complete: Acc {result['metrics']['acc']:.2f}")
        return 0
    with explain_memory():
        ready = Run(config, world)
    if world.main:
        record.open(config)
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
    parser = _parser("evaluate", evaluate.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--batch-size", type=_positive, metavar="B", help="test images of a batch (default: the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    arguments = parser.parse_args(argv)
    from fmlora_dist.run import evaluate as measure
    from fmlora_dist.run import restore

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
        _write(arguments.json, json.dumps(figures) + "\n", "json")
    return 0


def report(argv: Sequence[str]) -> int:
    """Print the comparison table of finished runs: mean ± std over seeds of Acc and AAA."""
    parser = _parser("report", report.__doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR_OR_URL", help="folders with runs in them, or their URLs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write tables.md and tables.csv there, too")
    arguments = parser.parse_args(argv)
    from cluster.output import open_output
    from fmlora_dist.report import print_report

    with ExitStack() as copies:
        folders = [copies.enter_context(open_output(where).opened()).folder for where in arguments.folders]
        print_report(folders, Console(), out=arguments.out)
    return 0


def grid(argv: Sequence[str], name: str | None = None) -> int:
    """Run a grid of benchmarks x task counts x methods x seeds, placed by Ray Tune; finished runs are skipped."""
    parser = _parser("grid" if name is None else name, grid.__doc__)
    if name is None:
        parser.add_argument("name", metavar="NAME", help="name of a shipped grid, or a YAML file")
    add = parser.add_argument
    add("--out", metavar="DIR_OR_URL", help="folder of the results, or its fsspec URL (default: results/<name>)")
    add("--data-root", default="", metavar="DIR", help="folder or URL that holds one folder of shards a benchmark")
    add("--resume", action="store_true", help="start only what is not complete, which is so without it, too")
    add("--retries", type=_whole, default=2, metavar="K", help="try a run that fails again up to K times (default: 2)")
    add("--stall-timeout", type=_whole, default=1800, metavar="S", help=_STALL)
    add("--tracker", action="append", default=[], metavar="NAME", help="wandb or mlflow, beside TensorBoard")
    add("--profile", type=Path, metavar="FILE", help="times of steps (fmlora profile steps --json FILE)")
    add("--plan", action="store_true", help="start nothing: say how many runs there are, and simulate the makespan")
    add("--nodes", type=_positive, default=1, metavar="K", help="of the simulated cluster (default: 1)")
    add("--gpus-per-node", type=_whole, default=0, metavar="G", help="of the simulated cluster (default: 0)")
    add("--cpus-per-node", type=_positive, metavar="C", help="of the simulated cluster (default: no limit beside GPUs)")
    arguments = parser.parse_args(argv)
    name = name or arguments.name
    from cluster.launch import Cluster, Options, print_plan, run_grid

    options = Options(
        data_root=arguments.data_root,
        profile=arguments.profile,
        retries=arguments.retries,
        stall_timeout=arguments.stall_timeout,
        trackers=arguments.tracker,
    )
    out = arguments.out or f"results/{Path(name).stem}"
    if arguments.plan:
        cluster = Cluster(nodes=arguments.nodes, gpus=arguments.gpus_per_node, cpus=arguments.cpus_per_node)
        return print_plan(name, out, Console(), options, cluster)
    return run_grid(name, out, Console(), options)


def demo(argv: Sequence[str]) -> int:
    """Run the grid 'demo': five methods on icons_mini, and print their table."""
    return grid(argv, name="demo")


def prepare(argv: Sequence[str]) -> int:
    """Make the shards of a data set from its published files; an interrupted call goes on where it was."""
    parser = _parser("prepare", prepare.__doc__)
    parser.add_argument("data_set", metavar="DATA_SET", help="registered name of the benchmark")
    parser.add_argument("--source", metavar="PATH", required=True, help="the published files: a folder or an archive")
    parser.add_argument("--out", metavar="DIR_OR_URL", required=True, help="the shards' folder, or its fsspec URL")
    parser.add_argument(
        "--split", metavar="KIND", help="random, folders, or coda:FILE, where the data set has no split"
    )
    parser.add_argument("--split-seed", type=int, metavar="N", help="seed of --split random (default: 0)")
    help = "make larger images smaller, to N pixels on the shorter side (default: keep the original bytes)"
    parser.add_argument("--short-side", type=_positive, default=0, metavar="N", help=help)
    help = "what a broken image does: stop, or skip it, which the manifest lists (default: stop)"
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help=help)
    help = "go on where counts differ from the published ones; the split's rule says so"
    parser.add_argument("--allow-partial", action="store_true", help=help)
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one a core)")
    help = "bytes of a shard, at most (default: 64MiB)"
    parser.add_argument("--shard-size", type=_bytes, default=64 << 20, metavar="SIZE", help=help)
    arguments = parser.parse_args(argv)
    from benchmarks.preparation.command import run_prepare

    return run_prepare(arguments, version=__version__)


def verify(argv: Sequence[str]) -> int:
    """Read shards again, every image of them, and compare them with their manifest and index."""
    parser = _parser("verify", verify.__doc__)
    parser.add_argument("folder", metavar="DIR_OR_URL", help="the shards' folder, or its fsspec URL")
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one a core)")
    arguments = parser.parse_args(argv)
    from benchmarks.preparation.command import run_verify

    run_verify(arguments)
    return 0


def show(argv: Sequence[str]) -> int:
    """Draw a contact sheet of a benchmark's tasks: a page of HTML with a few images of each class."""
    from fmlora_dist.config import add_sequence_arguments, make_config

    parser = _parser("show", show.__doc__)
    parser.add_argument("benchmark", metavar="BENCHMARK", help="registered name of the benchmark")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="the page")
    parser.add_argument("--per-class", type=_positive, default=3, metavar="K", help="images of a class (default: 3)")
    add_sequence_arguments(parser)
    fields = vars(parser.parse_args(argv))
    out, per_class = fields.pop("out"), fields.pop("per_class")
    from benchmarks.contact_sheet import MOST_PER_CLASS, contact_sheet
    from fmlora_dist.data import RunData
    from fmlora_dist.distributed import World

    if per_class > MOST_PER_CLASS:
        raise UserError(f"per-class: found {per_class}, expected at most {MOST_PER_CLASS}; a page holds all its images")
    config = make_config(fields)
    data = RunData(config, World("cpu", 1))
    page = contact_sheet(data.sequence, data.store, per_class=per_class, workers=config.workers)
    _write(out, page, "out")
    print(f"{out}: {data.n_tasks} tasks, {len(page) / 1e6:.1f} MB")
    return 0


def profile(argv: Sequence[str]) -> int:
    """Measure what the stream costs beside torchvision's ImageFolder and DataLoader (fmlora profile stream)."""
    parser = _parser("profile", f"{profile.__doc__} The exit code is 1 when a bound is not met.")
    parser.add_argument("what", choices=("stream",), help="what to measure")
    parser.add_argument("--images", type=_positive, default=2000, metavar="N", help="JPEGs to make (default: 2000)")
    parser.add_argument("--epochs", type=_positive, default=10, metavar="N", help="passes over them (default: 10)")
    parser.add_argument("--workers", type=_positive, default=2, metavar="N", help="of either side (default: 2)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    arguments = parser.parse_args(argv)
    from fmlora_dist.profile.stream import StreamProfile, profile_stream

    options = StreamProfile(
        images=arguments.images, epochs=arguments.epochs, workers=arguments.workers, device=arguments.device
    )
    figures = profile_stream(options, Console())
    if arguments.json:
        _write(arguments.json, json.dumps(figures, indent=1) + "\n", "json")
    return 0 if all(bound["met"] for bound in figures["bounds"]) else 1


def listing(argv: Sequence[str]) -> int:
    """Show the methods and benchmarks."""
    _parser("list", listing.__doc__).parse_args(argv)
    from fmlora_dist.registry import list_benchmarks, list_methods

    rows = [("method", name, method.info.summary) for name, method in list_methods().items()]
    rows += [("benchmark", name, spec.summary) for name, spec in list_benchmarks().items()]
    for kind, name, summary in rows:
        print(f"{kind:<10} {name:<{max(len(row[1]) for row in rows)}}  {summary}")
    return 0


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "grid": grid,
    "demo": demo,
    "report": report,
    "evaluate": evaluate,
    "prepare": prepare,
    "verify": verify,
    "show": show,
    "profile": profile,
    "list": listing,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(message)


def _parser(name: str, description: str | None) -> argparse.ArgumentParser:
    return _Parser(prog=f"fmlora {name}", description=description, allow_abbrev=False)


def _write(file: Path, text: str, option: str) -> None:
    from fmlora_dist.record import write_atomically

    try:
        with write_atomically(file) as path:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{option}: cannot write {file}: {error.strerror}; choose another file") from error


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}, expected at least 1")
    return value


def _bytes(text: str) -> int:
    from fmlora_dist.config import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"found {value}, expected 0 or more")
    return value


def _usage() -> str:
    lines = [f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}" for name, command in _COMMANDS.items()]
    return "usage: fmlora COMMAND … (fmlora COMMAND --help says more)\n\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
