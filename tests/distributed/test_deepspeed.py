"""DeepSpeed's stages: the losses of one process, checkpoints that fit any stage and world size, tasks without leaks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
METHODS = ("finetune", "lora", "inflora", "sdlora", "fmlora")
PROMPTS = ("l2p", "dualprompt", "coda_prompt", "hide_prompt")
STEPS = 7
"""Of an epoch, the last a smaller one."""
EPOCHS = 4
"""Of a task, in the runs that stop and go on."""

Fields = dict[str, Any]


def _cases() -> dict[str, Fields]:
    """Runs of two tasks of two epochs."""
    cases: dict[str, Fields] = {
        f"{method}-zero{stage}": {"method": method, "deepspeed": f"zero{stage}"}
        for method in METHODS
        for stage in range(3)
    }
    for method in PROMPTS:  # whose pools and experts are not all chosen in a step
        cases |= {f"{method}-zero{stage}": {"method": method, "deepspeed": f"zero{stage}"} for stage in (0, 2)}
    cases["finetune-zero3"] = {"method": "finetune", "deepspeed": "zero3"}
    for stage in range(3):
        absorbing = {"method": "sdlora_kd", "method__threshold": 2.0}
        cases[f"sdlora_kd-zero{stage}"] = {**absorbing, "deepspeed": f"zero{stage}"}
    for stage in range(4):
        cases[f"bf16-zero{stage}"] = {"method": "finetune", "deepspeed": f"zero{stage}", "train__precision": "bf16"}
        micro = {"train__accumulation": 3, "train__clip": 0.5}
        cases[f"micro-zero{stage}"] = {"method": "finetune", "deepspeed": f"zero{stage}", **micro}
    return {name: {"tasks": 2, "epochs": 2, "batch_size": 7, **fields} for name, fields in cases.items()}


def _parts(method: str) -> list[Fields]:
    """A run that one process begins and ends; between, two go on with it, under another stage each time."""
    fields = {"method": method, "tasks": 2, "epochs": EPOCHS, "batch_size": 7}
    stages = ["zero0", "zero1", "zero2", *(["zero3", "zero1"] if method == "finetune" else ["zero0"])]
    # Each stops in the middle of an epoch, the third of them in task 2.
    two = [{**fields, "deepspeed": stage, "stop_after": STEPS + 1} for stage in stages]
    two[2]["stop_after"] = 2 * STEPS + 2
    return [{**fields, "stop_after": STEPS + 1}, *two, fields]


CASES = _cases()


class Alone(NamedTuple):
    """A run of one process."""

    folder: Path
    losses: list[float]


@pytest.fixture(scope="module")
def staged() -> Path:
    """The folder of runs that two processes did, under every stage: all in one launch, whose start takes longest."""
    folder = scratch() / "staged"
    folder.mkdir()
    cases = {name: [fields] for name, fields in CASES.items()}
    ends: dict[str, list[Any]] = {}
    for method in METHODS:
        name = f"{method}-resumed"
        first, *cases[name], _ = _parts(method)
        ends[name] = [observe(folder / name, tiny_data(), **first)]
    code, out, err = finish(launch(TESTS / "staging.py", folder, tiny_data(), json.dumps(cases)), timeout=2400)
    assert code == 0, out + err
    assert "is deprecated" not in out + err, "what DeepSpeed and torch have to settle is not told to a user"
    for name, seen in ends.items():
        seen.append(observe(folder / name, tiny_data(), **_parts(name.partition("-")[0])[-1]))
        (folder / f"{name}-alone.json").write_text(json.dumps(seen))
    return folder


@pytest.fixture(scope="module")
def alone() -> Callable[[Fields], Alone]:
    """The same run in one process: without micro-batches, and the same for every stage."""
    made: dict[str, Alone] = {}

    def run(fields: Fields) -> Alone:
        kept = {key: value for key, value in fields.items() if key not in ("deepspeed", "train__accumulation")}
        key = json.dumps(kept)
        if key not in made:
            out = scratch() / "alone-for-stages" / str(len(made))
            made[key] = Alone(out, observe(out, tiny_data(), **kept)["losses"])
        return made[key]

    return run


def _losses(staged: Path, name: str) -> list[list[float]]:
    """Of each part of a run in two processes, by step: the mean over them."""
    both = [json.loads((staged / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    return [
        [(mine + others) / 2 for mine, others in zip(one["losses"], other["losses"], strict=True)]
        for one, other in zip(*both, strict=True)
    ]


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_losses_of_one_under_every_stage(
    name: str, staged: Path, alone: Callable[[Fields], Alone]
) -> None:
    (losses,), one = _losses(staged, name), alone(CASES[name]).losses
    assert len(losses) == len(one) == 2 * 2 * STEPS
    # Stages 1 to 3 exchange the gradients of linear layers in bf16 when that is the arithmetic.
    assert losses[:20] == pytest.approx(one[:20], rel=0.02 if name.startswith("bf16") else 1e-4)
    for rank in (0, 1):
        (seen,) = json.loads((staged / f"{name}-{rank}.json").read_text())
        assert seen["hooks"] == [0, 0], "DeepSpeed leaves no hook on the method"
        assert max(seen["engines"]) <= 1


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("-zero0")])
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
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_goes_on_under_every_other_stage_and_world_size(
    method: str, staged: Path, alone: Callable[[Fields], Alone]
) -> None:
    name = f"{method}-resumed"
    whole = alone(_parts(method)[-1])
    first, last = (seen["losses"] for seen in json.loads((staged / f"{name}-alone.json").read_text()))
    parts = [first, *_losses(staged, name), last]
    starts = [event["resumed_at"] for event in events(staged / name) if event["event"] == "start"]
    at = [STEPS * (EPOCHS * (start["task"] - 1) + start["epoch"]) for start in starts]
    assert at == [STEPS * epochs for epochs in ((0, 1, 2, 3, 5, 6, 7) if method == "finetune" else (0, 1, 2, 3, 5, 6))]
    assert at[-1] + len(last) == len(whole.losses) == 2 * EPOCHS * STEPS
    for start, losses in zip(at, parts, strict=True):
        # What the optimizer remembers has come along, too, or the next losses would be others.
        assert losses == pytest.approx(whole.losses[start : start + len(losses)], rel=1e-3)
    mine, theirs = checkpoint(staged / name)[0], checkpoint(whole.folder)[0]
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert torch.allclose(mine[key], theirs[key], atol=3e-4, rtol=0), key
    assert result(staged / name)["ranks"] == result(whole.folder)["ranks"]


# -- tasks in a row -----------------------------------------------------------------------------------------------

ROWS = ("finetune-zero0", "finetune-zero1", "finetune-zero2", "finetune-zero3")
ROWS += ("lora-zero0", "inflora-zero1", "sdlora-zero2", "fmlora-zero2")


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
    code, out, err = finish(launched, timeout=2400)
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
