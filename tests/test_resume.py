"""Kill -9 at any moment, then --resume: the same run, bit for bit."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fmlora_dist.config import parse_config
from fmlora_dist.distributed import World
from fmlora_dist.engine import Engine
from fmlora_dist.record import RunDirectory
from fmlora_dist.registry import list_methods
from fmlora_dist.run import Run
from running import (
    assert_same_run,
    checkpoint,
    command,
    events,
    finished,
    result,
    run_arguments,
    tiny_data,
    two_processes,
)
from tiny_benchmark import tiny_arguments

METHODS = ("fmlora", "inflora", "sdlora")
UNTRAINED = ("simplecil", "ranpac")


def _seconds_of_a_run(out: Path) -> float:
    times = [event["time"] for event in events(out)]
    return float(times[-1] - times[0])


@pytest.mark.parametrize("time", range(4))
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_a_random_time_and_resumed_equals_the_undisturbed_one(
    method: str, time: int, tmp_path: Path
) -> None:
    whole = finished(method)
    out, draw = tmp_path / "run", random.Random(f"{method}/{time}")
    words = run_arguments(out, method=method)
    # Before the first step a kill is less interesting, but must do no harm either.
    killed = command(words, kill_after=0.2 + draw.uniform(0, 0.9 * _seconds_of_a_run(whole)))
    assert killed.code in (-9, 0)  # a machine in a good mood may have finished it
    left = checkpoint(out)[1] if (out / "checkpoint.safetensors").exists() else {"task": 1, "epoch": 0}
    complete = (out / "result.json").exists()
    done = command([*words, "--resume"])
    assert done.code == 0, done.err
    assert_same_run(out, whole)
    if not complete:
        start = [event for event in events(out) if event["event"] == "start"][-1]
        assert start["resumed_at"] == {"task": left["task"], "epoch": left["epoch"]}


def test_a_run_killed_again_and_again_still_equals_the_undisturbed_one(tmp_path: Path) -> None:
    whole, out, draw = finished("fmlora"), tmp_path / "run", random.Random(0)
    words = [*run_arguments(out, method="fmlora"), "--resume"]
    # However fast or slow the machine is today, it is killed once at least.
    assert command(words, kill_at_replace=(2, True)).code == -9
    kills = [command(words, kill_after=0.3 + draw.uniform(0, 0.4 * _seconds_of_a_run(whole))).code for _ in range(3)]
    assert set(kills) <= {-9, 0}
    assert command(words).code == 0
    assert_same_run(out, whole)


# Files are put in place in this order: 0 the config, then the checkpoints, 1 at the start of task 1, 2 and 3 after its
# epochs, 4 after the task, …, 12 after task 3, and 13 the result.
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [0, 1, 4, 7, 13])
def test_a_run_killed_while_it_puts_a_file_in_place_leaves_a_good_directory(
    number: int, late: bool, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = run_arguments(out, method="fmlora")
    assert command(words, kill_at_replace=(number, late)).code == -9
    assert command([*words, "--resume"]).code == 0
    assert_same_run(out, finished("fmlora"))
    assert {path.name for path in out.iterdir()} <= {
        ".lock",
        "config.yaml",
        "events.jsonl",
        "checkpoint.safetensors",
        "result.json",
    }


@pytest.mark.parametrize("method", [name for name in list_methods() if name not in METHODS])
def test_every_other_method_resumes_from_where_a_task_begins_and_from_its_midst(method: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*run_arguments(out, method=method), "--resume"]
    # The numbers above; a resumed process counts from 0. So: task 1 begins, task 2 after an epoch, task 3 begins.
    # Where nothing trains there are no epochs: each of the tasks begins.
    numbers = (1, 1, 1) if method in UNTRAINED else (1, 4, 2)
    codes = [command(words, kill_at_replace=(number, True)).code for number in numbers]
    assert codes[0] == -9 and (method == "joint" or codes == [-9, -9, -9])
    assert command(words).code == 0
    assert_same_run(out, finished(method))


class _Stopped(Exception):
    pass


class _Positions(RunDirectory):
    """A run directory that notes after how many steps each checkpoint was written."""

    def __init__(self, folder: Path, steps: list[float]):
        super().__init__(folder)
        self.steps = steps
        self.written: list[tuple[int, bool, int, int]] = []

    def save_checkpoint(self, tensors: Any, position: dict[str, Any]) -> None:
        super().save_checkpoint(tensors, position)
        self.written.append((position["task"], position["begun"], position["epoch"], len(self.steps)))


@pytest.mark.parametrize("stop", [1, 4, 11, 15, 23])
def test_only_the_steps_since_the_last_checkpoint_are_repeated(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*tiny_arguments(tiny_data(), method="sdlora"), "--out", str(tmp_path / "run")]
    config, _ = parse_config(words, prog="fmlora run")
    step, losses, limit = Engine.step, list[float](), stop

    def counted(self: Engine, *batch: Any) -> Any:
        if len(losses) == limit:
            raise _Stopped
        loss = step(self, *batch)
        losses.append(loss.item())
        return loss

    def go() -> _Positions:
        record = _Positions(tmp_path / "run", losses)
        record.open(config)
        try:
            Run(config, World("cpu", 1)).go(record)
        except _Stopped:
            pass
        finally:
            record.close()
        return record

    monkeypatch.setattr(Engine, "step", counted)
    first = go()
    # Eight steps a task in two epochs: a checkpoint as it begins, after each epoch, and when it is over.
    every = [
        (task, begun, epoch, steps)
        for task in (1, 2, 3)
        for begun, epoch, steps in ((True, 0, 8 * task - 8), (True, 1, 8 * task - 4), (True, 2, 8 * task))
    ]
    every = sorted([*every, *((task + 1, False, 0, 8 * task) for task in (1, 2, 3))], key=lambda entry: entry[3])
    reached = [entry for entry in every if entry[3] <= stop]
    assert sorted(first.written) == sorted(reached)
    at, interrupted = first.written[-1][3], list(losses)
    assert stop - at < 4
    losses.clear()
    limit = 10**9
    go()
    assert len(losses) == 24 - at
    assert losses[: stop - at] == interrupted[at:], "the repeated steps are the same steps"
    assert result(tmp_path / "run")["accuracy_matrix"] == result(finished("sdlora"))["accuracy_matrix"]


def test_resume_starts_a_run_where_there_is_none(tmp_path: Path) -> None:
    done = command([*run_arguments(tmp_path / "new" / "run", method="lora", tasks=2, epochs=1), "--resume"])
    assert done.code == 0, done.err
    assert len(result(tmp_path / "new" / "run")["accuracy_matrix"]) == 2


def test_resume_of_a_complete_run_says_so_and_changes_nothing(tmp_path: Path) -> None:
    out = finished("fmlora")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    done = command([*run_arguments(out, method="fmlora"), "--resume"])
    assert (done.code, done.err) == (0, "")
    assert f"{out} is complete: Acc {result(out)['metrics']['acc']:.2f}" in done.out
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before


@pytest.mark.parametrize("text", ["", '{"schema": 1, "status"', "[]", '{"schema": 1, "status": "complete"}'])
def test_a_corrupt_result_is_set_aside_and_the_run_goes_on_from_its_last_checkpoint(text: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = run_arguments(out, method="fmlora")
    assert command(words, kill_at_replace=(6, True)).code == -9  # in task 2, after an epoch
    (out / "result.json").write_text(text)
    (out / "result.json.broken-1").write_text("of another time")
    done = command([*words, "--resume"])
    assert (done.code, done.err) == (0, "")
    (line,) = [line for line in done.out.splitlines() if "result.json" in line]
    assert line == f"{out}/result.json cannot be read; it is now result.json.broken-2, and the run is repeated"
    assert (out / "result.json.broken-2").read_text() == text
    assert (out / "result.json.broken-1").read_text() == "of another time"
    assert events(out)[-1]["event"] == "complete"
    assert [event for event in events(out) if event["event"] == "start"][-1]["resumed_at"] == {"task": 2, "epoch": 1}
    assert_same_run(out, finished("fmlora"))


def test_two_processes_set_a_corrupt_result_aside_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished("frozen"), out)
    (out / "result.json").write_text("{")
    both = two_processes([*run_arguments(out, method="frozen"), "--resume"])
    assert [(done.code, done.err) for done in both] == [(0, ""), (0, "")]
    assert [done.out.count("it is now result.json.broken-1") for done in both] == [1, 0]
    assert result(out)["accuracy_matrix"] == result(finished("frozen"))["accuracy_matrix"]
    assert not (out / "result.json.broken-2").exists()


def test_a_run_that_is_in_progress_is_not_entered_by_a_second_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*tiny_arguments(tiny_data(), method="lora"), "--out", str(out)]
    record = RunDirectory(out)
    record.open(parse_config(words, prog="fmlora run")[0])
    try:
        done = command(["run", *words, "--resume"])
    finally:
        record.close()
    assert done.code == 75, "so that a grid tells it from a mistake"
    assert "another process is working in" in done.err and done.err.count("\n") == 1


def test_the_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    tensors, position = checkpoint(finished("fmlora"))
    assert position["task"] == 4 and not any(name.startswith("optimizer/") for name in tensors)
    out = tmp_path / "run"
    words = run_arguments(out, method="fmlora", train__optimizer="sgd", epochs=3)
    assert command(words, kill_at_replace=(3, True)).code == -9
    tensors, position = checkpoint(out)
    assert (position["task"], position["epoch"]) == (1, 2)
    assert int(tensors["optimizer/step"]) == 8
    assert any(name.endswith("/momentum_buffer") for name in tensors)
    assert command([*words, "--resume"]).code == 0
    straight = tmp_path / "straight"
    assert command(run_arguments(straight, method="fmlora", train__optimizer="sgd", epochs=3)).code == 0
    assert_same_run(out, straight)
    assert all(torch.isfinite(value).all() for value in checkpoint(out)[0].values())
