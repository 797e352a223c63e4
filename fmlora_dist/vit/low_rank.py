"""Low-rank branches on the frozen attention projections of a ViT.

timm keeps query, key and value in one linear layer ``qkv``. An adapted layer computes

    y = x (W + P)ᵀ + (x Dᵀ) Uᵀ + b

with W the original weight, P what the past adds to it (merged, frozen), and D [R, d_in], U [3d, R] the branches that
train now, those of all its projections stacked into one. P is always recomputed in fp32 from W and the stored
factors, never accumulated; so a step costs the same at every task. Branches that grow (SD-LoRA's past directions, whose
magnitudes train) are summed into the weight once a step instead, as soon as that is faster.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmlora_dist.errors import UserError
from fmlora_dist.method import Method
from fmlora_dist.vit.backbone import Backbone

__all__ = ["Adapter", "LowRankLinear", "LowRankMethod", "check_rank"]

Factors = tuple[Tensor, Tensor]

SUM_ABOVE = 1 / 4
"""Stacked rank, as a share of d_in, above which a summed weight is faster than a branch. Measured for forward and
backward of one layer with q and v adapted, on one core: the two meet near rank 40 at d = 192 and near 100 to 200 at
d = 768; SD-LoRA at d = 192 with 20 directions of rank 10 (2368 tokens, fp32): the branch takes 66 ms, the sum 22."""


def check_rank(field: str, rank: int, width: int) -> None:
    """Refuse a rank above the backbone's width with a ``UserError``."""
    if rank > width:
        raise UserError(
            f"method.{field}: found {rank}, expected at most the width {width}; choose a rank from 1 to {width}"
        )


class Adapter(nn.Module):
    """What one projection of one block learns. Subclasses hold the factors and say how they act."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.d_in, self.d_out = d_in, d_out

    def factors(self) -> Factors | None:
        """The branch that trains now: (down [R, d_in], up [d_out, R]) acting as up @ down; None when there is none."""
        return None

    def past(self) -> Tensor | None:
        """What is frozen and merged into the weight, [d_out, d_in]; None when there is nothing."""
        return None


class LowRankLinear(nn.Module):
    """A frozen linear layer with low-rank adapters on blocks of its output rows."""

    effective: Tensor

    def __init__(self, linear: nn.Linear, adapters: Sequence[tuple[slice, Adapter]]):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        # Held without registering them: the method owns the adapters, the backbone's names stay timm's own.
        self._adapters = tuple(adapters)
        self.branch = True
        self.observe: Callable[[Tensor], None] | None = None
        self.register_buffer("effective", self.weight.detach(), persistent=False)

    @torch.no_grad()
    def merge(self, *, current: bool = False) -> None:
        """Recompute the merged weight from the original and the adapters' past, and ``current`` branches if asked."""
        deltas = []
        for rows, adapter in self._adapters:
            deltas.append((rows, adapter.past()))
            factors = adapter.factors() if current else None
            if factors is not None:
                deltas.append((rows, factors[1].float() @ factors[0].float()))
        merged = self.weight.detach()
        if any(delta is not None for _, delta in deltas):
            merged = merged.clone()
            for rows, delta in deltas:
                if delta is not None:
                    merged[rows] += delta
        self.effective = merged

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> [..., d_out]."""
        if self.observe is not None:
            self.observe(x)
        branches = self._branches() if self.branch else []
        if not branches:
            return F.linear(x, self.effective, self.bias)
        if sum(down.shape[0] for _, (down, _) in branches) > SUM_ABOVE * x.shape[-1]:
            return F.linear(x, self._summed(branches), self.bias)
        down, up = self._stacked(branches)
        y = F.linear(x, self.effective, self.bias)
        low = F.linear(x, down)
        # One addmm adds the branch: no second tensor of the output's size.
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), up.to(low.dtype).t()).view_as(y)

    def _branches(self) -> list[tuple[slice, Factors]]:
        return [(rows, factors) for rows, adapter in self._adapters if (factors := adapter.factors()) is not None]

    def _stacked(self, branches: Sequence[tuple[slice, Factors]]) -> Factors:
        """The branches of all projections as one: down [R, d_in], up [3d, R] with zeros outside each one's rows."""
        ups = [F.pad(up, self._outside(rows)) for rows, (_, up) in branches]
        return torch.cat([down for _, (down, _) in branches]), torch.cat(ups, dim=1)

    def _summed(self, branches: Sequence[tuple[slice, Factors]]) -> Tensor:
        """The effective weight with all branches, [3d, d_in]. In fp32: one product of a weight's size is cheap."""
        weight = self.effective
        with torch.autocast(weight.device.type, enabled=False):
            for rows, (down, up) in branches:
                weight = weight + F.pad(up @ down, self._outside(rows))
        return weight

    def _outside(self, rows: slice) -> tuple[int, int, int, int]:
        return (0, 0, rows.start, self.weight.shape[0] - rows.stop)


class LowRankMethod(Method):
    """A method whose function is the plain ViT with other attention weights."""

    def __init__(
        self,
        config: Any,
        backbone: Backbone,
        *,
        lr: float,
        projections: Sequence[str],
        make: Callable[[int, int], Adapter],
    ):
        """Put ``make(d_in, d_out)`` on each of ``projections`` ('q', 'k', 'v') of every block."""
        super().__init__(config, backbone, lr=lr)
        self.projections = tuple(projections)
        self.layers: list[LowRankLinear] = []
        adapters: dict[str, Adapter] = {}
        for number, block in enumerate(backbone.blocks):
            attention: Any = getattr(block, "attn", None)
            linear = getattr(attention, "qkv", None)
            if not isinstance(linear, nn.Linear):
                raise UserError(f"backbone.name: block {number} has no linear layer attn.qkv; choose a plain timm ViT")
            width = linear.out_features // 3
            rows = [(slice(i * width, (i + 1) * width), "qkv"[i]) for i in range(3)]
            mine = [(place, make(linear.in_features, width), name) for place, name in rows if name in projections]
            adapters |= {f"{number}_{name}": adapter for _, adapter, name in mine}
            layer = LowRankLinear(linear, [(place, adapter) for place, adapter, _ in mine])
            attention.qkv = layer
            self.layers.append(layer)
        self.adapters = nn.ModuleDict(adapters)

    def each(self) -> Iterator[Any]:
        """All adapters, by block, then by projection."""
        yield from self.adapters.values()

    def rebuild(self) -> None:
        for layer in self.layers:
            layer.merge()

    def plain_weights(self) -> dict[str, Tensor]:
        with self.merged():
            merged = {f"blocks.{number}.attn.qkv.weight": layer.effective for number, layer in enumerate(self.layers)}
        return super().plain_weights() | merged

    def merged(self) -> AbstractContextManager[None]:
        return self._merged()

    @contextmanager
    def _merged(self) -> Iterator[None]:
        for layer in self.layers:
            layer.merge(current=True)
            layer.branch = False
        try:
            yield
        finally:
            for layer in self.layers:
                layer.branch = True
                layer.merge()
