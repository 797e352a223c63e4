"""The report as one page of HTML, which opens from disk and asks for nothing beyond itself.

What it does besides showing tables and figures (filter, show a run) is in assets/page.js; sortable-tablesort, which is
there too, sorts. Jinja escapes all text; a policy in the page's head lets no other script run and no request leave.
"""

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fmlora_dist.report.aggregate import Column, Run
from fmlora_dist.report.beside import Grid
from fmlora_dist.report.contents import Report
from fmlora_dist.report.drawing import INK, PAPER, QUIET, RULE, Drawing
from fmlora_dist.report.measures import MEASURES
from fmlora_dist.report.tables import Cell, Head, Row, Table
from fmlora_dist.report.traces import Rows, Trace

__all__ = ["empty_page", "live", "to_html"]

_TITLE = "Comparison"
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C, where PyYAML has it: runs are many
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Facts = dict[str, list[str]]
"""What the filters go by: what has a name here is hidden unless one of its values is chosen."""


@dataclass(frozen=True)
class _Filter:
    name: str
    title: str
    values: list[str]


def to_html(report: Report, rows: Rows, drawings: Iterable[Drawing], home: Path) -> str:
    """The page of a report with its runs, task by task, and its figures, whose files are to lie beside it.

    Args:
        report: What it says.
        rows: Its runs.
        drawings: Its figures.
        home: The page's folder. Runs that lie where it lies are named from there, so that the page can be given away.
    """
    traces = [trace for found in rows.values() for members in found.values() for trace in members]
    numbers = {trace.run.folder: number for number, trace in enumerate(traces)}
    columns = sorted({run.column for run in report.runs})
    methods = [*dict.fromkeys(trace.run.method for trace in traces)]
    filters = [
        _Filter("block", "benchmark", [*dict.fromkeys(column.block for column in columns)]),
        _Filter("n", "tasks", [str(n) for n in sorted({column.n_tasks for column in columns})]),
        _Filter("method", "method", methods),
    ]
    used = [*dict.fromkeys(head.measure.name for table in report.tables for head in table.heads)]
    return _render(
        title=_TITLE,
        progress=report.progress,
        summary=f"{_count(report.runs, 'finished run')} of {_count(methods, 'method')} on "
        f"{', '.join(filters[0].values)}. A figure in a table opens the runs behind it.",
        filters=[each for each in filters if len(each.values) > 1],
        tables=[_table(table, beside, columns, numbers) for table, beside in report.sections()],
        overall=[(grid.title, grid) for grid in report.overall()],
        figures=[_figure(drawing) for drawing in drawings],
        left_out=[f"{file}: {reason}" for file, reason in report.broken],
        runs=[_run(trace, used, home.resolve()) for trace in traces],
    )


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def empty_page(message: str) -> str:
    """The page while there is nothing to report, with the reason."""
    nothing: dict[str, Any] = {name: [] for name in ("filters", "tables", "overall", "figures", "left_out", "runs")}
    return _render(title=_TITLE, progress=message, summary="", **nothing)


def live(page: str, version: str) -> str:
    """The page as it is served: it asks its server for ./version now and then, and reloads when that is another."""
    page = page.replace("<html ", f'<html data-version="{version}" ', 1)
    return page.replace(_POLICY, f"{_POLICY}; connect-src 'self'", 1)


def _render(**contents: Any) -> str:
    style, script = _asset("page.css"), _asset("sortable-tablesort.min.js") + "\n" + _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"{_POLICY}; script-src 'sha256-{digest}'"
    template = _environment().get_template("page.html")
    return template.render(**contents, policy=Markup(policy), style=Markup(style), script=Markup(script)) + "\n"


@lru_cache
def _environment() -> Environment:
    loader = PackageLoader("fmlora_dist.report", "assets")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # in the order that they are given in
    return environment


