"""Prefix attention against a softmax that is written out, axis by axis."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers.attention import Attention
from torch import nn

from fmlora_dist.errors import UserError
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.prefix import Prefix, PrefixAttention, add_prefix_attention, choose_layers, prefixes


def written_out(attention: Any, x: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Softmax attention of every image, head and token, by loops."""
    (b, n, d), heads = x.shape, attention.num_heads
    size = d // heads
    weight, bias = (p.detach().double().numpy() for p in (attention.qkv.weight, attention.qkv.bias))
    out = np.zeros((b, n, d))
    for image in range(b):
        q, k, v = np.split(x[image] @ weight.T + bias, 3, axis=1)
        for head in range(heads):
            place = slice(head * size, (head + 1) * size)
            all_keys = np.vstack([keys[image, :, head], k[:, place]])
            all_values = np.vstack([values[image, :, head], v[:, place]])
            for token in range(n):
                scores = np.exp(all_keys @ q[token, place] / size**0.5)
                out[image, token, place] = scores / scores.sum() @ all_values
    weight, bias = (p.detach().double().numpy() for p in (attention.proj.weight, attention.proj.bias))
    return out @ weight.T + bias


def prepared(heads: int, size: int, seed: int = 0) -> PrefixAttention:
    torch.manual_seed(seed)
    return PrefixAttention(Attention(heads * size, num_heads=heads, qkv_bias=True).requires_grad_(False))


@given(
    b=st.integers(1, 3), n=st.integers(1, 5), heads=st.integers(1, 3), size=st.integers(1, 4), length=st.integers(1, 4)
)
def test_attention_is_over_the_prefix_and_the_tokens(b: int, n: int, heads: int, size: int, length: int) -> None:
    attention = prepared(heads, size)
    x = torch.randn(b, n, heads * size)
    attention.prefix = Prefix(torch.randn(b, length, heads, size), torch.randn(b, length, heads, size))
    expected = written_out(attention.attention, *(t.double().numpy() for t in (x, *attention.prefix)))
    np.testing.assert_allclose(attention(x).numpy(), expected, atol=1e-5)


def test_without_a_prefix_it_is_timms_own() -> None:
    attention = prepared(2, 4)
    x = torch.randn(3, 5, 8)
    assert torch.equal(attention(x), attention.attention(x))


def test_an_images_prefix_is_its_own() -> None:
    attention = prepared(2, 4)
    x, prompts = torch.randn(4, 5, 8), torch.randn(4, 1, 2, 3, 2, 4)
    attention.prefix = prefixes((0,), prompts)[0]
    together = attention(x)
    for image in range(4):
        attention.prefix = prefixes((0,), prompts[image : image + 1])[0]
        torch.testing.assert_close(attention(x[image : image + 1]), together[image : image + 1])
    attention.prefix = prefixes((0,), prompts.flip(2))[0]
    assert not torch.allclose(attention(x), together, atol=1e-3), "keys are no values"


def test_prompts_are_cut_by_block_and_by_keys_and_values() -> None:
    prompts = torch.arange(2 * 3 * 2 * 4 * 2 * 5).view(2, 3, 2, 4, 2, 5)
    cut = prefixes((1, 4, 7), prompts)
    assert list(cut) == [1, 4, 7]
    for place, prefix in enumerate(cut.values()):
        assert torch.equal(prefix.keys, prompts[:, place, 0]) and torch.equal(prefix.values, prompts[:, place, 1])


def test_the_backbone_is_left_as_it_was_but_in_the_named_blocks(sequences: Any) -> None:
    backbone: Backbone = sequences.make("frozen").backbone
    images = torch.randn(2, 3, 32, 32)
    before = backbone(images)
    made = add_prefix_attention(backbone, (1,))
    assert [type(block.attn) for block in backbone.blocks] == [Attention, PrefixAttention]
    assert made == {1: backbone.blocks[1].attn}
    assert torch.equal(backbone(images), before)


def test_another_attention_is_refused(sequences: Any) -> None:
    backbone: Backbone = sequences.make("frozen").backbone
    backbone.blocks[1].attn = nn.Identity()
    with pytest.raises(UserError, match=r"backbone\.name: block 1 has no plain attention"):
        add_prefix_attention(backbone, (0, 1))


@pytest.mark.parametrize(
    ("chosen", "depth", "expected"),
    [((), 12, (0, 1, 2, 3, 4)), ((), 6, (0, 1, 2, 3, 4)), ((), 2, (0, 1)), ((), 1, (0,)), ((3, 1), 4, (3, 1))],
)
def test_blocks_are_those_named_or_the_first_five(chosen: Any, depth: int, expected: tuple[int, ...]) -> None:
    assert choose_layers("layers", chosen, depth) == expected


@pytest.mark.parametrize("chosen", [(6,), (0, 7), (2, 2)])
def test_blocks_that_are_not_there_are_refused(chosen: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"method\.layers: found .*, expected different numbers from 0 to 5"):
        choose_layers("layers", chosen, 6)
