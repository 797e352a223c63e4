"""What a measured figure must reach, and the table that says whether it does."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

__all__ = ["Bound", "as_json", "bound_table"]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One figure, and what it must reach."""

    name: str
    found: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        return (self.least is None or self.found >= self.least) and (self.most is None or self.found <= self.most)

    @property
    def demand(self) -> str:
        if self.least is None:
            return f"≤ {self.most:g}"
        return f"≥ {self.least:g}" if self.most is None else f"{self.least:g} to {self.most:g}"


def as_json(bounds: Sequence[Bound]) -> list[dict[str, Any]]:
    """name, found, least, most and met of each."""
    return [asdict(bound) | {"met": bound.met} for bound in bounds]


def bound_table(bounds: Sequence[Bound], *, title: str, caption: str = "") -> Table:
    """A line for each bound."""
    table = Table(title=title, caption=caption or None)
    for heading, justify in (("", "left"), ("found", "right"), ("must be", "right"), ("", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for bound in bounds:
        table.add_row(bound.name, f"{bound.found:.3g}", bound.demand, "met" if bound.met else "NOT MET")
    return table
