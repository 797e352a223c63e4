"""RanPAC: ridge regression on a random projection of the frozen backbone's features."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fmlora_dist.method import Method, MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.head import GrowingHead

__all__ = ["RanPac", "RanPacConfig", "ridge_solutions"]

RIDGES = tuple(10.0**power for power in range(-8, 9))
"""What λ is chosen from (paper)."""
HELD_OUT = 0.2
"""Share of a task's training images that the choice of λ is tested on (paper: a split 80:20)."""


PROJECTION = 13
"""Width of the random projection where none is given, in widths of the backbone."""


class RanPacConfig(MethodConfig):
    """Hyperparameters of RanPAC."""

    projection: int = Field(0, ge=0)
    """Width M of the random projection; 0: 13 times the backbone's (paper: 10000 at 768, whose HᵀH takes 0.8 GB)."""
    ridge: float | None = Field(None, gt=0)
    """λ of the ridge regression; empty: chosen anew in each task from 1e-8, 1e-7, …, 1e8."""


def ridge_solutions(gram: Tensor, cross: Tensor, ridges: Sequence[float]) -> Iterator[Tensor]:
    """(G + λI)⁻¹ Q [M, C] for each λ > 0, of G = HᵀH [M, M] and Q = HᵀY [M, C], by one eigendecomposition of G."""
    values, vectors = torch.linalg.eigh(gram)
    rotated = vectors.T @ cross
    for ridge in ridges:
        # Fewer images than M: eigenvalues that are zero come out as ± rounding, which a small λ must not meet.
        yield vectors @ (rotated / (values.clamp_min(0.0) + ridge)[:, None])


@register_method(
    MethodInfo(
        name="ranpac",
        summary="ridge regression on a random projection of the frozen features; nothing trains",
        paper="McDonnell et al., RanPAC: Random Projections and Pre-trained Models for CL, NeurIPS 2023",
        family="head",
        needs_pass=True,
        grows=True,
    )
)
class RanPac(Method):
    """Logits h W with h = max(0, f P), P [d, M] drawn from N(0, 1), and W = (HᵀH + λI)⁻¹ HᵀY (the paper's algorithm 1).

    H holds a row for each training image so far (under the test transform) and Y its class as one-hot; only HᵀH and HᵀY
    are kept, so old classes' rows of W change with each task although no old image is seen again. With a shared head
    the sums run over all domains so far.

    λ is that of least squared error on the held-out part of the task, W being solved from all earlier statistics and
    the rest of the task's (the paper; its code leaves the earlier ones out). The paper's first-session adaptation, an
    adapter trained on task 1, is not built: this is the paper's variant on frozen features.
    """

    Config: ClassVar[type[MethodConfig]] = RanPacConfig
    projection: Tensor
    gram: Tensor
    cross: Tensor
    ridge: Tensor

    def __init__(self, config: RanPacConfig, backbone: Backbone, *, lr: float):
        super().__init__(config, backbone, lr=lr)
        width = config.projection or PROJECTION * backbone.num_features
        self.head = GrowingHead(width)
        self.register_buffer("projection", torch.empty(backbone.num_features, 0))
        # In float64, or a small λ would drown in what was rounded off.
        self.register_buffer("gram", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("cross", torch.empty(width, 0, dtype=torch.float64))
        self.register_buffer("ridge", torch.tensor(0.0, dtype=torch.float64))

    def begin_task(self, task: Task, data: TaskData) -> None:
        super().begin_task(task, data)
        if not self.projection.numel():
            drawn = torch.randn(len(self.projection), self.head.width, generator=data.generator("projection"))
            self.projection = drawn.to(self.projection.device)
        self.cross = F.pad(self.cross, (0, self.head.n_classes - self.cross.shape[1]))

    def parameter_groups(self) -> list[ParameterGroup]:
        return []

    @torch.no_grad()
    def end_task(self, data: TaskData) -> None:
        held = max(1, round(HELD_OUT * data.n_samples))
        gram, cross = self._statistics(data, data.batches(augment=False, exclude=held))
        gram_held, cross_held = self._statistics(data, data.held_out(held))
        self.gram, self.cross = self.gram + gram, self.cross + cross
        ridge = self.config.ridge or self._best_ridge(gram_held, cross_held)
        self.ridge.fill_(ridge)
        self.gram, self.cross = self.gram + gram_held, self.cross + cross_held
        (solution,) = ridge_solutions(self.gram, self.cross, [ridge])
        old, new = solution.T.float().split([self.head.start, len(self.head.weight)])
        self.head.past_weight, self.head.weight.data = old, new

    def features(self, images: Tensor) -> Tensor:
        """h [b, M] of images [b, 3, H, W]."""
        features = super().features(images)
        with torch.autocast(features.device.type, enabled=False):
            return F.relu(features.float() @ self.projection)

    def diagnostics(self) -> dict[str, float | int]:
        """The λ of the newest task."""
        return {"ridge": float(self.ridge)}

    def _statistics(self, data: TaskData, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """HᵀH [M, M] and HᵀY [M, C] of the images, over all processes."""
        gram, cross = torch.zeros_like(self.gram), torch.zeros_like(self.cross)
        for images, labels in batches:
            with data.autocast():
                rows = self.features(images).to(gram.dtype)
            gram += rows.T @ rows
            cross += rows.T @ F.one_hot(labels, cross.shape[1]).to(cross.dtype)
        return data.sum(gram), data.sum(cross)

    def _best_ridge(self, gram: Tensor, cross: Tensor) -> float:
        """The λ whose W has the least squared error on the images with these statistics."""
        # ‖Y - H W‖² = ‖Y‖² - 2 tr(Wᵀ HᵀY) + tr(Wᵀ HᵀH W): the images need not be kept, nor seen again.
        errors = [
            ((gram @ solution - 2 * cross) * solution).sum()
            for solution in ridge_solutions(self.gram, self.cross, RIDGES)
        ]
        return RIDGES[int(torch.stack(errors).argmin())]
