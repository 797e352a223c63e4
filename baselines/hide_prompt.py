"""HiDe-Prompt: a prompt for each task, and a classifier of plain features that says which task an image is of."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.class_gaussians import ClassGaussians
from fmlora_dist.method import MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.head import GrowingHead
from fmlora_dist.vit.prefix import choose_layers, prefixes
from fmlora_dist.vit.prompted import PromptMethod

__all__ = ["HidePrompt", "HidePromptConfig", "contrast"]


class HidePromptConfig(MethodConfig):
    """Hyperparameters of HiDe-Prompt."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Blocks that are prompted; empty: the first five (or all, in a ViT of fewer)."""
    length: int = Field(20, ge=1)
    """Number of keys, and of values, of a prompt in a block (official: ImageNet-R and CUB200 20, CIFAR100 5)."""
    head_lr: float = Field(0.1, gt=0)
    """Learning rate of the head as a multiple of train.lr (official 0.1, CUB200 1)."""
    contrast_weight: float = Field(0.1, ge=0)
    """Weight of the contrastive loss (official: CIFAR100 0.1, ImageNet-R 0.5, CUB200 0.01)."""
    temperature: float = Field(0.8, gt=0)
    """Temperature τ of the contrastive loss."""
    ensemble: float = Field(0.01, ge=0, lt=1)
    """Share α of the earlier prompts' mean in a task's prompt."""
    centroids: int = Field(10, ge=1)
    """Gaussians of a class; 1: a single one."""
    identity_epochs: int = Field(20, ge=1)
    """Passes over a task's training data in which the task identity's classifier learns."""
    identity_lr: float = Field(1e-3, gt=0)
    """Its learning rate (official, for batches of 24: 5e-4 · 24/256)."""
    align_epochs: int = Field(30, ge=0)
    """Epochs of either classifier on features drawn from the classes' Gaussians; 0: no alignment."""
    align_samples: int = Field(32, ge=1)
    """Features that are drawn of each class in such an epoch, which is also the size of its batches."""
    align_lr: float = Field(5e-3, gt=0)
    """Learning rate of the alignment."""


def contrast(features: Tensor, centroids: Tensor, apart: Tensor, temperature: float) -> Tensor:
    """How near features come to earlier classes: mean of -log(e^{h·h/τ} / (e^{h·h/τ} + Σ_c e^{h·μ_c/τ})).

    Args:
        features: h, [b, d].
        centroids: μ_c of all earlier classes, [c, d].
        apart: Which of them count, for each feature [b, c] or for all of them [c].
        temperature: τ.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        own = (features * features).sum(dim=1, keepdim=True)
        others = (features @ centroids.T).masked_fill(~apart, -torch.inf)
        logits = torch.cat([own, others], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


@contextmanager
def _training(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context in which these parameters learn, outside of the engine's steps."""
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


