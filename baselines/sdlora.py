"""SD-LoRA: earlier tasks' directions are frozen, their magnitudes keep training."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.lora import Projection, draw_down
from fmlora_dist.method import MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.low_rank import Adapter, LowRankMethod, check_rank

__all__ = ["SdLora", "SdLoraConfig"]

GUARD = 0.1
"""Paper variant: a product shorter than this is divided by this, for B = 0 has no direction. Not smaller, because the
gradient at B = 0 is that of plain LoRA times alpha / GUARD: a first SGD step that is huge would fix the direction."""


class SdLoraConfig(MethodConfig):
    """Hyperparameters of SD-LoRA."""

    rank: int = Field(10, ge=1)
    """Rank of the first task's direction, and of the later ones unless later_ranks is given."""
    later_ranks: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Ranks of tasks 2, 3, ...; the last one holds for the rest (two official logs: 16; RR: 10,10,10,8,8,8,8,6)."""
    variant: Literal["default", "official", "paper"] = "default"
    """default: newest raw, then normalised without changing the function; official: as the public code; paper: newest
    normalised while it trains."""
    alpha: float = Field(0.8, gt=0)
    """Magnitude at which directions start (variants official and paper; LibContinual: 1.0)."""
    projections: tuple[Projection, ...] = Field(("q", "v"), min_length=1)
    """Attention projections that get a branch, in every block."""


def squared_norm(down: Tensor, up: Tensor) -> Tensor:
    """‖B A‖²_F of down A [r, d_in] and up B [d_out, r] = tr(BᵀB · AAᵀ), without forming the product; in fp32."""
    with torch.autocast(down.device.type, enabled=False):
        down, up = down.float(), up.float()
        return ((up.T @ up) * (down @ down.T)).sum()


class Directions(Adapter):
    """ΔW = Σ_{k<t} α_k D_k + c B_t A_t, with the frozen directions D_k stacked into one pair of factors."""

    past_down: Tensor
    past_up: Tensor
    direction: Tensor

    def __init__(self, d_in: int, d_out: int):
        super().__init__(d_in, d_out)
        self.down = nn.Parameter(torch.empty(0, d_in))
        self.up = nn.Parameter(torch.empty(d_out, 0))
        self.register_buffer("past_down", torch.empty(0, d_in))
        self.register_buffer("past_up", torch.empty(d_out, 0))
        # For each column of past_up the number k of its direction: ranks may differ.
        self.register_buffer("direction", torch.empty(0, dtype=torch.int64))
        self.variant = "default"
        # (magnitudes [rows, K], own row): the method owns them, as the official variant shares one row among all.
        self.magnitude: tuple[Tensor, int] = (torch.empty(1, 0), 0)

    @property
    def alphas(self) -> Tensor:
        """α [K]: of the past directions, and last of the newest one where it has a magnitude while it trains."""
        values, row = self.magnitude
        return values[row]

    def coefficient(self) -> Tensor | float:
        """c, the factor of the newest B A."""
        if self.variant == "default":
            return 1.0
        if self.variant == "official":
            return self.alphas[-1]
        # The root comes after the clamp: its gradient at B = 0 would not be finite.
        return self.alphas[-1] / squared_norm(self.down, self.up).clamp_min(GUARD**2).sqrt()

    def factors(self) -> tuple[Tensor, Tensor] | None:
        up = self.past_up * self.alphas[self.direction]
        if self.up.numel():
            up = torch.cat([up, self.coefficient() * self.up], dim=1)
        return (torch.cat([self.past_down, self.down]), up) if up.numel() else None

    def draw(self, rank: int, generator: torch.Generator) -> None:
        """Room for the newest direction: A as LoRA draws it, B = 0."""
        self.down.data = draw_down(rank, self.d_in, generator).to(self.down.device)
        self.up.data = self.up.new_zeros(self.d_out, rank)

    @torch.no_grad()
    def consolidate(self) -> Tensor:
        """Freeze the newest factors as the direction D = B A / n; gives the magnitude c · n that keeps the function.

        n is ‖B A‖_F; in the official code it is ‖A‖_F ‖B‖_F.
        """
        official = self.variant == "official"
        norm = self.down.norm() * self.up.norm() if official else squared_norm(self.down, self.up).sqrt()
        magnitude = self.coefficient() * norm
        number = 1 + int(self.direction[-1]) if self.direction.numel() else 0
        self.past_down = torch.cat([self.past_down, self.down])
        self.past_up = torch.cat([self.past_up, self.up / norm.clamp_min(torch.finfo(norm.dtype).tiny)], dim=1)
        self.direction = torch.cat([self.direction, self.direction.new_full((self.down.shape[0],), number)])
        self.down.data = self.down.new_empty(0, self.d_in)
        self.up.data = self.up.new_empty(self.d_out, 0)
        return magnitude


@register_method(
    MethodInfo(
        name="sdlora",
        summary="frozen directions whose magnitudes keep training, a new one for each task",
        paper="Wu et al., SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class Incremental Learning, ICLR 2025",
        family="low-rank",
        lr=2e-3,
        grows=True,
    )
)
class SdLora(LowRankMethod):
    """Three variants, as paper and public code disagree.

    - default: the newest B A trains raw; at the task's end D = B A / ‖B A‖_F and α = ‖B A‖_F, so the function stays.
      α is one number per task, block and projection (the norms differ), is carried on and keeps training.
    - official: the newest trains as α B A; when the next task begins, it becomes B A / (‖A‖_F ‖B‖_F) and every α is
      0.8 again, which changes the function. α is one number per task, shared by all blocks and projections.
    - paper: the newest is normalised while it trains, α B A / max(‖B A‖_F, 0.1); α as in default, from 0.8.
    """

    Config: ClassVar[type[MethodConfig]] = SdLoraConfig

    def __init__(self, config: SdLoraConfig, backbone: Backbone, *, lr: float):
        check_rank("rank", config.rank, backbone.embed_dim)
        for rank in config.later_ranks:
            check_rank("later_ranks", rank, backbone.embed_dim)
        super().__init__(config, backbone, lr=lr, projections=config.projections, make=Directions)
        self.shared = config.variant == "official"
        self.magnitudes = nn.Parameter(torch.empty(1 if self.shared else len(self.adapters), 0))
        for number, adapter in enumerate(self.each()):
            adapter.variant = config.variant
            adapter.magnitude = (self.magnitudes, 0 if self.shared else number)

    def begin_task(self, task: Task, data: TaskData) -> None:
        super().begin_task(task, data)
        if self.config.variant == "official":
            for adapter in self.each():
                if adapter.up.numel():
                    adapter.consolidate()
            self.magnitudes.data = self.magnitudes.new_full((1, task.number), self.config.alpha)
        elif self.config.variant == "paper":
            start = self.magnitudes.new_full((len(self.adapters), 1), self.config.alpha)
            self.magnitudes.data = torch.cat([self.magnitudes.detach(), start], dim=1)
        generator = data.generator("adapters")
        for adapter in self.each():
            adapter.draw(self.rank(task), generator)

    def rank(self, task: Task) -> int:
        """Rank of the task's direction."""
        ranks: tuple[int, ...] = (self.config.rank, *self.config.later_ranks)
        return ranks[min(task.number, len(ranks)) - 1]

    def parameter_groups(self) -> list[ParameterGroup]:
        factors = [p for adapter in self.each() for p in (adapter.down, adapter.up) if p.numel()]
        magnitudes = [self.magnitudes] if self.magnitudes.numel() else []
        return [
            ParameterGroup(name="adapters", params=factors, lr=self.lr),
            ParameterGroup(name="magnitudes", params=magnitudes, lr=self.lr),
            ParameterGroup(name="head", params=list(self.head.parameters()), lr=self.lr),
        ]

    def end_task(self, data: TaskData) -> None:
        if self.config.variant == "official":
            return  # the public code tests task t with its newest direction as it trained
        newest = torch.stack([adapter.consolidate() for adapter in self.each()])[:, None]
        past = self.magnitudes.detach()
        if self.config.variant == "paper":
            past = past[:, :-1]
        self.magnitudes.data = torch.cat([past, newest], dim=1)
