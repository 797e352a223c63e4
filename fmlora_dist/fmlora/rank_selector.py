"""DRS: a rank for each task from its measured complexity, by Gumbel-Softmax (arXiv 2504.08823).

Read literally, the paper's p(r | T) ∝ exp(w_r H / τ) has an argmax that does not depend on H as long as H > 0, and
training loss alone always wants the largest rank. So here each rank also has a fixed price, and the complexity is
relative to the earlier tasks':

    p_k = softmax_k((w_k H − λ c_k) / τ),   c_k = k / K
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["RankSelector"]


class RankSelector(nn.Module):
    """The learned weights w of K candidate ranks, and the complexities that were seen. Computed on the CPU in fp64:
    K numbers, which must come out alike on every process."""

    weights: Tensor
    complexity_sum: Tensor
    complexity_count: Tensor

    def __init__(self, candidates: Sequence[int], *, price: float, temperature: float, spread: float):
        """Candidates in ascending order; ``price`` is λ, ``temperature`` τ, ``spread`` δ."""
        super().__init__()
        self.candidates = tuple(candidates)
        self.price, self.temperature = price, temperature
        n = len(self.candidates)
        self.costs = torch.arange(1, n + 1, dtype=torch.float64) / n
        edges = torch.linspace(1 - spread, 1 + spread, n, dtype=torch.float64)
        self.low, self.high = edges[:-1], edges[1:]
        self.register_buffer("weights", self._weights_at((self.low + self.high) / 2))
        self.register_buffer("complexity_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("complexity_count", torch.zeros((), dtype=torch.float64))

    def _weights_at(self, thresholds: Tensor) -> Tensor:
        """The weights (w_1 = 0; only differences act) whose neighbouring ranks change places at these thresholds."""
        steps = self.price * self.costs.diff() / thresholds
        return torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])

    @property
    def thresholds(self) -> Tensor:
        """h_k = λ (c_{k+1} − c_k) / (w_{k+1} − w_k), [K − 1]: the complexity where ranks k and k + 1 change places."""
        return self.price * self.costs.diff() / self.weights.cpu().diff()

    def relative(self, raw: float) -> float:
        """H of a raw complexity: over the mean of the earlier tasks', 1 for the first one that is measured.

        Also 1 where all earlier ones were 0: tasks of one class have no loss.
        """
        return raw * self.complexity_count.item() / self.complexity_sum.item() if self.complexity_sum > 0 else 1.0

    def remember(self, raw: float) -> None:
        """Count a task's raw complexity among the earlier ones."""
        self.complexity_sum += raw
        self.complexity_count += 1

    def probabilities(self, complexity: float, noise: Tensor | float = 0.0) -> Tensor:
        """p [K]; with Gumbel ``noise`` [K], its relaxed sample."""
        return torch.softmax((self._scores(complexity) + noise) / self.temperature, dim=0)

    def _scores(self, complexity: float) -> Tensor:
        return self.weights.cpu() * complexity - self.price * self.costs

    def gradient(self, losses: Tensor, complexity: float, noise: Tensor) -> Tensor:
        """∂/∂w [K] of the expectation Σ_k p_k (L_k + λ c_k) with the losses L [K] held fixed, written out:

        (H / τ) p_k (v_k − Σ_j p_j v_j),   v = L + λ c
        """
        p = self.probabilities(complexity, noise)
        value = losses + self.price * self.costs
        return complexity / self.temperature * p * (value - (p * value).sum())

    def learn(
        self, losses: Sequence[float], complexity: float, generator: torch.Generator, *, steps: int, lr: float
    ) -> None:
        """Gradient steps on w alone: a rank gains probability only if its loss pays its price. Then clamp."""
        loss = torch.tensor(losses, dtype=torch.float64)
        weights = self.weights.cpu().clone()
        for _ in range(steps):
            uniform = torch.rand(len(self.candidates), generator=generator, dtype=torch.float64)
            noise = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12)))
            weights -= lr * self.gradient(loss, complexity, noise)
            self.weights.copy_(weights)
        self._clamp()

    def _clamp(self) -> None:
        """Keep each threshold in its own part of [1 − δ, 1 + δ], so that w is carried on, yet can never collapse."""
        if self.price == 0:
            return
        thresholds = self.thresholds
        # A weight that fell below its neighbour's would let the larger rank win nowhere: the farthest threshold.
        thresholds = torch.where(self.weights.cpu().diff() > 0, thresholds, self.high)
        self.weights.copy_(self._weights_at(thresholds.clamp(self.low, self.high)))

    def choose(self, complexity: float) -> int:
        """The most probable rank; the smaller one of equals."""
        # By the scores: with a small price or a high temperature the probabilities are equal to rounding.
        return self.candidates[int(self._scores(complexity).argmax())]
