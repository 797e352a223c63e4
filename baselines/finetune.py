"""All weights of the backbone, trained on task after task: what forgets most."""

from fmlora_dist.method import Method, MethodInfo, ParameterGroup
from fmlora_dist.registry import register_method

__all__ = ["Finetune"]


@register_method(
    MethodInfo(
        name="finetune",
        summary="the whole ViT, trained on task after task: no protection against forgetting",
        paper="the lower bound of Wang et al., Learning to Prompt for Continual Learning, CVPR 2022 (FT-seq)",
        family="full",
        lr=3e-4,
    )
)
class Finetune(Method):
    """Nothing is frozen but the head's rows of earlier tasks.

    The loss runs over the current task's classes, as for every method here; other codes train over all seen classes
    under the same name (CODA-Prompt's "FT"; ours is its "FT++").
    """

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup(name="backbone", params=list(self.backbone.parameters()), lr=self.lr),
            ParameterGroup(name="head", params=list(self.head.parameters()), lr=self.lr),
        ]

    def stored_names(self) -> list[str]:
        """The backbone too: here it is what was learned."""
        return list(self._tensors())
