"""SD-LoRA-KD against numpy's lstsq over the directions written out."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.sdlora import Directions
from baselines.sdlora_kd import absorb, inner_products

VARIANTS = ["default", "paper"]
ALL, NONE = 2.0, 0.0
"""Thresholds under which every direction is absorbed, and none: a unit direction leaves between 0 and 1."""


def directions(adapter: Any) -> list[np.ndarray]:
    """D_k, written out."""
    up, down = adapter.past_up.double().numpy(), adapter.past_down.double().numpy()
    numbers = adapter.direction.numpy()
    return [up[:, numbers == k] @ down[numbers == k] for k in range(int(numbers[-1]) + 1)]


def delta(adapter: Any, alphas: Any) -> np.ndarray:
    total: np.ndarray = np.sum([float(a) * d for a, d in zip(alphas, directions(adapter), strict=True)], axis=0)
    return total


def adapter_of(ranks: list[int], seed: int) -> Directions:
    """An adapter with random past directions of these ranks."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Directions(6, 5)
    for rank in ranks:
        adapter.draw(rank, generator)
        adapter.up.data = torch.randn(5, rank, generator=generator)
        adapter.consolidate()
    return adapter


def fit(adapter: Any) -> tuple[np.ndarray, float]:
    """Coefficients and squared residual of the newest direction on the older ones, by numpy's lstsq."""
    *older, newest = [d.flatten() for d in directions(adapter)]
    solution, residuals, *_ = np.linalg.lstsq(np.stack(older, axis=1), newest, rcond=None)
    return solution, float(residuals[0])


