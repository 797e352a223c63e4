"""A report as plain data: lines of a CSV file, and what a page needs, ready for JSON."""

import csv
import io
from typing import Any

from fmlora_dist.report.contents import Report
from fmlora_dist.report.published import Published
from fmlora_dist.report.tables import Cell, Table

__all__ = ["to_csv", "to_data"]

_FIELDS = ("table", "section", "row", "bound", "column", "metric")
_FIGURES = ("mean", "std", "n_seeds", "mark", "mixed", "source", "difference", "reason")


def to_csv(report: Report) -> str:
    """A line a cell, with an empty mean where there is no run, and a line for each number published for it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*_FIELDS, *_FIGURES), restval="", lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        for row in table.rows:
            for head, cell in zip(table.heads, row.cells, strict=True):
                values = (table.title, row.section, row.label, row.bound, head.group, head.measure.name)
                where = dict(zip(_FIELDS, values, strict=True))
                writer.writerow(where | _figures(cell))
                writer.writerows(where | _published(line) for line in cell.published)
    return text.getvalue()


def to_data(report: Report) -> dict[str, Any]:
    """Everything that the tables hold, with the text of each cell as all forms have it, and its runs by folder."""
    return {
        "progress": report.progress,
        "tables": [_table(table) for table in report.tables],
        "left_out": [[str(file), reason] for file, reason in report.broken],
    }


def _figures(cell: Cell) -> dict[str, Any]:
    if cell.value is None:
        return {"n_seeds": 0}
    std = cell.value.std if cell.measure.spreads else None
    return {
        "mean": cell.measure.write(cell.value.mean),
        "std": "" if std is None else cell.measure.write(std),
        "n_seeds": cell.value.n,
        "mark": cell.mark,
        "mixed": "mixed" if cell.mixed else "",
    }


def _published(line: Published) -> dict[str, Any]:
    mean, _, std = line.text.partition(" ± ")
    figures = {"mean": mean, "std": std, "source": line.source, "difference": line.difference_text}
    return figures | ({"metric": line.metric} if line.metric else {}) | {"reason": line.reason}


def _table(table: Table) -> dict[str, Any]:
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
