r"""A report for a paper: what \input takes; best in bold, second underlined, what is not compared in grey."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from fmlora_dist.report.beside import Grid
from fmlora_dist.report.contents import Report
from fmlora_dist.report.tables import Cell, Head, Row, Table

__all__ = ["PACKAGES", "to_latex"]

PACKAGES = ("array", "booktabs", "graphicx", "longtable", "xcolor")
"""What the document must load."""
_MARKS = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
_ESCAPES = {character: f"\\{character}" for character in "#$%&_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "/": r"\slash{}",  # after which a line may end
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "–": "--",
    "…": r"\dots{}",
    "χ": r"$\chi$",
    "²": r"$^2$",
}
_NARROW = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""A table that is too wide is made smaller."""
_LONG = 30
"""Letters of a label that is broken into lines."""


def to_latex(report: Report) -> str:
    """The whole report."""
    lines = [
        rf"% Made by fmlora report. \usepackage{{{','.join(PACKAGES)}}} in the preamble, \input{{tables}} in the text."
    ]
    lines += [rf"\par\noindent\textbf{{{_text(report.progress)}}}\par"] if report.progress else []
    for table, beside in report.sections():
        lines += ["", *_table(table)]
        lines += [line for grid in beside for line in _grid(grid)]
    lines += [line for grid in report.overall() for line in _grid(grid)]
    names = ", ".join(f"{file.parent.name} {reason}" for file, reason in report.broken)
    lines += ["", rf"\par\noindent\footnotesize Left out: {_text(names)}\par"] if names else []
    return "\n".join(lines) + "\n"


def _table(table: Table) -> Iterator[str]:
    yield r"\begin{table}[htbp]"
    yield rf"\centering\caption{{{_text(table.name)}}}"
    yield _NARROW
    yield rf"\begin{{tabular}}{{l{'r' * len(table.heads)}}}"
    yield r"\toprule"
    yield from _heads(table.heads)
    for section, rows in table.sections():
        yield r"\midrule"
        if section:
            yield rf"\multicolumn{{{len(table.heads) + 1}}}{{l}}{{\emph{{{_text(section)}}}}} \\"
        for before, row in zip([None, *rows], rows, strict=False):
            if before and row.bound and not before.bound:
                yield r"\addlinespace"
            yield _row(row)
    yield r"\bottomrule"
    yield r"\end{tabular}}"
    yield r"\par\smallskip\begin{minipage}{\linewidth}\footnotesize\raggedright"
    yield from (rf"{_text(note)}\par" for note in table.notes())
    yield r"\end{minipage}"
    yield r"\end{table}"


def _heads(heads: Sequence[Head]) -> Iterator[str]:
    groups = [(name, len([*members])) for name, members in groupby(head.group for head in heads)]
    if any(name for name, _ in groups):
        yield " & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{_text(name)}}}" for name, n in groups)]) + r" \\"
        start = 2
        for _, n in groups:
            yield rf"\cmidrule(lr){{{start}-{start + n - 1}}}"
            start += n
    yield " & ".join(["method", *(_text(head.measure.title) for head in heads)]) + r" \\"


def _row(row: Row) -> str:
    name = rf"\emph{{{_text(row.name)}}}" if row.bound else _text(row.name)
    return " & ".join([name + row.mark, *map(_cell, row.cells)]) + r" \\"


def _cell(cell: Cell) -> str:
    return _MARKS[cell.mark] % _text(cell.text)


def _grid(grid: Grid) -> Iterator[str]:
    yield r"{\scriptsize\setlength{\tabcolsep}{3pt}"
    if grid.lines:
        columns = "".join(_column(grid, place) for place in range(len(grid.heads)))
        heads = " & ".join(map(_text, grid.heads)) + r" \\ \midrule"
        yield rf"\begin{{longtable}}{{{columns}}}"
        yield rf"\caption{{{_text(grid.title)}}} \\ \toprule"
        yield rf"{heads} \endfirsthead"
        yield rf"\toprule {heads} \endhead"
        for line in grid.lines:
            grey = r"\color{gray}" if line.faint else ""
            yield " & ".join(grey + _text(text) for text in line.texts) + r" \\"
        yield r"\bottomrule \end{longtable}"
    yield r"\noindent\begin{minipage}{\linewidth}\raggedright"
    yield from (rf"{_text(note)}\par" for note in grid.notes)
    yield r"\end{minipage}\par\medskip}"


def _column(grid: Grid, place: int) -> str:
    """Its letter; long labels are broken into lines."""
    if place >= grid.left:
        return "r"
    longest = max(len(line.texts[place]) for line in grid.lines)
    return r">{\raggedright\arraybackslash}p{0.2\linewidth}" if longest > _LONG else "l"


def _text(text: str) -> str:
    """Escaped; what pdflatex has no letter for is a question mark."""
    escaped = "".join(_ESCAPES.get(c, c if ord(c) < 0x250 else "?") for c in text)
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)
