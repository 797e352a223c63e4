"""Runs placed on the cores and GPUs of this machine, or of the cluster at RAY_ADDRESS, by Ray Tune.

Ray is a servant: the record is the run directories. Its state lies in a scratch folder, and losing it loses nothing.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.capacity import check_requests, cluster_nodes, nodes_to_come
from cluster.journal import Journal
from cluster.output import Output
from cluster.servant import ray_cluster, scratch_folder
from cluster.track import Tracker
from cluster.trial import Outcome, Trial, run_trial
from cluster.watch import LOST, MEMORY, RunState, Watch
from fmlora_dist import __version__
from fmlora_dist.errors import UserError

if TYPE_CHECKING:
    from cluster.plan import PlannedRun

__all__ = ["Placing", "place"]

_News = tuple[str, str, Mapping[str, Any]]
"""(what happened, name of the run, how the run ended if it did)."""


@dataclass(frozen=True, kw_only=True)
class Placing:
    """How runs are placed, whatever they are."""

    output: Output
    """Where their records lie."""
    retries: int = 2
    """How often a run that fails is tried again."""
    stall_timeout: float = 1800.0
    """Seconds without an event after which a run is taken for hanging; 0: never."""
    trackers: Sequence[Tracker] = ()


def place(
    runs: Sequence["PlannedRun"],
    waiting: Sequence["PlannedRun"],
    placing: Placing,
    journal: Journal,
    console: Console,
) -> list[RunState]:
    """Run ``waiting`` in that order as far as there is room, and show all ``runs`` meanwhile.

    Returns:
        Every run's state at the end.

    Raises:
        UserError: a run needs more than there ever is, or a worker has another version of the package, or none of the
            output folder.
        KeyboardInterrupt: it was interrupted; the runs are stopped.
    """
    with scratch_folder() as scratch, ray_cluster(scratch, console):
        slots = check_requests(waiting, cluster_nodes(), nodes_to_come())
        states = {run.name: _state(run) for run in runs}
        for run in runs:
            if run not in waiting:
                states[run.name].status, states[run.name].acc = "done", _acc(run)
        trials = [_trial(run, placing) for run in waiting]
        tuning = _Tuning(trials, placing.retries, scratch)
        desk = _Desk(states, journal)
        try:
            with Watch(states.values(), console, slots=slots) as watch:
                _listen(states.values(), placing.trackers)
                tuning.start()
                working = True
                while working:
                    tuning.join(timeout=0.3)
                    working = tuning.is_alive()
                    news = list(tuning.news())
                    running = [name for name, state in states.items() if state.status == "running"]
                    placing.output.refresh(running, [name for kind, name, _ in news if kind != "start"])
                    desk.take(news)
                    watch.poll()
        finally:
            for tracker in placing.trackers:
                tracker.close()
        if tuning.error:
            raise tuning.error
        for trial in trials:
            if states[trial["name"]].status in ("waiting", "running"):  # Ray gave it up before it ran
                desk.take([("error", trial["name"], {})])
    return list(states.values())


class _Desk:
    """Where Ray's news of the runs arrive: each changes the run's state, and is written down."""

    def __init__(self, states: Mapping[str, RunState], journal: Journal):
        self.states, self.journal = states, journal
        self._outcomes: dict[str, Mapping[str, Any]] = {}

    def take(self, news: Iterable[_News]) -> None:
        """Raises ``UserError`` when a worker cannot run anything."""
        for kind, name, outcome in news:
            state = self.states[name]
            if kind == "start":
                self._outcomes.pop(name, None)
                state.begin()
                self.journal.write("start", run=name)
            elif kind == "result":
                self._outcomes[name] = outcome
                self._result(state, name, outcome)
            else:  # "again" or "error": Ray will try it again, or no more
                code, message = self._last(name) or (None, outcome.get("message", LOST))
                (state.again if kind == "again" else state.end)(code, message)
                self._write("retry" if kind == "again" else "failed", name, state)

    def _result(self, state: RunState, name: str, outcome: Mapping[str, Any]) -> None:
        status = outcome["status"]
        if status == "unfit":
            self.journal.write("refused", run=name, message=outcome["message"])
            raise UserError(outcome["message"])
        if status == "busy":
            state.leave()
            self._write("elsewhere", name, state)
        elif status in ("done", "refused"):
            state.end(outcome["exit_code"], outcome["message"])
            self._write("done" if status == "done" else "failed", name, state)

    def _last(self, name: str) -> tuple[int, str] | None:
        """(exit code, message) of the run's last end; None when it ended with its worker."""
        outcome = self._outcomes.pop(name, None)
        return (outcome["exit_code"], outcome["message"]) if outcome else None

    def _write(self, event: str, name: str, state: RunState) -> None:
        facts: dict[str, Any] = {"acc": state.acc, "resumed": state.resumed}
        if state.seconds is not None:
            facts["seconds"] = round(state.seconds, 2)
        if event != "done":
            facts["message"] = state.message
        host = self._outcomes.get(name, {}).get("host") or state.host
        self.journal.write(event, run=name, **facts, **({"host": host} if host else {}))


