"""Published numbers beside ours, like for like.

published.csv holds one publication's figures a line: the method by our name, the backbone by its full timm tag as far
as that is established, and which of our metrics its code computes (empty: not established), so that a mean over tasks
is never compared with a mean over images. Its last column says where a line comes from.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fmlora_dist.report.aggregate import Column, Planned, Run
from fmlora_dist.report.measures import MEASURES, Spread, spread
from fmlora_dist.report.significance import signed

__all__ = ["Published", "published", "published_lines"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published number for one cell, and how ours differs."""

    mean: float
    std: float | None
    metric: str
    """Which of our metrics it is; '' where that is not established."""
    source: str
    ours: Spread | None = None
    """Ours in that metric; None where the two are not alike."""
    reason: str = ""
    """Why it is not like ours; '' where it is."""

    @property
    def difference(self) -> float | None:
        """Ours minus the published one, both rounded as they are printed."""
        return None if self.ours is None else round(self.ours.mean, 2) - round(self.mean, 2)

    @property
    def text(self) -> str:
        """The published number as it stands in every form of a table."""
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")

    @property
    def ours_text(self) -> str:
        """Ours in the same metric."""
        if self.ours is None:
            return ""
        return f"{self.ours.mean:.2f}" + ("" if self.ours.std is None else f" ± {self.ours.std:.2f}")

    @property
    def difference_text(self) -> str:
        """The difference with its sign."""
        return "" if self.difference is None else signed(self.difference)


def published(place: Run | Planned, runs: Sequence[Run], measure: str) -> list[Published]:
    """What publications give for one cell.

    Args:
        place: Any run that stands in it, or is to stand there.
        runs: Those that stand in it.
        measure: What it shows.
    """
    if measure not in ("acc", "aaa"):
        return []
    return [_beside(line, measure, runs) for line in _lines(place.column, place.method) if line[f"{measure}_mean"]]


def _beside(line: dict[str, str], measure: str, runs: Sequence[Run]) -> Published:
    metric, std = line[f"{measure}_metric"], line[f"{measure}_std"]
    reason = _unlike(line["backbone"], metric, runs)
    return Published(
        mean=float(line[f"{measure}_mean"]),
        std=float(std) if std else None,
        metric=metric,
        source=line["source"],
        ours=None if reason else spread(runs, metric),
        reason=reason,
    )


def _unlike(backbone: str, metric: str, runs: Sequence[Run]) -> str:
    if not runs:
        return "no run of ours is finished"
    ours = {str(run.shared.get("backbone", "")) for run in runs}
    if not backbone:
        return "its backbone is not stated"
    if ours != {backbone}:
        unsure = "" if "." in backbone else ", which of its weights is not established"
        return f"its backbone is {backbone}{unsure}; ours {' and '.join(sorted(ours)) or 'unknown'}"
    if not metric:
        return "which mean of accuracies it is (over tasks or images) is not established"
    if left := {str(name) for run in runs for name in run.shared.get("excluded_domains") or ()}:
        return f"ours is without {', '.join(sorted(left))}"
    if {run.shared.get("tested_on", "test") for run in runs} != {"test"}:
        return "ours is measured on validation data"
    if spread(runs, metric) is None:
        return f"ours has no {MEASURES[metric].title}"
    return ""


@cache
def published_lines() -> list[dict[str, str]]:
    """The lines of published.csv."""
    text = files("fmlora_dist.report").joinpath("published.csv").read_text(encoding="utf-8")
    return [*csv.DictReader(text.splitlines())]


def _lines(column: Column, method: str) -> list[dict[str, str]]:
    key = (*map(str, column), method)
    return [
        line
        for line in published_lines()
        if (line["benchmark"], line["scenario"], line["n_tasks"], line["method"]) == key
    ]
