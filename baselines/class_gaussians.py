"""What is remembered of classes whose images are gone: a few Gaussians of their features each."""

import torch
from torch import Tensor, nn

from fmlora_dist.method import TaskData

__all__ = ["ClassGaussians"]

ROUNDS = 20
"""Rounds of k-means."""


class ClassGaussians(nn.Module):
    """For every class a mixture Σ_k (n_k / n) N(μ_k, diag σ²_k) of features, from k-means; one Gaussian for k = 1.

    All sums go over all processes, so that every one of them has the statistics of all images.
    """

    means: Tensor
    variances: Tensor
    counts: Tensor

    def __init__(self, width: int, n_centroids: int):
        super().__init__()
        self.n_centroids = n_centroids
        self.register_buffer("means", torch.zeros(0, n_centroids, width))
        self.register_buffer("variances", torch.zeros(0, n_centroids, width))
        self.register_buffer("counts", torch.zeros(0, n_centroids))

    def extend(self, features: Tensor, classes: Tensor, n_classes: int, data: TaskData, name: str) -> None:
        """Add classes.

        Args:
            features: This process's, [n, d].
            classes: Their classes, [n], from 0 for the first new one.
            n_classes: Number of new classes.
            data: The task's data, which sums over the processes.
            name: Of the generator that k-means starts from.
        """
        whole = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        count, mean, variance = _moments(features, classes, whole, n_classes, 1, data)
        means = mean.expand(n_classes, self.n_centroids, -1)
        if self.n_centroids > 1:
            # Not drawn from the images, which no process has all of: so every process starts from the same centroids.
            drawn = torch.randn(means.shape, generator=data.generator(name), dtype=torch.float64).to(mean.device)
            means = mean + variance.sqrt() * drawn
            for _ in range(ROUNDS):
                nearest = _nearest(features, classes, means)
                count, mean, variance = _moments(features, classes, nearest, n_classes, self.n_centroids, data)
                means = torch.where(count[..., None] > 0, mean, means)
        self.means = torch.cat([self.means, means.to(self.means)])
        self.variances = torch.cat([self.variances, variance.to(self.means)])
        self.counts = torch.cat([self.counts, count.to(self.means)])

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n features of each class that had images: (features [c n, d], classes [c n]), on the module's device."""
        counts = self.counts.cpu()
        (present,) = counts.sum(dim=1).nonzero(as_tuple=True)
        centroids = torch.multinomial(counts[present], n, replacement=True, generator=generator).flatten()
        classes = present.repeat_interleave(n)
        noise = torch.randn(len(classes), self.means.shape[2], generator=generator).to(self.means.device)
        features = self.means[classes, centroids] + self.variances[classes, centroids].sqrt() * noise
        return features, classes.to(features.device)


def _nearest(features: Tensor, classes: Tensor, means: Tensor) -> Tensor:
    """Number [n] of each feature's nearest one among its class's means [classes, k, d]."""
    nearest = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    for number, centroids in enumerate(means):
        own = classes == number
        nearest[own] = torch.cdist(features[own].double(), centroids).argmin(dim=1)
    return nearest


def _moments(
    features: Tensor, classes: Tensor, centroids: Tensor, n_classes: int, k: int, data: TaskData
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts [classes, k], means and variances [classes, k, d] in float64, over all processes; zeros where none is."""
    width = features.shape[1]
    sums = torch.zeros(n_classes, k, 2 * width + 1, dtype=torch.float64, device=features.device)
    for number in range(n_classes):
        own = classes == number
        mine = features[own].double()
        # A product, since index_add_ on a GPU adds in no fixed order.
        member = nn.functional.one_hot(centroids[own], k).double().T
        sums[number] = torch.cat([member @ mine, member @ mine**2, member.sum(dim=1, keepdim=True)], dim=1)
    first, second, count = data.sum(sums).split([width, width, 1], dim=2)
    mean = first / count.clamp_min(1)
    return count[..., 0], mean, (second / count.clamp_min(1) - mean**2).clamp_min(0)
