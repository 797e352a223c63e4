"""One LoRA for the whole sequence, trained on task after task."""

import math
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fmlora_dist.method import MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.low_rank import Adapter, LowRankMethod, check_rank

__all__ = ["Branch", "Lora", "LoraConfig", "Projection", "draw_down"]

Projection = Literal["q", "k", "v"]


class LoraConfig(MethodConfig):
    """Hyperparameters of LoRA."""

    rank: int = Field(10, ge=1)
    """Rank r of each branch."""
    alpha: float = Field(10.0, gt=0)
    """The branch is scaled by alpha / rank; the defaults give 1, the scale of InfLoRA and SD-LoRA."""
    projections: tuple[Projection, ...] = Field(("q", "v"), min_length=1)
    """Attention projections that get a branch, in every block."""


def draw_down(rank: int, d_in: int, generator: torch.Generator) -> Tensor:
    """Draw A [rank, d_in] with entries U(-1/√d_in, 1/√d_in): Kaiming uniform with a = √5, as LoRA's own code."""
    unit: Tensor = 2 * torch.rand(rank, d_in, generator=generator) - 1
    return unit / math.sqrt(d_in)


class Branch(Adapter):
    """ΔW = scale · B A with A [r, d_in], B [d_out, r] (Hu et al., LoRA, ICLR 2022, eq. 3)."""

    def __init__(self, d_in: int, d_out: int, scale: float):
        super().__init__(d_in, d_out)
        self.scale = scale
        self.down = nn.Parameter(torch.empty(0, d_in))
        self.up = nn.Parameter(torch.empty(d_out, 0))

    def factors(self) -> tuple[Tensor, Tensor] | None:
        return (self.down, self.scale * self.up) if self.down.numel() else None


@register_method(
    MethodInfo(
        name="lora",
        summary="one LoRA on the attention, trained on task after task",
        paper="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022",
        family="low-rank",
        lr=2e-3,
    )
)
class Lora(LowRankMethod):
    """The same factors train in every task; they are drawn once, before the first."""

    Config: ClassVar[type[MethodConfig]] = LoraConfig

    def __init__(self, config: LoraConfig, backbone: Backbone, *, lr: float):
        check_rank("rank", config.rank, backbone.embed_dim)
        scale = config.alpha / config.rank
        super().__init__(config, backbone, lr=lr, projections=config.projections, make=partial(Branch, scale=scale))

    def begin_task(self, task: Task, data: TaskData) -> None:
        super().begin_task(task, data)
        generator = data.generator("adapters")
        for branch in self.each():
            if not branch.down.numel():
                branch.down.data = draw_down(self.config.rank, branch.d_in, generator).to(branch.down.device)
                branch.up.data = branch.up.new_zeros(branch.d_out, self.config.rank)

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup(name="adapters", params=list(self.adapters.parameters()), lr=self.lr),
            ParameterGroup(name="head", params=list(self.head.parameters()), lr=self.lr),
        ]
