"""Where a grid's figures go beside its own records: TensorBoard always, Weights & Biases or MLflow when asked for.

A tracker is told the events of the runs as the driver reads them, so a run knows nothing of trackers, and only the
driver's machine needs a tracker's library and account.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cluster.watch import RunState
from fmlora_dist.errors import UserError, nearest

__all__ = ["TRACKERS", "Tracker", "check_trackers", "figures", "make_trackers"]


class Tracker(Protocol):
    """Takes the events of all runs of a grid."""

    def event(self, run: RunState, event: dict[str, Any]) -> None:
        """One event of a run, as in its events.jsonl."""

    def close(self) -> None:
        """The grid has ended."""


def figures(event: dict[str, Any]) -> tuple[str, int, dict[str, float]] | None:
    """(what the steps count, step, figures) of an event; None when it has none.

    While a task is learned the steps are those of training, after each task they are the tasks. Accuracies in %.
    """
    if event.get("event") == "progress":
        names = {"images_per_second": "train/images_per_second", "loss": "train/loss", "task": "train/task"}
        values = {shown: float(event[name]) for name, shown in names.items() if event.get(name) is not None}
        return ("step", int(event["global_step"]), values) if "global_step" in event else None
    if event.get("event") == "task":
        each = {f"accuracy/task_{number:02}": value for number, value in enumerate(event["accuracies"], start=1)}
        return "task", int(event["task"]), {"accuracy/mean": event["acc"], **each}
    return None


class _PerRun(ABC):
    """Common to all: something is opened for each run at its first figures, and closed with the grid.

    A tracker that fails must not stop the grid: it is told nothing more, and ``warn`` says why, once.
    """

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._open: dict[Path, Any] = {}
        self._broken = False

    def event(self, run: RunState, event: dict[str, Any]) -> None:
        if not self._broken:
            with self._guarded():
                if found := figures(event):
                    if run.folder not in self._open:
                        self._open[run.folder] = self.begin(run)
                    self.write(self._open[run.folder], *found, float(event.get("time", 0.0)))
        if event.get("event") == "complete":
            self._end(run.folder)

    def close(self) -> None:
        for folder in list(self._open):
            self._end(folder)

    def _end(self, folder: Path) -> None:
        if folder in self._open:
            with self._guarded():
                self.end(self._open.pop(folder))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker's library raises: a full disk, no network, no account
            self._broken = True
            self._warn(f"{type(self).__name__} is told nothing more: {' '.join(str(error).split())[:200]}")

    @abstractmethod
    def begin(self, run: RunState) -> Any: ...

    @abstractmethod
    def write(self, opened: Any, counted: str, step: int, values: dict[str, float], time: float) -> None: ...

    @abstractmethod
    def end(self, opened: Any) -> None: ...


class TensorBoard(_PerRun):
    """Event files in each run's folder ``tensorboard``, by tensorboardX, which Ray Tune depends on anyway."""

    def begin(self, run: RunState) -> Any:
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(run.folder / "tensorboard"), flush_secs=5)

    def write(self, opened: Any, counted: str, step: int, values: dict[str, float], time: float) -> None:
        for name, value in values.items():
            opened.add_scalar(name, value, step, walltime=time)

    def end(self, opened: Any) -> None:
        opened.close()


class Wandb(_PerRun):
    """A run of Weights & Biases for each run, in a group by the grid's name; its own settings come from WANDB_*."""

    def __init__(self, warn: Callable[[str], None], grid: str, out: Path):
        super().__init__(warn)
        self._grid, self._out = grid, out

    def begin(self, run: RunState) -> Any:
        wandb = importlib.import_module("wandb")
        opened = wandb.init(
            project="fmlora",
            group=self._grid,
            name=f"{run.label} {run.method}",
            id=run.folder.name,
            resume="allow",
            dir=str(self._out),
            reinit="create_new",
        )
        for counted in ("step", "task"):
            opened.define_metric(counted)
        opened.define_metric("train/*", step_metric="step")
        opened.define_metric("accuracy/*", step_metric="task")
        return opened

    def write(self, opened: Any, counted: str, step: int, values: dict[str, float], time: float) -> None:
        opened.log({counted: step, **values})

    def end(self, opened: Any) -> None:
        opened.finish()


class MLflow(_PerRun):
    """A run of MLflow for each run, in an experiment by the grid's name, at MLFLOW_TRACKING_URI."""

    def __init__(self, warn: Callable[[str], None], grid: str):
        super().__init__(warn)
        self._grid = grid

    def begin(self, run: RunState) -> Any:
        tracking = importlib.import_module("mlflow.tracking").MlflowClient()
        experiment = tracking.get_experiment_by_name(self._grid)
        place = experiment.experiment_id if experiment else tracking.create_experiment(self._grid)
        made = tracking.create_run(place, run_name=f"{run.label} {run.method}", tags={"fmlora.run": run.folder.name})
        return tracking, made.info.run_id

    def write(self, opened: Any, counted: str, step: int, values: dict[str, float], time: float) -> None:
        tracking, run_id = opened
        for name, value in values.items():
            tracking.log_metric(run_id, name, value, timestamp=int(1000 * time), step=step)

    def end(self, opened: Any) -> None:
        tracking, run_id = opened
        tracking.set_terminated(run_id)


TRACKERS = ("wandb", "mlflow")
"""What ``--tracker`` takes beside TensorBoard, which is always there; also the names of their packages."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises ``UserError`` for an unknown one, or one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"tracker: unknown '{name}': {nearest(name, TRACKERS)}")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"tracker: '{name}' is not installed here ({error}); pip install {name}, or leave --tracker out"
            ) from error


def make_trackers(names: Sequence[str], grid: str, out: Path, warn: Callable[[str], None]) -> list[Tracker]:
    """TensorBoard, and those asked for, which ``check_trackers`` has let pass."""
    asked: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: Wandb(warn, grid, out),
        "mlflow": lambda: MLflow(warn, grid),
    }
    return [TensorBoard(warn), *(asked[name]() for name in dict.fromkeys(names))]
