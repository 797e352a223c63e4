"""A report in the terminal: of the differences between methods only those of the best ones."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fmlora_dist.report.beside import Grid
from fmlora_dist.report.contents import Report
from fmlora_dist.report.tables import Head, Table

__all__ = ["print_report"]

_STYLES = {"best": "bold", "second": "underline", "": ""}


def print_report(report: Report, console: Console) -> None:
    """Print all tables with their notes, and what had to be left out."""
    if report.progress:
        console.print(Text(report.progress, style="yellow"))
    for table, beside in report.sections():
        _print_table(table, console)
        for grid in beside:
            _print_grid(grid, console)
    for grid in report.overall():
        _print_grid(grid, console)
    for file, reason in report.broken:
        console.print(Text(f"left out: {file} {reason}", style="red"), soft_wrap=True)


def _print_table(table: Table, console: Console) -> None:
    console.print(Text(f"\n{table.title}", style="italic"))
    for positions in _abreast(table, console.width):
        _print_columns(table, positions, console)
    for note in table.notes():
        console.print(Text(note, style="dim"))


def _print_columns(table: Table, positions: Sequence[int], console: Console) -> None:
    shown = RichTable(header_style="bold")
    shown.add_column("method", no_wrap=True)
    for position in positions:
        shown.add_column(Text(_heading(table.heads[position])), justify="right", overflow="fold")
    for section, rows in table.sections():
        if section:
            shown.add_section()
            shown.add_row(Text(section, style="italic"))
        bounds = False
        for row in rows:
            if row.bound and not bounds:
                shown.add_section()
            bounds = bool(row.bound)
            name = Text(row.name, style="dim" if row.bound else "") + Text(row.mark, style="dim")
            cells = [row.cells[position] for position in positions]
            shown.add_row(name, *(Text(cell.text, style=_STYLES[cell.mark]) for cell in cells))
    console.print(shown)


def _heading(head: Head) -> str:
    return "\n".join(filter(None, [head.group, head.measure.title]))


def _abreast(table: Table, width: int) -> list[list[int]]:
    """The columns by position, in parts that are no wider than ``width``; a group is parted only where it must be."""
    frame = 3  # a rule, and a space to either side

    def wide(positions: Iterable[int]) -> int:
        texts = [
            [*_heading(table.heads[each]).split("\n"), *(cell.text for _, cell in table.column(each))]
            for each in positions
        ]
        names = [len(row.name + row.mark) for row in table.rows]
        return max(names) + frame + 1 + sum(max(map(len, column)) + frame for column in texts)

    by_group = groupby(range(len(table.heads)), lambda each: table.heads[each].group or each)
    parts: list[list[int]] = []
    for group in ([*members] for _, members in by_group):
        for together in [group] if wide(group) <= width else [[each] for each in group]:
            if parts and wide([*parts[-1], *together]) <= width:
                parts[-1] += together
            else:
                parts.append(together)
    return parts


def _print_grid(grid: Grid, console: Console) -> None:
    lines = [line for line in grid.lines if not line.minor]
    if lines:
        console.print(Text(f"\n{grid.title}", style="italic"))
        shown = RichTable(header_style="bold")
        for position, head in enumerate(grid.heads):
            shown.add_column(head, justify="left" if position < grid.left else "right", overflow="fold")
        for line in lines:
            shown.add_row(*map(Text, line.texts), style="dim" if line.faint else "")
        console.print(shown)
    for note in grid.notes:
        console.print(Text(note, style="dim"))
