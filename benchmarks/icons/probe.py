"""How good are a frozen backbone's features on the benchmark? Nearest class mean and linear probe."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.index import TEST, TRAIN, Index

__all__ = ["Images", "features", "linear_probe", "nearest_class_mean", "probe", "read_images"]

Images = tuple[Tensor, Tensor]
"""(n, 3, S, S) uint8 and (n,) labels."""


def probe(backbone: nn.Module, folder: Path) -> dict[str, float]:
    """Accuracies in % of the frozen backbone on the benchmark in `folder`, all renditions and ink alone."""
    index = Index.load(folder)
    sides = {}
    for split in (TRAIN, TEST):
        images, labels = read_images(index, folder, np.flatnonzero(index.split == split))
        sides[split] = (features(backbone, images), labels, torch.from_numpy(index.domain[index.split == split]))
    (x, y, domains), (test_x, test_y, test_domains) = sides[TRAIN], sides[TEST]
    scores = {}
    for name, wanted in (("all renditions", tuple(index.domains)), ("ink", ("ink",))):
        numbers = torch.tensor([index.domains.index(domain) for domain in wanted])
        rows, test_rows = torch.isin(domains, numbers), torch.isin(test_domains, numbers)
        known, asked = (x[rows], y[rows]), (test_x[test_rows], test_y[test_rows])
        scores[f"nearest class mean, {name}"] = round(nearest_class_mean(*known, *asked), 2)
        scores[f"linear probe, {name}"] = round(linear_probe(*known, *asked), 2)
    return scores


def read_images(index: Index, folder: Path, rows: np.ndarray) -> Images:
    """Decode the samples with these numbers."""
    shards = [(folder / shard.name).read_bytes() for shard in index.shards]
    pictures = []
    for row in rows:
        start = int(index.offset[row])
        encoded = shards[index.shard[row]][start : start + int(index.size[row])]
        pictures.append(np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return images, torch.from_numpy(index.label[rows]).long()


@torch.inference_mode()
def features(backbone: nn.Module, images: Tensor, batch: int = 256) -> Tensor:
    """(n, 3, S, S) uint8 → (n, d), with mean and standard deviation 0.5 as normalisation."""
    backbone.eval()
    return torch.cat([backbone(part.float() / 127.5 - 1).float() for part in images.split(batch)])


def nearest_class_mean(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    """Accuracy in % of giving each test feature the class whose mean training feature has the largest cosine."""
    x, test_x = nn.functional.normalize(x, dim=1), nn.functional.normalize(test_x, dim=1)
    means = torch.zeros(int(y.max()) + 1, x.shape[1]).index_add_(0, y, x)
    predicted = (test_x @ nn.functional.normalize(means, dim=1).T).argmax(dim=1)
    return 100 * (predicted == test_y).float().mean().item()


def linear_probe(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, decay: float = 1e-3, steps: int = 150) -> float:
    """Accuracy in % of multinomial logistic regression on standardised features, fitted by L-BFGS."""
    mean, deviation = x.mean(dim=0), x.std(dim=0) + 1e-6
    x, test_x = (x - mean) / deviation, (test_x - mean) / deviation
    weight = torch.zeros(int(y.max()) + 1, x.shape[1], requires_grad=True)
    bias = torch.zeros(weight.shape[0], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(x @ weight.T + bias, y) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        predicted = (test_x @ weight.T + bias).argmax(dim=1)
    return 100 * (predicted == test_y).float().mean().item()
