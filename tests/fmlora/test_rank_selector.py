"""DRS's selector: its gradient, its thresholds, and what no history can make of them."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fmlora_dist.fmlora.rank_selector import RankSelector

SPREAD = 0.3
CANDIDATES = (2, 4, 8, 16)
counts = st.integers(2, 8)
losses_ = st.floats(0, 10)
complexities = st.floats(0.01, 5)


def make(candidates: Sequence[int] = CANDIDATES, *, price: float = 0.1, temperature: float = 0.5) -> RankSelector:
    return RankSelector(candidates, price=price, temperature=temperature, spread=SPREAD)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def live(selector: RankSelector, n_tasks: int, seed: int, *, size: float = 3.0) -> None:
    """Tasks with random losses and complexities, as wild as ``size`` says."""
    draw = generator(seed)
    for number in range(n_tasks):
        losses = (size * torch.rand(len(selector.candidates), generator=draw)).tolist()
        complexity = 0.05 + 3 * torch.rand((), generator=draw).item()
        selector.learn(losses, complexity, generator(number), steps=20, lr=0.1)


@given(counts, st.data())
@settings(max_examples=100, deadline=None)
def test_written_out_gradient_is_autograds(n: int, data: st.DataObject) -> None:
    temperature, price = data.draw(st.floats(0.1, 3)), data.draw(st.floats(0, 1))
    selector = make(range(1, n + 1), price=price, temperature=temperature)
    several = st.lists(st.floats(-3, 3), min_size=n, max_size=n)
    weights = torch.tensor(data.draw(several), dtype=torch.float64, requires_grad=True)
    noise = torch.tensor(data.draw(several), dtype=torch.float64)
    losses = torch.tensor(data.draw(st.lists(losses_, min_size=n, max_size=n)), dtype=torch.float64)
    complexity = data.draw(complexities)

    costs = torch.arange(1, n + 1, dtype=torch.float64) / n
    p = torch.softmax((weights * complexity - price * costs + noise) / temperature, dim=0)
    (p * (losses + price * costs)).sum().backward()

    selector.weights.copy_(weights.detach())
    assert weights.grad is not None
    torch.testing.assert_close(selector.gradient(losses, complexity, noise), weights.grad, atol=1e-10, rtol=1e-8)


def test_the_noise_of_its_samples_is_gumbels(monkeypatch: pytest.MonkeyPatch) -> None:
    selector, drawn = make(), []
    monkeypatch.setattr(selector, "gradient", lambda losses, complexity, noise: drawn.append(noise) or 0 * losses)
    selector.learn([1.0] * 4, 1.0, generator(), steps=500, lr=0.1)
    assert len(drawn) == 500
    assert stats.kstest(torch.cat(drawn).numpy(), "gumbel_r").pvalue > 0.01


def test_probabilities_are_the_papers_with_a_price() -> None:
    selector = make(price=0.2, temperature=0.5)
    selector.weights.copy_(torch.tensor([0.0, 1.0, 3.0, 2.0]))
    scores = torch.tensor([0 - 0.05, 1.1 - 0.1, 3.3 - 0.15, 2.2 - 0.2], dtype=torch.float64) / 0.5
    torch.testing.assert_close(selector.probabilities(1.1), scores.exp() / scores.exp().sum())


@pytest.mark.parametrize("candidates", [(4,), (1, 2), (2, 4, 8, 16), tuple(range(1, 17))])
def test_thresholds_start_at_the_midpoints_of_equal_parts(candidates: tuple[int, ...]) -> None:
    n = len(candidates) - 1
    expected = [1 - SPREAD + 2 * SPREAD * (k + 0.5) / n for k in range(n)]
    torch.testing.assert_close(make(candidates).thresholds, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("price", [1e-6, 0.1, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_stay_in_their_parts_over_200_tasks(price: float, seed: int) -> None:
    selector = make(price=price)
    edges = torch.linspace(1 - SPREAD, 1 + SPREAD, len(CANDIDATES), dtype=torch.float64)
    moved = False
    start = selector.thresholds
    for number in range(200):
        live(selector, 1, 1000 * seed + number)
        assert (selector.thresholds >= edges[:-1] - 1e-9).all()
        assert (selector.thresholds <= edges[1:] + 1e-9).all()
        moved |= not torch.allclose(selector.thresholds, start)
    assert moved, "w is learned, not constant"


@given(st.integers(1, 12), st.integers(0, 2**16), st.floats(0.01, 30), st.integers(2, 8), st.data())
@settings(max_examples=40, deadline=None)
def test_easy_tasks_take_the_smallest_and_hard_ones_the_largest_rank_after_any_history(
    n_tasks: int, seed: int, size: float, n: int, data: st.DataObject
) -> None:
    selector = make(range(1, n + 1), price=data.draw(st.floats(1e-9, 10)))
    live(selector, n_tasks, seed, size=size)
    assert selector.choose(data.draw(st.floats(0, 1 - SPREAD - 1e-9))) == 1
    assert selector.choose(data.draw(st.floats(1 + SPREAD + 1e-9, 100))) == n


@given(st.integers(0, 12), st.integers(0, 2**16), st.lists(st.floats(0, 3), min_size=2, max_size=20))
@settings(max_examples=40, deadline=None)
def test_larger_complexity_never_gives_a_smaller_rank(n_tasks: int, seed: int, values: list[float]) -> None:
    selector = make()
    live(selector, n_tasks, seed)
    ranks = [selector.choose(value) for value in sorted(values)]
    assert ranks == sorted(ranks)


@given(st.integers(0, 6), st.integers(0, 2**16), complexities)
@settings(max_examples=40, deadline=None)
def test_neighbouring_ranks_change_places_at_their_threshold(n_tasks: int, seed: int, _: float) -> None:
    selector = make()
    live(selector, n_tasks, seed)
    for k, threshold in enumerate(selector.thresholds.tolist()):
        below = selector.probabilities(threshold - 1e-6)
        above = selector.probabilities(threshold + 1e-6)
        assert below[k] > below[k + 1]
        assert above[k] < above[k + 1]


@given(st.integers(0, 5), st.integers(0, 2**16), st.lists(complexities, min_size=2, max_size=10))
@settings(max_examples=40, deadline=None)
def test_price_0_is_the_papers_formula_whose_choice_ignores_the_complexity(
    n_tasks: int, seed: int, values: list[float]
) -> None:
    selector = make(price=0.0)
    live(selector, n_tasks, seed)
    assert len({selector.choose(value) for value in values}) == 1
    expected = torch.softmax(selector.weights * values[0] / 0.5, dim=0)
    torch.testing.assert_close(selector.probabilities(values[0]), expected)


def test_price_0_learns_the_rank_of_the_smallest_loss() -> None:
    selector = make(price=0.0)
    for number in range(5):
        selector.learn([1.0, 0.9, 0.8, 0.7], 1.0, generator(number), steps=20, lr=0.1)
    assert selector.choose(1.0) == 16


def test_rank_gains_probability_only_if_its_loss_pays_its_price() -> None:
    """Ranks 2 and 4 differ in price by 0.1 / 4: a loss smaller by more than that raises w of the larger one."""
    for gain, sign in ((0.05, 1), (0.01, -1)):
        selector = make((2, 4), price=0.05)  # costs 1/2 and 1: prices 0.025 and 0.05
        before = selector.weights.clone()
        gradient = selector.gradient(torch.tensor([1.0, 1.0 - gain], dtype=torch.float64), 1.0, torch.zeros(2))
        assert (-gradient[1]).sign() == sign
        selector.learn([1.0, 1.0 - gain], 1.0, generator(), steps=5, lr=0.1)
        assert (selector.weights[1] - before[1]).sign() == sign


def test_selector_that_never_learns_is_left_as_it_started() -> None:
    selector = make()
    before = selector.weights.clone()
    selector.learn([1.0, 2.0, 3.0, 4.0], 1.0, generator(), steps=0, lr=0.1)
    torch.testing.assert_close(selector.weights, before)


def test_complexity_is_relative_to_the_mean_of_earlier_tasks() -> None:
    selector = make()
    assert selector.relative(7.3) == 1.0
    for raw in (1.0, 2.0, 6.0):
        selector.remember(raw)
    assert selector.relative(6.0) == pytest.approx(2.0)


def test_tasks_of_one_class_have_no_loss_and_are_all_alike() -> None:
    selector = make()
    selector.remember(0.0)
    assert selector.relative(0.0) == 1.0


def test_same_generator_gives_the_same_weights_and_another_one_others() -> None:
    one, two, three = make(), make(), make()
    for selector, seed in ((one, 0), (two, 0), (three, 1)):
        selector.learn([1.0, 0.99, 0.98, 0.97], 1.0, generator(seed), steps=3, lr=0.01)
    assert torch.equal(one.weights, two.weights)
    assert not torch.equal(one.weights, three.weights)


def test_weights_and_seen_complexities_are_carried_in_the_state() -> None:
    selector, copy = make(), make()
    live(selector, 5, 0)
    selector.remember(2.5)
    copy.load_state_dict(selector.state_dict())
    assert set(selector.state_dict()) == {"weights", "complexity_sum", "complexity_count"}
    assert torch.equal(copy.thresholds, selector.thresholds)
    assert copy.relative(5.0) == selector.relative(5.0) == 2.0
