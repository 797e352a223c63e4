"""The frozen backbone with a linear head: the bound that a method must beat to be worth anything."""

from fmlora_dist.method import Method, MethodInfo, ParameterGroup
from fmlora_dist.registry import register_method

__all__ = ["Frozen"]


@register_method(
    MethodInfo(
        name="frozen",
        summary="only the head trains: the bound that adaptation must beat",
        paper="linear probing, task by task",
        family="head",
        lr=1e-2,
    )
)
class Frozen(Method):
    """The features never change, so nothing is forgotten; nor is anything learned but each task's linear rows."""

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(name="head", params=list(self.head.parameters()), lr=self.lr)]
