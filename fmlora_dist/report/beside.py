"""What stands beside a table: published numbers, and how sure its differences are, as plain grids of text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fmlora_dist.report.differences import Difference, Pooled, enough
from fmlora_dist.report.measures import MEASURES
from fmlora_dist.report.published import Published
from fmlora_dist.report.significance import FEWEST
from fmlora_dist.report.tables import Table

__all__ = ["Grid", "Line", "difference_grid", "pooled_grids", "published_grid"]

_METHOD = (
    "Paired over common seeds, each method against the best other one: mean difference, 95 % t-interval, p of the "
    "exact two-sided sign-flip test, and the smallest p that so many pairs can reach; not corrected for the number of "
    "comparisons."
)
_LIKE = (
    "Compared where the backbone and the kind of mean are the same; split, class order, recipe and number of runs may "
    "differ, as the sources say."
)


class Line(NamedTuple):
    """A line of a grid."""

    texts: tuple[str, ...]
    faint: bool = False
    """It is shown in grey: not to be read as a comparison."""
    minor: bool = False
    """A terminal leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A small table of text, the same in every form of a report."""

    title: str
    heads: tuple[str, ...]
    left: int
    """Number of columns that are set flush left; the others hold figures."""
    lines: list[Line]
    notes: list[str] = field(default_factory=list)


def published_grid(table: Table) -> Grid | None:
    """The published numbers for a table's cells; None where there are none."""
    found = [
        (row.label, head.group, cell.measure.title, line)
        for position, head in enumerate(table.heads)
        for row, cell in table.column(position)
        for line in cell.published
    ]
    if not found:
        return None
    sources = [*dict.fromkeys(_source(line) for *_, line in found)]
    lines = [
        Line((method, group, _metric(line, title), *_figures(line), f"({sources.index(_source(line)) + 1})"), faint)
        for method, group, title, line in found
        for faint in [bool(line.reason)]
    ]
    return Grid(
        title=f"Published numbers, {table.name}",
        heads=("method", "column", "metric", "published", "ours", "difference", "source"),
        left=3,
        lines=lines,
        notes=[_LIKE, *(f"({number}) {source}" for number, source in enumerate(sources, start=1))],
    )


def difference_grid(table: Table, found: Sequence[Difference]) -> Grid | None:
    """How sure a table's differences are; None without two methods that have a common seed."""
    if not found:
        return None
    if not enough(found):
        few = f"Fewer than {FEWEST} common seeds: nothing can be said about whether a difference is real."
        return Grid(title=f"Differences, {table.name}", heads=(), left=0, lines=[], notes=[few])
    return _compared(f"Differences, {table.name}", found, _METHOD)


def pooled_grids(found: Pooled) -> Iterator[Grid]:
    """The methods over all benchmarks: pooled differences, and ranks."""
    benchmarks = f"{len(found.blocks)} benchmarks ({', '.join(found.blocks)})"
    left_out = f" Without results in every column, so left out: {', '.join(found.left_out)}." if found.left_out else ""
    note = f"Blocks that weigh alike: {benchmarks}; a pair is a benchmark and a seed, task counts averaged. {_METHOD}"
    if found.differences:
        yield _compared(f"Differences over all benchmarks, {found.measure.title}", found.differences, note + left_out)
    if found.ranking:
        ranks = found.ranking
        together = [" = ".join(group) for group in ranks.groups]
        yield Grid(
            title=f"Ranks over all benchmarks, {found.measure.title}",
            heads=("method", "average rank"),
            left=1,
            lines=[Line((name, f"{rank:.2f}")) for name, rank in ranks.ranks.items()],
            notes=[
                f"Friedman's test over {benchmarks}: χ² = {ranks.statistic:.2f}, p = {ranks.p:.4f}. Nemenyi's critical "
                f"difference at 5 %: {ranks.critical_difference:.2f}; not told apart: {'; '.join(together) or 'none'}."
            ],
        )


def _compared(title: str, found: Sequence[Difference], note: str) -> Grid:
    lines = []
    for each in found:
        difference, low, high, p, smallest = each.result.texts
        interval = f"{low} to {high}" if low else "nothing can be said" if each.result.n < FEWEST else ""
        texts = (each.row, each.where, each.other, difference, interval, p, smallest, str(each.result.n))
        lines.append(Line(texts, faint=each.result.n < FEWEST, minor=not each.leads))
    heads = ("method", "column", "against", "difference", "95 % interval", "p", "smallest p", "pairs")
    return Grid(title=title, heads=heads, left=3, lines=lines, notes=[note])


def _source(line: Published) -> str:
    return line.source + (f" – not compared: {line.reason}" if line.reason else "")


def _metric(line: Published, title: str) -> str:
    return MEASURES[line.metric].title if line.metric else title


def _figures(line: Published) -> tuple[str, str, str]:
    return line.text, line.ours_text, line.difference_text
