"""DeepSpeed's stages: the losses of one process, checkpoints that fit any stage and world size, tasks without leaks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launching import finish, launch
from observing import observe
from running import (
    REPOSITORY,
    checkpoint,
    command,
    events,
    finished,
    result,
    run_arguments,
    scratch,
    tiny_data,
    two_processes,
)
from tiny_benchmark import write_tiny

TESTS = REPOSITORY / "tests"


def _cases() -> dict[str, dict[str, object]]:
    methods = ("finetune", "lora", "inflora", "sdlora", "fmlora")
    cases = {
        f"{method}-zero{stage}": {"method": method, "deepspeed": f"zero{stage}"}
        for method in methods
        for stage in range(3)
    }
    cases["finetune-zero3"] = {"method": "finetune", "deepspeed": "zero3"}
    for stage in range(4):
        cases[f"bf16-zero{stage}"] = {"method": "finetune", "deepspeed": f"zero{stage}", "train__precision": "bf16"}
        micro = {"train__accumulation": 3, "train__clip": 0.5}
        cases[f"micro-zero{stage}"] = {"method": "finetune", "deepspeed": f"zero{stage}", **micro}
    # Two tasks of two epochs of seven steps, the last of an epoch a smaller one.
    return {name: {"tasks": 2, "epochs": 2, "batch_size": 7, **fields} for name, fields in cases.items()}


CASES = _cases()


@pytest.fixture(scope="module")
def staged() -> Path:
    """The folder of runs that two processes did, under every stage."""
    folder = scratch() / "staged"
    folder.mkdir()
    launched = launch(TESTS / "staging.py", folder, tiny_data(), json.dumps(CASES))
    code, out, err = finish(launched, timeout=900)
    assert code == 0, out + err
    return folder


@pytest.fixture(scope="module")
def alone() -> Callable[[str], list[float]]:
    """The losses of one process in a case: without micro-batches, and the same for every stage."""
    seen: dict[str, list[float]] = {}

    def losses(name: str) -> list[float]:
        fields = {key: value for key, value in CASES[name].items() if key not in ("deepspeed", "train__accumulation")}
        key = json.dumps(fields)
        if key not in seen:
            out = scratch() / "alone-for-stages" / str(len(seen))
            seen[key] = observe(out, tiny_data(), **fields)["losses"]  # type: ignore[arg-type]
        return seen[key]

    return losses


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_losses_of_one_under_every_stage(
    name: str, staged: Path, alone: Callable[[str], list[float]]
) -> None:
    both = [json.loads((staged / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    losses = [(first + second) / 2 for first, second in zip(both[0]["losses"], both[1]["losses"], strict=True)]
    one = alone(name)
    assert len(losses) == 28
    # Stages 1 to 3 exchange the gradients of linear layers in bf16 when that is the arithmetic.
    assert losses[:20] == pytest.approx(one[:20], rel=0.02 if name.startswith("bf16") else 1e-4)
    for seen in both:
        assert seen["hooks"] == [0, 0], "DeepSpeed leaves no hook on the method"
        assert max(seen["engines"]) <= 1


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_accuracies_and_what_is_stored_do_not_depend_on_the_stage(name: str, staged: Path) -> None:
    plain = name.partition("-")[0] + "-zero0"
    for part in ("parameters", "ranks", "test_sizes"):
        assert result(staged / name)[part] == result(staged / plain)[part]
    assert result(staged / name)["metrics"]["acc"] == pytest.approx(result(staged / plain)["metrics"]["acc"], abs=5.0)
    mine, theirs = checkpoint(staged / name)[0], checkpoint(staged / plain)[0]
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in theirs.items()}


# -- checkpoints --------------------------------------------------------------------------------------------------


def _in_task_2(out: Path) -> Callable[[], bool]:
    """Whether the run is in task 2, an epoch of which is done: the checkpoint holds the optimizer's state."""

    def reached() -> bool:
        if not (out / "checkpoint.safetensors").exists():
            return False
        position = checkpoint(out)[1]
        return bool(position["task"] == 2 and position["epoch"] == 1)

    return reached


def _assert_resumed_run_of(method: str, out: Path) -> None:
    """It went on in task 2, and ends where the undisturbed run of one process ends."""
    start = [event for event in events(out) if event["event"] == "start"][-1]
    assert start["resumed_at"]["task"] >= 2
    mine, theirs = checkpoint(out)[0], checkpoint(finished(method))[0]
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.allclose(mine[name], theirs[name], atol=3e-4, rtol=0), name
    assert result(out)["ranks"] == result(finished(method))["ranks"]
    assert result(out)["metrics"]["acc"] == pytest.approx(result(finished(method))["metrics"]["acc"], abs=3.0)


