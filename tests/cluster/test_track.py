"""Figures for trackers: what TensorBoard's own format holds in the end, and that a broken tracker stops nobody."""

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from cluster.track import TRACKERS, Tracker, check_trackers, figures, make_trackers
from cluster.watch import RunState
from fmlora_dist.errors import UserError

PROGRESS = {"time": 5.0, "event": "progress", "task": 1, "images_per_second": 20.0, "global_step": 7, "loss": 0.5}
TASK = {"time": 6.0, "event": "task", "task": 2, "accuracies": [80.0, 60.0], "acc": 70.0}
COMPLETE = {"time": 7.0, "event": "complete", "acc": 70.0}


def scalars(folder: Path) -> dict[str, tuple[int, float]]:
    """Step and value by name, from the event files: records of length, CRC, bytes, CRC."""
    found = {}
    for file in folder.glob("events.out.tfevents.*"):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found[value.tag] = (event.step, value.simple_value)
    return found


def follow(tracker: Tracker, folder: Path, *events: dict[str, Any]) -> RunState:
    run = RunState(label="icons N=5 s0", method="lora", folder=folder)
    for event in events:
        tracker.event(run, event)
    return run


def test_tensorboard_has_each_runs_figures_by_step_and_by_task(tmp_path: Path) -> None:
    (tracker,) = make_trackers([], "mine", tmp_path, pytest.fail)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        follow(tracker, tmp_path / name, {"event": "start"}, PROGRESS, TASK, *([COMPLETE] if name == "a" else []))
    tracker.close()
    for name in ("a", "b"):
        found = scalars(tmp_path / name / "tensorboard")
        assert found["train/loss"] == (7, 0.5) and found["train/images_per_second"] == (7, 20.0)
        assert found["accuracy/mean"] == (2, 70.0) and found["accuracy/task_02"] == (2, 60.0)


def test_a_tracker_that_cannot_write_is_given_up_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tensorboard").touch()  # a file where its folder belongs
    said: list[str] = []
    (tracker,) = make_trackers([], "mine", tmp_path, said.append)
    follow(tracker, tmp_path / "a", PROGRESS, TASK, PROGRESS, COMPLETE)
    tracker.close()
    assert len(said) == 1 and said[0].startswith("TensorBoard is told nothing more: ")


@pytest.mark.parametrize("event", [{"event": "start"}, {"event": "error", "message": "x"}, {"event": "progress"}])
def test_events_without_figures_are_passed_over(event: dict[str, Any]) -> None:
    assert figures(event) is None


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_with_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # cannot be imported, installed or not
    with pytest.raises(UserError, match=f"'{name}' is not installed here .*pip install {name}"):
        check_trackers([name])


@pytest.mark.long
def test_mlflow_has_a_run_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    _, tracker = make_trackers(["mlflow"], "mine", tmp_path, pytest.fail)
    follow(tracker, tmp_path / "a", PROGRESS, TASK, COMPLETE)
    tracker.close()
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["accuracy/mean"] == 70.0
    assert run.data.tags["fmlora.run"] == "a"


@pytest.mark.long
def test_wandb_has_a_run_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, tracker = make_trackers(["wandb"], "mine", tmp_path, pytest.fail)
    follow(tracker, tmp_path / "a", PROGRESS)
    follow(tracker, tmp_path / "b", PROGRESS, TASK, COMPLETE)
    tracker.close()
    names = [folder.name for folder in (tmp_path / "wandb").glob("offline-run-*")]
    assert sorted(name[-1] for name in names) == ["a", "b"], json.dumps(names)
