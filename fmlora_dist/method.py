"""What a continual-learning method must provide, and what it is given.

A method is an ``nn.Module`` that owns the adapted network. The run calls, for each task::

    begin_task(task, data) -> [loss(images, labels) -> gradient step] * steps -> end_task(data) -> forward(images)

It never sees ranks, devices, loaders or files; what it needs of a task's data comes through ``TaskData``, which
reduces over all processes, so that the same code is right on 1 and on 64 GPUs.
"""

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.head import GrowingHead

__all__ = ["INDEPENDENT", "Method", "MethodConfig", "MethodInfo", "ParameterGroup", "Task", "TaskData"]

INDEPENDENT = "independent of other test images"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method is told of task t. Labels are positions in the sequence's class order."""

    number: int
    """1-based number of the task."""
    n_tasks: int
    """Number of tasks T of the sequence."""
    start: int
    """Label of the task's first class."""
    stop: int
    """One past the label of the task's last class."""
    shared_head: bool
    """Whether all tasks have the same classes (domain-incremental)."""


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """The registered description of a method. Its flags are enforced by the run, not warned about."""

    name: str
    summary: str
    """One line for ``fmlora list``."""
    paper: str
    family: str
    """'low-rank', 'prompt', 'full' or 'head'."""
    lr: float = 1e-3
    """Default of ``train.lr``. The shipped ones come from a coarse search on the validation part of icons_mini (N = 5,
    one seed that no table uses, two to four rates a method); a comparison worth publishing tunes them for its data."""
    needs_pass: bool = False
    """Whether begin_task or end_task passes over the task's training data (``data`` refuses it otherwise)."""
    grows: bool = False
    """Whether what is stored grows with the number of tasks, the head apart."""
    joint: bool = False
    """Whether all tasks are trained at once (an upper bound, no continual learner)."""