class TaskIdentity(nn.Module):
    """Logits [b, slots] of plain features [b, d]: MLP and linear head over the slots of ``HidePrompt``."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.up_bias = nn.Parameter(torch.zeros(2 * width, width)), nn.Parameter(torch.zeros(2 * width))
        self.down, self.down_bias = nn.Parameter(torch.zeros(width, 2 * width)), nn.Parameter(torch.zeros(width))
        self.head = GrowingHead(width)

    def mlp(self) -> list[nn.Parameter]:
        """What learns below the head."""
        return [self.up, self.up_bias, self.down, self.down_bias]

    def hidden(self, features: Tensor) -> Tensor:
        """What the head reads, [b, d]."""
        return F.linear(F.gelu(F.linear(features, self.up, self.up_bias)), self.down, self.down_bias)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.head(self.hidden(features))

    def draw(self, generator: torch.Generator) -> None:
        """Start the MLP: weights U(-1/√n, 1/√n) with n inputs, biases 0."""
        for weight in (self.up, self.down):
            unit = 2 * torch.rand(weight.shape, generator=generator) - 1
            weight.data = (unit / math.sqrt(weight.shape[1])).to(weight.device)


@register_method(
    MethodInfo(
        name="hide_prompt",
        summary="a prompt for each task, task identity from plain features, heads aligned on class statistics",
        paper="Wang et al., Hierarchical Decomposition of Prompt-Based Continual Learning: Rethinking Obscured "
        "Sub-optimality, NeurIPS 2023",
        family="prompt",
        lr=8e-3,
        needs_pass=True,
        grows=True,
    )
)
class HidePrompt(PromptMethod):
    """Before a task's training: the classifier of plain features learns the task's classes, and is aligned with those
    of earlier tasks on features drawn from their Gaussians. Training: the task's prompt, from the one before, and its
    head. After it: the head is aligned in the same way, on prompted features. A test image's plain feature gives a
    class, the class its task, the task the prompt.

    A slot is a class of a task: in class-incremental sequences the class's label; domain-incremental, tasks share
    labels and head, but not slots, so that the task can still be told.

    Exceptions to the common head and loss: the contrastive loss is added, and the alignment moves the head's rows of
    earlier tasks. The paper's contrastive loss also tells the images of a batch apart; here each image meets the
    earlier classes alone, so that the loss does not depend on how a batch is shared among processes.
    """

    Config: ClassVar[type[MethodConfig]] = HidePromptConfig
    config: HidePromptConfig
    past_prompts: Tensor
    slot_labels: Tensor
    slot_tasks: Tensor

    def __init__(self, config: HidePromptConfig, backbone: Backbone, *, lr: float):
        """Raises ``UserError`` for a block that the backbone does not have."""
        layers = choose_layers("layers", config.layers, len(backbone.blocks))
        super().__init__(config, backbone, lr=lr, layers=layers)
        self.layers = layers
        width = backbone.num_features
        shape = (len(layers), 2, config.length, *self.head_shape)
        self.prompt = nn.Parameter(torch.zeros(0, *shape))
        self.register_buffer("past_prompts", torch.zeros(0, *shape))
        self.identity = TaskIdentity(width)
        self.plain_classes = ClassGaussians(width, config.centroids)
        self.prompted_classes = ClassGaussians(width, config.centroids)
        self.register_buffer("slot_labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("slot_tasks", torch.zeros(0, dtype=torch.int64))

    # -- the task -------------------------------------------------------------------------------------------------

    def begin_task(self, task: Task, data: TaskData) -> None:
        super().begin_task(task, data)
        if self.prompt.numel():
            self.past_prompts = torch.cat([self.past_prompts, self.mixed().detach()])
        else:
            drawn = 2 * torch.rand(1, *self.prompt.shape[1:], generator=data.generator("prompts")) - 1
            self.prompt.data = drawn.to(self.prompt.device)
            self.identity.draw(data.generator("identity"))
        n_slots, n_new = len(self.slot_labels), task.stop - task.start
        slots = replace(task, start=n_slots, stop=n_slots + n_new, shared_head=False)
        self.identity.head.begin_task(slots, data.generator("identity head"))
        labels = torch.arange(task.start, task.stop, device=self.slot_labels.device)
        self.slot_labels = torch.cat([self.slot_labels, labels])
        self.slot_tasks = torch.cat([self.slot_tasks, torch.full_like(labels, task.number - 1)])
        self._learn_identity(task, data)
        self._remember(self.plain_classes, data, prompted=False)
        self._align_identity(data)

    def parameter_groups(self) -> list[ParameterGroup]:
        head_lr = self.lr * self.config.head_lr
        return [
            ParameterGroup(name="prompts", params=[self.prompt], lr=self.lr),
            ParameterGroup(name="head", params=list(self.head.parameters()), lr=head_lr),
        ]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy over the current task's classes with the task's own prompt, and the contrastive loss."""
        features = self.prompted(self.embed(images), self.mixed().expand(len(images), *self.prompt.shape[1:]))
        loss = F.cross_entropy(self.head.current(features), labels - self.head.start)
        earlier = self.prompted_classes
        if self.config.contrast_weight and len(earlier.means):
            # Where all tasks have the same classes, an image is not held apart from its own.
            other = labels[:, None] != self.slot_labels[: len(earlier.means)].repeat_interleave(earlier.n_centroids)
            apart = other & (earlier.counts.flatten() > 0)
            pushed = contrast(features, earlier.means.flatten(0, 1), apart, self.config.temperature)
            loss = loss + self.config.contrast_weight * pushed
        return loss

    def end_task(self, data: TaskData) -> None:
        self._remember(self.prompted_classes, data, prompted=True)
        self._align_head(data)

    # -- prompts --------------------------------------------------------------------------------------------------

    def mixed(self) -> Tensor:
        """The task's prompt (1 - α) e_t + α mean of the earlier ones, [1, layers, 2, L, heads, d_head]."""
        if not len(self.past_prompts):
            return self.prompt
        share = self.config.ensemble
        return (1 - share) * self.prompt + share * self.past_prompts.mean(dim=0, keepdim=True)

    def features(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        tasks = self.slot_tasks[self.identity(self.query(tokens)).argmax(dim=1)]
        return self.prompted(tokens, torch.cat([self.past_prompts, self.mixed()])[tasks])

    def prompted(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """Features [b, d] of embedded tokens [b, n, d] under the images' prompts [b, layers, 2, L, heads, d_head]."""
        return self.pool(self.blocks(tokens, prefixes(self.layers, prompts)))

    # -- the other stages -----------------------------------------------------------------------------------------

    def _learn_identity(self, task: Task, data: TaskData) -> None:
        """Adam on the task's plain features; cross entropy over the task's slots."""
        identity = self.identity
        parameters = [*identity.mlp(), *identity.head.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.config.identity_lr)
        with _training(parameters):
            for images, labels, weight in data.steps(self.config.identity_epochs * data.steps_per_epoch):
                with data.autocast():
                    features = self.query(self.embed(images))
                logits = identity.head.current(identity.hidden(features))
                (F.cross_entropy(logits, labels - task.start) * weight).backward()
                data.average_gradients(parameters)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _remember(self, classes: ClassGaussians, data: TaskData, *, prompted: bool) -> None:
        """Add the Gaussians of the task's classes: of plain features, or of those under the task's prompt."""
        slots = self.slot_labels[self.slot_tasks == self.slot_tasks[-1]]
        features, labels = [self.head.weight.new_zeros(0, classes.means.shape[2])], [slots[:0]]
        for images, own in data.batches(augment=False):
            with data.autocast():
                tokens = self.embed(images)
                mixed = self.mixed().expand(len(images), *self.prompt.shape[1:])
                out = self.prompted(tokens, mixed) if prompted else self.query(tokens)
            features.append(out.float())
            labels.append(own - slots[0])
        classes.extend(torch.cat(features), torch.cat(labels), len(slots), data)

    def _align_identity(self, data: TaskData) -> None:
        identity = self.identity
        slots = torch.arange(len(self.slot_labels), device=self.slot_labels.device)
        self._align(identity.head, identity.hidden, identity.mlp(), self.plain_classes, slots, data)

    def _align_head(self, data: TaskData) -> None:
        self._align(self.head, nn.Identity(), [], self.prompted_classes, self.slot_labels, data)

    def _align(
        self,
        head: GrowingHead,
        hidden: Callable[[Tensor], Tensor],
        below: list[nn.Parameter],
        classes: ClassGaussians,
        labels: Tensor,
        data: TaskData,
    ) -> None:
        """SGD on features drawn of all slots, of these ``labels``; cross entropy over all rows of the head.

        Every process draws the same and does the same.
        """
        config = self.config
        rows = [nn.Parameter(row.detach()) for row in head.rows()]
        generator = data.generator("alignment of " + ("identity" if below else "head"))
        optimizer = torch.optim.SGD([*rows, *below], lr=config.align_lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.align_epochs))
        with _training(below):
            for _ in range(config.align_epochs):
                features, slots = classes.sample(config.align_samples, generator)
                order = torch.randperm(len(features), generator=generator).to(features.device)
                for batch in order.split(config.align_samples):
                    loss = F.cross_entropy(F.linear(hidden(features[batch]), *rows), labels[slots[batch]])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                schedule.step()
            optimizer.zero_grad(set_to_none=True)
        head.replace(*(row.detach() for row in rows))
