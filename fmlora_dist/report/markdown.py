"""A report as GitHub's Markdown: best in bold, second underlined, bounds in italics, like what is grey elsewhere."""

from collections.abc import Iterator, Sequence

from fmlora_dist.report.beside import Grid
from fmlora_dist.report.contents import Report
from fmlora_dist.report.tables import Cell, Table

__all__ = ["table_to_markdown", "to_markdown"]

_MARKS = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}


def to_markdown(report: Report) -> str:
    """The whole report."""
    parts = ["# Comparison"]
    parts += [f"**{_plain(report.progress)}**"] if report.progress else []
    for table, beside in report.sections():
        parts += [f"## {_plain(table.title)}", table_to_markdown(table)]
        parts += [part for grid in beside for part in _grid(grid)]
    parts += [part for grid in report.overall() for part in _grid(grid)]
    if report.broken:
        parts.append("\n".join(_plain(f"- Left out: {file.parent.name} {reason}") for file, reason in report.broken))
    return "\n\n".join(parts) + "\n"


def table_to_markdown(table: Table) -> str:
    """A table with its notes, without its title."""
    lines = []
    for section, rows in table.sections():
        lines += [[f"*{_plain(section)}*", *("" for _ in table.heads)]] if section else []
        for row in rows:
            name = f"*{_plain(row.name)}*" if row.bound else _plain(row.name)
            lines.append([name + row.mark, *map(_cell, row.cells)])
    body = _lines(["method", *(_plain(head.title) for head in table.heads)], lines, 1)
    return body + "\n\n" + "\n".join(f"- {_plain(note)}" for note in table.notes())


def _grid(grid: Grid) -> Iterator[str]:
    yield f"### {_plain(grid.title)}"
    if grid.lines:
        yield _lines(
            grid.heads, [[*map(_faint if line.faint else _plain, line.texts)] for line in grid.lines], grid.left
        )
    yield "\n".join(f"- {_plain(note)}" for note in grid.notes)


def _cell(cell: Cell) -> str:
    return _MARKS[cell.mark].format(cell.text)


def _lines(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _faint(text: str) -> str:
    return f"*{_plain(text)}*" if text else ""


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
