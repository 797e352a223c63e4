"""The rows of tables against each other: in each column over seeds, and over all benchmarks together."""

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from fmlora_dist.errors import UserError
from fmlora_dist.registry import get_benchmark
from fmlora_dist.report.aggregate import Seed
from fmlora_dist.report.measures import ACCURACIES, MEASURES, Measure, by_seed
from fmlora_dist.report.significance import FEWEST, Paired, Ranking, paired, ranking
from fmlora_dist.report.tables import Cell, Row, Table

__all__ = ["Difference", "Pooled", "differences", "enough", "pooled"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A row against the best other one."""

    row: str
    other: str
    where: str
    """Heading of the column."""
    leads: bool
    """Whether it is the best of its column: then the other one is the second."""
    result: Paired


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """Rows against each other over several benchmarks."""

    measure: Measure
    blocks: list[str]
    differences: list[Difference]
    ranking: Ranking | None
    """None with fewer than three methods."""
    left_out: list[str]
    """Rows that do not have all columns."""


def differences(table: Table) -> list[Difference]:
    """In each column of accuracies every row against the best one of another method.

    Bounds and other protocols do not compete.
    """
    found = []
    for position, head in enumerate(table.heads):
        if head.measure.name not in ACCURACIES:
            continue
        cells = {row.label: cell for row, cell in table.column(position) if _competes(row, cell)}
        methods = {name: cell.runs[0].method for name, cell in cells.items()}
        for label, other in _against({name: _mean(cell) for name, cell in cells.items()}, methods):
            one, two = (by_seed(cells[name].runs, head.measure.name) for name in (label, other))
            common = sorted(one.keys() & two.keys(), key=str)
            if common:
                result = paired([[one[seed] - two[seed] for seed in common]])
                leads = _mean(cells[label]) >= _mean(cells[other])
                found.append(Difference(row=label, other=other, where=head.title, leads=leads, result=result))
    return found


def enough(found: Sequence[Difference]) -> bool:
    """Whether anything can be said of any of them."""
    return any(difference.result.n >= FEWEST for difference in found)


def pooled(tables: Sequence[Table]) -> list[Pooled]:
    """The rows that stand in every column of accuracies, with benchmarks as blocks; empty for a single benchmark.

    A pair is a benchmark and a seed: task counts, scenarios and cuts of one benchmark are averaged before, since runs
    of one seed on the same images are not independent of each other.
    """
    found = []
    for name in ACCURACIES:
        cells = _cells(tables, name)
        columns = {column for row in cells.values() for column in row}
        complete = {label: row for label, row in cells.items() if row.keys() == columns}
        blocks = sorted({block for block, _ in columns})
        if len(blocks) < 2 or len(complete) < 2:
            continue
        scores = {label: _by_block({c: _mean(cell) for c, cell in row.items()}) for label, row in complete.items()}
        means = {label: fsum(score.values()) / len(score) for label, score in scores.items()}
        methods = {label: next(iter(row.values())).runs[0].method for label, row in complete.items()}
        compared = [
            Difference(row=label, other=other, where="all", leads=means[label] >= means[other], result=result)
            for label, other in _against(means, methods)
            if (result := _paired_blocks(complete[label], complete[other], name))
        ]
        found.append(
            Pooled(
                measure=MEASURES[name],
                blocks=blocks,
                differences=compared,
                ranking=ranking(scores),
                left_out=[label for label in cells if label not in complete],
            )
        )
    return found


def _competes(row: Row, cell: Cell) -> bool:
    return bool(cell.value and cell.runs and not row.bound and not cell.mixed)


def _mean(cell: Cell) -> float:
    assert cell.value is not None
    return cell.value.mean


def _against(means: dict[str, float], methods: dict[str, str]) -> list[tuple[str, str]]:
    """Each name with the best one of another method; where there is one method alone, with the best other one."""
    alone = len({*methods.values()}) == 1
    found = []
    for name in means:
        others = [other for other in means if other != name and (alone or methods[other] != methods[name])]
        if others:
            found.append((name, max(others, key=means.__getitem__)))
    return found


def _cells(tables: Sequence[Table], measure: str) -> dict[str, dict[tuple[str, str], Cell]]:
    """Of each row its cells by (benchmark, heading of the column)."""
    found: dict[str, dict[tuple[str, str], Cell]] = defaultdict(dict)
    data = functools.cache(_data)
    for table in (table for table in tables if table.of_methods):
        for position, head in enumerate(table.heads):
            for row, cell in table.column(position):
                if head.measure.name == measure and _competes(row, cell):
                    found[row.label][data(cell.runs[0].column.benchmark), head.group] = cell
    return dict(found)


def _data(benchmark: str) -> str:
    """The benchmark whose images these are: scenarios, and cuts of one benchmark, are not independent of it."""
    try:
        spec = get_benchmark(benchmark)
    except UserError:  # of a plugin that is not here
        return benchmark
    return spec.cut.of if spec.cut else benchmark


def _by_block(scores: dict[tuple[str, str], float]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for (block, _), score in sorted(scores.items()):
        found[block].append(score)
    return {block: fsum(values) / len(values) for block, values in found.items()}


def _paired_blocks(one: dict[tuple[str, str], Cell], other: dict[tuple[str, str], Cell], measure: str) -> Paired | None:
    """None when a benchmark has no seed that both have in all of its columns."""
    columns: dict[str, list[dict[Seed, float]]] = defaultdict(list)
    for (block, head), cell in one.items():
        mine, others = by_seed(cell.runs, measure), by_seed(other[block, head].runs, measure)
        columns[block].append({seed: mine[seed] - others[seed] for seed in mine.keys() & others.keys()})
    blocks = []
    for found in columns.values():
        # A seed that lacks a column has other pairs than the others: a number of tasks would pass for chance.
        common = set.intersection(*(set(each) for each in found))
        blocks.append([fsum(each[seed] for each in found) / len(found) for seed in sorted(common, key=str)])
    return paired(blocks) if all(blocks) else None