class MethodConfig(BaseModel):
    """Hyperparameters that every method has; each method's config adds its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    name: str = ""
    """Registered name of the method."""

    @property
    def predictions(self) -> str:
        """What the prediction of a test image hangs on, for the shared protocol. Only an option that reproduces old
        numbers (``paper_compat``) may say anything else."""
        return INDEPENDENT

    @property
    def whole_batch(self) -> bool:
        """Whether the loss hangs on all images of a batch together, so that micro-batches would change it."""
        return False


class TaskData(Protocol):
    """A method's view of one task's training data and of the other processes."""

    n_samples: int
    """Number of training images of the task, over all processes."""
    steps_per_epoch: int
    """Number of batches of which ``steps`` makes an epoch."""

    def batches(self, *, augment: bool, exclude: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass: (images [b, 3, H, W], labels [b]); this process's share of each global batch.

        With ``augment`` the images are drawn as in training; ``exclude`` leaves out the held-out part of that size.
        """

    def steps(self, n: int, *, exclude: int = 0) -> Iterator[tuple[Tensor, Tensor, float]]:
        """n training batches as (images, labels, weight). The mean over all processes of ``weight * loss`` is the
        loss of the global batch, however unevenly the batch was shared."""

    def micro_batches(self, images: Tensor, labels: Tensor, weight: float) -> Iterator[tuple[Tensor, Tensor, float]]:
        """A step's batch in the run's micro-batches, one backward pass each: the gradients of their weighted losses
        sum to that of the batch."""

    def held_out(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of n training images, the same for a task in every call; without augmentation."""

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes (a new tensor; the identity in a single process)."""

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes."""

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator seeded by (seed, task, purpose): the same on all processes."""

    def autocast(self) -> AbstractContextManager[None]:
        """The run's precision, for forward passes outside ``loss``."""


@dataclass(kw_only=True)
class ParameterGroup:
    """Parameters that train now, with their own optimizer options."""

    name: str
    params: list[nn.Parameter]
    lr: float
    """Learning rate at the run's start of the task; the run's schedule scales it."""


class Method(nn.Module):
    """Base of every method: a backbone, a growing linear head, and the loss over the current task's classes.

    All tensors keep their names for the whole sequence and only change their shapes; so a checkpoint is a flat table
    of tensors, and ``load_state_dict`` gives each tensor the stored shape before filling it.
    """

    info: ClassVar[MethodInfo]
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: Any, backbone: Backbone, *, lr: float):
        """``lr`` is the run's base learning rate (``train.lr``)."""
        super().__init__()
        self.config = config
        self.lr = lr
        self.backbone = backbone.requires_grad_(False)
        self.head = GrowingHead(backbone.num_features)
        self.task: Task | None = None

    # -- the contract ---------------------------------------------------------------------------------------------

    def begin_task(self, task: Task, data: TaskData) -> None:
        """Make room for the task. Overriding methods call this first; ``data.generator`` seeds what is drawn."""
        self.task = task
        self.head.begin_task(task, data.generator("head"))

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """What trains now; everything else has ``requires_grad=False``. With no groups the task has no steps."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy over the current task's classes only. images [b, 3, H, W], labels [b] -> scalar."""
        return F.cross_entropy(self.head.current(self.features(images)), labels - self.head.start)

    def end_task(self, data: TaskData) -> None:
        """Consolidate: freeze, merge, update memories."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, classes seen so far], in fp32: in bf16 every hundredth image has two best classes. No task
        identity."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())

    # -- what most methods leave as it is -------------------------------------------------------------------------

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [b, d] of the adapted backbone."""
        return self.backbone(images)

    def merged(self) -> AbstractContextManager[None]:
        """A context in which ``forward`` runs at the plain backbone's speed (for evaluation)."""
        return nullcontext()

    def repeated(self, key: Hashable) -> AbstractContextManager[None]:
        """A context for images that come again unchanged, and then under the same key: a batch of test images, after
        every task. What the frozen backbone makes of them may be kept."""
        return nullcontext()

    def rebuild(self) -> None:
        """Recompute everything that is derived from the stored tensors (merged weights, for example)."""

    @torch.no_grad()
    def settle(self) -> None:
        """Lay the stored tensors out in memory as ``load_state_dict`` does, and ``rebuild``.

        A product over a transposed view may round otherwise than one over its copy; a resumed run has only copies.
        """
        tensors = self._tensors()
        for name in self.stored_names():
            tensors[name].data = tensors[name].data.contiguous()
        self.rebuild()

    @classmethod
    def is_plain(cls) -> bool:
        """Whether ``forward`` is a plain timm ViT's: a linear head on the backbone's features. So it is where
        ``forward`` and ``features`` are these, and it is what ``fmlora export`` can give away."""
        return cls.forward is Method.forward and cls.features is Method.features

    def plain_weights(self) -> dict[str, Tensor]:
        """The weights of a plain timm ViT with the method's function, by timm's names. Only where ``is_plain``."""
        weight, bias = self.head.rows()
        return self.backbone.state_dict() | {"head.weight": weight.detach(), "head.bias": bias.detach()}

    def diagnostics(self) -> dict[str, float | int]:
        """Figures of the current task for result.json, such as ``rank`` and ``complexity``."""
        return {}

    def select_trainable(self) -> list[ParameterGroup]:
        """Freeze everything but ``parameter_groups()``, and give the groups."""
        self.requires_grad_(False)
        groups = [group for group in self.parameter_groups() if group.params]
        for group in groups:
            for parameter in group.params:
                parameter.requires_grad_(True)
        return groups

    def stored_names(self) -> list[str]:
        """Names of the tensors that must be remembered: all but the frozen backbone."""
        return [name for name in self._tensors() if not name.startswith("backbone.")]

    def _tensors(self) -> dict[str, Tensor]:
        return dict(super().state_dict(keep_vars=True))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The stored tensors by name, detached; the frozen backbone is not among them."""
        tensors = self._tensors()
        return {name: tensors[name].detach() for name in self.stored_names()}

    def load_state_dict(self, state: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Take over stored tensors, shapes and all, then ``rebuild``. Raises ``ValueError`` when names differ."""
        tensors = self._tensors()
        if set(state) != set(self.stored_names()):
            raise ValueError(f"state names differ: {sorted(set(state) ^ set(self.stored_names()))[:5]}")
        with torch.no_grad():
            for name, value in state.items():
                tensors[name].data = value.to(tensors[name].device, tensors[name].dtype, copy=True)
        self.rebuild()
