"""The two passes of prompt methods, and the choices between them."""

from typing import Any

import numpy as np
import pytest
import torch

from fmlora_dist.vit.prompted import cosine, most_frequent


@pytest.fixture
def method(sequences: Any) -> Any:
    made = sequences.make("dualprompt")
    sequences.learn(made, 2)
    return made


@pytest.fixture
def images(sequences: Any) -> torch.Tensor:
    given: torch.Tensor = sequences.data(sequences.task(1)).images
    return given


def test_the_query_is_the_plain_backbones_features_without_autograd(
    method: Any, images: torch.Tensor, sequences: Any
) -> None:
    method.select_trainable()
    query = method.query(method.embed(images))
    assert torch.equal(query, sequences.make("frozen").features(images))
    assert not query.requires_grad and query.dtype == torch.float32


def test_a_prompted_pass_leaves_the_next_one_plain(method: Any, images: torch.Tensor) -> None:
    before = method.query(method.embed(images))
    assert not torch.equal(method.features(images), before)
    assert torch.equal(method.query(method.embed(images)), before)


def test_both_passes_share_the_embedded_patches(method: Any, images: torch.Tensor) -> None:
    calls: list[int] = []
    method.backbone.patch_embed.register_forward_hook(lambda *_: calls.append(0))
    method.features(images)
    assert len(calls) == 1


def test_a_repeated_image_is_asked_once(method: Any, images: torch.Tensor) -> None:
    passes: list[int] = []
    method.backbone.norm.register_forward_hook(lambda *_: passes.append(0))
    with torch.no_grad():
        fresh = method(images)
        for key, expected in ((("a", 0), 4), (("a", 0), 5), (("a", 1), 7)):
            with method.repeated(key):
                assert torch.equal(method(images), fresh)
            assert len(passes) == expected
        assert torch.equal(method(images), fresh)
        assert len(passes) == 9, "outside nothing is kept or known"


def test_what_is_kept_is_not_stored(method: Any, images: torch.Tensor) -> None:
    before = set(method.state_dict())
    with method.repeated("a"):
        method(images)
    assert set(method.state_dict()) == before


def test_cosine_is_in_full_precision_under_autocast() -> None:
    queries, keys = torch.randn(5, 7), torch.randn(3, 7)
    expected = [[np.dot(q, k) / np.linalg.norm(q) / np.linalg.norm(k) for k in keys.numpy()] for q in queries.numpy()]
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(cosine(queries, keys).numpy(), expected, atol=1e-6)


def test_a_batch_takes_what_most_of_it_would() -> None:
    chosen = torch.tensor([[0, 3], [3, 1], [3, 0], [4, 2]])
    assert most_frequent(chosen, 5).tolist() == [[3, 0]] * 4
