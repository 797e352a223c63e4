"""A report in the terminal: of the differences between methods only those of the best ones."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from fmlora_dist.report.beside import Grid
from fmlora_dist.report.contents import Report
from fmlora_dist.report.tables import Table

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
    shown = RichTable(header_style="bold")
    shown.add_column("method", no_wrap=True)
    for head in table.heads:
        shown.add_column("\n".join(filter(None, [escape(head.group), escape(head.measure.title)])), justify="right")
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
            shown.add_row(name, *(Text(cell.text, style=_STYLES[cell.mark]) for cell in row.cells))
    console.print(shown)
    for note in table.notes():
        console.print(Text(note, style="dim"))


def _print_grid(grid: Grid, console: Console) -> None:
    lines = [line for line in grid.lines if not line.minor]
    if lines:
        console.print(Text(f"\n{grid.title}", style="italic"))
        shown = RichTable(header_style="bold")
        for position, head in enumerate(grid.heads):
            shown.add_column(head, justify="left" if position < grid.left else "right")
        for line in lines:
            shown.add_row(*map(Text, line.texts), style="dim" if line.faint else "")
        console.print(shown)
    for note in grid.notes:
        console.print(Text(note, style="dim"))
