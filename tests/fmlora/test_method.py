"""FM-LoRA whole: what DRS leaves behind, what every process agrees on, and what a resumed run has."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fmlora_dist.errors import UserError
from fmlora_dist.fmlora.method import FMLoRA, FMLoRAConfig

DRS = {"rank": 8, "drs_steps": 3, "prompt_tokens": 2}


def everything(method: FMLoRA) -> dict[str, Tensor]:
    """Every tensor, the frozen backbone's and the effective weights among them."""
    tensors = {name: value.detach().clone() for name, value in method.named_parameters()}
    tensors |= {name: value.clone() for name, value in method.named_buffers()}
    return tensors


@pytest.mark.parametrize("shared_head", [False, True])
def test_all_is_restored_bit_for_bit_after_measuring(sequences: Any, shared_head: bool) -> None:
    """The same sequence without DRS is the witness of what task 3 starts from."""
    measured = sequences.make("fmlora", **DRS, candidates=(4, 8))
    sequences.learn(measured, 2, shared_head=shared_head)
    state = {name: value.clone() for name, value in measured.state_dict().items()}

    witness = sequences.make("fmlora", **DRS, candidates=(4, 8))
    witness.load_state_dict(state)
    required = {}
    for method in (measured, witness):
        method.select_trainable()
        method.zero_grad(set_to_none=True)
        required = {name: parameter.requires_grad for name, parameter in method.named_parameters()}
    sequences.begin(measured, 3, shared_head=shared_head)
    rank = int(measured.rank)
    witness.config = FMLoRAConfig(name="fmlora", **DRS, candidates=(4, 8), drs=False, task_rank=rank)
    sequences.begin(witness, 3, shared_head=shared_head)

    learned = {"complexity", "selector.weights", "selector.complexity_sum", "selector.complexity_count"}
    one, two = everything(measured), everything(witness)
    assert set(one) == set(two)
    assert {name for name in one if not torch.equal(one[name], two[name])} <= learned
    assert {name: parameter.requires_grad for name, parameter in measured.named_parameters()} == required
    assert all(parameter.grad is None for parameter in measured.parameters())
    assert all(adapter.prefix is None for adapter in measured.each())


def test_measuring_that_fails_restores_too(sequences: Any) -> None:
    method = sequences.make("fmlora", **DRS)
    sequences.learn(method, 1)
    task = sequences.task(2)
    data = sequences.data(task)
    data.images = data.images * torch.nan
    with pytest.raises(UserError, match=r"task 2: the throw-away training of DRS ends with the loss nan.*train\.lr"):
        method.begin_task(task, data)
    assert all(adapter.prefix is None for adapter in method.each())
    assert method.head.weight.isfinite().all()
    assert method.selector.complexity_count == 0 and method.selector.weights.isfinite().all()


def test_gradients_left_by_a_trainer_do_not_reach_the_measurement(sequences: Any) -> None:
    one, two = (sequences.make("fmlora", **DRS, candidates=(4, 8)) for _ in range(2))
    for method in (one, two):
        sequences.learn(method, 2)
    for parameter in two.parameters():
        parameter.grad = None
    assert any(parameter.grad is not None for parameter in one.parameters())
    for method in (one, two):
        sequences.begin(method, 3)
    assert one.complexity == two.complexity > 0


@pytest.mark.parametrize("seed", range(3))
def test_every_process_chooses_the_same_rank(sequences: Any, peers: Any, seed: int) -> None:
    """Two processes see different halves; what is measured and learned of them is the same on both, bit for bit."""
    methods = [sequences.make("fmlora", **DRS) for _ in range(2)]
    alone = sequences.make("fmlora", **DRS)
    for method in (*methods, alone):
        sequences.learn(method, 1)
    for number in (2, 3, 4):
        task = sequences.task(number, n_tasks=4)
        alone.begin_task(task, sequences.data(task, seed=seed))

        def begin(rank: int, task: Any = task) -> tuple[int, float, list[float]]:
            method = methods[rank]
            method.begin_task(task, sequences.data(task, seed=seed, rank=rank, peers=peers))
            return int(method.rank), method.complexity.item(), method.selector.weights.tolist()

        first, second = peers.run(begin)
        assert first == second
        assert first[0] == int(alone.rank)
        assert first[1] == pytest.approx(alone.complexity.item(), rel=1e-3)
        for method in (*methods, alone):
            method.end_task(sequences.data(task))


def test_selector_learns_at_every_later_task_and_is_carried_on(sequences: Any) -> None:
    # Steps so small that no threshold meets the edge of its part, where it would stay.
    method = sequences.make("fmlora", **DRS, drs_selector_lr=1e-3)
    sequences.learn(method, 1)
    assert method.selector.complexity_count == 0
    for number in (2, 3):
        before = method.selector.weights.clone()
        data = sequences.begin(method, number)
        assert not torch.equal(method.selector.weights, before)
        assert method.selector.complexity_count == number - 1
        method.end_task(data)
    state = method.state_dict()
    copy = sequences.make("fmlora", **DRS)
    copy.load_state_dict(state)
    for name in ("weights", "complexity_sum", "complexity_count"):
        assert torch.equal(getattr(copy.selector, name), state[f"selector.{name}"])
    assert torch.equal(copy.selector.weights, method.selector.weights)


def test_first_complexity_is_one_and_later_ones_are_relative(sequences: Any) -> None:
    method = sequences.make("fmlora", **DRS)
    sequences.learn(method, 1)
    assert method.diagnostics().items() >= {"rank": 8, "complexity": 0.0}.items()
    data = sequences.begin(method, 2)
    assert method.diagnostics()["complexity"] == 1.0
    raw = method.selector.complexity_sum.item()
    method.end_task(data)
    sequences.begin(method, 3)
    third = method.selector.complexity_sum.item() - raw
    assert method.diagnostics()["complexity"] == pytest.approx(third / raw)
    assert third != raw


