"""FM-LoRA: F-LoRA, DRS and DMP on a frozen ViT (arXiv 2504.08823)."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmlora_dist.errors import UserError
from fmlora_dist.fmlora.factorized import FactorizedAdapter
from fmlora_dist.fmlora.meta_prompt import MetaPrompt
from fmlora_dist.fmlora.rank_selector import RankSelector
from fmlora_dist.method import MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.low_rank import LowRankMethod, check_rank

__all__ = ["FMLoRA", "FMLoRAConfig"]


class FMLoRAConfig(MethodConfig):
    """FM-LoRA: rank of the bases, choice of each task's rank, prompts."""

    rank: int = Field(16, ge=1)
    """Rank r of the shared bases."""
    projections: tuple[Literal["q", "k", "v"], ...] = Field(("q", "v"), min_length=1)
    """Attention projections that are adapted, in every block."""
    drs: bool = True
    """Choose each task's rank by its complexity (DRS)."""
    task_rank: int = Field(0, ge=0)
    """Without DRS: the rank of tasks 2, 3, …; 0: that of the bases."""
    candidates: tuple[int, ...] = ()
    """Candidate ranks in ascending order, the last one that of the bases; empty: r/8, r/4, r/2, r."""
    drs_price: float = Field(0.1, ge=0)
    """Price λ of the largest rank; 0 is the paper's literal formula, in which H cannot change the choice."""
    drs_temperature: float = Field(0.5, gt=0)
    """Temperature τ of the Gumbel-Softmax."""
    drs_spread: float = Field(0.3, gt=0, lt=1)
    """δ: relative complexities below 1 - δ take the smallest rank, above 1 + δ the largest."""
    drs_steps: int = Field(30, ge=1)
    """Steps, by Adam, of the throw-away training that measures a task's complexity."""
    drs_selector_steps: int = Field(20, ge=0)
    """Gradient steps on the selector's weights a task."""
    drs_selector_lr: float = Field(0.1, gt=0)
    """Learning rate of the selector's weights."""
    drs_images: int = Field(256, ge=1)
    """Most training images that the complexity is measured on (at most a quarter of the task's)."""
    prompt_tokens: int = Field(1, ge=0)
    """Number m of shared prompt tokens (DMP); 0: none."""
    bases_lr: float = Field(1.0, gt=0)
    """Learning rate of A and B in task 1 as a multiple of train.lr."""
    factors_lr: float = Field(1.0, gt=0)
    """Learning rate of M and N as a multiple of train.lr."""
    prompts_lr: float = Field(0.0625, gt=0)
    """Learning rate of the prompts in tasks 2, 3, … as a multiple of train.lr; small, for all tasks share them."""

    @model_validator(mode="after")
    def _check_ranks(self) -> "FMLoRAConfig":
        ranks = self.candidate_ranks()
        if list(ranks) != sorted(set(ranks)) or ranks[0] < 1 or ranks[-1] != self.rank:
            raise ValueError(f"candidates must ascend from 1 or more to the rank of the bases ({self.rank})")
        if self.task_rank > self.rank:
            raise ValueError(f"task_rank must not be above the rank of the bases ({self.rank})")
        return self

    def candidate_ranks(self) -> tuple[int, ...]:
        """The candidates, or their default for this rank."""
        return self.candidates or tuple(sorted({max(1, self.rank // part) for part in (8, 4, 2, 1)}))


@register_method(
    MethodInfo(
        name="fmlora",
        summary="shared low-rank bases, small matrices and a rank for each task, shared prompts",
        paper="arXiv 2504.08823",
        family="low-rank",
        lr=4e-3,
        needs_pass=True,
    )
)
class FMLoRA(LowRankMethod):
    """The three parts together; each can be turned off by the config."""

    Config: ClassVar[type[MethodConfig]] = FMLoRAConfig
    config: FMLoRAConfig
    rank: Tensor
    complexity: Tensor

    def __init__(self, config: FMLoRAConfig, backbone: Backbone, *, lr: float):
        """Raises ``UserError`` when the rank is above the backbone's width."""
        check_rank("rank", config.rank, backbone.embed_dim)
        super().__init__(
            config,
            backbone,
            lr=lr,
            projections=config.projections,
            make=lambda d_in, d_out: FactorizedAdapter(d_in, d_out, config.rank),
        )
        self.prompt = MetaPrompt(backbone, config.prompt_tokens)
        self.selector = RankSelector(
            config.candidate_ranks(),
            price=config.drs_price,
            temperature=config.drs_temperature,
            spread=config.drs_spread,
        )
        self.register_buffer("rank", torch.tensor(0))
        self.register_buffer("complexity", torch.tensor(0.0, dtype=torch.float64))

    def begin_task(self, task: Task, data: TaskData) -> None:
        super().begin_task(task, data)
        if task.number == 1:
            generator = data.generator("bases")
            for adapter in self.each():
                adapter.start_bases(generator)
            self.prompt.start(data.generator("prompts"))
            rank = self.config.rank
        else:
            rank = self._choose_rank(data) if self.config.drs else self.config.task_rank or self.config.rank
            self._start_factors(rank, data)
        self.rank.fill_(rank)

    def parameter_groups(self) -> list[ParameterGroup]:
        groups = [ParameterGroup(name="head", params=list(self.head.parameters()), lr=self.lr)]
        adapters = list(self.each())
        later = adapters[0].bases_frozen
        if self.config.prompt_tokens:
            prompts_lr = self.lr * (self.config.prompts_lr if later else 1)
            groups.append(ParameterGroup(name="prompts", params=[self.prompt.tokens], lr=prompts_lr))
        if later:
            factors = [parameter for adapter in adapters for parameter in (adapter.m, adapter.n)]
            return [*groups, ParameterGroup(name="factors", params=factors, lr=self.lr * self.config.factors_lr)]
        bases = [parameter for adapter in adapters for parameter in (adapter.a, adapter.b)]
        return [*groups, ParameterGroup(name="bases", params=bases, lr=self.lr * self.config.bases_lr)]

    def end_task(self, data: TaskData) -> None:
        for adapter in self.each():
            if adapter.bases_frozen:
                adapter.absorb_factors()
            else:
                adapter.freeze_bases()
        self.rebuild()

    def diagnostics(self) -> dict[str, float | int]:
        """The task's rank, and its relative complexity H where DRS measured one (0 in task 1)."""
        figures = super().diagnostics() | {"rank": int(self.rank)}
        return figures | ({"complexity": self.complexity.item()} if self.config.drs else {})

    # -- DRS --------------------------------------------------------------------------------------------------------

    def _start_factors(self, rank: int, data: TaskData) -> None:
        generator = data.generator("factors")
        for adapter in self.each():
            adapter.start_factors(rank, generator)

    def _choose_rank(self, data: TaskData) -> int:
        """Measure the task's complexity on throw-away factors and head rows, teach the selector, choose."""
        config, ranks = self.config, self.config.candidate_ranks()
        self._start_factors(config.rank, data)
        held_out = max(1, min(config.drs_images, data.n_samples // 4))
        head = [parameter.data.clone() for parameter in self.head.parameters()]
        trained = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        try:
            self._train_throwaway(data, ranks, held_out)
            losses = [self._held_out_loss(data, rank, held_out) for rank in ranks]
        finally:
            for adapter in self.each():
                adapter.prefix = None
            for parameter, before in zip(self.head.parameters(), head, strict=True):
                parameter.data = before
            for parameter, required in trained:
                parameter.requires_grad_(required)
        if not all(map(math.isfinite, losses)):
            assert self.task is not None
            raise UserError(
                f"task {self.task.number}: the throw-away training of DRS ends with the loss {losses[-1]}; "
                "start a run with a smaller --train.lr, or with --method.drs false, in another --out"
            )
        complexity = self.selector.relative(losses[-1])
        self.selector.learn(
            losses,
            complexity,
            data.generator("selector"),
            steps=config.drs_selector_steps,
            lr=config.drs_selector_lr,
        )
        self.selector.remember(losses[-1])
        self.complexity.fill_(complexity)
        return self.selector.choose(complexity)

    def _train_throwaway(self, data: TaskData, ranks: tuple[int, ...], held_out: int) -> None:
        """S steps on the task, each with a uniformly drawn prefix rank; factors and head rows only."""
        groups = [group for group in self.parameter_groups() if group.name in ("head", "factors")]
        parameters = [parameter for group in groups for parameter in group.params]
        self.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam([{"params": group.params, "lr": group.lr} for group in groups])
        optimizer.zero_grad(set_to_none=True)  # what the last task's training may have left
        generator = data.generator("prefixes")
        exclude = held_out if held_out < data.n_samples else 0  # a task of one image has nothing else to learn from
        for images, labels, weight in data.steps(self.config.drs_steps, exclude=exclude):
            rank = ranks[int(torch.randint(len(ranks), (), generator=generator))]
            for adapter in self.each():
                adapter.prefix = rank
            for micro_images, micro_labels, share in data.micro_batches(images, labels, weight):
                with data.autocast():
                    loss = self.loss(micro_images, micro_labels)
                (loss * share).backward()
            data.average_gradients(parameters)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _held_out_loss(self, data: TaskData, rank: int, held_out: int) -> float:
        """Mean loss of the prefix of that rank on the held-out images, over all processes."""
        for adapter in self.each():
            adapter.prefix = rank
        total = torch.zeros(2, dtype=torch.float64)
        for images, labels in data.held_out(held_out):
            with data.autocast():
                loss = self.loss(images, labels)
            total += torch.tensor([loss.item() * len(labels), len(labels)], dtype=torch.float64)
        summed, count = data.sum(total).tolist()
        return summed / count
