"""What `fmlora profile steps` measures, each in a process of its own: the floor, and a method at task t.

A process does one thing when it is asked to and sleeps in between, so that steps of several can be taken in turn.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import timm
import torch
from torch import Tensor, nn

from fmlora_dist.config import RunConfig, TrainConfig
from fmlora_dist.distributed import World
from fmlora_dist.engine import Engine, Precision
from fmlora_dist.errors import UserError
from fmlora_dist.method import Task
from fmlora_dist.profile.random_task import CLASSES, RandomTask, draw_images
from fmlora_dist.registry import get_benchmark, get_method
from fmlora_dist.vit.backbone import BackboneConfig, Pretrained, load_backbone

__all__ = ["Floor", "Learner", "Setup", "Subject", "Totals", "clock"]

_SCHEDULE = 1000
"""Steps that the learning rate's schedule is laid out for: more than are taken."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all that is measured has in common."""

    backbone: BackboneConfig
    image_size: int
    batch_size: int
    n_tasks: int
    train: TrainConfig
    device: str
    threads: int

    @classmethod
    def of_run(cls, config: RunConfig, *, n_tasks: int = 1, image_size: int | None = None) -> Setup:
        """That of a run; ``image_size`` other than its benchmark's."""
        spec, backbone = get_benchmark(config.benchmark), config.backbone
        if not backbone.name and not backbone.weights:
            update = {"name": spec.backbone_name, "weights": str(spec.backbone_weights)}
            backbone = backbone.model_copy(update=update)
        assert config.batch_size is not None and config.threads is not None
        return cls(
            backbone=backbone,
            image_size=image_size or spec.image_size,
            batch_size=config.batch_size,
            n_tasks=n_tasks,
            train=config.train.model_copy(update={"lr": None}),
            device=config.device,
            threads=config.threads,
        )

    def load(self) -> Pretrained:
        return load_backbone(self.backbone, image_size=self.image_size)


@dataclass(frozen=True, kw_only=True)
class Totals:
    """A method at the end of a task."""

    trainable: int
    """Numbers that trained in it."""
    stored: int
    """Numbers that are to be remembered after it."""
    peak_memory_bytes: int
    """Most memory of the process until then."""


def clock(world: World) -> Callable[[], float]:
    """Seconds: the process's own on one CPU thread, where others that want the core do not count; else the wall's."""
    return time.perf_counter if world.on_gpu or world.threads > 1 else time.process_time


class Floor:
    """The frozen backbone, forward and backward, with gradients that flow to the input of the first block.

    No adapter in the first block can do with less, and nothing else trains.
    """

    def __init__(self, setup: Setup):
        self.world = World(setup.device, setup.threads)
        self.precision = Precision(setup.train.precision, self.world)
        self.backbone = setup.load().model.requires_grad_(False).to(self.world.device)
        self.backbone.blocks[0].register_forward_pre_hook(_begin_gradients)
        self.images = draw_images(setup.batch_size, setup.image_size, 0, self.world.device)

    def step(self) -> float:
        """Seconds of one."""
        return _timed(self.world, self._step)

    def _step(self) -> None:
        with self.precision():
            features = self.backbone(self.images)
        features.float().square().mean().backward()

    def peak_memory(self) -> int:
        return self.world.peak_memory()


