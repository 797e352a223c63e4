"""What many tests need: a tiny real ViT, a task's data held in tensors, and processes simulated by threads."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from fmlora_dist.engine import split_batch
from fmlora_dist.method import Method, Task
from fmlora_dist.registry import get_method
from fmlora_dist.vit.backbone import Backbone, BackboneConfig, load_backbone

IMAGE_SIZE, N_CLASSES, PER_CLASS = 32, 2, 6

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_building = threading.Lock()  # random weights come from torch's global generator, which simulated processes share


class Peers:
    """Simulated processes: threads that meet to sum."""

    def __init__(self, size: int):
        self.size = size
        self._barrier = threading.Barrier(size, timeout=60)
        self._parts: list[Tensor | None] = [None] * size

    def sum(self, rank: int, values: Tensor) -> Tensor:
        self._parts[rank] = values.detach().clone()
        self._barrier.wait()
        total = torch.stack([part for part in self._parts if part is not None]).sum(0)
        self._barrier.wait()  # nobody may write the next sum's part before all have read this one's
        return total

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """``work(rank)`` in every process at once; the results by rank."""
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            try:
                results[rank] = work(rank)
            except BaseException as error:  # handed on below, and the others must not wait for this one
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws does not hang on those before it."""
    torch.manual_seed(0)


