"""A run's data: the sequence of tasks, their streams on this run's device, and the view of them that a method gets.

Beside the registry the only module of ``fmlora_dist`` that imports ``benchmarks``.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.samples import Samples
from benchmarks.store import Store
from benchmarks.stream import Batch, TrainStream, epoch_order, test_batches
from benchmarks.tasks import TaskSamples, TaskSequence
from benchmarks.transforms import Normalisation, Windows, brighten, normalise
from benchmarks.verify import verify_shards
from fmlora_dist.config import RunConfig
from fmlora_dist.distributed import World
from fmlora_dist.engine import split_batch
from fmlora_dist.errors import UserError
from fmlora_dist.method import MethodInfo, Task
from fmlora_dist.registry import get_benchmark

__all__ = ["MethodData", "RunData", "TaskView"]

# Epoch numbers that no training reaches, so that a draw of another purpose never repeats a training order.
_HELD_OUT, _PASS, _VALIDATION, _STEPS = 2**30, 2**30 + 1, 2**30 + 2, 2**30 + 3
_TEST_BATCH = 128
_VERIFY_BYTES = 64 << 20
"""Shards up to this size together are checked byte for byte before a run, which takes a fraction of a second."""


@dataclass(frozen=True, kw_only=True)
class TaskView:
    """One task of the run, and its training images."""

    task: Task
    train: Samples
    domain: str | None
    class_names: tuple[str, ...]


class RunData:
    """The benchmark of a run, cut into tasks."""

    opened: Callable[[Sequence[str]], None] | None = None
    """Receives the keys of all images that are read (tests prove by it that nothing is rehearsed)."""
    moved: Callable[[], None] | None = None
    """Called with each batch of a step, a pass or a test."""

    def __init__(self, config: RunConfig, world: World):
        """Load and check the index. Raises ``UserError`` for whatever is wrong with data or task count."""
        self.config, self.world = config, world
        self.spec = get_benchmark(config.benchmark)
        self.transform = self.spec.transform(config.transform)
        self.folder = self.spec.folder(config.data_root)
        self.index = self.spec.load(config.data_root)
        if isinstance(self.folder, Path) and sum(shard.bytes for shard in self.index.shards) <= _VERIFY_BYTES:
            verify_shards(self.index, self.folder)
        self.store = Store(self.folder, self.index, Path(config.cache_dir) if config.cache_dir else None)
        assert config.tasks is not None and config.order_seed is not None
        self.sequence = TaskSequence(
            self.index,
            scenario=config.scenario,
            n_tasks=config.tasks,
            usual=self.spec.usual_tasks,
            order_seed=config.order_seed,
            class_order=config.class_order,
            first_task=config.first_task,
            domain_order=config.domain_order,
            exclude_domains=config.exclude_domains,
            heads=config.dil_head,
        )
        self._normalisation = Normalisation((0.5,) * 3, (0.5,) * 3)

    def normalise_as(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Set what the backbone expects of pixels in [0, 1]."""
        self._normalisation = Normalisation(mean, std)

    @property
    def n_tasks(self) -> int:
        return len(self.sequence)

    @cached_property
    def tests(self) -> list[Samples]:
        """Each task's test images, kept for the whole run when all of them fit into half of the cache's budget."""
        rows = [self._split(samples)[1] for samples in self.sequence]
        return [self._samples(part, cache_bytes=self._test_bytes, test_only=True) for part in rows]

    @cached_property
    def _test_bytes(self) -> int:
        """Memory that the test images of all tasks take: all of it, or none if that is over half of the budget."""
        size = sum(self.test_sizes) * 3 * self.spec.image_size**2
        return size if size <= self.config.cache_bytes // 2 else 0

    @property
    def test_sizes(self) -> list[int]:
        """Number of test images of each task."""
        return [len(self._split(samples)[1]) for samples in self.sequence]

    def task(self, number: int) -> TaskView:
        """Task ``number`` (from 1)."""
        samples = self.sequence[number - 1]
        return self._view(samples, self._split(samples)[0])

    def joint(self) -> TaskView:
        """All tasks as one: their training images together."""
        train = np.sort(np.concatenate([self._split(samples)[0] for samples in self.sequence]))
        return self._view(self.sequence.joint(), train)

    def _view(self, samples: TaskSamples, train: np.ndarray) -> TaskView:
        task = Task(
            number=samples.number,
            n_tasks=self.n_tasks,
            start=samples.start,
            stop=samples.stop,
            shared_head=self.sequence.shared_head,
        )
        return TaskView(
            task=task,
            train=self._samples(train, cache_bytes=self.config.cache_bytes - self._test_bytes),
            domain=samples.domain,
            class_names=samples.class_names,
        )

    def _split(self, samples: TaskSamples) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train and to test on; with train.validation both are of the training data."""
        n = len(samples.train)
        held = round(self.config.train.validation * n)
        if not self.config.train.validation:
            return samples.train, samples.test
        order = epoch_order(n, seed=0, task=samples.number, epoch=_VALIDATION)
        if not 0 < held < n:
            raise UserError(f"train.validation: {self.config.train.validation} leaves {held} of {n} images to test on")
        return samples.train[np.sort(order[held:])], samples.train[np.sort(order[:held])]

    def _samples(self, rows: np.ndarray, *, cache_bytes: int, test_only: bool = False) -> Samples:
        samples = Samples(
            self.index,
            self.store,
            rows,
            self.sequence.labels(rows),
            image_size=self.spec.image_size,
            transform=self.transform,
            test_only=test_only,
            cache_bytes=cache_bytes,
            workers=self.config.workers,
            pin=self.world.on_gpu,
        )
        samples.opened = self.opened
        return samples

    # -- batches on the device ------------------------------------------------------------------------------------

    def stream(self, view: TaskView, positions: np.ndarray | None = None) -> TrainStream:
        """The task's training stream, this process's shares."""
        return TrainStream(
            view.train,
            batch_size=self.config.batch_size or self.spec.batch_size,
            seed=self.config.seed,
            task=view.task.number,
            rank=self.world.rank,
            world_size=self.world.size,
            positions=positions,
            resize_later=self.world.on_gpu,
        )

    def augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(images, labels) of a training batch, on the device, under the training transform and normalised."""
        images, labels = self._to_device(batch)
        if batch.brightness is not None:
            images = brighten(images, batch.brightness.to(self.world.device, non_blocking=True))
        return normalise(images, self._normalisation), labels

    def plain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(images, labels) of a test batch, on the device, normalised."""
        images, labels = self._to_device(batch)
        return normalise(images, self._normalisation), labels

    def test(self, samples: Samples, *, batch_size: int | None = None, first: int | None = None) -> Iterator[Any]:
        """This process's share of test images as (images, labels); if given, all of the ``first`` ones."""
        alone = first is not None
        batches = test_batches(
            samples,
            batch_size or max(_TEST_BATCH, self.config.batch_size or 0),
            0 if alone else self.world.rank,
            1 if alone else self.world.size,
            positions=np.arange(min(first, len(samples))) if first is not None else None,
        )
        return (self.plain(batch) for batch in batches)

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.moved:
            self.moved()
        device, images = self.world.device, batch.images
        moved = images.to(device) if isinstance(images, Windows) else images.to(device, non_blocking=True)
        return moved, batch.labels.to(device, non_blocking=True)


