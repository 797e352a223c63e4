"""The comparison table: one model of it, and its forms for the terminal, Markdown and CSV, with the same numbers."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fmlora_dist.errors import UserError
from fmlora_dist.record import write_atomically
from fmlora_dist.report.aggregate import Column, Run, Runs, Spread, columns, flatten, spread

__all__ = ["Cell", "Comparison", "Row", "comparison", "print_comparison", "write_report"]

METRICS = {"acc": "Acc", "aaa": "AAA"}
BOUNDS = {"frozen": "lower bound", "joint": "upper bound"}
"""Methods that do not compete: what they show is where the others stand."""
ORDER = ("finetune", "lora", "l2p", "dualprompt", "coda_prompt", "hide_prompt", "inflora", "sdlora", "cllora", "fmlora")
"""Order of the rows, as papers have it; other methods follow by name."""
NO_RUN, UNDEFINED = "–", "n/a"


@dataclass
class Cell:
    """One figure of one row."""

    value: Spread | None
    """None without runs, or where the metric is not defined."""
    empty: str = NO_RUN
    mark: Literal["", "best", "second"] = ""
    show_n: bool = False

    @property
    def text(self) -> str:
        """The figure as it stands in every form of the table."""
        if self.value is None:
            return self.empty
        std = "" if self.value.std is None else f" ± {self.value.std:.2f}"
        return f"{self.value.mean:.2f}{std}" + (f" (n={self.value.n})" if self.show_n else "")


@dataclass
class Row:
    """A method, or one recipe of it where several recipes of it stand in one column."""

    label: str
    cells: list[Cell]
    recipe: str
    bound: str = ""

    @property
    def name(self) -> str:
        return f"{self.label} ({self.bound})" if self.bound else self.label


@dataclass
class Comparison:
    """Rows of methods; for each benchmark and number of tasks the columns Acc and AAA."""

    columns: list[tuple[Column, str]]
    rows: list[Row]
    seeds: str
    """Over what the means are taken."""
    protocol: list[str]
    """The shared protocol, and where the columns differ in it."""
    common: str
    """What all rows' recipes have in common."""

    def heads(self) -> list[str]:
        """A title for each column."""
        return [f"{_name(column)} {METRICS[metric]}" for column, metric in self.columns]

    def notes(self) -> Iterator[str]:
        """The lines below the table."""
        yield self.seeds
        yield from self.protocol
        yield f"All rows: {self.common}" if self.common else ""
        for number, row in enumerate(self.rows, start=1):
            yield f"[{number}] {row.label}: {row.recipe}" if row.recipe else ""


def comparison(runs: Runs) -> Comparison:
    """The comparison table of all runs.

    Raises:
        UserError: there is no finished run, or runs of one column have different shared protocols.
    """
    if not runs.runs:
        broken = "".join(f"; {file}: {reason}" for file, reason in runs.broken[:1])
        raise UserError(f"report: there is no finished run (a folder with a result.json) to compare{broken}")
    grouped = columns(runs)
    rows = _rows(grouped)
    facts = [run.recipe for members in grouped.values() for run in members]
    common = _common(flatten(recipe) for recipe in facts)
    common = {name: value for name, value in common.items() if not name.startswith("method.")}
    table = Comparison(
        columns=[(column, metric) for column in grouped for metric in METRICS],
        rows=[
            Row(
                label=label,
                cells=[_cell(found.get(column, []), metric) for column in grouped for metric in METRICS],
                recipe=_recipe(found, common),
                bound=BOUNDS.get(label, ""),
            )
            for label, found in rows.items()
        ],
        seeds="",
        protocol=_protocol(grouped),
        common=_facts(common),
    )
    table.seeds = _seeds(table)
    _mark_best(table)
    return table


def print_comparison(runs: Runs, console: Console) -> None:
    """Print the comparison table, and what had to be left out of it."""
    table = comparison(runs)
    shown = Table(header_style="bold")
    shown.add_column("method", no_wrap=True)
    for column, metric in table.columns:
        shown.add_column(f"{escape(_name(column))}\n{METRICS[metric]}", justify="right")
    styles = {"best": "bold", "second": "underline", "": ""}
    for number, row in enumerate(table.rows, start=1):
        if row.bound and number > 1 and not table.rows[number - 2].bound:
            shown.add_section()
        name = Text(row.name, style="dim" if row.bound else "") + Text(f" [{number}]", style="dim")
        shown.add_row(name, *(Text(cell.text, style=styles[cell.mark]) for cell in row.cells))
    console.print(shown)
    for note in filter(None, table.notes()):
        console.print(Text(note, style="dim"))
    for file, reason in runs.broken:
        console.print(Text(f"left out: {file} {reason}", style="red"), soft_wrap=True)


def write_report(runs: Runs, folder: Path) -> list[Path]:
    """Write ``tables.md`` and ``tables.csv`` into ``folder``, each whole or not at all; gives their paths.

    Raises:
        UserError: as ``comparison``, or the folder cannot be written.
    """
    table = comparison(runs)
    written = []
    for name, text in (("tables.md", to_markdown(table, runs)), ("tables.csv", to_csv(table))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with write_atomically(folder / name) as path:
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"report: cannot write {folder / name}: {error.strerror}") from error
        written.append(folder / name)
    return written


