"""LoRA on all tasks at once: the upper bound."""

from typing import ClassVar

from baselines.lora import Lora, LoraConfig
from fmlora_dist.method import MethodConfig, MethodInfo
from fmlora_dist.registry import register_method

__all__ = ["Joint", "JointConfig"]


class JointConfig(LoraConfig):
    """Hyperparameters of joint training: those of LoRA."""


@register_method(
    MethodInfo(
        name="joint",
        summary="LoRA on all tasks at once: the upper bound, no continual learner",
        paper="the upper bound of Wang et al., Learning to Prompt for Continual Learning, CVPR 2022",
        family="low-rank",
        lr=2e-3,
        joint=True,
    )
)
class Joint(Lora):
    """The run gives one task that covers all classes; the rest is LoRA."""

    Config: ClassVar[type[MethodConfig]] = JointConfig