class _Tuning(threading.Thread):
    """Ray Tune's loop. It is not the main thread's, which shows the runs and hears Ctrl-C."""

    def __init__(self, trials: list[Trial], retries: int, scratch: Path):
        super().__init__(name="tune", daemon=True)
        self.trials, self.retries, self.scratch = trials, retries, scratch
        self.error: Exception | None = None
        self._news: SimpleQueue[_News] = SimpleQueue()

    def run(self) -> None:
        try:
            self._tuner().fit()
        except Exception as error:  # raised again in the main thread
            self.error = error

    def news(self) -> Iterable[_News]:
        """What has happened since the last time."""
        while not self._news.empty():
            yield self._news.get()

    def _tuner(self) -> Any:
        from ray import tune

        class Report(tune.Callback):
            def __init__(self, news: SimpleQueue[_News]):
                self.news = news

            def __getstate__(self) -> dict[str, Any]:
                return {}  # Tune stores its callbacks, for a restore that is not wanted here

            def _put(self, kind: str, trial: Any, outcome: Mapping[str, Any] | None = None) -> None:
                self.news.put((kind, trial.config["trial"]["name"], outcome or {}))

            def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                self._put("start", trial)

            def on_trial_result(
                self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
            ) -> None:
                self._put("result", trial, {name: result[name] for name in Outcome.__annotations__})

            def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                self._put("again", trial, {"message": _why_lost(trial.get_pickled_error())})

            def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                self._put("error", trial, {"message": _why_lost(trial.get_pickled_error())})

        return tune.Tuner(
            tune.with_resources(run_trial, _needs),
            param_space={"trial": tune.grid_search(self.trials)},
            tune_config=tune.TuneConfig(
                reuse_actors=True, trial_name_creator=_short_name, trial_dirname_creator=_short_name
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.scratch),
                verbose=0,
                callbacks=[Report(self._news)],
                failure_config=tune.FailureConfig(max_failures=self.retries),
            ),
        )


def _why_lost(error: Exception | None) -> str:
    """Of a run that has ended with its worker. Ray ends one when the memory of its node is nearly used up.

    Ray names memory among the possible causes of any other loss, too, so only its monitor's own words count.
    """
    by_ray = re.search("low on memory|memory pressure", str(error))
    return f"{LOST}: Ray ended it for want of memory; {MEMORY}" if by_ray else LOST


def _needs(config: dict[str, Any]) -> Any:
    """One placement group for the trial, with a bundle for each process."""
    from ray import tune

    trial: Trial = config["trial"]
    return tune.PlacementGroupFactory([dict(trial["bundle"])] * trial["processes"])


def _listen(states: Iterable[RunState], trackers: Sequence[Tracker]) -> None:
    for state in states:
        state.listeners += [_to(tracker, state) for tracker in trackers]


def _to(tracker: Tracker, state: RunState) -> Callable[[dict[str, Any]], None]:
    return lambda event: tracker.event(state, event)


def _state(run: "PlannedRun") -> RunState:
    config = run.config
    scenario = "" if config.scenario == "cil" else f" {config.scenario}"
    label = f"{config.benchmark}{scenario} N={config.tasks} s{config.seed}"
    return RunState(label=label, method=run.variant, folder=run.folder, n_tasks=config.tasks or 0)


def _acc(run: "PlannedRun") -> float | None:
    """Of a finished run, whose events may not be at hand."""
    return float(json.loads((run.folder / "result.json").read_bytes())["metrics"]["acc"]) if run.finished else None


def _trial(run: "PlannedRun", placing: Placing) -> Trial:
    return Trial(
        name=run.name,
        config=run.config.plain(),
        out=placing.output.where,
        folder="",
        cwd=os.getcwd(),
        version=__version__,
        processes=run.resources.n_processes,
        bundle=run.resources.bundle(),
        stall_timeout=placing.stall_timeout,
    )


def _short_name(trial: Any) -> str:
    return str(trial.trial_id)
