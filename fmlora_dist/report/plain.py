"""A report as plain data: lines of a CSV file, and what a page needs, ready for JSON."""

import csv
import io
from typing import Any

from fmlora_dist.report.beside import Grid
from fmlora_dist.report.contents import Report
from fmlora_dist.report.differences import Difference
from fmlora_dist.report.published import Published
from fmlora_dist.report.tables import Cell, Table

__all__ = ["to_csv", "to_data"]

_FIELDS = ("table", "section", "row", "bound", "column", "metric")
_FIGURES = ("mean", "std", "n_seeds", "mark", "mixed")
_AGAINST = ("against", "difference", "low", "high", "p", "smallest_p", "n_pairs", "reason")


def to_csv(report: Report) -> str:
    """A line a cell, with an empty mean where there is no run; beside it a line for each number published for it, and
    one for its difference to the best other method."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*_FIELDS, *_FIGURES, *_AGAINST), restval="", lineterminator="\n")
    writer.writeheader()
    for table, found in zip(report.tables, report.differences, strict=True):
        against = {(each.row, each.where): each for each in found}
        for row in table.rows:
            for head, cell in zip(table.heads, row.cells, strict=True):
                values = (table.title, row.section, row.label, row.bound, head.group, head.measure.name)
                where = dict(zip(_FIELDS, values, strict=True))
                writer.writerow(where | _figures(cell))
                writer.writerows(where | _published(line) for line in cell.published)
                if (row.label, head.title) in against:
                    writer.writerow(where | _difference(against[row.label, head.title]))
    for pooled in report.pooled:
        for each in pooled.differences:
            where = {"table": "all", "row": each.row, "column": "all", "metric": pooled.measure.name}
            writer.writerow(where | _difference(each))
        ranks = pooled.ranking.ranks if pooled.ranking else {}
        for name, rank in ranks.items():
            where = {"table": "all", "row": name, "column": "all", "metric": f"rank of {pooled.measure.name}"}
            writer.writerow(where | {"mean": f"{rank:.2f}"})
    return text.getvalue()


def to_data(report: Report) -> dict[str, Any]:
    """Everything that the tables hold, with the text of each cell as all forms have it, and its runs by folder."""
    return {
        "progress": report.progress,
        "tables": [_table(table, beside) for table, beside in report.sections()],
        "overall": [_grid(grid) for grid in report.overall()],
        "left_out": [[str(file), reason] for file, reason in report.broken],
    }


def _figures(cell: Cell) -> dict[str, Any]:
    if cell.value is None:
        return {"n_seeds": 0}
    return {
        "mean": cell.measure.write(cell.value.mean),
        "std": "" if cell.std is None else cell.measure.write(cell.std),
        "n_seeds": cell.value.n,
        "mark": cell.mark,
        "mixed": "mixed" if cell.mixed else "",
    }


def _published(line: Published) -> dict[str, Any]:
    mean, _, std = line.text.partition(" ± ")
    figures = {"mean": mean, "std": std, "against": line.source, "difference": line.difference_text}
    return figures | ({"metric": line.metric} if line.metric else {}) | {"reason": line.reason}


def _difference(each: Difference) -> dict[str, Any]:
    names = ("difference", "low", "high", "p", "smallest_p")
    return {"against": each.other, "n_pairs": each.result.n, **dict(zip(names, each.result.texts, strict=True))}


def _grid(grid: Grid) -> dict[str, Any]:
    lines = [{"texts": line.texts, "faint": line.faint} for line in grid.lines]
    return {"title": grid.title, "heads": grid.heads, "left": grid.left, "lines": lines, "notes": grid.notes}


def _table(table: Table, beside: list[Grid]) -> dict[str, Any]:
    return {
        "title": table.title,
        "heads": [
            {"group": head.group, "measure": head.measure.name, "title": head.measure.title, "sign": head.measure.sign}
            for head in table.heads
        ],
        "rows": [
            {
                "number": row.number,
                "section": row.section,
                "label": row.label,
                "bound": row.bound,
                "recipe": row.recipe,
                "cells": [_cell(cell) for cell in row.cells],
            }
            for row in table.rows
        ],
        "notes": table.notes(),
        "beside": [_grid(grid) for grid in beside],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    first = cell.runs[0].column if cell.runs else None
    return {
        "text": cell.text,
        "value": None if cell.value is None else cell.value.mean,
        "mark": cell.mark,
        "mixed": cell.mixed,
        "column": None if first is None else first._asdict(),
        "runs": [str(run.folder) for run in cell.runs],
        "published": [
            {
                "text": line.text,
                "ours": line.ours_text,
                "difference": line.difference_text,
                "source": line.source,
                "reason": line.reason,
            }
            for line in cell.published
        ],
    }
