"""A task without a benchmark: a few random images in memory, enough to bring a method to any task of a sequence."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from fmlora_dist.method import Task

__all__ = ["RandomTask", "draw_images"]

CLASSES = 10
"""Classes of a task, as of ImageNet-R or icons in twenty tasks."""
PER_CLASS = 1


def draw_images(n: int, size: int, seed: int, device: torch.device) -> Tensor:
    """[n, 3, size, size]: one pattern, the same for every seed, under noise of the seed's own.

    What the images have in common keeps the inputs of a layer in few directions, as with photographs: otherwise the
    first task would use up the whole space that InfLoRA parcels out, and later branches would be narrower.
    """
    pattern = torch.randn(3, size, size, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed + 1))
    return (pattern + 0.3 * noise).to(device)


class RandomTask:
    """The ``TaskData`` of one task in one process; augmentation leaves its images as they are."""

    def __init__(
        self,
        number: int,
        *,
        n_tasks: int,
        image_size: int,
        batch_size: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[None]],
    ):
        """Task ``number`` of ``n_tasks``, each of ``CLASSES`` classes."""
        start = (number - 1) * CLASSES
        self.task = Task(number=number, n_tasks=n_tasks, start=start, stop=start + CLASSES, shared_head=False)
        self.labels = torch.arange(start, start + CLASSES, device=device).repeat(PER_CLASS)
        self.n_samples = len(self.labels)
        self.images = draw_images(self.n_samples, image_size, number, device)
        self.autocast = autocast
        self._batch_size = batch_size
        self.steps_per_epoch = -(-self.n_samples // batch_size)

    def batches(self, *, augment: bool, exclude: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return self._split(self.images[exclude:], self.labels[exclude:])

    def steps(self, n: int, *, exclude: int = 0) -> Iterator[tuple[Tensor, Tensor, float]]:
        done = 0
        while done < n:
            for images, labels in self.batches(augment=True, exclude=exclude):
                if done == n:
                    return
                yield images, labels, 1.0
                done += 1

    def micro_batches(self, images: Tensor, labels: Tensor, weight: float) -> Iterator[tuple[Tensor, Tensor, float]]:
        yield images, labels, weight

    def held_out(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._split(self.images[:n], self.labels[:n])

    def sum(self, values: Tensor) -> Tensor:
        return values.clone()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Those of one process are the mean already."""

    def generator(self, purpose: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.task.number}/{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """A training batch of n images, with the classes in turn."""
        places = torch.arange(n, device=self.labels.device) % CLASSES
        return draw_images(n, self.images.shape[-1], 0, self.images.device), self.task.start + places

    def _split(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(images.split(self._batch_size), labels.split(self._batch_size), strict=True)
