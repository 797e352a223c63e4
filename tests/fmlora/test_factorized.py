"""F-LoRA: shared bases, a core that is the whole past, and what each task trains."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmlora_dist.fmlora.factorized import FactorizedAdapter

# Both ways that a layer takes: a branch at stacked rank 2 * 4 <= 48 / 4, a summed weight above it.
RANKS = [4, 8]
CONFIG = {"drs": False, "prompt_tokens": 2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained_bases(d_in: int, d_out: int, rank: int, seed: int = 0) -> FactorizedAdapter:
    """An adapter as training leaves it in task 1: A and B of full rank."""
    adapter = FactorizedAdapter(d_in, d_out, rank)
    adapter.start_bases(generator(seed))
    adapter.b.data = torch.randn(d_out, rank, generator=generator(seed + 1))
    return adapter


def branch(adapter: FactorizedAdapter) -> Tensor:
    factors = adapter.factors()
    assert factors is not None
    return factors[1] @ factors[0]


@pytest.mark.parametrize("rank", RANKS)
def test_bases_are_bit_identical_after_task_5_to_what_they_were_after_task_1(sequences: Any, rank: int) -> None:
    method = sequences.make("fmlora", rank=rank, **CONFIG)
    sequences.learn(method, 1)
    bases = [(adapter.a.detach().clone(), adapter.b.detach().clone()) for adapter in method.each()]
    cores = [adapter.core.clone() for adapter in method.each()]
    for number in range(2, 6):
        data = sequences.begin(method, number, n_tasks=5)
        sequences.train(method, data)
        method.end_task(data)
    assert len(bases) == 4
    for adapter, (a, b), core in zip(method.each(), bases, cores, strict=True):
        assert torch.equal(adapter.a, a) and torch.equal(adapter.b, b)
        assert not torch.equal(adapter.core, core)


def test_bases_are_orthonormal_after_task_1(sequences: Any) -> None:
    method = sequences.make("fmlora", rank=8, **CONFIG)
    sequences.learn(method, 1)
    for adapter in method.each():
        for basis in (adapter.a, adapter.b):
            torch.testing.assert_close(basis.T @ basis, torch.eye(8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rank", RANKS)
def test_new_task_starts_from_exactly_the_inherited_function(sequences: Any, rank: int) -> None:
    method = sequences.make("fmlora", rank=rank, **CONFIG)
    sequences.learn(method, 1)
    for number in (2, 3):
        images = sequences.data(sequences.task(number)).images
        with torch.no_grad():
            features, old = method.features(images), sequences.logits(method)
            data = sequences.begin(method, number)
            assert torch.equal(method.features(images), features), "N = 0 must add nothing, bit for bit"
        now = sequences.logits(method)[:, : old.shape[1]]
        torch.testing.assert_close(now, old, atol=1e-6, rtol=0)
        sequences.train(method, data)
        method.end_task(data)
        assert not torch.allclose(sequences.logits(method)[:, : old.shape[1]], old, atol=1e-4)


@pytest.mark.parametrize("rank", RANKS)
def test_end_of_every_task_keeps_the_function(sequences: Any, rank: int) -> None:
    method = sequences.make("fmlora", rank=rank, lr=0.05, **CONFIG)
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        start = sequences.logits(method)
        sequences.train(method, data, steps=5)
        trained = sequences.logits(method)
        assert (trained - start).abs().max() > 1e-2, "nothing was learned, so nothing is shown"
        method.end_task(data)
        torch.testing.assert_close(sequences.logits(method), trained, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", RANKS)
def test_branch_and_merged_weight_give_the_same_logits(sequences: Any, rank: int) -> None:
    sequences.check_merged("fmlora", rank=rank, **CONFIG)


@pytest.mark.parametrize(("rank", "task_rank"), [(4, 1), (4, 3), (8, 8)])
def test_later_task_trains_exactly_2_r_rt_numbers_a_projection(sequences: Any, rank: int, task_rank: int) -> None:
    method = sequences.make("fmlora", rank=rank, task_rank=task_rank, **CONFIG)
    sequences.learn(method, 1)
    sequences.begin(method, 2)
    trainable = sequences.trainable(method)
    beside = {"head.weight", "head.bias", "backbone.reg_token"}  # the prompts, by the name that they have in timm
    for name in ("0_q", "0_v", "1_q", "1_v"):
        numbers = [trainable.pop(f"adapters.{name}.{factor}") for factor in "mn"]
        assert sum(numbers) == 2 * rank * task_rank
    assert set(trainable) == beside


def test_task_1_trains_the_bases_and_nothing_else_of_the_adapters(sequences: Any) -> None:
    method = sequences.make("fmlora", rank=4, **CONFIG)
    sequences.begin(method, 1)
    trainable = sequences.trainable(method)
    adapters = {name: size for name, size in trainable.items() if name.startswith("adapters.")}
    expected = {f"adapters.{block}_{row}.{basis}": 48 * 4 for block in (0, 1) for row in "qv" for basis in "ab"}
    assert adapters == expected
    assert set(trainable) - set(adapters) == {"head.weight", "head.bias", "backbone.reg_token"}


@pytest.mark.parametrize("drs", [False, True])
def test_stored_size_grows_by_the_head_rows_alone(sequences: Any, drs: bool) -> None:
    method = sequences.make("fmlora", rank=4, drs=drs, drs_steps=2, prompt_tokens=2)
    sizes = []
    for number in range(1, 5):
        data = sequences.begin(method, number)
        sequences.train(method, data)
        method.end_task(data)
        sizes.append({name: value.numel() for name, value in method.state_dict().items()})
    head = {"head.past_weight", "head.past_bias"}
    for before, after in pairwise(sizes):
        assert {name for name in after if after[name] != before[name]} == head
        assert sum(after.values()) - sum(before.values()) == 2 * (48 + 1)


def test_weights_equal_w0_plus_b_ct_at_written_out_from_the_tasks_own_factors(sequences: Any) -> None:
    """C is summed up here, in numpy and fp64, from every task's M and N; not read from the method."""
    method = sequences.make("fmlora", rank=4, task_rank=2, **CONFIG)
    originals = [layer.weight.detach().double().numpy().copy() for layer in method.layers]
    cores: dict[str, np.ndarray] = {}
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        sequences.train(method, data)
        own = {
            name: [value.detach().double().numpy().copy() for value in (adapter.a, adapter.b, adapter.m, adapter.n)]
            for name, adapter in method.adapters.items()
        }
        method.end_task(data)
        state = {name: value.double().numpy() for name, value in method.state_dict().items()}
        for name, (a, b, m, n) in own.items():
            q_a, q_b = state[f"adapters.{name}.a"], state[f"adapters.{name}.b"]
            if number == 1:
                cores[name] = q_a.T @ a @ b.T @ q_b  # what A Bᵀ is in the bases: row vectors, as in the paper
            else:
                cores[name] = cores[name] + m @ n.T
            np.testing.assert_allclose(state[f"adapters.{name}.core"], cores[name], atol=1e-6)
        for block, (layer, original) in enumerate(zip(method.layers, originals, strict=True)):
            expected = original.copy()
            for row, rows in (("q", slice(0, 48)), ("v", slice(96, 144))):
                q_a, q_b = state[f"adapters.{block}_{row}.a"], state[f"adapters.{block}_{row}.b"]
                expected[rows] += q_b @ cores[f"{block}_{row}"].T @ q_a.T
            np.testing.assert_allclose(layer.effective.numpy(), expected, atol=1e-6)
            assert np.array_equal(layer.weight.detach().double().numpy(), original), "W0 itself must never move"
            assert np.array_equal(layer.effective[48:96].numpy(), layer.weight[48:96].detach().numpy())


