"""A linear classifier that grows by each task's classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from fmlora_dist.method import Task

__all__ = ["GrowingHead"]


class GrowingHead(nn.Module):
    """Logits over all classes seen so far, of which only the current task's rows train.

    Class-incremental: each task has rows of its own, which are frozen after the task. Domain-incremental: one set of
    rows, which every task trains on.
    """

    past_weight: Tensor
    past_bias: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(0, width))
        self.bias = nn.Parameter(torch.empty(0))
        self.register_buffer("past_weight", torch.empty(0, width))
        self.register_buffer("past_bias", torch.empty(0))

    @property
    def start(self) -> int:
        """Label of the first class that trains now."""
        return self.past_weight.shape[0]

    @property
    def n_classes(self) -> int:
        """Number of classes seen so far."""
        return self.start + self.weight.shape[0]

    def begin_task(self, task: Task, generator: torch.Generator) -> None:
        """Freeze the rows so far and draw rows for the task's classes: N(0, 0.02), bias 0 (timm's linear head)."""
        if task.shared_head and self.n_classes:
            return
        device = self.weight.device
        self.past_weight = torch.cat([self.past_weight, self.weight.detach()])
        self.past_bias = torch.cat([self.past_bias, self.bias.detach()])
        if task.start != self.start:
            raise ValueError(f"task {task.number} starts at class {task.start}, the head has {self.start}")
        n_new = task.stop - task.start
        self.weight.data = (torch.randn(n_new, self.width, generator=generator) * 0.02).to(device)
        self.bias.data = torch.zeros(n_new, device=device)

    def current(self, features: Tensor) -> Tensor:
        """Logits [b, classes of the current task] of features [b, d]."""
        return F.linear(features, self.weight, self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [b, classes seen so far] of features [b, d]."""
        return F.linear(features, *self.rows())

    def rows(self) -> tuple[Tensor, Tensor]:
        """(weight [classes seen so far, d], bias [classes seen so far])."""
        return torch.cat([self.past_weight, self.weight]), torch.cat([self.past_bias, self.bias])
