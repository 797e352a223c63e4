"""All that a report says, before it takes a form."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fmlora_dist.errors import UserError
from fmlora_dist.report.aggregate import Run, Runs
from fmlora_dist.report.beside import Grid, difference_grid, pooled_grids, published_grid
from fmlora_dist.report.differences import Difference, Pooled, differences, pooled
from fmlora_dist.report.layouts import Grouping, tables
from fmlora_dist.report.tables import Table

__all__ = ["Report", "make_report"]


@dataclass(kw_only=True)
class Report:
    """Tables, and what must be known to read them."""

    tables: list[Table]
    differences: list[list[Difference]]
    """For each table how its rows compare."""
    pooled: list[Pooled]
    """How methods compare over several benchmarks, for Acc and AAA; empty for one benchmark."""
    runs: list[Run]
    """All runs in them."""
    progress: str = ""
    """How far an unfinished grid is; '' when nothing more is planned."""
    broken: list[tuple[Path, str]] = field(default_factory=list)
    """Result files that were left out, each with its reason."""

    def sections(self) -> Iterator[tuple[Table, list[Grid]]]:
        """Every table with what stands beside it."""
        for table, found in zip(self.tables, self.differences, strict=True):
            yield table, [grid for grid in (published_grid(table), difference_grid(table, found)) if grid]

    def overall(self) -> list[Grid]:
        """What is said of all tables together."""
        return [grid for found in self.pooled for grid in pooled_grids(found)]


def make_report(runs: Runs, grouping: Grouping | None = None, *, allow_mixed: bool = False) -> Report:
    """The report of these runs, with the usual tables or with the one of a grouping.

    Raises:
        UserError: there is no finished run, an unknown field, or runs of different shared protocols without
            ``allow_mixed``.
    """
    if not runs.runs:
        broken = "".join(f"; {file}: {reason}" for file, reason in runs.broken[:1])
        raise UserError(f"report: there is no finished run (a folder with a result.json) to compare{broken}")
    found = tables(runs, grouping, allow_mixed=allow_mixed)
    return Report(
        tables=found,
        differences=[differences(table) for table in found],
        pooled=pooled(found),
        runs=runs.runs,
        progress=_progress(runs),
        broken=runs.broken,
    )


def _progress(runs: Runs) -> str:
    missing = Counter((plan.column, plan.method) for plan in runs.missing)
    if not missing:
        return ""
    planned = Counter((plan.column, plan.method) for plan in runs.planned)
    done = len(runs.planned) - missing.total()
    what = [
        f"{method} on {column.title} ({count} of {planned[column, method]})"
        for (column, method), count in sorted(missing.items())
    ]
    more = f" and {len(what) - 8} more" if len(what) > 8 else ""
    return f"Unfinished: {done} of {len(runs.planned)} planned runs are complete; missing: {', '.join(what[:8])}{more}."
