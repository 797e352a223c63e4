"""What is remembered of classes whose images are gone: a few Gaussians of their features each."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmlora_dist.method import TaskData

__all__ = ["ClassGaussians"]

ROUNDS = 4
"""Rounds of k-means after each split."""


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

    def extend(self, features: Tensor, classes: Tensor, n_classes: int, data: TaskData) -> None:
        """Add classes.

        k-means starts from each class's mean and splits the cluster with the largest sum of squares until there are k.
        (It cannot start from some of the images, of which no process has all.)

        Args:
            features: This process's, [n, d].
            classes: Their classes, [n], from 0 for the first new one.
            n_classes: Number of new classes.
            data: The task's data, which sums over the processes.
        """
        means = torch.zeros(n_classes, 1, features.shape[1], dtype=torch.float64, device=features.device)
        means, variances, counts = _refine(features, classes, means, data, rounds=1)
        for _ in range(self.n_centroids - 1):
            means = _split(means, variances, counts)
            means, variances, counts = _refine(features, classes, means, data, rounds=ROUNDS)
        self.means = torch.cat([self.means, means.to(self.means)])
        self.variances = torch.cat([self.variances, variances.to(self.means)])
        self.counts = torch.cat([self.counts, counts.to(self.means)])

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n features of each class that had images: (features [c n, d], classes [c n]), on the module's device."""
        counts = self.counts.cpu()
        (present,) = counts.sum(dim=1).nonzero(as_tuple=True)
        centroids = torch.multinomial(counts[present], n, replacement=True, generator=generator).flatten()
        classes = present.repeat_interleave(n)
        noise = torch.randn(len(classes), self.means.shape[2], generator=generator).to(self.means.device)
        features = self.means[classes, centroids] + self.variances[classes, centroids].sqrt() * noise
        return features, classes.to(features.device)


def _split(means: Tensor, variances: Tensor, counts: Tensor) -> Tensor:
    """Means [c, k, d] with one more for each class: the widest cluster's moves by a standard deviation either way, in
    the dimension of its largest variance."""
    rows = torch.arange(len(means), device=means.device)
    widest = (counts * variances.sum(dim=2)).argmax(dim=1)
    variance, dimension = variances[rows, widest].max(dim=1)
    means = torch.cat([means, means[rows, widest][:, None]], dim=1)
    means[rows, widest, dimension] -= variance.sqrt()
    means[rows, -1, dimension] += variance.sqrt()
    return means


def _refine(
    features: Tensor, classes: Tensor, means: Tensor, data: TaskData, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds of k-means over all processes: means and variances [c, k, d] and counts [c, k], in float64.

    A mean without images stays where it is, with variance 0.
    """
    (n_classes, k, width), members = means.shape, [classes == number for number in range(len(means))]
    for _ in range(rounds):
        sums = means.new_zeros(n_classes, k, 2 * width + 1)
        for number, member in enumerate(members):
            mine = features[member].double()
            nearest = torch.cdist(mine, means[number]).argmin(dim=1)
            # A product, since index_add_ on a GPU adds in no fixed order.
            own = F.one_hot(nearest, k).double().T
            sums[number] = torch.cat([own @ mine, own @ mine**2, own.sum(dim=1, keepdim=True)], dim=1)
        first, second, count = data.sum(sums).split([width, width, 1], dim=2)
        mean = first / count.clamp_min(1)
        variances = (second / count.clamp_min(1) - mean**2).clamp_min(0) * (count > 1)  # exactly 0 for a single image
        means = torch.where(count > 0, mean, means)
    return means, variances, count[..., 0]
