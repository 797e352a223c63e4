"""From index rows to batches: exactly the samples asked for, by byte range, in an order that only the seed decides.

Global batch j is the same set and order of images, with the same crops, for any number of processes and of workers;
each process takes a contiguous share of it. Every batch is a function of (seed, task, epoch, step), so a run goes on
at any step without reading what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.samples import Samples
from benchmarks.transforms import Windows, draw_crops
from fmlora_dist.errors import UserError

__all__ = ["Batch", "Samples", "TrainStream", "epoch_order", "test_batches"]

ORDER, CROPS = 0, 1

Positions = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One process's share of a global batch."""

    images: Tensor | Windows
    """uint8 [b, 3, S, S], b >= 1; or the crops that become these once they are on a GPU."""
    labels: Tensor
    """int64 [b], positions in the sequence's class order."""
    weight: float
    """The mean over all processes of weight * (mean loss of the share) is the mean loss of the global batch."""
    brightness: Tensor | None
    """float32 [b]: factors of the pixels that the training transform drew; None where it has no such jitter."""
    positions: Positions
    """[b] positions of the images in their ``Samples``."""


def epoch_order(n: int, *, seed: int, task: int, epoch: int) -> Positions:
    """A permutation of 0..n-1: a function of (seed, task, epoch) alone.

    It sorts raw random words, because numpy keeps those the same from version to version, and `permutation` not.
    """
    return np.argsort(_bits(seed, task, epoch, ORDER).random_raw(n), kind="stable").astype(np.int64)


class TrainStream:
    """Endless supply of epochs over one task's training images; each image comes exactly once an epoch."""

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        seed: int,
        task: int,
        rank: int = 0,
        world_size: int = 1,
        positions: Positions | None = None,
        resize_later: bool = False,
    ):
        """Describe the stream; nothing is read yet.

        Args:
            samples: The task's training images.
            batch_size: Images of a global batch, over all processes; an epoch's last batch may be smaller.
            seed: Seed of the order and of the crops, >= 0.
            task: Number of the task, which enters the order and the crops.
            rank: Number of this process.
            world_size: Number of processes.
            positions: Positions in `samples` to which the stream is restricted; all if None.
            resize_later: Whether crops come as ``Windows``, which are resized where they are moved to.

        Raises:
            UserError: If the batch size is below 1.
        """
        if batch_size < 1:
            raise UserError(f"batch_size: found {batch_size}, expected at least 1; give the size of a global batch")
        self.samples = samples
        self.batch_size = batch_size
        self.positions = np.arange(len(samples)) if positions is None else np.asarray(positions, dtype=np.int64)
        self._seed, self._task = seed, task
        self._rank, self._world_size = rank, world_size
        self._resize_later = resize_later

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches of an epoch, the same on every process."""
        return -(-len(self.positions) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's shares of the epoch's global batches, from step `start` on.

        The next batch is read while the caller works on the current one.

        Raises:
            UserError: If an image cannot be read.
        """
        order = self.positions[epoch_order(len(self.positions), seed=self._seed, task=self._task, epoch=epoch)]
        return _ahead(lambda step: self._batch(order, epoch, step), start, self.steps_per_epoch)

    def _batch(self, order: Positions, epoch: int, step: int) -> Batch:
        together = order[step * self.batch_size : (step + 1) * self.batch_size]
        crops = draw_crops(
            self.samples.heights[together],
            self.samples.widths[together],
            self.samples.transform,
            np.random.Generator(_bits(self._seed, self._task, epoch, CROPS, step)),
        )
        share = _share(len(together), self._rank, self._world_size)
        weight = (share.stop - share.start) * self._world_size / len(together)
        if not weight:
            # Fewer images than processes. All processes must take the step, so this one takes an image for nothing.
            share = slice(0, 1)
        positions, crops = together[share], crops[share]
        images = self.samples.windows if self._resize_later else self.samples.crops
        jitter = self.samples.transform.brightness > 0
        return Batch(
            images=images(positions, crops),
            labels=_ready(self.samples, self.samples.labels[torch.from_numpy(positions)]),
            weight=weight,
            brightness=_ready(self.samples, crops.brightness) if jitter else None,
            positions=positions,
        )


def test_batches(
    samples: Samples,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    *,
    positions: Positions | None = None,
) -> Iterator[Batch]:
    """This process's share of the images, under the test transform and in order: over all processes each image once.

    The share is empty, and no batch comes, where there are fewer images than processes.

    Args:
        samples: The images.
        batch_size: Largest number of images of a batch on this process.
        rank: Number of this process.
        world_size: Number of processes.
        positions: Positions in `samples` to which the pass is restricted; all if None.

    Raises:
        UserError: If an image cannot be read.
    """
    every = np.arange(len(samples)) if positions is None else np.asarray(positions, dtype=np.int64)
    own = every[_share(len(every), rank, world_size)]

    def batch(step: int) -> Batch:
        here = own[step * batch_size : (step + 1) * batch_size]
        labels = _ready(samples, samples.labels[torch.from_numpy(here)])
        return Batch(images=samples.images(here), labels=labels, weight=1.0, brightness=None, positions=here)

    return _ahead(batch, 0, -(-len(own) // batch_size))


# Pytest takes any imported function called test_… for a test.
test_batches.__test__ = False  # type: ignore[attr-defined]


def _ready(samples: Samples, values: Tensor) -> Tensor:
    """In pinned memory where the images are."""
    return values.pin_memory() if samples.pin else values


def _share(n: int, rank: int, world_size: int) -> slice:
    """The contiguous part of n things that a process takes; sizes differ by one at most."""
    return slice(rank * n // world_size, (rank + 1) * n // world_size)


def _ahead(make: Callable[[int], T], start: int, stop: int) -> Iterator[T]:
    """make(start), …, make(stop - 1), each made in a thread while the caller works on the one before."""
    if start >= stop:
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream") as thread:
        coming = thread.submit(make, start)
        for step in range(start, stop):
            made = coming.result()
            if step + 1 < stop:
                coming = thread.submit(make, step + 1)
            yield made


def _bits(seed: int, *where: int) -> np.random.Philox:
    """Random bits that are a function of the seed and a place in the run."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=where))
