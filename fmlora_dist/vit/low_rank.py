"""Low-rank branches on the frozen attention projections of a ViT.

timm keeps query, key and value in one linear layer ``qkv``. An adapted layer computes

    y = x (W + P)ᵀ + (x Dᵀ) Uᵀ + b

with W the original weight, P what the past adds to it (merged, frozen), and D, U the branches that train now, each
added to the rows of its own projection. P is always recomputed in fp32 from W and the stored factors, never
accumulated; so a step costs the same at every task. Branches that grow (SD-LoRA's past directions, whose magnitudes
train) are summed into the weight once a step instead, as soon as that is faster.
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
Rows = tuple[slice, ...]

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
        rows = tuple(place for place, _ in branches)
        if sum(down.shape[0] for _, (down, _) in branches) > SUM_ABOVE * x.shape[-1]:
            with torch.autocast(x.device.type, enabled=False):  # in fp32: products of a weight's size are cheap
                updates = [up.float() @ down.float() for _, (down, up) in branches]
            return _WithUpdates.apply(x, self.effective, self.bias, rows, *updates)
        downs, ups = zip(*(factors for _, factors in branches), strict=True)
        return _WithBranches.apply(x, self.effective, self.bias, rows, *downs, *ups)

    def _branches(self) -> list[tuple[slice, Factors]]:
        return [(rows, factors) for rows, adapter in self._adapters if (factors := adapter.factors()) is not None]


class _WithBranches(torch.autograd.Function):
    """x Wᵀ + b with (x Dᵢᵀ) Uᵢᵀ added to the rows of each projection i: D [rᵢ, d_in], U [d_out, rᵢ], W frozen.

    Written out because autograd of the same sum costs more than its products: it would pad each U to all rows, or copy
    the gradient of y for each projection, and add the two gradients of x in a pass of their own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, *factors: Tensor) -> Tensor:
        x, weight, bias, *factors_ = _in_compute_dtype(x, weight, bias, *factors)
        downs, ups = factors_[: len(rows)], factors_[len(rows) :]
        ctx.rows, ctx.ranks = rows, [down.shape[0] for down in downs]
        with torch.autocast(x.device.type, enabled=False):
            tokens, down = x.flatten(0, -2), torch.cat(downs)
            # Copied, for the copies are small and products with this layout take half the time.
            across = [up.T.contiguous() for up in ups]
            low = tokens @ down.T.contiguous()
            y = F.linear(tokens, weight, bias)
            for place, part, up in zip(rows, low.split(ctx.ranks, dim=1), across, strict=True):
                y[:, place].addmm_(part, up)
        ctx.save_for_backward(tokens, weight, low, down, *across)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        tokens, weight, low, down, *across = ctx.saved_tensors
        needed, n = ctx.needs_input_grad, len(ctx.rows)
        flat = grad.reshape(len(tokens), -1)
        parts = [flat[:, place] for place in ctx.rows]
        grad_x, grad_downs = None, [None] * n
        if needed[0] or any(needed[4 : 4 + n]):
            grad_low = torch.cat([part @ up.T for part, up in zip(parts, across, strict=True)], dim=1)
            if needed[0]:
                grad_x = (flat @ weight).addmm_(grad_low, down).view(*grad.shape[:-1], -1)
            if any(needed[4 : 4 + n]):
                grad_downs = list((grad_low.T @ tokens).split(ctx.ranks))
        grad_ups = [(one.T @ part).T for part, one in zip(parts, low.split(ctx.ranks, dim=1), strict=True)]
        return grad_x, None, None, None, *grad_downs, *grad_ups


class _WithUpdates(torch.autograd.Function):
    """x (W + P)ᵀ + b, where P has an update [d_out, d_in] in the rows of each projection, and W is frozen.

    Written out for the same reason: the gradient of the weight is formed for these rows alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, *updates: Tensor) -> Tensor:
        whole = weight.clone()
        for place, update in zip(rows, updates, strict=True):
            whole[place] += update
        x, whole, bias = _in_compute_dtype(x, whole, bias)
        ctx.rows = rows
        ctx.save_for_backward(x, whole)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, whole, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, whole = ctx.saved_tensors
        grad_x = grad @ whole if ctx.needs_input_grad[0] else None
        flat, tokens = grad.reshape(-1, grad.shape[-1]), x.flatten(0, -2)
        return grad_x, None, None, None, *(flat[:, place].T @ tokens for place in ctx.rows)


def _in_compute_dtype(*tensors: Any) -> list[Any]:
    """The tensors, and None, as autocast would hand them to a product."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [tensor if tensor is None else tensor.to(dtype) for tensor in tensors]


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

    def diagnostics(self) -> dict[str, float | int]:
        """``weight_change``: ‖W_t − W₀‖_F / ‖W₀‖_F of all blocks' qkv weights together, everything merged."""
        with self.merged():
            pairs = [torch.stack([(one.effective - one.weight).norm(), one.weight.norm()]) for one in self.layers]
        moved, size = torch.stack(pairs).detach().norm(dim=0).tolist()
        return {"weight_change": moved / size}

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
