"""What the cluster costs and gains on this machine, as ratios: ``python -m cluster.measure --out DIR``.

All in one go, one thread a process on both sides, Ray's own start excluded. Every run is the same short one on
icons_mini, so the ratios say what Ray and a second process do to it, not how good a method is. docs/scaling.md has the
figures of one machine.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from cluster.estimate import estimate
from cluster.journal import Journal
from cluster.launch import run_grid
from cluster.plan import load_grid, plan_runs
from cluster.simulate import makespan
from fmlora_dist.cores import local_cores
from fmlora_dist.errors import UserError

__all__ = ["main"]

_ATOMS = ("frozen", "lora", "fmlora")
"""Methods of unlike length, for the simulator."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one line a ratio; gives 0."""
    parser = argparse.ArgumentParser(prog="python -m cluster.measure", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the runs")
    parser.add_argument("--epochs", type=int, default=8, metavar="E", help="of each run (default: 8, about a minute)")
    arguments = parser.parse_args(argv)
    out = arguments.out.absolute()
    if out.exists() and any(out.iterdir()):
        parser.error(f"--out: {out} is not empty; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    print(f"{local_cores()} cores, load {os.getloadavg()[0]:.1f} before; runs of {arguments.epochs} epochs")
    bench = _Bench(out, arguments.epochs)
    alone = [bench.by_hand(seed) for seed in (0, 1)]
    single = bench.grid("single", ["lora"], [0])
    _say("a run placed by Ray / the same run by hand", single.span / alone[0], f"{single.span:.1f} / {alone[0]:.1f} s")
    both = bench.grid("both", ["lora"], [0, 1])
    _say("two runs at once / one after the other", both.span / sum(alone), f"{both.span:.1f} / {sum(alone):.1f} s")
    pair = bench.grid("pair", [{"name": "lora", "resources": {"processes": 2}}], [0])
    rates = [placed.images_per_second for placed in (single, pair)]
    _say("images/s of two processes / of one", rates[1] / rates[0], f"{rates[1]:.0f} / {rates[0]:.0f} while training")
    print(f"efficiency of two processes: {rates[1] / rates[0] / 2:.2f}")
    bench.grid("first", list(_ATOMS), [0], folder="simulated")
    foretold = bench.foretell(list(_ATOMS), [0, 1], folder="simulated")
    real = bench.grid("second", list(_ATOMS), [0, 1], folder="simulated").span
    _say("simulated / real makespan", foretold / real, f"{foretold:.1f} / {real:.1f} s, from the first seed's times")
    print(f"load {os.getloadavg()[0]:.1f} after")
    return 0


class _Placed:
    """What a grid did: seconds from its first run's start to its last one's end, and how fast one of them trained."""

    def __init__(self, events: list[dict[str, Any]], result: dict[str, Any]):
        starts = [event["time"] for event in events if event["event"] == "start"]
        ends = [event["time"] for event in events if event["event"] == "done"]
        if not ends or any(event["event"] in ("retry", "failed") for event in events):
            raise UserError(f"measure: a run failed, see {events[-1] if events else 'the output'}; nothing to compare")
        self.span = max(ends) - min(starts)
        shape = result["protocol"]["shared"]
        images = shape["train_images"] * result["config"]["epochs"]
        self.images_per_second = images / (result["seconds"]["train"] + result["seconds"]["data"])


class _Bench:
    def __init__(self, out: Path, epochs: int):
        self.out, self.epochs = out, epochs

    def by_hand(self, seed: int) -> float:
        """Seconds of a run that nobody places, its process's start included."""
        words = ["--benchmark", "icons_mini", "--tasks", "5", "--method", "lora", "--threads", "1"]
        words += ["--epochs", str(self.epochs), "--seed", str(seed), "--out", str(self.out / f"hand-{seed}")]
        started = time.perf_counter()
        command = [sys.executable, "-m", "fmlora_dist.cli", "run", *words]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        return time.perf_counter() - started

    def grid(self, name: str, methods: list[Any], seeds: list[int], *, folder: str = "") -> _Placed:
        """Run a grid of these; those of an earlier one over the same folder are started anew."""
        out = self.out / (folder or name)
        shutil.rmtree(out / "runs", ignore_errors=True)
        before = len(Journal.read(out))
        run_grid(self._file(name, methods, seeds), out, Console(file=io.StringIO()))
        run = plan_runs(load_grid(self._file(name, methods, seeds)), out)[0]
        return _Placed(Journal.read(out)[before:], json.loads((run.folder / "result.json").read_bytes()))

    def foretell(self, methods: list[Any], seeds: list[int], *, folder: str) -> float:
        """The simulated makespan of a grid, from the runs that its folder holds."""
        out = self.out / folder
        runs = plan_runs(load_grid(self._file("foretold", methods, seeds)), out)
        expected = estimate(runs, Journal.seconds(out), None).seconds
        ordered = sorted(runs, key=lambda run: -expected[run.name])
        times = [(expected[run.name], run.resources.bundle(), run.resources.n_processes) for run in ordered]
        return makespan(times, [{"CPU": float(local_cores())}])

    def _file(self, name: str, methods: list[Any], seeds: list[int]) -> str:
        values: dict[str, Any] = {"benchmarks": [{"benchmark": "icons_mini", "tasks": [5]}], "methods": methods}
        values["seeds"] = seeds
        values |= {"settings": {"threads": 1, "epochs": self.epochs}}
        file = self.out / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        return str(file)


def _say(what: str, ratio: float, figures: str) -> None:
    print(f"{what}: {ratio:.3f} ({figures})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
