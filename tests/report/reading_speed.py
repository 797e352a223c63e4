"""How long it takes to read N result files for a report, against json.load of the same files; and the peak of memory.

    python tests/report/reading_speed.py --runs 10000

Writes the files into a temporary folder, reads them by turns (A B A B …), each time in a process of its own, and prints
each time and the medians. No test: times are the machine's.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from fmlora_dist.report import make_report, read_runs  # noqa: E402
from result_files import whole_result  # noqa: E402

METHODS = ("finetune", "lora", "inflora", "sdlora", "fmlora")
TASKS = (5, 10, 20)


def write(folder: Path, n_runs: int) -> None:
    """The result files of ``n_runs`` runs, of five methods and three numbers of tasks."""
    base = {(method, n): whole_result(method, 0, 70.0, n_tasks=n) for method in METHODS for n in TASKS}
    for number in range(n_runs):
        result = base[METHODS[number % len(METHODS)], TASKS[number // len(METHODS) % len(TASKS)]]
        seed = number // (len(METHODS) * len(TASKS))
        run = folder / "runs" / f"run-{number}"
        run.mkdir(parents=True)
        text = json.dumps(result | {"seed": seed, "order_seed": seed}, indent=1)
        (run / "result.json").write_text(text + "\n")


def load(folder: Path) -> int:
    """json.load of every file, none of which is kept."""
    count = 0
    for file in folder.glob("runs/*/result.json"):
        with open(file) as opened:
            json.load(opened)
        count += 1
    return count


def read(folder: Path) -> int:
    """As a report reads them; all are kept."""
    return len(read_runs([folder]).runs)


def report(folder: Path) -> int:
    """Reading, and all tables with their tests."""
    return len(make_report(read_runs([folder])).runs)


def measured(work: Callable[[Path], int], folder: Path, n_runs: int) -> tuple[float, float]:
    """(seconds, peak MiB) of one process, forked from this one."""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe()

    def go() -> None:
        started = time.perf_counter()
        assert work(folder) == n_runs
        seconds = time.perf_counter() - started
        other.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))

    process = context.Process(target=go)
    process.start()
    process.join()
    found: tuple[float, float] = mine.recv()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, arguments.runs)
        size = sum(file.stat().st_size for file in folder.glob("runs/*/result.json")) / 2**20
        print(f"{arguments.runs} files, {size:.0f} MiB")
        times: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            for name, work in (("json.load", load), ("read_runs", read), ("whole report", report)):
                seconds, peak = measured(work, folder, arguments.runs)
                times.setdefault(name, []).append(seconds)
                print(f"{name}: {seconds:.2f} s, peak {peak:.0f} MiB", flush=True)
    medians = {name: median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"median of {name}: {seconds:.2f} s, {seconds / medians['json.load']:.2f} times json.load")


if __name__ == "__main__":
    main()
