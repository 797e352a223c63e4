"""InfLoRA: a new branch per task, in a subspace that earlier tasks did not use."""

import logging
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.dual_gpm import SubspaceMemory
from baselines.lora import Projection
from fmlora_dist.method import MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.low_rank import Adapter, LowRankMethod, check_rank

__all__ = ["InfLora", "InfLoraConfig"]

logger = logging.getLogger(__name__)


class InfLoraConfig(MethodConfig):
    """Hyperparameters of InfLoRA."""

    rank: int = Field(10, ge=1)
    """Rank of each task's branch (official: 10; DomainNet 30); less where fewer dimensions are free."""
    lamb: float = Field(0.98, gt=0, le=1)
    """Energy threshold at the first task (official: ImageNet-R 0.98, CIFAR100 and DomainNet 0.95)."""
    lame: float = Field(1.0, gt=0, le=1)
    """Threshold that the sequence moves towards: at task t of T (from 0) it is lamb + (lame - lamb) t / T."""
    memory: Literal["dualgpm", "gpm"] = "dualgpm"
    """dualgpm stores the smaller of the used subspace and its complement; gpm always the used one."""
    projections: tuple[Projection, ...] = Field(("k", "v"), min_length=1)
    """Attention projections that get a branch, in every block."""
    head_lr: float | None = Field(None, gt=0)
    """Learning rate of the head; empty: that of the branches (official DomainNet: 0.01 beside 0.005)."""


class BlockSpace(nn.Module):
    """What the projections of a block share: the input, hence the used subspace and the factors A."""

    down: Tensor
    past_down: Tensor

    def __init__(self, width: int, *, dual: bool):
        super().__init__()
        self.memory = SubspaceMemory(width, dual=dual)
        self.register_buffer("down", torch.empty(0, width))
        self.register_buffer("past_down", torch.empty(0, width))


class InfLoraBranch(Adapter):
    """ΔW = Σ_{i<t} B_i A_i + B_t A_t, of which only B_t [d_out, r_t] trains (Liang and Li, 2024, eq. 3)."""

    past_up: Tensor

    def __init__(self, d_in: int, d_out: int):
        super().__init__(d_in, d_out)
        self.up = nn.Parameter(torch.empty(d_out, 0))
        self.register_buffer("past_up", torch.empty(d_out, 0))
        self.space: tuple[BlockSpace, ...] = ()  # in a tuple: the method owns it, or its tensors would have two names

    def factors(self) -> tuple[Tensor, Tensor] | None:
        return (self.space[0].down, self.up) if self.up.numel() else None

    def past(self) -> Tensor | None:
        return self.past_up @ self.space[0].past_down if self.past_up.numel() else None


