"""The steps of one task: plain torch in one process, DeepSpeed in several, the same numbers in both."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from fmlora_dist.config import TrainConfig
from fmlora_dist.distributed import World
from fmlora_dist.method import Method, ParameterGroup
from fmlora_dist.zero import Zero
from fmlora_dist.zero_options import fill_options, load_options, stage

__all__ = ["Engine", "Precision"]


class Precision:
    """The arithmetic of forward passes: fp32, or bf16 by autocast over fp32 weights."""

    def __init__(self, name: str, world: World):
        self.bf16 = name == "bf16" or (name == "auto" and world.on_gpu)
        self.world = world

    @property
    def name(self) -> str:
        """``fp32`` or ``bf16``, whatever ``auto`` stands for here."""
        return "bf16" if self.bf16 else "fp32"

    def __call__(self) -> AbstractContextManager[None]:
        return self.world.arithmetic(bf16=self.bf16)


class _Loss(nn.Module):
    """The method's loss as a module's forward, which is what DeepSpeed wraps (and hangs its hooks on, not on ours)."""

    def __init__(self, method: Method, precision: Precision):
        super().__init__()
        self.method, self.precision = method, precision

    def forward(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        with self.precision():
            loss = self.method.loss(images, labels)
        return loss.float() * weight


class Engine:
    """Gradient steps over one task's trainable parameters. ``close`` it before the next task's engine is made."""

    def __init__(
        self,
        method: Method,
        groups: list[ParameterGroup],
        config: TrainConfig,
        precision: Precision,
        world: World,
        *,
        total_steps: int,
        local_batch: int,
        deepspeed: str = "zero0",
    ):
        """``total_steps`` of the task, for the schedule; ``local_batch`` images of one process in a full batch;
        ``deepspeed`` names the config of several processes."""
        self._micro_batches = config.accumulation
        self._clip = config.clip
        self._rates = [group.lr for group in groups]
        self._factor = _schedule(config.schedule, total_steps)
        self._step = 0
        self._zero: Zero | None = None
        self._whole = {name: p for name, p in method.named_parameters() if p.requires_grad}
        self._cut = False
        options = load_options(deepspeed) if world.size > 1 else {}
        if options and stage(options) == 3:
            # DeepSpeed turns a module whose weights it cuts inside out; a copy goes to it, and with it in the end.
            self._cut = True
            names = {parameter: name for name, parameter in self._whole.items()}
            method = copy.deepcopy(method)
            theirs = dict(method.named_parameters())
            groups = [replace(group, params=[theirs[names[p]] for p in group.params]) for group in groups]
        self._parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self._loss = _Loss(method, precision)
        self._optimizer = _make_optimizer(groups, config)
        if options:
            options = fill_options(
                options,
                micro_batch=math.ceil(local_batch / config.accumulation),
                accumulation=config.accumulation,
                clip=config.clip,
                bf16=precision.bf16,
            )
            self._zero = Zero(self._loss, self._parameters, self._optimizer, options)
        if self._cut:
            self._empty()

    def step(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        """One gradient step; gives this process's weighted loss, on the device (nothing waits for it here)."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._factor(self._step)
        self._step += 1
        batches = split_batch(images, labels, weight, self._micro_batches)
        losses = [self._micro_step(*batch) for batch in batches]
        if self._zero is None:
            if self._clip:
                nn.utils.clip_grad_norm_(self._parameters, self._clip)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).sum()

    def _micro_step(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        if self._zero is not None:
            return self._zero.micro_step(images, labels, weight)
        loss: Tensor = self._loss(images, labels, weight)
        loss.backward()
        return loss.detach()

    # -- state ----------------------------------------------------------------------------------------------------

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A context in which the method holds its trained weights, whatever the stage."""
        if not self._cut:
            yield
            return
        self._gather()
        try:
            yield
        finally:
            self._empty()

    def finite(self) -> bool:
        """Whether all trained weights are finite."""
        with self.whole():
            return all(bool(parameter.isfinite().all()) for parameter in self._whole.values())

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizer's tensors by '<parameter name>/<entry>', and the step: the same for any number of processes and
        any stage. Every process must call this alike."""
        states = self._zero.states() if self._zero else (self._optimizer.state.get(p, {}) for p in self._parameters)
        tensors = {"step": torch.tensor(self._step)}
        for name, state in zip(self._whole, states, strict=True):
            tensors |= {f"{name}/{entry}": torch.as_tensor(value) for entry, value in state.items()}
        return tensors

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave."""
        self._step = int(state["step"])
        places = {name: number for number, name in enumerate(self._whole)}
        states: list[dict[str, Tensor]] = [{} for _ in places]
        for key, value in state.items():
            name, _, entry = key.rpartition("/")
            if name:
                place = places[name]
                # torch keeps Adam's step counter on the CPU
                device = "cpu" if entry == "step" else self._parameters[place].device
                states[place][entry] = value.to(device, copy=True)
        if self._zero is not None:
            self._zero.load(states)
            return
        for parameter, mine in zip(self._parameters, states, strict=True):
            self._optimizer.state[parameter].update(mine)

    def close(self) -> None:
        """Free what the engine holds."""
        if self._cut:
            self._gather()
        if self._zero is not None:
            self._zero.close()
            self._zero = None
        self._optimizer.state.clear()

    def _gather(self) -> None:
        """The copy's weights into the method's own, each whole on every process."""
        assert self._zero is not None
        for mine, theirs in zip(self._whole.values(), self._parameters, strict=True):
            mine.data = self._zero.weight(theirs).clone()

    def _empty(self) -> None:
        for parameter in self._whole.values():
            parameter.data = parameter.data.new_empty(0)


def split_batch(images: Tensor, labels: Tensor, weight: float, n: int) -> Iterator[tuple[Tensor, Tensor, float]]:
    """n micro-batches whose weighted losses sum to that of the batch, always as many: every process must take each, so
    one that has too few images takes its first again, for nothing."""
    for mine, theirs in zip(images.tensor_split(n), labels.tensor_split(n), strict=True):
        if len(mine):
            yield mine, theirs, weight * len(mine) / len(images)
        else:
            yield images[:1], labels[:1], 0.0


def _make_optimizer(groups: list[ParameterGroup], config: TrainConfig) -> torch.optim.Optimizer:
    options = [{"params": group.params, "lr": group.lr, "weight_decay": config.weight_decay} for group in groups]
    if config.optimizer == "sgd":
        return torch.optim.SGD(options, momentum=0.9)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](options)


def _schedule(name: str, total_steps: int) -> Callable[[int], float]:
    if name == "constant":
        return lambda step: 1.0
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / total_steps))
