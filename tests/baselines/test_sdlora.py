"""SD-LoRA against the sum over its branches written out in numpy, in each variant."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from baselines.sdlora import GUARD, Directions, squared_norm
from fmlora_dist.errors import UserError

VARIANTS = ["default", "official", "paper"]
Product = tuple[np.ndarray, np.ndarray]


def newest(method: Any) -> dict[str, Product]:
    """(B, A) of every adapter as they train now, in float64."""
    return {
        key: (each.up.detach().double().numpy().copy(), each.down.detach().double().numpy().copy())
        for key, each in method.adapters.items()
    }


def deltas(method: Any) -> dict[str, np.ndarray]:
    """What every adapter adds to its weight, by the factors that run."""
    out = {}
    for key, each in method.adapters.items():
        down, up = each.factors()
        out[key] = (up.detach().double() @ down.detach().double()).numpy()
    return out


def train(sequences: Any, method: Any, number: int) -> Any:
    data = sequences.begin(method, number)
    sequences.train(method, data, steps=4)
    return data


@settings(deadline=None, max_examples=30)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    variant=st.sampled_from(VARIANTS),
    seed=st.integers(0, 10**6),
)
def test_stacked_factors_equal_the_sum_over_branches(ranks: list[int], variant: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    each = Directions(6, 5)
    each.variant = variant
    expected = np.zeros((5, 6))
    alphas = torch.rand(len(ranks), generator=generator)
    each.magnitude = (nn.Parameter(alphas[None, : len(ranks)]), 0)
    for number, rank in enumerate(ranks):
        each.draw(rank, generator)
        each.up.data = torch.randn(5, rank, generator=generator)
        b, a = each.up.detach().double().numpy(), each.down.detach().double().numpy()
        last = number == len(ranks) - 1
        norm = float(np.linalg.norm(b @ a))
        if last and variant != "paper":
            norm = 1.0
        elif variant == "official":
            norm = float(np.linalg.norm(b) * np.linalg.norm(a))
        elif last:
            norm = max(norm, GUARD)
        alpha = 1.0 if last and variant == "default" else float(alphas[number])
        expected += alpha * b @ a / norm
        if not last:
            each.consolidate()
    down, up = each.factors() or (torch.empty(0), torch.empty(0))
    assert down.shape == (sum(ranks), 6)
    np.testing.assert_allclose((up @ down).detach().numpy(), expected, atol=1e-4)


@given(rank=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_norm_of_the_product_without_the_product(rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 7, generator=generator), torch.randn(9, rank, generator=generator)
    torch.testing.assert_close(squared_norm(down, up), (up @ down).square().sum(), rtol=1e-4, atol=1e-4)


def test_newest_direction_and_past_magnitudes_train(sequences: Any) -> None:
    method = sequences.make("sdlora", rank=3)
    factors = {f"adapters.{b}_{p}.{side}": 3 * 48 for b in (0, 1) for p in "qv" for side in ("down", "up")}
    head = {"head.weight": 96, "head.bias": 2}
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        magnitudes = {"magnitudes": 4 * (number - 1)} if number > 1 else {}  # one per past task, block and projection
        assert sequences.trainable(method) == factors | magnitudes | head
        sequences.train(method, data)
        method.end_task(data)


@pytest.mark.parametrize(("variant", "per_task"), [("official", 1), ("paper", 4)])
def test_newest_magnitude_trains_too_in_the_other_variants(sequences: Any, variant: str, per_task: int) -> None:
    method = sequences.make("sdlora", rank=3, variant=variant)
    for number in (1, 2):
        data = sequences.begin(method, number)
        assert sequences.trainable(method)["magnitudes"] == per_task * number
        assert len(sequences.trainable(method)) == 8 + 1 + 2
        sequences.train(method, data)
        method.end_task(data)


@pytest.mark.parametrize("variant", VARIANTS)
def test_past_directions_do_not_move_and_their_magnitudes_do(sequences: Any, variant: str) -> None:
    method = sequences.make("sdlora", rank=3, variant=variant)
    sequences.learn(method, 1)
    data = sequences.begin(method, 2)
    kept = {key: (each.past_down.clone(), each.past_up.clone()) for key, each in method.adapters.items()}
    alphas = method.magnitudes.detach().clone()
    sequences.train(method, data)
    for key, each in method.adapters.items():
        assert torch.equal(each.past_down, kept[key][0])
        assert torch.equal(each.past_up, kept[key][1])
        assert each.past_up.shape == (48, 3)
    assert (method.magnitudes.detach() != alphas).all()


def test_default_is_the_written_out_sum_over_three_tasks(sequences: Any) -> None:
    method = sequences.make("sdlora", rank=3)
    directions: dict[str, list[np.ndarray]] = {key: [] for key in method.adapters}
    for number in (1, 2, 3):
        data = train(sequences, method, number)
        alphas = method.magnitudes.detach().double().numpy()
        for row, (key, (b, a)) in enumerate(newest(method).items()):
            past = sum((alphas[row, k] * d for k, d in enumerate(directions[key])), np.zeros((48, 48)))
            np.testing.assert_allclose(deltas(method)[key], past + b @ a, atol=1e-6)
            directions[key].append(b @ a / np.linalg.norm(b @ a))
        method.end_task(data)


@pytest.mark.parametrize("variant", VARIANTS)
def test_end_of_a_task_leaves_the_function_as_it_was(sequences: Any, variant: str) -> None:
    method = sequences.make("sdlora", rank=3, variant=variant)
    for number in (1, 2):
        data = train(sequences, method, number)
        before = sequences.logits(method)
        method.end_task(data)
        torch.testing.assert_close(sequences.logits(method), before, atol=1e-5, rtol=0)


def test_default_keeps_unit_directions_with_the_norm_as_magnitude_and_carries_it_on(sequences: Any) -> None:
    method = sequences.make("sdlora", rank=3)
    data = train(sequences, method, 1)
    norms = [np.linalg.norm(b @ a) for b, a in newest(method).values()]
    method.end_task(data)
    np.testing.assert_allclose(method.magnitudes.detach()[:, 0], norms, rtol=1e-5)
    for each in method.adapters.values():
        np.testing.assert_allclose(np.linalg.norm(each.past_up @ each.past_down), 1, rtol=1e-5)
    sequences.begin(method, 2)
    np.testing.assert_allclose(method.magnitudes.detach()[:, 0], norms, rtol=1e-5)
    assert len(set(np.round(norms, 6))) == 4, "so a magnitude shared over blocks could not keep the function"


@pytest.mark.parametrize("variant", ["default", "paper"])
def test_a_new_task_starts_from_the_inherited_function(sequences: Any, variant: str) -> None:
    method = sequences.make("sdlora", rank=3, variant=variant)
    sequences.learn(method, 1)
    inherited = sequences.logits(method)
    sequences.begin(method, 2)
    torch.testing.assert_close(sequences.logits(method)[:, :2], inherited, atol=1e-5, rtol=0)


def test_a_direction_that_never_trained_stays_harmless(sequences: Any) -> None:
    for variant in VARIANTS:
        method = sequences.make("sdlora", rank=3, variant=variant)
        for number in (1, 2):
            method.end_task(sequences.begin(method, number))
        data = sequences.begin(method, 3)
        method.select_trainable()
        method.loss(data.images, data.labels).backward()
        gradients = [value.grad for value in method.parameters() if value.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert sequences.logits(method).isfinite().all()


def test_official_divides_by_the_product_of_norms_and_resets_every_magnitude(sequences: Any) -> None:
    method = sequences.make("sdlora", rank=3, variant="official", lr=0.05)
    products: dict[str, list[np.ndarray]] = {key: [] for key in method.adapters}
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        torch.testing.assert_close(method.magnitudes.detach(), torch.full((1, number), 0.8))
        sequences.train(method, data)
        alphas = method.magnitudes.detach().double().numpy()[0]
        assert (np.abs(alphas - 0.8) > 1e-3).all()
        for key, (b, a) in newest(method).items():
            past = sum((alpha * d for alpha, d in zip(alphas, products[key], strict=False)), np.zeros((48, 48)))
            np.testing.assert_allclose(deltas(method)[key], past + alphas[-1] * b @ a, atol=1e-6)
            products[key].append(b @ a / (np.linalg.norm(b) * np.linalg.norm(a)))
        method.end_task(data)


def test_official_changes_abruptly_when_the_next_task_begins(sequences: Any) -> None:
    method = sequences.make("sdlora", rank=3, variant="official", lr=0.05)
    data = train(sequences, method, 1)
    method.end_task(data)
    before = sequences.logits(method)
    sequences.begin(method, 2)
    assert not torch.allclose(sequences.logits(method)[:, :2], before, atol=1e-3)


def test_paper_normalises_the_newest_direction_while_it_trains(sequences: Any) -> None:
    method = sequences.make("sdlora", rank=3, variant="paper", lr=0.05)
    directions: dict[str, list[np.ndarray]] = {key: [] for key in method.adapters}
    for number in (1, 2):
        data = sequences.begin(method, number)
        sequences.train(method, data, steps=8)
        alphas = method.magnitudes.detach().double().numpy()
        for row, (key, (b, a)) in enumerate(newest(method).items()):
            assert np.linalg.norm(b @ a) > GUARD
            directions[key].append(b @ a / np.linalg.norm(b @ a))
            expected = sum((alphas[row, k] * d for k, d in enumerate(directions[key])), np.zeros((48, 48)))
            np.testing.assert_allclose(deltas(method)[key], expected, atol=1e-5)
        method.end_task(data)
        np.testing.assert_allclose(method.magnitudes.detach(), alphas, rtol=1e-5)


def test_paper_guard_at_b_zero_is_linear_with_finite_gradients() -> None:
    each = Directions(6, 5)
    each.variant = "paper"
    alpha = nn.Parameter(torch.tensor([[0.5]]))
    each.magnitude = (alpha, 0)
    each.draw(2, torch.Generator().manual_seed(0))

    def delta() -> torch.Tensor:
        down, up = each.factors() or (torch.empty(0), torch.empty(0))
        return up @ down

    assert torch.equal(delta(), torch.zeros(5, 6))
    target = torch.arange(30.0).view(5, 6)
    (delta() * target).sum().backward()
    torch.testing.assert_close(each.up.grad, 0.5 / GUARD * target @ each.down.detach().T)
    assert each.down.grad is not None
    assert each.down.grad.isfinite().all()
    assert alpha.grad is not None
    assert alpha.grad.isfinite().all()
    each.up.data = torch.full((5, 2), 1e-4)
    torch.testing.assert_close(delta(), 0.5 / GUARD * each.up @ each.down)
    before = delta().detach()
    magnitude = each.consolidate()
    torch.testing.assert_close(magnitude * (each.past_up @ each.past_down), before)
    torch.testing.assert_close((each.past_up @ each.past_down).norm(), torch.tensor(1.0))


def test_paper_gradient_lies_across_the_direction() -> None:
    each = Directions(6, 5)
    each.variant = "paper"
    each.magnitude = (torch.ones(1, 1), 0)
    generator = torch.Generator().manual_seed(0)
    each.draw(2, generator)
    each.up.data = torch.randn(5, 2, generator=generator)
    down, up = each.factors() or (torch.empty(0), torch.empty(0))
    ((up @ down) * torch.randn(5, 6, generator=generator)).sum().backward()
    # A longer B is the same direction, so no gradient points along B.
    assert each.up.grad is not None
    assert abs(float((each.up.grad * each.up.detach()).sum())) < 1e-5


def test_later_ranks(sequences: Any) -> None:
    method = sequences.make("sdlora", rank=4, later_ranks=(3, 2))
    for number, stacked in ((1, 4), (2, 7), (3, 9), (4, 11)):
        data = train(sequences, method, number)
        assert method.adapters["1_v"].factors()[0].shape == (stacked, 48)
        method.end_task(data)


def test_rank_above_the_width_is_refused(sequences: Any) -> None:
    with pytest.raises(UserError, match=r"method\.rank: found 49, .* 1 to 48"):
        sequences.make("sdlora", rank=49)
    with pytest.raises(UserError, match=r"method\.later_ranks: found 60, .* 1 to 48"):
        sequences.make("sdlora", later_ranks=(4, 60))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"later_ranks": (0,)}, {"variant": "best"}, {"alpha": 0.0}])
def test_values_without_sense_are_refused(sequences: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SdLoraConfig"):
        sequences.make("sdlora", **wrong)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumes(sequences: Any, variant: str) -> None:
    sequences.check_resume("sdlora", rank=3, variant=variant, later_ranks=(2,))


def test_old_head_rows_stay(sequences: Any) -> None:
    sequences.check_old_rows("sdlora", rank=3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rank", [2, 10])
def test_merged_is_the_same_function(sequences: Any, variant: str, rank: int) -> None:
    sequences.check_merged("sdlora", rank=rank, variant=variant)
