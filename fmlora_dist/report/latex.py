r"""A report for a paper: what \input takes; best in bold, second underlined, what is not compared in grey."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from fmlora_dist.report.contents import Report
from fmlora_dist.report.published import Published
from fmlora_dist.report.tables import Cell, Head, Row, Table

__all__ = ["PACKAGES", "to_latex"]

PACKAGES = ("booktabs", "graphicx", "longtable", "xcolor")
"""What the document must load."""
_MARKS = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
_ESCAPES = {character: f"\\{character}" for character in "#$%&_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "–": "--",
    "…": r"\dots{}",
}
_NARROW = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""A table that is too wide is made smaller."""


def to_latex(report: Report) -> str:
    """The whole report."""
    lines = [
        rf"% Made by fmlora report. \usepackage{{{','.join(PACKAGES)}}} in the preamble, \input{{tables}} in the text."
    ]
    lines += [rf"\par\noindent\textbf{{{_text(report.progress)}}}\par"] if report.progress else []
    for table in report.tables:
        lines += ["", *_table(table)]
    names = ", ".join(f"{file.parent.name} {reason}" for file, reason in report.broken)
    lines += ["", rf"\par\noindent\footnotesize Left out: {_text(names)}\par"] if names else []
    return "\n".join(lines) + "\n"


def _table(table: Table) -> Iterator[str]:
    yield r"\begin{table}[htbp]"
    yield rf"\centering\caption{{{_text(table.title)}}}"
    yield _NARROW
    yield rf"\begin{{tabular}}{{l{'r' * len(table.heads)}}}"
    yield r"\toprule"
    yield from _heads(table.heads)
    for section, rows in table.sections():
        yield r"\midrule"
        if section:
            yield rf"\multicolumn{{{len(table.heads) + 1}}}{{l}}{{\emph{{{_text(section)}}}}} \\"
        for row in rows:
            yield _row(row)
    yield r"\bottomrule"
    yield r"\end{tabular}}"
    yield r"\par\smallskip\begin{minipage}{\linewidth}\footnotesize\raggedright"
    yield from (rf"{_text(note)}\par" for note in table.notes())
    yield r"\end{minipage}"
    yield r"\end{table}"
    yield from _published(table)


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


def _published(table: Table) -> Iterator[str]:
    found = [
        (row, head, line)
        for position, head in enumerate(table.heads)
        for row, cell in table.column(position)
        for line in cell.published
    ]
    if not found:
        return
    sources = [*dict.fromkeys(map(_source, (line for _, _, line in found)))]
    yield r"{\footnotesize\begin{longtable}{llrrrr}"
    yield rf"\caption{{{_text(table.title)}: published numbers}} \\ \toprule"
    yield r"method & column & published & ours & difference & source \\ \midrule \endhead"
    for row, head, line in found:
        cells = [row.label, head.title, line.text, line.ours_text, line.difference_text]
        grey = r"\color{gray}" if line.reason else ""
        number = sources.index(_source(line)) + 1
        yield " & ".join(grey + _text(cell) for cell in [*cells, f"({number})"]) + r" \\"
    yield r"\bottomrule \end{longtable}"
    yield r"\noindent\begin{minipage}{\linewidth}\raggedright"
    yield from (rf"({number}) {_text(source)}\par" for number, source in enumerate(sources, start=1))
    yield r"\end{minipage}\par}"


def _source(line: Published) -> str:
    return line.source + (f" -- not compared: {line.reason}" if line.reason else "")


def _text(text: str) -> str:
    """Escaped; what pdflatex has no letter for is a question mark."""
    return "".join(_ESCAPES.get(c, c if ord(c) < 0x250 else "?") for c in text)
