"""CODA-Prompt: the attention weights, the sum of components and their Gram-Schmidt start, written out."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.coda_prompt import attention_weights, orthogonality, orthonormal_rows
from fmlora_dist.errors import UserError


@given(b=st.integers(1, 3), layers=st.integers(1, 2), m=st.integers(1, 5), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_weights_are_cosines_of_the_attended_query_and_the_key(b: int, layers: int, m: int, d: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    queries, attention, keys = draw.normal(size=(b, d)), *draw.normal(size=(2, layers, m, d))
    found = attention_weights(*(torch.from_numpy(value) for value in (queries, attention, keys))).numpy()
    assert found.shape == (b, layers, m)
    for image, layer, component in np.ndindex(b, layers, m):
        attended, key = queries[image] * attention[layer, component], keys[layer, component]
        expected = attended @ key / np.linalg.norm(attended) / np.linalg.norm(key)
        assert found[image, layer, component] == pytest.approx(expected, abs=1e-5)


def test_a_prompt_is_the_weighted_sum_of_all_components_half_keys_half_values(sequences: Any) -> None:
    method = sequences.make("coda_prompt", components=9, length=4)
    sequences.learn(method, 2)
    sequences.begin(method, 3)
    queries = torch.randn(3, 48)
    assert method.every("components").shape == (2, 9, 2, 2, 3, 16), "blocks, M, keys and values, length, heads, d_head"
    weights = attention_weights(queries, method.every("attention"), method.every("keys")).detach().numpy()
    components = method.every("components").detach().numpy()
    prompts = method.prompts(queries).detach().numpy()
    for image, layer in np.ndindex(3, 2):
        expected = sum(weights[image, layer, m] * components[layer, m] for m in range(9))
        np.testing.assert_allclose(prompts[image, layer], expected, atol=1e-5)


@given(m=st.integers(0, 3), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_gram_schmidt(m: int, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    past, drawn = draw.normal(size=(m, 7)), draw.normal(size=(k, 7))
    basis: list[np.ndarray] = []
    for vector in (*past, *drawn):
        for unit in basis:
            vector = vector - (vector @ unit) * unit
        basis.append(vector / np.linalg.norm(vector))
    found = orthonormal_rows(torch.from_numpy(past), torch.from_numpy(drawn)).numpy()
    np.testing.assert_allclose(found, np.array(basis[m:]), atol=1e-5)


def test_every_task_starts_with_its_share_orthonormal_and_orthogonal_to_earlier_ones(sequences: Any) -> None:
    method = sequences.make("coda_prompt", components=10)
    for number in (1, 2, 3):
        data = sequences.begin(method, number)
        for name in ("components", "keys", "attention"):
            new = method.get_parameter(name).detach().flatten(2).double()
            past = method.get_buffer(f"past_{name}").flatten(2).double()
            assert new.shape[1] == 10 // 3 and past.shape[1] == (number - 1) * (10 // 3)
            np.testing.assert_allclose(new @ new.mT, np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-5)
            np.testing.assert_allclose(new @ past.mT, 0, atol=1e-5)
        old = method.past_components.clone()
        sequences.train(method, data)
        method.end_task(data)
        assert torch.equal(method.past_components, old)


def test_the_penalty_is_zero_for_orthonormal_rows_and_counts_in_the_loss(sequences: Any) -> None:
    rows = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    assert orthogonality(rows).item() == pytest.approx((0 + 1 + 1 + 1) / 4)
    losses = []
    for weight in (0.0, 2.0):
        method = sequences.make("coda_prompt", components=9, orthogonality=weight)
        data = sequences.begin(method, 1)
        with torch.no_grad():
            method.keys *= 2  # a Gram matrix of 4 on its diagonal, of three rows in each of two blocks
        losses.append(method.loss(data.images, data.labels).item())
    assert losses[1] - losses[0] == pytest.approx(2 * 3 * 9 / 9, abs=1e-4)


def test_components_are_100_or_the_width(sequences: Any) -> None:
    assert sequences.make("coda_prompt").n_components == 48
    with pytest.raises(UserError, match=r"method\.components: found 49, expected at most the width 48"):
        sequences.make("coda_prompt", components=49)


def test_fewer_components_than_tasks_are_refused(sequences: Any) -> None:
    method = sequences.make("coda_prompt", components=2)
    with pytest.raises(UserError, match=r"method\.components: found 2 for 3 tasks"):
        sequences.begin(method, 1)


def test_an_odd_length_is_refused(sequences: Any) -> None:
    with pytest.raises(ValueError, match="expected an even number"):
        sequences.make("coda_prompt", length=5)