@given(st.integers(1, 12), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_freezing_the_bases_keeps_their_product_at_any_shape(rank: int, wider: int, taller: int, seed: int) -> None:
    adapter = trained_bases(rank + wider, rank + taller, rank, seed)
    before = branch(adapter)
    adapter.freeze_bases()
    past = adapter.past()
    assert past is not None and adapter.factors() is None
    torch.testing.assert_close(past, before, atol=1e-5, rtol=1e-5)
    for basis in (adapter.a, adapter.b):
        torch.testing.assert_close(basis.T @ basis, torch.eye(rank), atol=1e-5, rtol=0)
    assert adapter.core.shape == (rank, rank)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_core_after_any_tasks_is_the_sum_of_their_products(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 8))
    ranks = data.draw(st.lists(st.integers(1, rank), min_size=1, max_size=4))
    d_in, d_out = rank + data.draw(st.integers(0, 6)), rank + data.draw(st.integers(0, 6))
    adapter = trained_bases(d_in, d_out, rank)
    adapter.freeze_bases()
    a, b = adapter.a.detach().numpy().astype(float), adapter.b.detach().numpy().astype(float)
    core = adapter.core.numpy().astype(float)
    for number, task_rank in enumerate(ranks):
        adapter.start_factors(task_rank, generator(number))
        assert adapter.m.numel() + adapter.n.numel() == 2 * rank * task_rank
        assert not branch(adapter).any()
        adapter.n.data = torch.randn(rank, task_rank, generator=generator(100 + number))
        m, n = adapter.m.detach().numpy().astype(float), adapter.n.detach().numpy().astype(float)
        np.testing.assert_allclose(branch(adapter).detach().numpy(), b @ (m @ n.T).T @ a.T, atol=1e-5)
        adapter.absorb_factors()
        core = core + m @ n.T
        past = adapter.past()
        assert past is not None and adapter.factors() is None
        np.testing.assert_allclose(past.numpy(), b @ core.T @ a.T, atol=1e-4)


@given(st.integers(2, 8), st.data())
@settings(max_examples=30, deadline=None)
def test_prefix_of_rank_k_uses_the_first_k_columns(rank: int, data: st.DataObject) -> None:
    prefix = data.draw(st.integers(1, rank))
    adapter = trained_bases(10, 12, rank)
    adapter.freeze_bases()
    adapter.start_factors(rank, generator())
    adapter.n.data = torch.randn(rank, rank, generator=generator(1))
    adapter.prefix = prefix
    expected = adapter.b @ adapter.n[:, :prefix] @ adapter.m[:, :prefix].T @ adapter.a.T
    torch.testing.assert_close(branch(adapter), expected, atol=1e-5, rtol=1e-5)


def test_factors_of_a_task_are_drawn_with_variance_one_over_r() -> None:
    adapter = trained_bases(80, 80, 64)
    adapter.freeze_bases()
    adapter.start_factors(64, generator(3))
    assert adapter.m.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert abs(adapter.m.mean().item()) < 0.01
    assert not adapter.n.any()