def _begin_gradients(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs[0].detach().requires_grad_(True), *inputs[1:]


class Learner:
    """A method that is led from task to task, untrained, and takes steps where it is asked to."""

    def __init__(self, setup: Setup, config: dict[str, Any]):
        """``config``: the method's fields, with its name."""
        self.setup = setup
        self.world = World(setup.device, setup.threads)
        self.precision = Precision(setup.train.precision, self.world)
        self.pretrained = setup.load()
        cls = get_method(config["name"])
        lr = setup.train.lr or cls.info.lr
        self.method = cls(cls.Config(**config), self.pretrained.model, lr=lr).to(self.world.device).eval()
        self.number = self.trainable = 0
        self.begun = False
        self.engine: Engine | None = None

    def begin(self, number: int) -> None:
        """Go through the tasks before it, then begin this one. Without a step in between."""
        while self.number < number:
            if self.begun:
                self.end()
            self.number += 1
            self._begin()

    def _begin(self) -> None:
        setup = self.setup
        self.data = RandomTask(
            self.number,
            n_tasks=setup.n_tasks,
            image_size=setup.image_size,
            batch_size=setup.batch_size,
            device=self.world.device,
            autocast=self.precision,
        )
        task = self.data.task
        if self.method.info.joint:  # it trains on all tasks at once, so its only one is as wide as all
            task = Task(number=1, n_tasks=1, start=0, stop=setup.n_tasks * CLASSES, shared_head=False)
        self.method.begin_task(task, self.data)
        self.method.settle()
        groups = self.method.select_trainable()
        self.trainable = sum(parameter.numel() for group in groups for parameter in group.params)
        self.batch = self.data.batch(setup.batch_size)
        self.begun = True
        if groups:
            self.engine = Engine(
                self.method,
                groups,
                setup.train,
                self.precision,
                self.world,
                total_steps=_SCHEDULE,
                local_batch=setup.batch_size,
            )

    def step(self) -> float:
        """Seconds of a gradient step, the optimizer's part with it; 0 for a method that trains nothing."""
        return _timed(self.world, self._step) if self.engine else 0.0

    def _step(self) -> None:
        assert self.engine is not None
        self.engine.step(*self.batch, 1.0)

    def end(self) -> Totals:
        """End the task that was begun."""
        if self.engine:
            self.engine.close()
            self.engine = None
        self.begun = False
        self.method.end_task(self.data)
        self.method.settle()
        stored = sum(tensor.numel() for tensor in self.method.state_dict().values())
        return Totals(trainable=self.trainable, stored=stored, peak_memory_bytes=self.world.peak_memory())

    @torch.no_grad()
    def evaluate(self, rounds: int) -> tuple[list[float], list[float]]:
        """Seconds of a test batch, in turn: of the merged method, and of the plain timm ViT that it is then.

        That one has the same head and, for a method with prompts, as many register tokens.
        """
        images = self.batch[0]
        plain = self._plain()
        seconds: tuple[list[float], list[float]] = ([], [])
        with self.method.merged():
            for number in range(rounds + 1):
                for model, times in zip((self.method, plain), seconds, strict=True):
                    with self.precision():
                        time_taken = _timed(self.world, lambda model=model: model(images))  # type: ignore[misc]
                    if number:
                        times.append(time_taken)
        return seconds

    def _plain(self) -> nn.Module:
        added = self.method.backbone.num_reg_tokens
        registers = {"reg_tokens": added, "no_embed_class": True} if added else {}
        model: nn.Module = timm.create_model(
            self.pretrained.name,
            img_size=self.setup.image_size,
            num_classes=self.method.head.n_classes,
            **self.pretrained.options | registers,
        )
        return model.to(self.world.device).eval()


def _timed(world: World, work: Callable[[], object]) -> float:
    now = clock(world)
    world.synchronize()
    started = now()
    work()
    world.synchronize()
    return now() - started


class Subject:
    """A ``Floor`` or ``Learner`` in a process of its own, from the other side."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any):
        """Start the process, which makes it; errors come with the first answer."""
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str, *arguments: Any) -> None:
        """Have it call its method of that name; ``answer`` waits for what that gives."""
        self._pipe.send((what, arguments))

    def answer(self) -> Any:
        """Raises what the call raised, and ``UserError`` when the process is gone."""
        try:
            found = self._pipe.recv()
        except EOFError:
            raise UserError(f"{self.name}: its process was ended, by the system for want of memory as a rule") from None
        if isinstance(found, Exception):
            raise found
        return found

    def call(self, what: str, *arguments: Any) -> Any:
        self.ask(what, *arguments)
        return self.answer()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other side's, which then closes the pipe
    subject: Any = None
    while True:
        try:
            what, words = pipe.recv()
        except EOFError:
            return
        try:
            if subject is None:
                subject = make(*arguments)
                _share_a_core(subject.world)
            pipe.send(getattr(subject, what)(*words))
        except BrokenPipeError:
            return
        except Exception as error:
            pipe.send(error)


def _share_a_core(world: World) -> None:
    """On one CPU thread all subjects take the same core: cores of one machine were found to differ by a fifth."""
    if clock(world) is time.process_time and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