def _asset(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


# -- tables -----------------------------------------------------------------------------------------------------------


def _table(table: Table, beside: Sequence[Grid], columns: Sequence[Column], numbers: dict[Any, int]) -> dict[str, Any]:
    """One part for each section: its rows are sorted among themselves."""
    known = {column.title: column for column in columns}
    runs = [[run for _, cell in table.column(position) for run in cell.runs] for position in range(len(table.heads))]
    heads = [
        {"measure": head.measure, "facts": _facts(members, known.get(head.group))}
        for head, members in zip(table.heads, runs, strict=True)
    ]
    groups: list[dict[str, Any]] = []
    for head, shown in zip(table.heads, heads, strict=True):
        if groups and groups[-1]["title"] == head.group:
            groups[-1]["span"] += 1
        else:
            groups.append({"title": head.group, "span": 1, "facts": shown["facts"]})
    return {
        "title": table.title,
        "groups": groups if any(head.group for head in table.heads) else [],
        "heads": heads,
        "parts": [
            {
                "title": section,
                "facts": _facts([run for row in members for run in row.runs], known.get(section)),
                "rows": [_row(row, table.heads, numbers) for row in members],
            }
            for section, members in table.sections()
        ],
        "notes": table.notes(),
        "beside": [(grid.title.removesuffix(f", {table.title.rpartition(': ')[2]}"), grid) for grid in beside],
    }


def _row(row: Row, heads: Sequence[Head], numbers: dict[Any, int]) -> dict[str, Any]:
    return {
        "name": row.name,
        "label": row.label,
        "mark": row.mark,
        "bound": row.bound,
        "facts": {"method": sorted({run.method for run in row.runs} or {row.label})},
        "cells": [_cell(cell, head, numbers) for head, cell in zip(heads, row.cells, strict=True)],
    }


def _cell(cell: Cell, head: Head, numbers: dict[Any, int]) -> dict[str, Any]:
    return {
        "text": cell.text,
        "value": "" if cell.value is None else repr(cell.value.mean),
        "mark": cell.mark,
        "measure": cell.measure.name,
        "title": head.title,
        # A run that was removed since the tables were made is not there.
        "runs": sorted(numbers[run.folder] for run in cell.runs if run.folder in numbers),
    }


def _facts(runs: Sequence[Run], column: Column | None) -> Facts:
    found = sorted({run.column for run in runs} or ({column} if column else set()))
    return {"block": [*dict.fromkeys(each.block for each in found)], "n": [str(each.n_tasks) for each in found]}


# -- figures ----------------------------------------------------------------------------------------------------------


def _figure(drawing: Drawing) -> dict[str, Any]:
    facts: Facts = {"block": [drawing.block], "n": [str(n) for n in drawing.tasks]} if drawing.block else {}
    return {
        "name": drawing.name,
        "title": drawing.title,
        "caption": drawing.caption,
        "facts": facts,
        "svg": Markup(_within(drawing.svg, drawing.title)),
        "width": round(drawing.figure.get_figwidth() * 96),
    }


def _within(svg: str, title: str) -> str:
    """A figure's SVG as a part of a page: in its colours and its font, with no id twice."""
    svg = svg[svg.index("<svg ") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", str(Markup('<svg role="img" aria-label="{}" ').format(title)), 1)
    referred = {*re.findall(r'(?:url\(|href=")#([^")]+)', svg)}
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", svg)
    for colour, name in ((INK, "ink"), (QUIET, "quiet"), (RULE, "rule"), (PAPER, "paper")):
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("'DejaVu Sans'", "var(--font)")


# -- runs -------------------------------------------------------------------------------------------------------------


def _run(trace: Trace, used: Sequence[str], home: Path) -> dict[str, Any]:
    run = trace.run
    near = run.folder.is_relative_to(home.parent)
    seed, order = run.seed
    known = {name: value for name in used if (value := run.figure(name)) is not None}
    texts = {name: MEASURES[name].write(value) for name, value in known.items()}
    facts = {
        **{MEASURES[name].title: text for name, text in texts.items()},
        "seed": str(seed),
        "order seed": str(seed if order is None else order),
        "folder": os.path.relpath(run.folder, home) if near else str(run.folder),
    }
    return {
        "name": f"seed {seed}" + ("" if order in (None, seed) else f", order {order}"),
        "n_tasks": run.column.n_tasks,
        "figures": texts,
        "facts": facts,
        "matrix": [[round(value, 2) for value in row] for row in trace.matrix],
        "config": yaml.dump(trace.config, Dumper=_DUMPER, sort_keys=False) if trace.config else "",
    }
