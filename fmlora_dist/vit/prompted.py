"""What prompt methods share: two passes of an image through the frozen ViT, and the choice of prompts in between.

The first pass is plain and gives the query, the second has the prompts that the query chose. Both start from the same
embedded patches, which are computed once. The plain pass is without autograd and in the run's precision; for an image
that comes again unchanged (a test image, after every task) it is not repeated.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fmlora_dist.method import Method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.prefix import Prefix, add_prefix_attention

__all__ = ["BATCHWISE", "PromptMethod", "cosine", "most_frequent"]

BATCHWISE = "dependent on other test images (paper_compat)"


class PromptMethod(Method):
    """A method whose prompts act on the frozen ViT. Subclasses hold the prompts and choose them for each image."""

    def __init__(self, config: Any, backbone: Backbone, *, lr: float, layers: Sequence[int] = ()):
        """Make room for prefixes in the blocks ``layers``."""
        super().__init__(config, backbone, lr=lr)
        attentions = add_prefix_attention(backbone, layers)
        self._attentions = (attentions,)  # in a tuple: the backbone owns them
        shapes = {(each.attention.num_heads, each.attention.head_dim) for each in attentions.values()}
        self.head_shape: tuple[int, ...] = next(iter(shapes), ())
        """Heads of a block, and dimensions of a head."""
        self._kept: dict[Hashable, Tensor] = {}
        self._key: Hashable | None = None

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """images [b, 3, H, W] -> the tokens [b, n, d] that enter the first block."""
        backbone = self.backbone
        tokens: Tensor = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(images))))
        return tokens

    @torch.no_grad()
    def query(self, tokens: Tensor) -> Tensor:
        """What chooses the prompts: the plain ViT's pooled features [b, d] of embedded tokens [b, n, d], in fp32."""
        known = self._kept.get(self._key) if self._key is not None else None
        if known is not None:
            return known.to(tokens.device)
        query = self.pool(self.blocks(tokens)).float()
        if self._key is not None:
            self._kept[self._key] = query.cpu()
        return query

    def blocks(self, tokens: Tensor, prefixes: Mapping[int, Prefix] | None = None) -> Tensor:
        """Tokens [b, n, d] through all blocks, with prefixes by the number of the block -> [b, n, d]."""
        (attentions,) = self._attentions
        for layer, attention in attentions.items():
            attention.prefix = (prefixes or {}).get(layer)
        try:
            out: Tensor = self.backbone.norm(self.backbone.blocks(tokens))
        finally:
            for attention in attentions.values():
                attention.prefix = None
        return out

    def pool(self, tokens: Tensor) -> Tensor:
        """The backbone's pooled features [b, d] (the class token's, say) of tokens [b, n, d]."""
        pooled: Tensor = self.backbone.forward_head(tokens)
        return pooled

    def repeated(self, key: Hashable) -> AbstractContextManager[None]:
        return self._repeated(key)

    @contextmanager
    def _repeated(self, key: Hashable) -> Iterator[None]:
        self._key = key
        try:
            yield
        finally:
            self._key = None


def cosine(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosine similarity [b, m] of queries [b, d] and keys [m, d]; always in fp32, so that no choice hangs on bf16."""
    with torch.autocast(queries.device.type, enabled=False):
        return F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T


def most_frequent(chosen: Tensor, n: int) -> Tensor:
    """The choice of a whole batch, for all of its images alike: of ``chosen`` [b, k], with numbers below n, the k most
    frequent ones -> [b, k] (``paper_compat: batchwise_prompt``)."""
    counts = F.one_hot(chosen.flatten(), n).sum(dim=0)
    return counts.topk(chosen.shape[1]).indices.expand_as(chosen)
