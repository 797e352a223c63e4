"""CODA-Prompt: prompts that are sums of components, weighted by the attention of an image's query to them."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from fmlora_dist.errors import UserError
from fmlora_dist.method import MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone
from fmlora_dist.vit.prefix import choose_layers, prefixes
from fmlora_dist.vit.prompted import PromptMethod

__all__ = ["CodaPrompt", "CodaPromptConfig", "attention_weights", "orthonormal_rows"]

USUAL = 100


class CodaPromptConfig(MethodConfig):
    """Hyperparameters of CODA-Prompt."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Blocks that are prompted; empty: the first five (or all, in a ViT of fewer)."""
    components: int = Field(0, ge=0)
    """Number M of components of a block, divided evenly among the tasks; 0: 100 (or the width, in a ViT below that)."""
    length: int = Field(8, ge=2)
    """Keys and values of a prompt together, half of each."""
    orthogonality: float = Field(0.0, ge=0)
    """Weight λ of the orthogonality loss (paper 0.1; 0 in its present code)."""

    @field_validator("length")
    @classmethod
    def _check_length(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"found {value}, expected an even number: half are keys, half values")
        return value


def attention_weights(queries: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """α_m = cos(q ⊙ A_m, K_m) (Smith et al., 2023, eq. 5), in fp32.

    Args:
        queries: [b, d].
        attention: A, [layers, m, d].
        keys: K, [layers, m, d].

    Returns:
        [b, layers, m].
    """
    with torch.autocast(queries.device.type, enabled=False):
        # (q ⊙ A_m) · K_m = q · (A_m ⊙ K_m): no tensor of all images, components and dimensions.
        queries, attention = queries.float(), attention.float()
        products = torch.einsum("bd,lmd->blm", queries, attention * F.normalize(keys.float(), dim=2))
        squares = torch.einsum("bd,lmd->blm", queries**2, attention**2)
        return products / squares.clamp_min(1e-24).sqrt()


def orthonormal_rows(past: Tensor, drawn: Tensor) -> Tensor:
    """Gram-Schmidt: rows ``drawn`` [k, n] made orthonormal, and orthogonal to the rows ``past`` [m, n]; m + k <= n."""
    q, r = torch.linalg.qr(torch.cat([past, drawn]).double().T)
    new = (q * r.diagonal().sign())[:, len(past) :]  # QR leaves the signs free, Gram-Schmidt does not
    return new.T.float()


def orthogonality(rows: Tensor) -> Tensor:
    """Mean over blocks of ‖B Bᵀ - 1‖²_F / m² of rows B [layers, m, n]."""
    gram = rows @ rows.transpose(1, 2)
    return (gram - torch.eye(rows.shape[1], device=rows.device)).pow(2).mean()


@register_method(
    MethodInfo(
        name="coda_prompt",
        summary="prompts as attention-weighted sums of components, some for each task",
        paper="Smith et al., CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual "
        "Learning, CVPR 2023",
        family="prompt",
        lr=4e-3,
        grows=True,
    )
)
class CodaPrompt(PromptMethod):
    """p = Σ_m α_m P_m, over the components of all tasks so far, of which those of the current task train.

    Each task has M / T of them (integer division). Its P, K and A start orthonormal, and orthogonal to earlier ones.
    """

    Config: ClassVar[type[MethodConfig]] = CodaPromptConfig
    config: CodaPromptConfig

    def __init__(self, config: CodaPromptConfig, backbone: Backbone, *, lr: float):
        """Raises ``UserError`` for more components than the backbone's width, or blocks that it does not have."""
        width = backbone.num_features
        if config.components > width:
            raise UserError(
                f"method.components: found {config.components}, expected at most the width {width}, "
                "for no more vectors are orthogonal; choose fewer, or leave the field at 0"
            )
        self.n_components = config.components or min(USUAL, width)
        layers = choose_layers("layers", config.layers, len(backbone.blocks))
        super().__init__(config, backbone, lr=lr, layers=layers)
        self.layers = layers
        shapes = {
            "components": (2, config.length // 2, *self.head_shape),
            "keys": (width,),
            "attention": (width,),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(len(layers), 0, *shape)))
            self.register_buffer(f"past_{name}", torch.zeros(len(layers), 0, *shape))

    def begin_task(self, task: Task, data: TaskData) -> None:
        """Raises ``UserError`` when there are more tasks than components."""
        super().begin_task(task, data)
        n_new = self.n_components // task.n_tasks
        if not n_new:
            raise UserError(
                f"method.components: found {self.n_components} for {task.n_tasks} tasks, expected one for each at "
                "least; choose more components (up to the backbone's width), or fewer tasks"
            )
        for name in ("components", "keys", "attention"):
            past = self.every(name).detach()
            generator = data.generator(name)
            flat = past.flatten(2).cpu()
            drawn = torch.randn(len(self.layers), n_new, flat.shape[2], generator=generator)
            new = torch.stack([orthonormal_rows(*pair) for pair in zip(flat, drawn, strict=True)])
            setattr(self, f"past_{name}", past)
            self.get_parameter(name).data = new.view(len(self.layers), n_new, *past.shape[2:]).to(past.device)

    def every(self, name: str) -> Tensor:
        """Components, keys or attention vectors of all tasks so far, [layers, m, ...]."""
        return torch.cat([self.get_buffer(f"past_{name}"), self.get_parameter(name)], dim=1)

    def parameter_groups(self) -> list[ParameterGroup]:
        prompts = [self.get_parameter(name) for name in ("components", "keys", "attention")]
        return [
            ParameterGroup(name="prompts", params=prompts, lr=self.lr),
            ParameterGroup(name="head", params=list(self.head.parameters()), lr=self.lr),
        ]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy over the current task's classes, and the orthogonality loss where it has a weight."""
        loss = super().loss(images, labels)
        if self.config.orthogonality:
            penalty = sum(orthogonality(self.every(name).flatten(2)) for name in ("components", "keys", "attention"))
            loss = loss + self.config.orthogonality * penalty
        return loss

    def features(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        return self.pool(self.blocks(tokens, prefixes(self.layers, self.prompts(self.query(tokens)))))

    def prompts(self, queries: Tensor) -> Tensor:
        """The prompts [b, layers, 2, L/2, heads, d_head] of queries [b, d]."""
        weights = attention_weights(queries, self.every("attention"), self.every("keys"))
        return torch.einsum("blm,lm...->bl...", weights, self.every("components"))