class TensorData:
    """``TaskData`` over given tensors. Process ``rank`` of ``world`` takes every world-th image of a global batch.

    Training images are flipped when their number is odd: an augmentation that all processes agree on.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        task: int = 1,
        batch_size: int = 8,
        rank: int = 0,
        peers: Peers | None = None,
    ):
        self.images, self.labels = images, labels
        self.n_samples = len(images)
        self.seed, self.task, self.batch_size = seed, task, batch_size
        self.rank, self.peers = rank, peers
        self.accumulation = 1
        self.world = peers.size if peers else 1
        self.steps_per_epoch = -(-len(images) // batch_size)

    def batches(self, *, augment: bool, exclude: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.arange(exclude, self.n_samples).split(self.batch_size):
            mine = batch[self.rank :: self.world]
            if len(mine):
                yield self._take(mine, augment)

    def steps(self, n: int, *, exclude: int = 0) -> Iterator[tuple[Tensor, Tensor, float]]:
        whole = torch.arange(exclude, self.n_samples).split(self.batch_size)
        for step in range(n):
            batch = whole[step % len(whole)]
            mine = batch[self.rank :: self.world]
            weight = len(mine) * self.world / len(batch)
            yield *self._take(mine if len(mine) else batch[:1], augment=True), weight

    def micro_batches(self, images: Tensor, labels: Tensor, weight: float) -> Iterator[tuple[Tensor, Tensor, float]]:
        return split_batch(images, labels, weight, self.accumulation)

    def held_out(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self._take(torch.arange(min(n, self.n_samples))[self.rank :: self.world], augment=False)

    def sum(self, values: Tensor) -> Tensor:
        return self.peers.sum(self.rank, values) if self.peers else values.clone()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.sum(own) / self.world

    def generator(self, purpose: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}/{self.task}/{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _take(self, positions: Tensor, augment: bool) -> tuple[Tensor, Tensor]:
        images = self.images[positions]
        if augment:
            odd = (positions % 2 == 1)[:, None, None, None]
            images = torch.where(odd, images.flip(-1), images)
        return images, self.labels[positions]


def tiny_backbone(depth: int = 2) -> Backbone:
    """A timm ViT of width 48 on 32x32 pixels, the same random weights in every call."""
    options: dict[str, int | float | bool | str] = {"depth": depth, "embed_dim": 48, "patch_size": 8}
    config = BackboneConfig(name="vit_tiny_patch16_224", weights="random", options=options)
    with _building:
        return load_backbone(config, image_size=IMAGE_SIZE).model


def tiny_task(number: int, *, n_tasks: int = 3, shared_head: bool = False) -> Task:
    """Task ``number`` of a sequence of two classes a task."""
    start = 0 if shared_head else (number - 1) * N_CLASSES
    return Task(number=number, n_tasks=n_tasks, start=start, stop=start + N_CLASSES, shared_head=shared_head)


def tiny_data(task: Task, **options: Any) -> TensorData:
    """Twelve images of the task: noise around a pattern a class, reproducibly."""
    generator = torch.Generator().manual_seed(task.number)
    labels = torch.arange(task.start, task.stop).repeat(PER_CLASS)
    patterns = torch.randn(N_CLASSES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    noise = torch.randn(len(labels), 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return TensorData(patterns[labels - task.start] + noise, labels, task=task.number, **options)


class Sequences:
    """Methods on the tiny ViT, and what every test does with them."""

    task = staticmethod(tiny_task)
    data = staticmethod(tiny_data)

    def make(self, name: str, *, lr: float = 0.02, depth: int = 2, **config: Any) -> Method:
        """A fresh method by its registered name, on a ViT of that depth."""
        cls = get_method(name)
        return cls(cls.Config(name=name, **config), tiny_backbone(depth), lr=lr)

    def begin(self, method: Method, number: int, **options: Any) -> TensorData:
        """Begin a task, so that the method is ready to train."""
        task = tiny_task(number, **options)
        data = tiny_data(task)
        method.begin_task(task, data)
        return data

    def train(self, method: Method, data: TensorData, steps: int = 3) -> list[float]:
        """Adam steps on what the method lets train; none where nothing does."""
        groups = method.select_trainable()
        if not groups:
            return []
        optimizer = torch.optim.Adam([{"params": group.params, "lr": group.lr} for group in groups])
        losses = []
        for images, labels, _ in data.steps(steps):
            loss = method.loss(images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def learn(self, method: Method, tasks: int, **options: Any) -> None:
        """Learn tasks 1 to ``tasks`` from begin to end."""
        for number in range(1, tasks + 1):
            data = self.begin(method, number, **options)
            self.train(method, data)
            method.end_task(data)

    def logits(self, method: Method, number: int = 1) -> Tensor:
        """Logits of a task's images."""
        with torch.no_grad():
            out: Tensor = method(tiny_data(tiny_task(number)).images)
        return out

    def trainable(self, method: Method) -> dict[str, int]:
        """Names and sizes of what trains now."""
        method.select_trainable()
        return {name: value.numel() for name, value in method.named_parameters() if value.requires_grad}

    # -- what holds for every method ------------------------------------------------------------------------------

    def check_resume(self, name: str, **config: Any) -> None:
        """A fresh instance with the stored tensors is the same method: after task 2, in task 3, and at task 3's end."""
        method = self.make(name, **config)
        self.learn(method, 2)
        self._check_copy(method, name, config)
        data = self.begin(method, 3)
        self.train(method, data)
        copy = self._check_copy(method, name, config)
        for each in (method, copy):
            self.train(each, data, steps=2)
            each.end_task(data)
        assert torch.equal(self.logits(copy), self.logits(method))
        state = method.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in copy.state_dict().items())

    def _check_copy(self, method: Method, name: str, config: dict[str, Any]) -> Method:
        state = {key: value.clone() for key, value in method.state_dict().items()}
        places = {value.data_ptr() for value in state.values() if value.numel()}
        assert len(places) == sum(1 for value in state.values() if value.numel())
        copy = self.make(name, **config)
        assert set(copy.state_dict()) == set(state), "names must not grow with the tasks"
        copy.load_state_dict(state)
        assert torch.equal(self.logits(copy), self.logits(method))
        return copy

    def check_old_rows(self, name: str, **config: Any) -> None:
        """Head rows of earlier tasks never move; rows of the present task do."""
        method = self.make(name, **config)
        self.learn(method, 1)
        old = method.head.weight.detach().clone()
        data = self.begin(method, 2)
        new = method.head.weight.detach().clone()
        self.train(method, data)
        assert torch.equal(method.head.past_weight, old)
        assert not torch.equal(method.head.weight, new)

    def check_merged(self, name: str, **config: Any) -> None:
        """Merged weights give the same logits, in a task and after it, and the branch comes back."""
        method = self.make(name, **config)
        self.learn(method, 1)
        data = self.begin(method, 2)
        self.train(method, data)
        for _ in range(2):
            before = self.logits(method)
            with method.merged():
                torch.testing.assert_close(self.logits(method), before, atol=1e-5, rtol=0)
            assert torch.equal(self.logits(method), before)
            method.end_task(data)


@pytest.fixture
def sequences() -> Sequences:
    """Methods on a tiny ViT and tasks in memory."""
    return Sequences()


@pytest.fixture
def peers() -> Peers:
    """Two simulated processes."""
    return Peers(2)
