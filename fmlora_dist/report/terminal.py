"""A report in the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from fmlora_dist.report.contents import Report
from fmlora_dist.report.tables import Table

__all__ = ["print_report"]

_STYLES = {"best": "bold", "second": "underline", "": ""}


def print_report(report: Report, console: Console) -> None:
    """Print all tables with their notes, and what had to be left out."""
    if report.progress:
        console.print(Text(report.progress, style="yellow"))
    for table in report.tables:
        _print_table(table, console)
    for file, reason in report.broken:
        console.print(Text(f"left out: {file} {reason}", style="red"), soft_wrap=True)


def _print_table(table: Table, console: Console) -> None:
    shown = RichTable(title=escape(table.title), title_justify="left", header_style="bold")
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
    _print_published(table, console)


def _print_published(table: Table, console: Console) -> None:
    found = [
        (row, head, line)
        for position, head in enumerate(table.heads)
        for row, cell in table.column(position)
        for line in cell.published
    ]
    if not found:
        return
    shown = RichTable(title="Published numbers", title_justify="left", header_style="bold")
    for name in ("method", "column", "published", "ours", "difference", "source"):
        shown.add_column(name, justify="right" if name in ("published", "ours", "difference") else "left")
    for row, head, line in found:
        why = f" – not compared: {line.reason}" if line.reason else ""
        cells = (row.label, head.title, line.text, line.ours_text, line.difference_text, line.source + why)
        shown.add_row(*(Text(text) for text in cells), style="dim" if line.reason else "")
    console.print(shown)
