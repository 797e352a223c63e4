"""L2P: a pool of prompts, of which each image takes the few whose keys are nearest to its query."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from fmlora_dist.method import INDEPENDENT, MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.prompted import BATCHWISE, PromptMethod, cosine, most_frequent

__all__ = ["L2P", "L2PConfig", "key_loss"]


class L2PConfig(MethodConfig):
    """Hyperparameters of L2P."""

    pool_size: int = Field(10, ge=1)
    """Number M of prompts in the pool (CODA-Prompt's code: 30)."""
    length: int = Field(5, ge=1)
    """Tokens of a prompt."""
    top_k: int = Field(5, ge=1)
    """Number of prompts that an image takes (HiDe-Prompt's code: 4)."""
    key_weight: float = Field(0.5, ge=0)
    """Weight λ of the key loss (paper 0.5; PILOT 0.1, LibContinual 1)."""
    key_loss: Literal["mean", "sum", "all_pairs"] = "mean"
    """1 - cosine of an image and its own keys: mean or sum over these, mean over images; all_pairs: CODA-Prompt's code,
    the sum over each image and every image's keys, which grows with the square of a process's part of the batch."""
    head_input: Literal["prompts", "pooled"] = "prompts"
    """What the head reads: the mean of the prompts' outputs (paper), or its pooled features (HiDe-Prompt)."""
    paper_compat: Literal["none", "batchwise_prompt"] = "none"
    """batchwise_prompt: the images of a batch take the prompts that most of them would, as in several public codes; a
    prediction then hangs on the other test images, and tables mark it."""

    @model_validator(mode="after")
    def _check_top_k(self) -> "L2PConfig":
        if self.top_k > self.pool_size:
            raise ValueError(f"top_k must not be above the pool_size ({self.pool_size})")
        return self

    @property
    def whole_batch(self) -> bool:
        return self.key_loss == "all_pairs" or self.paper_compat != "none"

    @property
    def predictions(self) -> str:
        return INDEPENDENT if self.paper_compat == "none" else BATCHWISE


def key_loss(queries: Tensor, keys: Tensor, chosen: Tensor, reduction: str) -> Tensor:
    """How far images are from keys (Wang et al., 2022, eq. 5, with γ = 1 - cosine).

    Args:
        queries: [b, d].
        keys: [m, d].
        chosen: Numbers of each image's keys, [b, k].
        reduction: 'mean', 'sum' or 'all_pairs', see ``L2PConfig.key_loss``.
    """
    distances = 1 - cosine(queries, keys)
    if reduction == "all_pairs":
        return distances[:, chosen.flatten()].sum()
    own = distances.gather(1, chosen)
    return own.mean() if reduction == "mean" else own.sum(dim=1).mean()


@register_method(
    MethodInfo(
        name="l2p",
        summary="a pool of prompts, of which each image takes the nearest",
        paper="Wang et al., Learning to Prompt for Continual Learning, CVPR 2022",
        family="prompt",
        lr=8e-3,
    )
)
class L2P(PromptMethod):
    """The chosen prompts' tokens, without position, stand before the image's; pool and keys train in every task.

    An exception to the common loss: the weighted key loss is added to it.
    """

    Config: ClassVar[type[MethodConfig]] = L2PConfig
    config: L2PConfig

    def __init__(self, config: L2PConfig, backbone: Backbone, *, lr: float):
        super().__init__(config, backbone, lr=lr)
        self.prompts = nn.Parameter(torch.zeros(config.pool_size, config.length, backbone.embed_dim))
        self.keys = nn.Parameter(torch.zeros(config.pool_size, backbone.num_features))

    def begin_task(self, task: Task, data: TaskData) -> None:
        super().begin_task(task, data)
        if task.number == 1:
            generator = data.generator("prompts")
            for parameter in (self.prompts, self.keys):
                drawn = 2 * torch.rand(parameter.shape, generator=generator) - 1
                parameter.data = drawn.to(parameter.device)

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup(name="prompts", params=[self.prompts, self.keys], lr=self.lr),
            ParameterGroup(name="head", params=list(self.head.parameters()), lr=self.lr),
        ]

    def choose(self, queries: Tensor) -> Tensor:
        """Numbers of each image's prompts [b, k], the nearest first."""
        chosen = cosine(queries, self.keys.detach()).topk(self.config.top_k, dim=1).indices
        return chosen if self.config.paper_compat == "none" else most_frequent(chosen, self.config.pool_size)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy over the current task's classes, and the weighted key loss."""
        tokens = self.embed(images)
        queries = self.query(tokens)
        chosen = self.choose(queries)
        logits = self.head.current(self.prompted(tokens, chosen))
        pull = key_loss(queries, self.keys, chosen, self.config.key_loss)
        return F.cross_entropy(logits, labels - self.head.start) + self.config.key_weight * pull

    def features(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        return self.prompted(tokens, self.choose(self.query(tokens)))

    def prompted(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Features [b, d] of embedded tokens [b, n, d] behind the prompts of the numbers ``chosen`` [b, k]."""
        prompts = self.prompts[chosen].flatten(1, 2)
        n_prompts = prompts.shape[1]
        out = self.blocks(torch.cat([prompts.to(tokens.dtype), tokens], dim=1))
        if self.config.head_input == "pooled":
            return self.pool(out[:, n_prompts:])
        averaged: Tensor = self.backbone.fc_norm(out[:, :n_prompts].mean(dim=1))
        return averaged
