"""`fmlora profile steps` on a tiny ViT: what it measures and says, and nothing that depends on the clock."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.estimate import load_profile
from fmlora_dist import registry
from fmlora_dist.config import parse_config
from fmlora_dist.distributed import World
from fmlora_dist.errors import UserError
from fmlora_dist.method import Method, MethodInfo, ParameterGroup
from fmlora_dist.profile.random_task import CLASSES
from fmlora_dist.profile.steps import StepsProfile, method_fields
from fmlora_dist.profile.subjects import Floor, Learner, Setup, Subject
from fmlora_dist.registry import list_methods
from running import Done, command_here
from tiny_benchmark import BACKBONE, SIZE

WIDTH, BLOCKS = 48, 2
PROMPTED = "fmlora:prompt_tokens=2"
HEAD = CLASSES * (WIDTH + 1)
BALLAST = 512 << 20


def tiny_setup(n_tasks: int = 3) -> Setup:
    config, _ = parse_config([*BACKBONE, "--batch-size", "4", "--threads", "1", "--device", "cpu"], prog="test")
    return StepsProfile(config=config, tasks=n_tasks, image_size=SIZE).setup()


def learner(name: str, n_tasks: int = 3) -> Learner:
    return Learner(tiny_setup(n_tasks), method_fields(name))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path, int]:
    """The command, its file, and the most memory that this process had until then."""
    file = tmp_path_factory.mktemp("steps") / "profile.json"
    ballast = np.ones(BALLAST, dtype=np.uint8)
    words = ["profile", "steps", "--methods", f"lora,{PROMPTED}", "--tasks", 3, "--rounds", 2, "--batch-size", 4]
    done = command_here([*words, "--image-size", SIZE, "--device", "cpu", "--json", file, *BACKBONE])
    assert file.exists(), done.err
    assert ballast[-1] == 1
    return done, file, World("cpu", 1).peak_memory()


def rows_of(measured: tuple[Done, Path, int]) -> dict[tuple[str, int], dict[str, Any]]:
    rows = json.loads(measured[1].read_text())["rows"]
    assert len({(row["method"], row["task"]) for row in rows}) == len(rows)
    return {(row["method"], row["task"]): row for row in rows}


def test_every_method_has_a_row_of_every_field_at_the_tasks_1_2_and_n(measured: tuple[Done, Path, int]) -> None:
    rows = rows_of(measured)
    assert set(rows) == {(method, task) for method in ("lora", PROMPTED) for task in (1, 2, 3)}
    names = "method task seconds_per_step ratio_to_floor spread peak_memory_bytes trainable stored"
    assert all(set(row) == set(names.split()) for row in rows.values())
    assert all(row["seconds_per_step"] > 0 and row["ratio_to_floor"] > 0 for row in rows.values())


def test_trainable_and_stored_are_those_of_the_methods_mathematics_at_a_fixed_rank(
    measured: tuple[Done, Path, int],
) -> None:
    rows = rows_of(measured)
    projections, bases, factors = 2 * BLOCKS, 2 * 16 * WIDTH, 2 * 16 * 16
    for task in (1, 2, 3):
        assert rows["lora", task]["trainable"] == projections * 2 * 10 * WIDTH + HEAD
        assert rows["lora", task]["stored"] == projections * 2 * 10 * WIDTH + task * HEAD
        learned = bases if task == 1 else factors
        assert rows[PROMPTED, task]["trainable"] == projections * learned + HEAD + 2 * WIDTH
    grown = [rows[PROMPTED, task]["stored"] for task in (1, 2, 3)]
    assert np.diff(grown).tolist() == [HEAD, HEAD], "beside the head nothing grows"


def test_the_table_states_each_bound_and_the_exit_code_whether_all_are_met(measured: tuple[Done, Path, int]) -> None:
    done, file, _ = measured
    figures = json.loads(file.read_text())
    bounds = {bound["name"]: bound for bound in figures["bounds"]}
    for method in ("lora", PROMPTED):
        flat, fast = bounds[f"{method}: step at task 3 over task 2"], f"{method}: images/s merged over a plain timm ViT"
        assert (flat["least"], flat["most"]) == (0.97, 1.03)
        assert (bounds[fast]["least"], bounds[fast]["most"]) == (0.98, None)
    assert len(bounds) == 4
    assert done.code == (0 if all(bound["met"] for bound in bounds.values()) else 1)
    assert done.out.count("NOT MET") == sum(not bound["met"] for bound in bounds.values())
    assert figures["setup"]["rounds"] == {"1": 2, "2": 2, "3": 2}


def test_a_plan_reads_the_file(measured: tuple[Done, Path, int]) -> None:
    profile, rows = load_profile(measured[1]), rows_of(measured)
    times = [rows["lora", task]["seconds_per_step"] for task in (1, 2, 3)]
    assert profile.seconds("lora", [5, 7, 11]) == pytest.approx(np.dot(times, [5, 7, 11]))
    assert profile.seconds("fmlora", [1, 1, 1]) is None, "other hyperparameters than the method's own are no run's"


def test_the_peak_memory_is_that_of_a_process_of_its_own(measured: tuple[Done, Path, int]) -> None:
    here = measured[2]
    assert here > BALLAST
    for row in rows_of(measured).values():
        assert 0 < row["peak_memory_bytes"] < here - BALLAST // 2


def test_the_floors_gradients_reach_the_first_block_and_nothing_trains() -> None:
    floor = Floor(tiny_setup())
    inputs: list[torch.Tensor] = []
    floor.backbone.blocks[0].register_forward_pre_hook(lambda block, arguments: inputs.append(arguments[0]))
    floor.step()
    (tokens,) = inputs
    assert tokens.grad is not None and tokens.grad.shape == (4, 10, WIDTH)
    assert (tokens.grad.abs().amax(dim=(1, 2)) > 0).all(), "of every image"
    assert not any(p.requires_grad or p.grad is not None for p in floor.backbone.parameters())


@pytest.mark.parametrize("name", list_methods())
def test_what_is_measured_trains_exactly_what_the_method_says(name: str) -> None:
    subject = learner(name)
    subject.begin(1 if subject.method.info.joint else 2)
    method = subject.method
    groups = {id(p) for group in method.parameter_groups() for p in group.params}
    assert {id(p) for p in method.parameters() if p.requires_grad and p.numel()} == groups
    before = {key: value.clone() for key, value in method._tensors().items()}
    subject.step()
    moved = {id(value) for key, value in method._tensors().items() if not torch.equal(before[key], value)}
    assert moved <= groups and bool(moved) == bool(groups)
    trainable = sum(p.numel() for p in method.parameters() if id(p) in groups)
    assert subject.end().trainable == trainable


@pytest.mark.parametrize("name", list_methods())
def test_every_method_is_led_to_task_n_and_evaluated(name: str) -> None:
    subject = learner(name)
    joint = subject.method.info.joint
    subject.begin(1 if joint else 3)
    assert subject.method.task is not None and subject.method.task.number == (1 if joint else 3)
    assert subject.method.head.n_classes == 3 * CLASSES
    totals = subject.end()
    assert totals.stored == sum(value.numel() for value in subject.method.state_dict().values())
    merged, plain = subject.evaluate(2)
    assert len(merged) == len(plain) == 2 and min(*merged, *plain) >= 0


def test_tasks_are_begun_and_ended_once_each_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, said = learner("lora", n_tasks=4), []
    for what in ("begin_task", "end_task"):
        monkeypatch.setattr(subject.method, what, _telling(said, what, subject, getattr(subject.method, what)))
    for number in (1, 2, 4):
        subject.begin(number)
        subject.step()
        subject.end()
    assert said == [(what, number) for number in (1, 2, 3, 4) for what in ("begin_task", "end_task")]


def _telling(said: list[Any], what: str, subject: Learner, work: Any) -> Any:
    def told(*arguments: Any) -> None:
        work(*arguments)
        said.append((what, subject.method.task.number))  # type: ignore[union-attr]

    return told


class Nothing(Method):
    """Trains nothing."""

    info = MethodInfo(name="nothing", summary="", paper="", family="head")

    def parameter_groups(self) -> list[ParameterGroup]:
        return []


def test_a_method_that_trains_nothing_has_steps_of_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._methods, "nothing", Nothing)
    subject = learner("nothing")
    subject.begin(2)
    assert subject.step() == 0.0
    assert subject.end().trainable == 0


def test_what_goes_wrong_in_a_subjects_process_is_said_here() -> None:
    with pytest.raises(UserError, match=r"method\.rank: found 60, expected at most the width 48"):
        subject = Subject("lora:rank=60", Learner, tiny_setup(), method_fields("lora:rank=60"))
        try:
            subject.call("begin", 1)
        finally:
            subject.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "lroa"], "unknown method 'lroa': did you mean 'lora'?"),
        (["--methods", "lora:rnak=3"], "unknown field 'method.rnak': did you mean 'rank'?"),
        (["--methods", "lora:rank"], "found 'rank' in 'lora:rank', expected FIELD=VALUE"),
        (["--epochs", "3"], "unknown option '--epochs'"),
        (["--tasks", "0"], "found 0, expected at least 1"),
        (["--backbone.name", "vit_tiny_patch16_223"], "timm knows no 'vit_tiny_patch16_223'"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str) -> None:
    done = command_here(["profile", "steps", *words])
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def test_the_backbones_tag_gives_the_pixels() -> None:
    config, _ = parse_config(["--backbone.name", "vit_base_patch16_224.augreg_in21k"], prog="test")
    assert StepsProfile(config=config).setup().image_size == 224
    assert StepsProfile(config=config, image_size=96).setup().image_size == 96
    assert StepsProfile(config=parse_config([], prog="test")[0]).setup().image_size == 48, "of icons"