def to_markdown(table: Comparison, runs: Runs) -> str:
    """As GitHub's Markdown: best in bold, second underlined, bounds in italics."""
    lines = [["method", *table.heads()], ["---", *("---:" for _ in table.columns)]]
    wrap = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    for number, row in enumerate(table.rows, start=1):
        name = f"*{_plain(row.name)}*" if row.bound else _plain(row.name)
        lines.append([f"{name} [{number}]", *(wrap[cell.mark].format(cell.text) for cell in row.cells)])
    notes = [_plain(note) for note in filter(None, table.notes())]
    notes += [_plain(f"Left out: {file.parent.name} {reason}") for file, reason in runs.broken]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Comparison\n\n{body}\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def to_csv(table: Comparison) -> str:
    """One line a cell; an empty mean where there is no run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "bound", "benchmark", "scenario", "n_tasks", "metric", "mean", "std", "n_seeds", "mark"])
    for row in table.rows:
        for (column, metric), cell in zip(table.columns, row.cells, strict=True):
            mean, std, n = cell.value or (None, None, 0)
            figures = ["" if figure is None else f"{figure:.2f}" for figure in (mean, std)]
            writer.writerow([row.label, row.bound, *column, metric, *figures, n, cell.mark])
    return text.getvalue()


def _rows(grouped: dict[Column, list[Run]]) -> dict[str, dict[Column, list[Run]]]:
    """The runs by row and column, in the order of the rows."""
    fields = {run.method: _varied(run.method, grouped) for members in grouped.values() for run in members}
    rows: dict[tuple[Any, ...], dict[str, dict[Column, list[Run]]]] = {}
    for column, members in grouped.items():
        for run in members:
            recipe = flatten(run.recipe)
            varied = [f"{name.removeprefix('method.')}={_value(recipe.get(name))}" for name in fields[run.method]]
            label = f"{run.method}, {', '.join(varied)}" if varied else run.method
            place = ORDER.index(run.method) if run.method in ORDER else len(ORDER)
            key = (run.method in BOUNDS, place, run.method, label)
            rows.setdefault(key, {}).setdefault(label, {}).setdefault(column, []).append(run)
    return {label: found for key in sorted(rows) for label, found in rows[key].items()}


def _varied(method: str, grouped: dict[Column, list[Run]]) -> list[str]:
    """The recipe's fields in which runs of a method differ within a column: they must not be averaged."""
    varied: set[str] = set()
    for members in grouped.values():
        recipes = [flatten(run.recipe) for run in members if run.method == method]
        common = _common(recipes)
        varied |= {name for recipe in recipes for name in recipe if name not in common}
    return sorted(varied)


def _common(facts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The fields that have the same value in all."""
    first, *rest = [*facts] or [{}]
    return {name: value for name, value in first.items() if all(other.get(name, ...) == value for other in rest)}


def _cell(runs: list[Run], metric: str) -> Cell:
    return Cell(spread(runs, metric), empty=UNDEFINED if runs else NO_RUN)


def _recipe(found: dict[Column, list[Run]], common: dict[str, Any]) -> str:
    by_recipe: dict[str, list[Column]] = {}
    for column, members in found.items():
        recipe = flatten(members[0].recipe)
        own = {name: value for name, value in recipe.items() if name not in common and name != "method.name"}
        by_recipe.setdefault(_facts(own), []).append(column)
    if len(by_recipe) == 1:
        return next(iter(by_recipe))
    return "; ".join(f"{' and '.join(map(_name, where))}: {recipe}" for recipe, where in by_recipe.items())


def _protocol(grouped: dict[Column, list[Run]]) -> list[str]:
    shared = {column: flatten(members[0].shared) for column, members in grouped.items()}
    common = _common(shared.values())
    lines = [f"Shared protocol: {_facts(common)}"] if common else []
    for column, facts in shared.items():
        own = {name: value for name, value in facts.items() if name not in common}
        if own:
            lines.append(f"{_name(column)}: {_facts(own)}")
    return lines


def _seeds(table: Comparison) -> str:
    cells = [cell for row in table.rows for cell in row.cells if cell.value]
    numbers = {cell.value.n for cell in cells if cell.value}
    if numbers == {1}:
        return "Accuracies in %, one seed: no spread is known."
    for cell in cells:
        cell.show_n = len(numbers) > 1
    return "Accuracies in %, mean ± sample standard deviation over " + (
        "n seeds." if len(numbers) > 1 else f"{numbers.pop()} seeds."
    )


def _mark_best(table: Comparison) -> None:
    for position in range(len(table.columns)):
        cells = [row.cells[position] for row in table.rows if not row.bound]
        means = sorted({cell.value.mean for cell in cells if cell.value}, reverse=True)
        for cell in cells:
            # A method alone in its column has beaten nobody.
            if cell.value and len(means) > 1 and cell.value.mean >= means[1]:
                cell.mark = "best" if cell.value.mean == means[0] else "second"


def _name(column: Column) -> str:
    scenario = "" if column.scenario == "cil" else f" ({column.scenario})"
    return f"{column.benchmark}{scenario} N={column.n_tasks}"


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.removeprefix('method.').replace('_', ' ')} {_value(value)}" for name, value in facts.items()
    )


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(_value, value)) or "none"
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{16,}", text) else text


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