@given(ranks=st.lists(st.integers(1, 3), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_inner_products_without_the_products(ranks: list[int], seed: int) -> None:
    adapter = adapter_of(ranks, seed)
    flat = np.stack([d.flatten() for d in directions(adapter)])
    np.testing.assert_allclose(inner_products(adapter), flat @ flat.T, atol=1e-10)


@given(ranks=st.lists(st.integers(1, 3), min_size=2, max_size=5), seed=st.integers(0, 10**6))
def test_coefficients_and_residual_are_those_of_lstsq(ranks: list[int], seed: int) -> None:
    adapter = adapter_of(ranks, seed)
    alphas = torch.rand(len(ranks), generator=torch.Generator().manual_seed(seed)) + 0.5
    before, (solution, residual) = delta(adapter, alphas), fit(adapter)
    shapes = (adapter.past_down.shape, adapter.past_up.shape, adapter.direction.shape)
    kept = absorb(adapter, alphas, residual * (1 - 1e-6))
    assert torch.equal(kept, alphas), "a residual at the threshold is not below it"
    assert (adapter.past_down.shape, adapter.past_up.shape, adapter.direction.shape) == shapes
    absorbed = absorb(adapter, alphas, residual * (1 + 1e-6))
    np.testing.assert_allclose(absorbed, alphas[:-1].numpy() + float(alphas[-1]) * solution, rtol=1e-3, atol=1e-4)
    assert adapter.past_down.shape == (sum(ranks[:-1]), 6) and adapter.past_up.shape == (5, sum(ranks[:-1]))
    moved = np.linalg.norm(delta(adapter, absorbed) - before)
    assert moved == pytest.approx(float(alphas[-1]) * np.sqrt(residual), abs=1e-4)


def test_a_direction_that_the_older_ones_span_is_absorbed_without_changing_the_function() -> None:
    adapter = adapter_of([2, 1], seed=0)
    one, two = directions(adapter)
    left, values, right = np.linalg.svd(0.6 * one - 0.8 * two)
    rank = int((values > 1e-9).sum())
    adapter.down.data = torch.from_numpy(right[:rank]).float()
    adapter.up.data = torch.from_numpy(left[:, :rank] * values[:rank]).float()
    adapter.consolidate()
    alphas = torch.tensor([0.5, 1.5, 2.0])
    before = delta(adapter, alphas)
    absorbed = absorb(adapter, alphas, 9e-4)
    assert absorbed.shape == (2,)
    np.testing.assert_allclose(delta(adapter, absorbed), before, atol=1e-5)


def test_the_first_direction_has_nothing_to_be_absorbed_by() -> None:
    adapter = adapter_of([2], seed=0)
    assert torch.equal(absorb(adapter, torch.ones(1), ALL), torch.ones(1))
    assert adapter.past_up.shape == (5, 2)


def test_a_direction_that_never_trained_is_absorbed_as_nothing(sequences: Any) -> None:
    method = sequences.make("sdlora_kd", rank=3)
    for number in (1, 2, 3):
        method.end_task(sequences.begin(method, number))
    assert method.diagnostics()["absorbed"] == 8
    assert torch.equal(method.magnitudes.detach(), torch.zeros(4, 1))
    assert sequences.logits(method).isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_the_end_of_a_task_the_function_moves_by_the_residuals_and_no_more(sequences: Any, variant: str) -> None:
    plain = sequences.make("sdlora", rank=3, variant=variant)
    method = sequences.make("sdlora_kd", rank=3, variant=variant, threshold=ALL)
    for each in (plain, method):
        sequences.learn(each, 1)
        data = sequences.begin(each, 2)
        sequences.train(each, data)
        each.end_task(data)
    for row, (one, other) in enumerate(zip(plain.each(), method.each(), strict=True)):
        alphas = plain.magnitudes.detach()[row]
        solution, residual = fit(one)
        assert len(directions(other)) == 1 < len(directions(one))
        np.testing.assert_allclose(
            method.magnitudes.detach()[row], alphas[:-1].numpy() + float(alphas[-1]) * solution, rtol=1e-4
        )
        moved = np.linalg.norm(delta(other, method.magnitudes.detach()[row]) - delta(one, alphas))
        assert moved == pytest.approx(abs(float(alphas[-1])) * np.sqrt(residual), rel=1e-3)
    assert method.diagnostics()["absorbed"] == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_where_nothing_is_absorbed_it_is_sdlora(sequences: Any, variant: str) -> None:
    methods = [
        sequences.make("sdlora_kd", rank=3, variant=variant, threshold=NONE),
        sequences.make("sdlora", rank=3, variant=variant),
    ]
    for method in methods:
        sequences.learn(method, 3)
    one, other = (method.state_dict() for method in methods)
    assert methods[0].diagnostics()["absorbed"] == 0
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_projections_with_different_numbers_of_directions(sequences: Any, variant: str) -> None:
    """Some absorb a task and some do not; the next tasks still start and end without changing the function."""
    method = sequences.make("sdlora_kd", rank=3, variant=variant, threshold=NONE)
    sequences.learn(method, 1)
    data = sequences.begin(method, 2)
    sequences.train(method, data)
    between = _middle_residual(method)
    object.__setattr__(method.config, "threshold", between)
    method.end_task(data)
    counts = [len(directions(each)) for each in method.each()]
    assert set(counts) == {1, 2}
    assert method.magnitudes.shape == (4, 2)
    inherited = sequences.logits(method)
    object.__setattr__(method.config, "threshold", NONE)
    data = sequences.begin(method, 3)
    torch.testing.assert_close(sequences.logits(method)[:, :4], inherited, atol=1e-5, rtol=0)
    unused = [row for row, count in enumerate(counts) if count == 1]
    assert sequences.trainable(method)["magnitudes"] == 4 * (2 if variant == "default" else 3)
    sequences.train(method, data)
    assert (method.magnitudes.detach()[unused, 1] == 0).all(), "zeros that act on nothing do not train"
    before = sequences.logits(method)
    method.end_task(data)
    torch.testing.assert_close(sequences.logits(method), before, atol=1e-5, rtol=0)
    assert [len(directions(each)) for each in method.each()] == [count + 1 for count in counts]


def _middle_residual(method: Any) -> float:
    """A threshold between the residuals that the newest directions would leave."""
    residuals = []
    for adapter in method.each():
        up, down = adapter.up.detach().double().numpy(), adapter.down.detach().double().numpy()
        newest, (older,) = up @ down / np.linalg.norm(up @ down), directions(adapter)
        residuals.append(1 - float((newest * older).sum()) ** 2)
    residuals.sort()
    return (residuals[1] + residuals[2]) / 2


def test_newest_direction_past_magnitudes_and_head_train(sequences: Any) -> None:
    method = sequences.make("sdlora_kd", rank=3, threshold=ALL)
    factors = {f"adapters.{b}_{p}.{side}": 3 * 48 for b in (0, 1) for p in "qv" for side in ("down", "up")}
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        magnitudes = {"magnitudes": 4} if number > 1 else {}  # however many tasks: all later ones were absorbed
        assert sequences.trainable(method) == factors | magnitudes | {"head.weight": 96, "head.bias": 2}
        sequences.train(method, data)
        method.end_task(data)


def test_the_official_variant_is_refused(sequences: Any) -> None:
    with pytest.raises(ValueError, match=r"SdLoraKdConfig\nvariant"):
        sequences.make("sdlora_kd", variant="official")


@pytest.mark.parametrize("threshold", [ALL, NONE])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumes(sequences: Any, variant: str, threshold: float) -> None:
    sequences.check_resume("sdlora_kd", rank=3, variant=variant, threshold=threshold)


@pytest.mark.parametrize("threshold", [ALL, NONE])
def test_merged_is_the_same_function(sequences: Any, threshold: float) -> None:
    method = sequences.make("sdlora_kd", rank=3, threshold=threshold)
    sequences.learn(method, 2)
    before = sequences.logits(method)
    with method.merged():
        torch.testing.assert_close(sequences.logits(method), before, atol=1e-5, rtol=0)


def test_old_head_rows_stay(sequences: Any) -> None:
    sequences.check_old_rows("sdlora_kd", rank=3)
