"""``fmlora grid``: what is not complete of a grid is run, or its plan is printed."""

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.estimate import Estimate, estimate, load_profile
from cluster.journal import Journal
from cluster.output import Output, open_output
from cluster.plan import Grid, PlannedRun, load_grid, plan_runs
from cluster.simulate import fitting, makespan
from cluster.track import check_trackers, make_trackers
from cluster.watch import show_duration
from fmlora_dist.cores import local_cores
from fmlora_dist.errors import UserError
from fmlora_dist.report import FOLDER, Column, Planned, make_report, name_files, print_report, read_runs, write_report

__all__ = ["Cluster", "Options", "print_plan", "run_grid"]

_INTERRUPTED = 130
_NO_LIMIT = 1e18
_LOOK_EVERY = 2.0
"""Seconds between looks at runs that another grid works on."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a grid is run."""

    data_root: str = ""
    """Folder, or URL, that holds one folder of shards a benchmark."""
    profile: Path | None = None
    """Times of steps, so that the longest run can start first before any is done."""
    retries: int = 2
    """How often a run that fails is tried again."""
    stall_timeout: float = 1800.0
    """Seconds without an event after which a run is taken for hanging; 0: never."""
    trackers: Sequence[str] = ()

    def words(self) -> list[str]:
        """The command line's words for what is not left as it is by default."""
        told = [f"--data-root={self.data_root}"] if self.data_root else []
        told += [f"--profile={self.profile}"] if self.profile else []
        told += [f"--retries={self.retries}"] if self.retries != Options.retries else []
        told += [f"--stall-timeout={self.stall_timeout:g}"] if self.stall_timeout != Options.stall_timeout else []
        return [*told, *(f"--tracker={name}" for name in self.trackers)]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster to simulate."""

    nodes: int = 1
    gpus: int = 0
    """Of each node."""
    cpus: int | None = None
    """Of each node; None: as many as runs on its GPUs need, and those of this machine where there are no GPUs."""

    def resources(self) -> list[dict[str, float]]:
        # What is not said of a node (its memory, its cores beside GPUs) sets no limit.
        cpus = self.cpus if self.cpus is not None else _NO_LIMIT if self.gpus else local_cores()
        return [{"CPU": float(cpus), "GPU": float(self.gpus), "memory": _NO_LIMIT}] * self.nodes

    def __str__(self) -> str:
        cores = self.cpus if self.cpus is not None else None if self.gpus else local_cores()
        facts = [f"{self.gpus} GPUs"] if self.gpus else []
        facts += [f"{cores} cores"] if cores is not None else []
        return f"{self.nodes} node{'s' if self.nodes > 1 else ''} of {' and '.join(facts)}"


def run_grid(name_or_path: str, out: Path | str, console: Console, options: Options | None = None) -> int:
    """Run what is not finished of a grid, print its comparison table and write it into ``out``, a folder or URL.

    Returns:
        0 when every run is complete, 1 when one failed, 130 when it was interrupted.

    Raises:
        UserError: a grid that cannot be run; nothing was started then.
    """
    options = options or Options()
    grid = load_grid(name_or_path)
    check_trackers(options.trackers)
    with open_output(out).opened() as output:
        return _run_grid(name_or_path, grid, output, console, options)


def _run_grid(name_or_path: str, grid: Grid, output: Output, console: Console, options: Options) -> int:
    out = output.folder
    runs = plan_runs(grid, out, data_root=options.data_root)
    profile = load_profile(options.profile) if options.profile else None
    waiting = [run for run in runs if not run.finished]
    done = len(runs) - len(waiting)
    console.print(f"grid {grid.name}: {len(runs)} runs, {done} finished, {len(waiting)} to run", highlight=False)
    failed: dict[str, str] = {}
    if waiting:
        journal = Journal(out, grid.name, output.begin())
        for run in waiting:
            _set_aside(run, output, journal, console)
        expected = estimate(runs, Journal.seconds(out), profile)
        output.update([run.name for run in waiting])
        try:
            failed = _work(grid, runs, _longest_first(waiting, expected), output, options, journal, console)
        except KeyboardInterrupt:
            journal.write("stop")
            ready = sum(run.finished for run in runs)
            again = shlex.join(["fmlora", "grid", name_or_path, "--out", output.where, *options.words()])
            if address := os.environ.get("RAY_ADDRESS"):  # without it, the command would start a Ray of its own
                again = f"RAY_ADDRESS={shlex.quote(address)} {again}"
            console.print(
                f"stopped, {ready} of {len(runs)} runs are done; start the same command again to go on from the last "
                f"checkpoints: {again}",
                highlight=False,
                soft_wrap=True,
            )
            return _INTERRUPTED
        if journal.broken:
            _say(console, f"the grid's event log lacks lines: {journal.broken}", "yellow")
    for name, message in failed.items():
        _say(console, f"failed: {name}: {message} (log: {output.where}/runs/{name}/log.txt)", "red")
    results = read_runs((run.folder for run in runs if run.finished), [_planned(run) for run in runs])
    if results.runs:
        report = make_report(results)
        print_report(report, console)
        written = [f"{output.where}/{path.relative_to(out)}" for path in write_report(report, out / FOLDER)]
        output.update(())
        console.print(f"written: {name_files(written)}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def print_plan(name_or_path: str, out: Path | str, console: Console, options: Options, cluster: Cluster) -> int:
    """Say what a grid would run and how long that would take; nothing is started or written. Gives 0.

    Raises:
        UserError: a grid that cannot be run, or that asks for more than the cluster has.
    """
    grid = load_grid(name_or_path)
    check_trackers(options.trackers)
    with open_output(out).opened() as output:
        return _print_plan(grid, output.folder, console, options, cluster)


def _print_plan(grid: Grid, out: Path, console: Console, options: Options, cluster: Cluster) -> int:
    runs = plan_runs(grid, out, data_root=options.data_root, check=bool(options.data_root))
    expected = estimate(runs, Journal.seconds(out), load_profile(options.profile) if options.profile else None)
    if cluster != Cluster() or not expected.reason:
        _refuse_impossible(runs, cluster)
    waiting = [run for run in runs if not run.finished]
    console.print(
        f"grid {grid.name}: {len(runs)} runs, {len(runs) - len(waiting)} done, {len(waiting)} to run", highlight=False
    )
    console.print(_overview(grid, runs, expected))
    if expected.reason:
        _say(console, f"no times of all runs, so no makespan: {expected.reason}")
        return 0
    for which, some in (("what is left", waiting), ("the whole grid", runs)):
        if some:
            _say(console, f"{which} on {cluster}: {_simulated(some, expected, cluster)}")
    _say(console, f"times from {expected.source}")
    return 0


def _work(
    grid: Grid,
    runs: Sequence[PlannedRun],
    waiting: Sequence[PlannedRun],
    output: Output,
    options: Options,
    journal: Journal,
    console: Console,
) -> dict[str, str]:
    """Run ``waiting``, and what another grid works on once that is free. Gives the failed ones, with reasons."""
    from cluster.place import Placing, place  # Ray takes seconds to import, and a finished grid does without it

    def warn(text: str) -> None:
        _say(console, text, "yellow")

    failed: dict[str, str] = {}
    plan = [{"run": run.name, **_planned(run).column._asdict(), "method": run.config.method.name} for run in runs]
    journal.write("grid", runs=len(runs), waiting=len(waiting), plan=plan)
    while waiting:
        placing = Placing(
            output=output,
            retries=options.retries,
            stall_timeout=options.stall_timeout,
            trackers=make_trackers(options.trackers, grid.name, output.folder, warn),
        )
        states = place(runs, waiting, placing, journal, console)
        output.update([run.name for run in waiting])
        for state in states:
            if times := len(state.failures):
                warn(f"tried again, {times} of {options.retries} times: {state.folder.name}: {state.failures[-1]}")
        failed |= {state.folder.name: state.message for state in states if state.status == "failed"}
        elsewhere = {state.folder.name for state in states if state.status == "elsewhere"}
        waiting = _wait([run for run in runs if run.name in elsewhere], output, console)
    journal.write("end", failed=sorted(failed))
    return failed


def _planned(run: PlannedRun) -> Planned:
    assert run.config.tasks is not None
    column = Column(run.config.benchmark, run.config.scenario, run.config.tasks)
    return Planned(run.name, column, run.config.method.name)


def _wait(busy: list[PlannedRun], output: Output, console: Console) -> list[PlannedRun]:
    """Wait until another grid has let go of all these runs; gives those that it has not finished."""
    if busy:
        _say(console, f"waiting for {len(busy)} runs that another grid works on")
    while any(output.busy(run.name) for run in busy):
        time.sleep(_LOOK_EVERY)
    output.update([run.name for run in busy])
    return [run for run in busy if not run.finished]


def _set_aside(run: PlannedRun, output: Output, journal: Journal, console: Console) -> None:
    """A result that cannot be read goes out of the way, so that the run is repeated."""
    aside = output.set_result_aside(run.name)
    if aside:
        message = f"{run.name}: its result.json cannot be read; it is now {aside.name}, and the run is repeated"
        _say(console, message, "yellow")
        journal.write("set_aside", run=run.name, file=aside.name)


def _longest_first(runs: Sequence[PlannedRun], expected: Estimate) -> list[PlannedRun]:
    """Those of unknown length first, in the file's order: any of them may be the longest."""
    return sorted(runs, key=lambda run: -expected.seconds.get(run.name, float("inf")))