@register_method(
    MethodInfo(
        name="inflora",
        summary="a branch per task in the input subspace that earlier tasks left free",
        paper="Liang and Li, InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning, CVPR 2024",
        family="low-rank",
        lr=4e-3,
        needs_pass=True,
        grows=True,
    )
)
class InfLora(LowRankMethod):
    """A_t is fixed before task t from the task's inputs; B_t starts at zero and trains with the task's head.

    Earlier branches are merged into the weight.
    """

    Config: ClassVar[type[MethodConfig]] = InfLoraConfig
    threshold: Tensor
    ranks: Tensor

    def __init__(self, config: InfLoraConfig, backbone: Backbone, *, lr: float):
        width = backbone.embed_dim
        check_rank("rank", config.rank, width)
        super().__init__(config, backbone, lr=lr, projections=config.projections, make=InfLoraBranch)
        dual = config.memory == "dualgpm"
        self.spaces = nn.ModuleList(BlockSpace(width, dual=dual) for _ in self.layers)
        for key, branch in self.adapters.items():
            space = self.spaces[int(key.split("_")[0])]
            assert isinstance(branch, InfLoraBranch)
            assert isinstance(space, BlockSpace)
            branch.space = (space,)
        # Kept, so that a run resumed in the middle of a task still ends it with the right threshold.
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer("ranks", torch.zeros(len(self.layers), dtype=torch.int64))

    def begin_task(self, task: Task, data: TaskData) -> None:
        super().begin_task(task, data)
        lamb, lame = self.config.lamb, self.config.lame
        self.threshold.fill_(lamb + (lame - lamb) * (task.number - 1) / task.n_tasks)
        for space, moment in zip(self._spaces(), self.second_moments(data), strict=True):
            # 1/√3 is the spread of a Kaiming draw's rows: A's entries have the size that LoRA would have drawn.
            space.down = space.memory.directions(moment, self.config.rank).to(space.down.device) / 3**0.5
        self.ranks.copy_(torch.tensor([space.down.shape[0] for space in self._spaces()]))
        for branch in self.each():
            branch.up.data = branch.up.new_zeros(branch.d_out, branch.space[0].down.shape[0])
        self._say_when_space_runs_out(task)

    def parameter_groups(self) -> list[ParameterGroup]:
        ups = [branch.up for branch in self.each() if branch.up.numel()]
        head_lr = self.lr if self.config.head_lr is None else self.config.head_lr
        return [
            ParameterGroup(name="adapters", params=ups, lr=self.lr),
            ParameterGroup(name="head", params=list(self.head.parameters()), lr=head_lr),
        ]

    def end_task(self, data: TaskData) -> None:
        for branch in self.each():
            branch.past_up = torch.cat([branch.past_up, branch.up.detach()], dim=1)
            branch.up.data = branch.up.new_empty(branch.d_out, 0)
        for space in self._spaces():
            space.past_down = torch.cat([space.past_down, space.down])
            space.down = space.down.new_empty(0, space.memory.width)
        self.rebuild()
        for space, moment in zip(self._spaces(), self.second_moments(data), strict=True):
            space.memory.extend(moment, float(self.threshold))

    @torch.no_grad()
    def second_moments(self, data: TaskData) -> list[Tensor]:
        """E[x xᵀ] [d, d] of every block's attention input over all tokens of the task's (augmented) training images.

        Sums and token counts are reduced apart, so unequal shares of the images weigh rightly.
        """
        width = self.backbone.embed_dim
        sums = self.head.weight.new_zeros(len(self.layers), width, width, dtype=torch.float64)
        count = sums.new_zeros(len(self.layers))

        def gather(block: int) -> Callable[[Tensor], None]:
            def observe(x: Tensor) -> None:
                tokens = x.flatten(0, -2).float()
                with torch.autocast(x.device.type, enabled=False):  # float64 only across batches: on a GPU it is slow
                    sums[block] += tokens.T @ tokens
                count[block] += tokens.shape[0]

            return observe

        for block, layer in enumerate(self.layers):
            layer.observe = gather(block)
        try:
            with data.autocast():
                for images, _ in data.batches(augment=True):
                    self.features(images)
        finally:
            for layer in self.layers:
                layer.observe = None
        return list(data.sum(sums) / data.sum(count)[:, None, None])

    def diagnostics(self) -> dict[str, float | int]:
        """The smallest rank of the newest branches, and the smallest number of dimensions still free, over blocks."""
        free = min(space.memory.n_free for space in self._spaces())
        return super().diagnostics() | {"rank": int(self.ranks.min()), "free_dimensions": free}

    def _spaces(self) -> list[BlockSpace]:
        return [space for space in self.spaces if isinstance(space, BlockSpace)]

    def _say_when_space_runs_out(self, task: Task) -> None:
        short = [f"{block}: {rank}" for block, rank in enumerate(self.ranks.tolist()) if rank < self.config.rank]
        if short:
            logger.warning(
                "inflora: task %d of %d: fewer free dimensions than rank %d, so the branches of some blocks are "
                "narrower (block: rank %s); a lower lamb or lame leaves more room",
                task.number,
                task.n_tasks,
                self.config.rank,
                ", ".join(short),
            )
