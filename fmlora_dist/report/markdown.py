"""A report as GitHub's Markdown: best in bold, second underlined, bounds in italics."""

from collections.abc import Iterator, Sequence

from fmlora_dist.report.contents import Report
from fmlora_dist.report.tables import Cell, Table

__all__ = ["to_markdown"]

_MARKS = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}


def to_markdown(report: Report) -> str:
    """The whole report."""
    parts = ["# Comparison"]
    parts += [f"**{_plain(report.progress)}**"] if report.progress else []
    for table in report.tables:
        parts += [f"## {_plain(table.title)}", *_table(table)]
    if report.broken:
        parts.append("\n".join(_plain(f"- Left out: {file.parent.name} {reason}") for file, reason in report.broken))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> Iterator[str]:
    lines = []
    for section, rows in table.sections():
        lines += [[f"*{_plain(section)}*", *("" for _ in table.heads)]] if section else []
        for row in rows:
            name = f"*{_plain(row.name)}*" if row.bound else _plain(row.name)
            lines.append([name + row.mark, *map(_cell, row.cells)])
    yield _grid(["method", *(_plain(head.title) for head in table.heads)], lines, left=1)
    yield "\n".join(f"- {_plain(note)}" for note in table.notes())
    compared = [
        [
            _plain(row.label),
            _plain(head.title),
            line.text,
            line.ours_text,
            line.difference_text,
            _plain(line.source + (f" – *not compared: {line.reason}*" if line.reason else "")),
        ]
        for position, head in enumerate(table.heads)
        for row, cell in table.column(position)
        for line in cell.published
    ]
    if compared:
        yield "### Published numbers"
        yield _grid(["method", "column", "published", "ours", "difference", "source"], compared, left=2)


def _cell(cell: Cell) -> str:
    return _MARKS[cell.mark].format(cell.text)


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