def test_two_processes_under_zero_1_go_on_as_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = run_arguments(out, method="fmlora", deepspeed="zero1", train__accumulation=2)
    killed = two_processes(words, kill_when=_in_task_2(out))
    assert [done.code for done in killed] == [-9, -9], killed
    tensors = checkpoint(out)[0]
    assert any(name.endswith("/exp_avg") for name in tensors)
    assert not any(name.startswith("method/backbone.blocks") for name in tensors), "the frozen backbone is not in it"
    done = command([*run_arguments(out, method="fmlora"), "--resume"])
    assert done.code == 0, done.err
    _assert_resumed_run_of("fmlora", out)


def test_one_process_goes_on_as_two_under_zero_3(tmp_path: Path) -> None:
    out = tmp_path / "run"
    # Files are put in place in this order: config, start of task 1, its two epochs, its end, start of task 2, an epoch.
    assert command(run_arguments(out, method="finetune"), kill_at_replace=(6, True)).code == -9
    assert _in_task_2(out)()
    words = run_arguments(out, method="finetune", deepspeed="zero3")
    done = two_processes([*words, "--resume"])
    assert [each.code for each in done] == [0, 0], done[0].err + done[1].err
    _assert_resumed_run_of("finetune", out)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "before", "after"),
    [
        ("fmlora", "zero0", "alone"),
        ("fmlora", "alone", "zero2"),
        ("finetune", "zero1", "alone"),
        ("finetune", "zero2", "zero3"),
        ("finetune", "zero3", "zero0"),
    ],
)
def test_a_killed_launch_goes_on_under_another_world_size_and_stage(
    method: str, before: str, after: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    if before == "alone":
        assert command(run_arguments(out, method=method), kill_at_replace=(6, True)).code == -9
    else:
        words = run_arguments(out, method=method, deepspeed=before)[1:]
        finish(launch(REPOSITORY / "train.py", *words), kill_when=_in_task_2(out))
    assert not (out / "result.json").exists()
    if after == "alone":
        done = command([*run_arguments(out, method=method), "--resume"])
        assert done.code == 0, done.err
    else:
        words = run_arguments(out, method=method, deepspeed=after)[1:]
        code, printed, err = finish(launch(REPOSITORY / "train.py", *words, "--resume"))
        assert code == 0, printed + err
    _assert_resumed_run_of(method, out)


# -- tasks in a row -----------------------------------------------------------------------------------------------

ROWS = ("finetune-zero0", "finetune-zero1", "finetune-zero3", "fmlora-zero2")


@pytest.fixture(scope="module")
def forty() -> Path:
    """The folder of runs of forty tasks; wide enough (0.2 M weights) that an engine which stays would be seen."""
    folder = scratch() / "forty"
    folder.mkdir()
    write_tiny(folder / "data", n_classes=80, per_class=6)
    backbone = json.dumps({"depth": 2, "embed_dim": 96, "num_heads": 3, "patch_size": 16})
    common = {"tasks": 40, "epochs": 1, "workers": 1, "backbone.options": backbone}
    cases: dict[str, Any] = {}
    for row in ROWS:
        method, stage = row.split("-")
        cases[row] = {"method": method, "deepspeed": stage, **common}
    cases["fmlora-zero2"]["method.drs_steps"] = 2
    launched = launch(TESTS / "forty_tasks.py", folder, folder / "data", json.dumps(cases))
    code, out, err = finish(launched, timeout=1200)
    assert code == 0, out + err
    return folder


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS)
def test_forty_tasks_leave_a_process_as_it_was_after_the_second(row: str, forty: Path) -> None:
    for rank in (0, 1):
        held = json.loads((forty / f"{row}-{rank}.json").read_text())
        assert len(held) == 40
        second, last = held[1], held[-1]
        assert last["memory"] == pytest.approx(second["memory"], rel=0.02)
        assert last["threads"] == pytest.approx(second["threads"], rel=0.02)
        assert last["files"] == pytest.approx(second["files"], rel=0.02)
        assert last["hooks"] == second["hooks"] == 0
        assert last["engines"] == second["engines"] <= 1