class MethodData:
    """The ``TaskData`` of one task: a method's view of its training images and of the other processes."""

    def __init__(
        self, data: RunData, view: TaskView, info: MethodInfo, autocast: Callable[[], AbstractContextManager[None]]
    ):
        self._data, self._view, self._info = data, view, info
        self.autocast = autocast
        self.n_samples = len(view.train)
        self.steps_per_epoch = data.stream(view).steps_per_epoch

    def batches(self, *, augment: bool, exclude: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self._allowed()
        if augment:
            for batch in self._data.stream(self._view, self._kept(exclude)).epoch(_PASS):
                if batch.weight:  # an image that only fills up a step must not be counted twice
                    yield self._data.augmented(batch)
        else:
            yield from self._plain(self._kept(exclude))

    def steps(self, n: int, *, exclude: int = 0) -> Iterator[tuple[Tensor, Tensor, float]]:
        self._allowed()
        stream = self._data.stream(self._view, self._kept(exclude))
        for step in range(n):
            epoch, place = divmod(step, stream.steps_per_epoch)
            if place == 0:
                batches = stream.epoch(_STEPS + epoch)
            batch = next(batches)
            yield *self._data.augmented(batch), batch.weight

    def micro_batches(self, images: Tensor, labels: Tensor, weight: float) -> Iterator[tuple[Tensor, Tensor, float]]:
        return split_batch(images, labels, weight, self._data.config.train.accumulation)

    def held_out(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        self._allowed()
        return self._plain(np.sort(self._order()[:n]))

    def sum(self, values: Tensor) -> Tensor:
        return self._data.world.sum(values)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        self._data.world.average_gradients(parameters)

    def generator(self, purpose: str) -> torch.Generator:
        place = f"{self._data.config.seed}/{self._view.task.number}/{purpose}"
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "little") >> 1
        return torch.Generator().manual_seed(seed)

    def _order(self) -> np.ndarray:
        return epoch_order(self.n_samples, seed=self._data.config.seed, task=self._view.task.number, epoch=_HELD_OUT)

    def _kept(self, exclude: int) -> np.ndarray | None:
        return np.sort(self._order()[exclude:]) if exclude else None

    def _plain(self, positions: np.ndarray | None) -> Iterator[tuple[Tensor, Tensor]]:
        world = self._data.world
        batches = test_batches(self._view.train, _TEST_BATCH, world.rank, world.size, positions=positions)
        return (self._data.plain(batch) for batch in batches)

    def _allowed(self) -> None:
        if not self._info.needs_pass:
            raise ValueError(f"method '{self._info.name}' passes over the data, but its MethodInfo lacks needs_pass")