def test_chosen_rank_is_the_tasks_rank(sequences: Any) -> None:
    for spread, complexity in ((0.01, 1.0), (0.9, 1.0)):
        method = sequences.make("fmlora", **DRS, drs_spread=spread)
        sequences.learn(method, 1)
        data = sequences.begin(method, 2)
        assert method.complexity == complexity
        assert int(method.rank) == method.selector.choose(complexity)
        assert {adapter.m.shape[1] for adapter in method.each()} == {int(method.rank)}
        method.end_task(data)


def test_with_price_0_a_tasks_complexity_cannot_change_its_rank(sequences: Any) -> None:
    chosen = {}
    for price in (0.0, 0.1):
        method = sequences.make("fmlora", **DRS, drs_price=price)
        sequences.learn(method, 1)
        sequences.begin(method, 2)
        chosen[price] = {method.selector.choose(complexity) for complexity in (0.1, 0.9, 1.1, 5.0)}
    assert len(chosen[0.0]) == 1
    assert len(chosen[0.1]) > 1


def test_complexity_is_measured_in_the_runs_micro_batches(sequences: Any) -> None:
    found = []
    for accumulation in (1, 3):
        method = sequences.make("fmlora", **DRS)
        sequences.learn(method, 1)
        task = sequences.task(2)
        data = sequences.data(task)
        data.accumulation = accumulation
        sizes: list[int] = []
        hook = method.backbone.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        method.begin_task(task, data)
        hook.remove()
        found.append((max(sizes), method.selector.complexity_sum.item(), int(method.rank)))
    (whole, *one), (part, *three) = found
    assert part < whole
    assert three == pytest.approx(one, rel=1e-4)


def test_without_drs_nothing_is_measured(sequences: Any) -> None:
    method = sequences.make("fmlora", rank=8, drs=False, task_rank=3)
    sequences.learn(method, 1)
    task = sequences.task(2)
    data = sequences.data(task)
    data.steps = data.held_out = data.batches = None  # any pass over the data would raise
    method.begin_task(task, data)
    assert method.diagnostics().keys() == {"weight_change", "rank"}


def test_task_of_few_images_can_be_measured(sequences: Any) -> None:
    for n_images in (1, 2, 3):
        method = sequences.make("fmlora", **DRS)
        sequences.learn(method, 1)
        task = sequences.task(2)
        data = sequences.data(task)
        data.images, data.labels, data.n_samples = data.images[:n_images], data.labels[:n_images], n_images
        method.begin_task(task, data)
        assert math.isfinite(method.complexity.item())


def test_measuring_sees_only_held_out_images_and_trains_on_the_others(sequences: Any) -> None:
    method = sequences.make("fmlora", **DRS)
    sequences.learn(method, 1)
    task = sequences.task(2)
    data = sequences.data(task)
    asked: dict[str, int] = {}
    steps, held_out = data.steps, data.held_out
    data.steps = lambda n, *, exclude=0: asked.update(steps=n, exclude=exclude) or steps(n, exclude=exclude)
    data.held_out = lambda n: asked.update(held_out=n) or held_out(n)
    method.begin_task(task, data)
    assert asked == {"steps": 3, "exclude": 3, "held_out": 3}  # a quarter of twelve images


@pytest.mark.parametrize("config", [DRS, {"rank": 4, "drs": False, "task_rank": 2, "prompt_tokens": 0}])
def test_resumed_method_is_the_same_after_task_2_and_within_task_3(sequences: Any, config: dict[str, Any]) -> None:
    sequences.check_resume("fmlora", **config)


def test_head_rows_of_earlier_tasks_never_move(sequences: Any) -> None:
    sequences.check_old_rows("fmlora", **DRS)


def test_learning_rates_of_bases_factors_and_later_prompts_are_multiples_of_the_runs(sequences: Any) -> None:
    method = sequences.make("fmlora", **DRS, lr=0.01, bases_lr=0.5, factors_lr=3.0, prompts_lr=0.5)
    data = sequences.begin(method, 1)
    rates = {group.name: group.lr for group in method.parameter_groups()}
    assert rates == {"head": 0.01, "prompts": 0.01, "bases": 0.005}
    sequences.train(method, data)
    method.end_task(data)
    sequences.begin(method, 2)
    rates = {group.name: group.lr for group in method.parameter_groups()}
    assert rates == {"head": 0.01, "prompts": 0.005, "factors": pytest.approx(0.03)}


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0},
        {"rank": -1},
        {"candidates": (4, 2, 16)},
        {"candidates": (2, 2, 16)},
        {"candidates": (0, 16)},
        {"candidates": (2, 8)},
        {"task_rank": 17},
        {"drs_spread": 1.0},
        {"drs_temperature": 0.0},
        {"drs_price": -0.1},
        {"projections": ()},
        {"projections": ("o",)},
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FMLoRAConfig(**fields)


@pytest.mark.parametrize(("rank", "ranks"), [(16, (2, 4, 8, 16)), (8, (1, 2, 4, 8)), (2, (1, 2)), (1, (1,))])
def test_default_candidates_are_eighth_quarter_half_and_whole(rank: int, ranks: tuple[int, ...]) -> None:
    assert FMLoRAConfig(rank=rank).candidate_ranks() == ranks


def test_rank_above_the_width_is_refused(sequences: Any) -> None:
    with pytest.raises(UserError, match=r"method\.rank: found 49, expected at most the width 48"):
        sequences.make("fmlora", rank=49)
