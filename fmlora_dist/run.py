"""One run from config to result; the only place that knows the order of events."""

import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from fmlora_dist.config import RunConfig
from fmlora_dist.data import MethodData, RunData, TaskView
from fmlora_dist.distributed import World
from fmlora_dist.engine import Engine, Precision
from fmlora_dist.errors import UserError
from fmlora_dist.method import Method, ParameterGroup
from fmlora_dist.metrics import summarize
from fmlora_dist.protocol import describe
from fmlora_dist.record import Position, RunDirectory, build_result
from fmlora_dist.restore import make_method, part_of, take_over

__all__ = ["Run", "check_tasks", "evaluate"]

_CHECK_EVERY = 50
"""Steps after which losses are looked at (the device is not waited for in between)."""
_SIGN_EVERY = 60.0
"""Seconds without an event after which a pass or a test says that it goes on, so that nobody takes it for dead."""
_DRIFT_IMAGES = 256
"""Test images of task 1 on which the drift of features is measured."""


class Run:
    """A run that is checked and ready: making it raises ``UserError`` for whatever is wrong, before any training."""

    def __init__(self, config: RunConfig, world: World, *, started: float | None = None):
        """``started``: ``time.perf_counter`` when the process took to this run; until now it has imported modules."""
        self._counted = self._told = time.perf_counter()
        self._imports = 0.0 if started is None else self._counted - started
        self.config, self.world = config, world
        self.data = RunData(config, world)
        self.precision = Precision(config.train.precision, world)
        self.pretrained, self.method = make_method(config, self.data, world)
        self.joint = self.method.info.joint
        self.views = [self.data.joint()] if self.joint else [self.data.task(t + 1) for t in range(self.data.n_tasks)]
        self.steps = [self.data.stream(view).steps_per_epoch * self.epochs for view in self.views]
        self.protocol = describe(config, self.data, self.pretrained, self.precision)
        self.position = Position(protocol=self.protocol["shared_hash"], precision=self.precision.name)
        self._reference = torch.empty(0)
        self.loss: float | None = None
        """Mean training loss over all processes, at the last step where losses were looked at."""

    @property
    def epochs(self) -> int:
        assert self.config.epochs is not None
        return self.config.epochs

    def go(self, record: RunDirectory) -> dict[str, Any]:
        """Train all tasks that are not done, write the result and give it."""
        self.record = record
        self.data.moved = self._alive
        self.world.connect()
        optimizer = self._resume()
        config = self.config
        self._event(
            "start",
            benchmark=config.benchmark,
            method=config.method.name,
            n_tasks=self.data.n_tasks,
            seed=config.seed,
            host=socket.gethostname(),
            resumed_at={"task": self.position.task, "epoch": self.position.epoch},
        )
        self._count("start")
        self.position.seconds["import"] = self.position.seconds.get("import", 0.0) + self._imports
        self._progress = _Progress(self, sum(self.steps))
        while self.position.task <= len(self.views):
            view = self.views[self.position.task - 1]
            self._task(view, optimizer)
            view.train.release()  # before the next task's images are read
            optimizer = {}
        return self._finish()

    # -- one task -------------------------------------------------------------------------------------------------

    def _task(self, view: TaskView, optimizer: dict[str, Tensor]) -> None:
        position, method = self.position, self.method
        data = MethodData(self.data, view, method.info, self.precision)
        if position.begun:
            method.task = view.task
        else:
            self._seed(view, -1)
            with self._timed("begin_task"), self._sound("before"):
                method.begin_task(view.task, data)
                method.settle()
        groups = method.select_trainable()
        if not position.begun:
            position.trainable.append(sum(p.numel() for group in groups for p in group.params))
        engine = self._engine(view, groups) if groups else None  # nearest class means, say, train nothing
        if not position.begun:
            position.begun = True
            self._checkpoint(engine)
        elif engine:
            engine.load_state_dict(optimizer)
        while engine and position.epoch < self.epochs:
            self._epoch(view, engine)
            position.epoch += 1
            self._checkpoint(engine)
        if engine:
            engine.close()
        position.steps.append(self.steps[view.task.number - 1] if engine else 0)
        position.train_seconds.append(position.seconds.get("train", 0.0) - sum(position.train_seconds))
        self._seed(view, position.epoch)
        with self._timed("end_task"), self._sound("after"):
            method.end_task(data)
            method.settle()
        position.diagnostics.append(method.diagnostics())
        position.stored.append(sum(t.numel() for t in method.state_dict().values()))
        with self._timed("eval"):
            self._measure(view)
        row = position.accuracy_matrix[-1]
        self._event("task", task=position.task, accuracies=row, acc=sum(row) / len(row))
        position.task, position.begun, position.epoch = position.task + 1, False, 0
        self._checkpoint(None)

    def _engine(self, view: TaskView, groups: list[ParameterGroup]) -> Engine:
        return Engine(
            self.method,
            groups,
            self.config.train,
            self.precision,
            self.world,
            total_steps=self.steps[view.task.number - 1],
            local_batch=math.ceil(self.data.stream(view).batch_size / self.world.size),
            deepspeed=self.config.deepspeed,
        )

    def _epoch(self, view: TaskView, engine: Engine) -> None:
        self._seed(view, self.position.epoch)
        stream = self.data.stream(view)
        losses: list[Tensor] = []
        batches = stream.epoch(self.position.epoch)
        for step in range(stream.steps_per_epoch):
            with self._timed("data"):
                batch = next(batches)
            with self._timed("train"):
                losses.append(engine.step(*self.data.augmented(batch), batch.weight))
                if len(losses) == _CHECK_EVERY or step + 1 == stream.steps_per_epoch:
                    self._check(losses, step)
                    losses.clear()
            self._progress.step(step, len(batch.positions))
        if not engine.finite():
            # The last step's loss was still finite; a checkpoint of this would be no good one.
            self._diverged("parameters are not finite", step)

    def _check(self, losses: list[Tensor], last: int) -> None:
        mean = self.world.sum(torch.stack(losses)) / self.world.size
        finite = mean.isfinite().tolist()
        self.loss = mean[-1].item()
        if not all(finite):
            step = last - len(losses) + 1 + finite.index(False)
            self._diverged(f"loss is {mean[finite.index(False)].item()}", step)

    def _diverged(self, what: str, step: int) -> NoReturn:
        raise UserError(
            f"the {what} at task {self.position.task}, epoch {self.position.epoch + 1}, step {step + 1}; the last good "
            "checkpoint is kept: start a run with a smaller --train.lr in another --out"
        )

    @contextmanager
    def _sound(self, when: str) -> Iterator[None]:
        """What a method does before or after a task leaves finite numbers, or the run ends with the last checkpoint."""
        where = f"what {self.config.method.name} does {when} task {self.position.task}"
        ending = "the last good checkpoint is kept: start a run with a smaller --train.lr in another --out"
        try:
            yield
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise UserError(f"{where} fails: {str(error).splitlines()[0]}; {ending}") from error
        for name, tensor in self.method.state_dict().items():
            if not tensor.isfinite().all():
                raise UserError(f"{where} leaves values in {name} that are not finite; {ending}")

    def _measure(self, view: TaskView) -> None:
        seen = self.data.n_tasks if self.joint else view.task.number
        self.position.accuracy_matrix.append(evaluate(self.method, self.data, self.precision, seen))
        features = self._features()
        if not self._reference.numel():
            self._reference = features
        cosine = F.cosine_similarity(features, self._reference, dim=1).mean().item()
        self.position.drift.append(1.0 - cosine)

    @torch.no_grad()
    def _features(self) -> Tensor:
        """Features [n, d] of the first test images of task 1, on the CPU."""
        parts = []
        with self.method.merged():
            for place, (images, _) in enumerate(self.data.test(self.data.tests[0], first=_DRIFT_IMAGES)):
                with self.precision(), self.method.repeated(("drift", place)):
                    parts.append(self.method.features(images).float().cpu())
        return torch.cat(parts)

    # -- checkpoints and the result -------------------------------------------------------------------------------

    def _checkpoint(self, engine: Engine | None) -> None:
        self.position.peak_memory = max(self.position.peak_memory, self.world.peak_memory())
        with self._timed("checkpoint"), engine.whole() if engine else nullcontext():
            tensors = {f"method/{name}": value for name, value in self.method.state_dict().items()}
            tensors |= {f"optimizer/{name}": value for name, value in (engine.state_dict() if engine else {}).items()}
            tensors["reference"] = self._reference
            self.world.on_main(lambda: self.record.save_checkpoint(tensors, asdict(self.position)))

    def _resume(self) -> dict[str, Tensor]:
        """Take over the last checkpoint, if there is one; gives the optimizer's part."""
        found = self.world.on_main(self.record.load_checkpoint)
        if found is None:
            return {}
        began = self.position
        self.position = take_over(self.method, found, began.protocol, self.record.folder)
        self.position.precision = self.position.precision or began.precision
        self.precision = Precision(self.position.precision, self.world)
        self.protocol = describe(self.config, self.data, self.pretrained, self.precision)
        self._reference = found[0]["reference"]
        return part_of(found[0], "optimizer/")

    def _finish(self) -> dict[str, Any]:
        metrics = summarize(self.position.accuracy_matrix, self.data.test_sizes)
        result = build_result(
            self.config,
            self.position,
            metrics=metrics,
            protocol=self.protocol,
            test_sizes=self.data.test_sizes,
            backbone_parameters=self.pretrained.n_parameters,
            world_size=self.world.size,
        )
        self._count("other")
        parts = {name: round(seconds, 3) for name, seconds in self.position.seconds.items()}
        result["seconds"] = parts | {"total": round(sum(parts.values()), 3)}
        self.world.on_main(lambda: self.record.write_result(result))
        self._event("complete", acc=metrics["acc"], aaa=metrics["aaa"])
        return result

    # -- small things ---------------------------------------------------------------------------------------------

    def _seed(self, view: TaskView, epoch: int) -> None:
        # All that the suite draws comes from generators of its own; this is for methods that use torch's global one.
        torch.manual_seed(hash((self.config.seed, view.task.number, epoch)) % 2**31)

    def _alive(self) -> None:
        if time.perf_counter() - self._told >= _SIGN_EVERY:
            self._event("alive", task=self.position.task)

    def _event(self, kind: str, **facts: Any) -> None:
        self._told = time.perf_counter()
        if self.world.main:
            self.record.event(kind, **facts)

    def _count(self, name: str) -> None:
        """Give the seconds since they were last counted to the part of that name, so that none is lost or twice."""
        now = time.perf_counter()
        table = self.position.seconds
        table[name] = table.get(name, 0.0) + now - self._counted
        self._counted = now

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        self._count("other")
        yield
        self._count(name)


