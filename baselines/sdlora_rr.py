"""SD-LoRA-RR: later directions have smaller ranks."""

from typing import Annotated, ClassVar

from pydantic import Field

from baselines.sdlora import SdLora, SdLoraConfig
from fmlora_dist.method import MethodConfig, MethodInfo
from fmlora_dist.registry import register_method

__all__ = ["SdLoraRr", "SdLoraRrConfig"]


class SdLoraRrConfig(SdLoraConfig):
    """Hyperparameters of SD-LoRA-RR: those of SD-LoRA, with ranks that fall."""

    later_ranks: tuple[Annotated[int, Field(ge=1)], ...] = (10, 10, 10, 8, 8, 8, 8, 6)
    """Ranks of tasks 2, 3, ...; the last one holds for the rest (the public code's only trace of them, a comment)."""


@register_method(
    MethodInfo(
        name="sdlora_rr",
        summary="SD-LoRA with smaller ranks for later tasks",
        paper="Wu et al., SD-LoRA: Scalable Decoupled Low-Rank Adaptation, ICLR 2025 (RR)",
        family="low-rank",
        lr=2e-3,
        grows=True,
    )
)
class SdLoraRr(SdLora):
    """Later directions matter less (the paper's observation), so they are given less room; all else is SD-LoRA."""

    Config: ClassVar[type[MethodConfig]] = SdLoraRrConfig

    def diagnostics(self) -> dict[str, float | int]:
        """The rank of the newest direction."""
        assert self.task is not None
        return super().diagnostics() | {"rank": self.rank(self.task)}
