"""Prefix prompts: keys and values of each image that its tokens attend to beside their own (prefix tuning).

    Attention(Q, [P_K; K], [P_V; V])

The prompts stand behind the projections, as in DualPrompt's, CODA-Prompt's and HiDe-Prompt's codes. Their axes are kept
apart by name and never reshaped into one another: [b, L, heads, d_head] for the keys and the same for the values.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F

from fmlora_dist.errors import UserError
from fmlora_dist.vit.backbone import Backbone

__all__ = ["Prefix", "PrefixAttention", "add_prefix_attention", "choose_layers", "prefixes"]

USUAL = 5
"""Blocks that DualPrompt, CODA-Prompt and HiDe-Prompt prompt, the first ones of twelve."""


class Prefix(NamedTuple):
    """What each image's tokens attend to beside themselves, in one block."""

    keys: Tensor
    """[b, L, heads, d_head]"""
    values: Tensor
    """[b, L, heads, d_head]"""


class PrefixAttention(nn.Module):
    """timm's self-attention, which is left as it is while ``prefix`` is None."""

    prefix: Prefix | None = None

    def __init__(self, attention: Attention):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, **options: object) -> Tensor:
        """x [b, n, d] -> [b, n, d]."""
        attention = self.attention
        if self.prefix is None:
            out: Tensor = attention(x, **options)
            return out
        b, n, _ = x.shape
        qkv = attention.qkv(x).reshape(b, n, 3, attention.num_heads, attention.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attention.q_norm(q), attention.k_norm(k)
        keys, values = (part.transpose(1, 2).to(k.dtype) for part in self.prefix)
        heads = F.scaled_dot_product_attention(q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2))
        projected: Tensor = attention.proj(heads.transpose(1, 2).reshape(b, n, -1))
        return projected


def add_prefix_attention(backbone: Backbone, layers: Sequence[int]) -> dict[int, PrefixAttention]:
    """Make room for prefixes in some blocks, by their numbers.

    Raises:
        UserError: a block of the backbone has another attention than timm's plain one.
    """
    made = {}
    for layer in layers:
        attention = getattr(backbone.blocks[layer], "attn", None)
        extras = (getattr(attention, "norm", None), getattr(attention, "gate", None))
        if type(attention) is not Attention or any(type(extra) not in (nn.Identity, type(None)) for extra in extras):
            raise UserError(
                f"backbone.name: block {layer} has no plain attention that prompts fit into; choose a plain timm ViT"
            )
        backbone.blocks[layer].attn = made[layer] = PrefixAttention(attention)
    return made


def prefixes(layers: Sequence[int], prompts: Tensor) -> dict[int, Prefix]:
    """Prompts [b, layers, 2, L, heads, d_head], keys before values, by the number of their block."""
    return {layer: Prefix(*prompts[:, place].unbind(1)) for place, layer in enumerate(layers)}


def choose_layers(field: str, chosen: Sequence[int], depth: int) -> tuple[int, ...]:
    """The blocks, of ``depth``, that ``method.<field>`` names; if none, the first five (or all where there are fewer).

    Raises:
        UserError: a block that the backbone does not have, or one that is named twice.
    """
    if len(set(chosen)) < len(chosen) or any(layer >= depth for layer in chosen):
        raise UserError(
            f"method.{field}: found {', '.join(map(str, chosen))}, expected different numbers from 0 to {depth - 1}, "
            f"for the backbone has {depth} blocks; name some of them, or leave the field empty"
        )
    return tuple(chosen) or tuple(range(min(USUAL, depth)))