class _Progress:
    """Progress events, once a second at most."""

    def __init__(self, run: Run, total: int):
        self._run, self._total = run, total
        self._started = self._said = time.perf_counter()
        self._images = self._steps = 0

    def step(self, step: int, images: int) -> None:
        self._steps += 1
        self._images += images * self._run.world.size
        now = time.perf_counter()
        if now - self._said < 1.0:
            return
        run, position = self._run, self._run.position
        epochs = position.epoch * run.steps[position.task - 1] // run.epochs
        done = sum(run.steps[: position.task - 1]) + epochs + step
        pace = (now - self._started) / self._steps
        run._event(
            "progress",
            task=position.task,
            n_tasks=len(run.views),
            epoch=position.epoch + 1,
            epochs=run.epochs,
            step=step + 1,
            images_per_second=round(self._images / (now - self._started), 1),
            done=round(done / self._total, 4),
            seconds_left=round(pace * (self._total - done), 1),
            global_step=done + 1,
            loss=run.loss,
        )
        self._said = now


@torch.no_grad()
def evaluate(
    method: Method,
    data: RunData,
    precision: Callable[[], Any],
    n_tasks: int,
    *,
    batch_size: int | None = None,
) -> list[float]:
    """Accuracy in % on the test data of tasks 1..n_tasks, over all processes.

    A label modulo the number of classes is its class: where each domain has a head of its own, any of them may answer.
    """
    n_classes = data.sequence.n_classes
    correct = torch.zeros(n_tasks, dtype=torch.int64, device=data.world.device)
    with method.merged():
        for number, samples in enumerate(data.tests[:n_tasks]):
            for place, (images, labels) in enumerate(data.test(samples, batch_size=batch_size)):
                with precision(), method.repeated((number, batch_size, place)):
                    logits = method(images)
                correct[number] += (logits.argmax(dim=1) % n_classes == labels % n_classes).sum()
    counts = data.world.sum(correct).tolist()
    return [100.0 * count / size for count, size in zip(counts, data.test_sizes, strict=False)]


def check_tasks(config: RunConfig) -> tuple[int, ...]:
    """Number of training images of each task.

    Raises:
        UserError: the benchmark's data are missing, or cannot be cut into these tasks.
    """
    return tuple(len(samples.train) for samples in RunData(config, World("cpu", config.threads)).sequence)
