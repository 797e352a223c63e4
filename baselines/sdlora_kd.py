"""SD-LoRA-KD: a new direction that the older ones span is absorbed into their magnitudes."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.sdlora import Directions, SdLora, SdLoraConfig
from fmlora_dist.method import MethodConfig, MethodInfo, TaskData
from fmlora_dist.registry import register_method

__all__ = ["SdLoraKd", "SdLoraKdConfig", "inner_products"]


class SdLoraKdConfig(SdLoraConfig):
    """Hyperparameters of SD-LoRA-KD: those of SD-LoRA, and the threshold."""

    threshold: float = Field(9e-4, ge=0)
    """A direction is absorbed when the squared residual of its unit-length fit is below this (LibContinual: 9e-4)."""
    variant: Literal["default", "paper"] = "default"
    """As in SD-LoRA; official is not offered, since it resets every magnitude, and what was absorbed with it."""


def inner_products(adapter: Directions) -> Tensor:
    """⟨D_j, D_k⟩_F [K, K] of the past directions, without forming them; float64 on the CPU, alike in all processes."""
    down, up = adapter.past_down.cpu().double(), adapter.past_up.cpu().double()
    member = F.one_hot(adapter.direction.cpu()).double()  # [R, K]: which direction a column of the factors belongs to
    products: Tensor = member.T @ ((up.T @ up) * (down @ down.T)) @ member
    return products


def absorb(adapter: Directions, alphas: Tensor, threshold: float) -> Tensor:
    """Fit the newest direction by the older ones, D_t ≈ Σ c_k D_k; drop it if what is left is below the threshold.

    ``alphas`` [K] are the adapter's magnitudes; gives them as they are then: [K], or [K - 1] with α_k + c_k α_t.
    """
    products = inner_products(adapter)
    older, newest = products[:-1, :-1], products[:-1, -1]
    fit = torch.linalg.pinv(older, hermitian=True) @ newest
    residual = products[-1, -1] - newest @ fit
    if not len(fit) or residual >= threshold:
        return alphas
    kept = adapter.direction < len(fit)
    adapter.past_down, adapter.past_up = adapter.past_down[kept], adapter.past_up[:, kept]
    adapter.direction = adapter.direction[kept]
    return alphas[:-1] + alphas[-1] * fit.to(alphas)


@register_method(
    MethodInfo(
        name="sdlora_kd",
        summary="SD-LoRA that absorbs a new direction which the older ones span",
        paper="Wu et al., SD-LoRA: Scalable Decoupled Low-Rank Adaptation, ICLR 2025 (KD)",
        family="low-rank",
        lr=2e-3,
        grows=True,
    )
)
class SdLoraKd(SdLora):
    """At a task's end, for each block and projection by itself: c = argmin ‖D_t - Σ_{k<t} c_k D_k‖²_F over the unit
    directions; where the minimum is below the threshold, α_k ← α_k + c_k α_t, and D_t is dropped.

    So the function changes by α_t times the root of the residual at most. There is no official code; LibContinual's
    adds c_k without α_t, which would change the function, and stops with an error as soon as it absorbs. Projections
    then differ in their number of directions; in ``magnitudes`` the shorter rows end in zeros that act on nothing.
    """

    Config: ClassVar[type[MethodConfig]] = SdLoraKdConfig

    @torch.no_grad()
    def end_task(self, data: TaskData) -> None:
        super().end_task(data)
        rows = []
        for adapter, alphas in zip(self.each(), self.magnitudes.detach(), strict=True):
            older = int(adapter.direction[-1])  # the newest one's number; its magnitude comes last in the row
            rows.append(absorb(adapter, torch.cat([alphas[:older], alphas[-1:]]), self.config.threshold))
        self.magnitudes.data = nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def diagnostics(self) -> dict[str, float | int]:
        """How many directions have been absorbed so far, over all blocks and projections."""
        assert self.task is not None
        kept = sum(1 + int(adapter.direction[-1]) for adapter in self.each())
        return super().diagnostics() | {"absorbed": self.task.number * len(self.adapters) - kept}