def _simulated(runs: Sequence[PlannedRun], expected: Estimate, cluster: Cluster) -> str:
    ordered = _longest_first(runs, expected)
    times = [(expected.seconds[run.name], run.resources.bundle(), run.resources.n_processes) for run in ordered]
    total = makespan(times, cluster.resources())
    alone = sum(seconds for seconds, _, _ in times)
    return f"{show_duration(total)} simulated, longest first ({show_duration(alone)} one after the other)"


def _refuse_impossible(runs: Sequence[PlannedRun], cluster: Cluster) -> None:
    for run in runs:
        bundle, count = run.resources.bundle(), run.resources.n_processes
        if fitting(cluster.resources(), bundle) < count:
            raise UserError(
                f"plan: {count} x {bundle} of {run.name} does not fit the nodes ({cluster}); give --nodes, "
                "--gpus-per-node and --cpus-per-node"
            )


def _overview(grid: Grid, runs: Sequence[PlannedRun], expected: Estimate) -> Table:
    table = Table(header_style="bold")
    for name in ("benchmark", "scenario"):
        table.add_column(name)
    for name in ("tasks", "methods", "seeds", "runs", "done", "run hours"):
        table.add_column(name, justify="right")
    columns = list(dict.fromkeys((run.config.benchmark, run.config.scenario, run.config.tasks) for run in runs))
    for column in columns:
        some = [run for run in runs if (run.config.benchmark, run.config.scenario, run.config.tasks) == column]
        seconds = [expected.seconds.get(run.name) for run in some]
        hours = "–" if None in seconds else f"{sum(value or 0.0 for value in seconds) / 3600:.2f}"
        methods, seeds = len({run.variant for run in some}), len({run.config.seed for run in some})
        counts = (methods, seeds, len(some), sum(run.finished for run in some))
        table.add_row(*map(str, column), *map(str, counts), hours)
    return table


def _say(console: Console, text: str, style: str = "") -> None:
    # One line, however narrow the terminal, and just as it is: a path may be long and hold brackets.
    console.print(Text(text, style), soft_wrap=True)
