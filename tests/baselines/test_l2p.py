"""L2P: the choice of prompts and the key loss, written out."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.l2p import key_loss


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@given(b=st.integers(1, 4), m=st.integers(2, 6), k=st.integers(1, 2), seed=st.integers(0, 99))
def test_key_losses_are_the_written_out_sums(b: int, m: int, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    queries, keys = draw.normal(size=(b, 5)), draw.normal(size=(m, 5))
    chosen = np.stack([draw.permutation(m)[:k] for _ in range(b)])
    own = [[1 - cosine(queries[i], keys[number]) for number in chosen[i]] for i in range(b)]
    pairs = [1 - cosine(query, keys[number]) for query in queries for row in chosen for number in row]
    expected = {"mean": np.mean(own), "sum": np.sum(own) / b, "all_pairs": np.sum(pairs)}
    for reduction, value in expected.items():
        found = key_loss(torch.from_numpy(queries), torch.from_numpy(keys), torch.from_numpy(chosen), reduction)
        assert found.item() == pytest.approx(value, abs=1e-5)


def test_images_take_the_prompts_of_the_nearest_keys(sequences: Any) -> None:
    method = sequences.make("l2p", pool_size=6, top_k=2)
    data = sequences.begin(method, 1)
    queries, keys = method.query(method.embed(data.images)).numpy(), method.keys.detach().numpy()
    for query, chosen in zip(queries, method.choose(torch.from_numpy(queries)).tolist(), strict=True):
        assert chosen == sorted(range(6), key=lambda number: -cosine(query, keys[number]))[:2]


def test_the_prompts_stand_before_the_tokens_and_the_head_reads_their_mean(sequences: Any) -> None:
    images = sequences.data(sequences.task(1)).images[:3]
    for head_input in ("prompts", "pooled"):
        method = sequences.make("l2p", pool_size=4, top_k=2, length=3, head_input=head_input)
        sequences.begin(method, 1)
        chosen = method.choose(method.query(method.embed(images)))
        backbone = method.backbone
        with torch.no_grad():
            for image, numbers, feature in zip(images, chosen, method.features(images), strict=True):
                tokens = backbone._pos_embed(backbone.patch_embed(image[None]))[0]
                line = torch.cat([*(method.prompts[number] for number in numbers), tokens])
                out = backbone.norm(backbone.blocks(line[None]))[0]
                expected = out[:6].mean(dim=0) if head_input == "prompts" else out[6]
                torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-5)


def test_the_loss_is_cross_entropy_and_the_weighted_key_loss(sequences: Any) -> None:
    losses = []
    for weight in (0.0, 0.5, 1.0):
        method = sequences.make("l2p", key_weight=weight)
        data = sequences.begin(method, 1)
        losses.append(method.loss(data.images, data.labels).item())
    queries = method.query(method.embed(data.images))
    pull = key_loss(queries, method.keys, method.choose(queries), "mean").item()
    assert losses[2] - losses[0] == pytest.approx(pull, abs=1e-5)
    assert losses[1] - losses[0] == pytest.approx(pull / 2, abs=1e-5)


def test_training_draws_the_chosen_keys_to_the_images(sequences: Any) -> None:
    method = sequences.make("l2p", pool_size=5, top_k=2)
    data = sequences.begin(method, 1)
    queries = method.query(method.embed(data.images))
    before = key_loss(queries, method.keys, method.choose(queries), "mean").item()
    sequences.train(method, data, steps=10)
    assert key_loss(queries, method.keys, method.choose(queries), "mean").item() < before - 0.05


def test_the_batchwise_choice_is_one_for_all_and_says_so(sequences: Any) -> None:
    method = sequences.make("l2p", paper_compat="batchwise_prompt", pool_size=6, top_k=2)
    queries = torch.randn(16, 48)
    sequences.begin(method, 1)
    chosen = method.choose(queries)
    assert (chosen == chosen[0]).all()
    assert method.config.predictions == "dependent on other test images (paper_compat)"
    assert sequences.make("l2p").config.predictions == "independent of other test images"


def test_more_prompts_than_the_pool_has_are_refused(sequences: Any) -> None:
    with pytest.raises(ValueError, match=r"top_k must not be above the pool_size \(3\)"):
        sequences.make("l2p", pool_size=3, top_k=4)
