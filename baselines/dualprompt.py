"""DualPrompt: general prompts that all tasks share, and an expert prompt for each task, found by its key."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from fmlora_dist.method import INDEPENDENT, MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.prefix import choose_layers, prefixes
from fmlora_dist.vit.prompted import BATCHWISE, PromptMethod, cosine, most_frequent

__all__ = ["DualPrompt", "DualPromptConfig"]

Block = Annotated[int, Field(ge=0)]


class DualPromptConfig(MethodConfig):
    """Hyperparameters of DualPrompt."""

    general_layers: tuple[Block, ...] = ()
    """Blocks of the general prompts; empty: 0 and 1 (two fifths of the blocks in a ViT of fewer than five)."""
    expert_layers: tuple[Block, ...] = ()
    """Blocks of the expert prompts; empty: 2, 3 and 4 (the other three fifths)."""
    general_length: int = Field(5, ge=1)
    """Number of keys, and of values, of the general prompts in a block."""
    expert_length: int = Field(20, ge=1)
    """The same of an expert prompt (paper 20; PILOT and mammoth 5)."""
    key_weight: float = Field(1.0, ge=0)
    """Weight λ of the key loss (HiDe-Prompt's code and mammoth: 1; PILOT: 0.1)."""
    paper_compat: Literal["none", "batchwise_prompt"] = "none"
    """batchwise_prompt: the images of a test batch take the expert that most of them would, as in several public codes;
    a prediction then hangs on the other test images, and tables mark it."""

    @model_validator(mode="after")
    def _check_layers(self) -> "DualPromptConfig":
        if bool(self.general_layers) != bool(self.expert_layers):
            raise ValueError("general_layers and expert_layers must both be given, or both be empty")
        if set(self.general_layers) & set(self.expert_layers):
            raise ValueError("general_layers and expert_layers must not share a block")
        return self

    @property
    def predictions(self) -> str:
        return INDEPENDENT if self.paper_compat == "none" else BATCHWISE


@register_method(
    MethodInfo(
        name="dualprompt",
        summary="general prompts for all tasks, and an expert prompt for each, found by its key",
        paper="Wang et al., DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning, ECCV 2022",
        family="prompt",
        lr=8e-3,
        grows=True,
    )
)
class DualPrompt(PromptMethod):
    """A task trains the general prompts, its own expert prompt and key, which are drawn anew; so there are always as
    many experts as tasks. Its number chooses the expert in training, the nearest key at test time.

    An exception to the common loss: the weighted key loss λ (1 - cos(q, k_t)) is added to it.
    """

    Config: ClassVar[type[MethodConfig]] = DualPromptConfig
    config: DualPromptConfig
    past_experts: Tensor
    past_keys: Tensor

    def __init__(self, config: DualPromptConfig, backbone: Backbone, *, lr: float):
        """Raises ``UserError`` when the backbone does not have a block that the config names."""
        depth = len(backbone.blocks)
        layers = choose_layers(
            "general_layers and expert_layers", (*config.general_layers, *config.expert_layers), depth
        )
        n_general = len(config.general_layers) if config.general_layers else round(len(layers) * 2 / 5)
        self.general_layers, self.expert_layers = layers[:n_general], layers[n_general:]
        super().__init__(config, backbone, lr=lr, layers=layers)
        self.general = nn.Parameter(torch.zeros(n_general, 2, config.general_length, *self.head_shape))
        expert = (len(self.expert_layers), 2, config.expert_length, *self.head_shape)
        self.expert = nn.Parameter(torch.zeros(0, *expert))
        self.key = nn.Parameter(torch.zeros(0, backbone.num_features))
        self.register_buffer("past_experts", torch.zeros(0, *expert))
        self.register_buffer("past_keys", torch.zeros(0, backbone.num_features))

    def begin_task(self, task: Task, data: TaskData) -> None:
        super().begin_task(task, data)
        self.past_experts = torch.cat([self.past_experts, self.expert.detach()])
        self.past_keys = torch.cat([self.past_keys, self.key.detach()])
        generator = data.generator("prompts")

        def draw(*shape: int) -> Tensor:
            return (2 * torch.rand(shape, generator=generator) - 1).to(self.key.device)

        if task.number == 1:
            self.general.data = draw(*self.general.shape)
        self.expert.data = draw(1, *self.expert.shape[1:])
        self.key.data = draw(1, self.key.shape[1])

    def parameter_groups(self) -> list[ParameterGroup]:
        prompts = [self.general] if self.general.numel() else []
        return [
            ParameterGroup(name="prompts", params=[*prompts, self.expert, self.key], lr=self.lr),
            ParameterGroup(name="head", params=list(self.head.parameters()), lr=self.lr),
        ]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy over the current task's classes with the task's own expert, and the weighted key loss."""
        tokens = self.embed(images)
        pull = (1 - cosine(self.query(tokens), self.key)).mean()
        logits = self.head.current(self.prompted(tokens, self.expert.expand(len(images), *self.expert.shape[1:])))
        return F.cross_entropy(logits, labels - self.head.start) + self.config.key_weight * pull

    def features(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        experts = torch.cat([self.past_experts, self.expert])
        return self.prompted(tokens, experts[self.choose(self.query(tokens))])

    def choose(self, queries: Tensor) -> Tensor:
        """Number of each image's expert [b]: that with the nearest key."""
        keys = torch.cat([self.past_keys, self.key.detach()])
        chosen = cosine(queries, keys).argmax(dim=1)
        return chosen if self.config.paper_compat == "none" else most_frequent(chosen[:, None], len(keys))[:, 0]

    def prompted(self, tokens: Tensor, experts: Tensor) -> Tensor:
        """Features [b, d] of embedded tokens [b, n, d] under the images' experts [b, layers, 2, L, heads, d_head]."""
        general = self.general.expand(len(tokens), *self.general.shape)
        both = prefixes(self.general_layers, general) | prefixes(self.expert_layers, experts)
        return self.pool(self.blocks(tokens, both))
