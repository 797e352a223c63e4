"""From finished runs to tables, figures and a page. Reads run directories and never writes into one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmlora_dist.errors import UserError
from fmlora_dist.record import write_atomically
from fmlora_dist.report.aggregate import Column, Planned, Runs, read_runs, result_files
from fmlora_dist.report.contents import Report, make_report
from fmlora_dist.report.latex import to_latex
from fmlora_dist.report.layouts import Grouping, select
from fmlora_dist.report.markdown import to_markdown
from fmlora_dist.report.plain import to_csv
from fmlora_dist.report.terminal import print_report
from fmlora_dist.report.traces import read_profile, read_rows

__all__ = [
    "FOLDER",
    "PAGE",
    "Column",
    "Grouping",
    "Planned",
    "Report",
    "Runs",
    "make_report",
    "name_files",
    "print_report",
    "read_profile",
    "read_runs",
    "result_files",
    "select",
    "write_report",
]

FOLDER = "report"
"""Where a folder of runs has its report."""
PAGE = "index.html"
_FORMS: dict[str, Callable[[Report], str]] = {
    "tables.md": to_markdown,
    "tables.tex": to_latex,
    "tables.csv": to_csv,
}


def write_report(report: Report, folder: Path, profile: Sequence[dict[str, Any]] = ()) -> list[Path]:
    """Write the report's tables, figures and page into ``folder``, each file whole or not at all; gives their paths.

    Args:
        report: What they say.
        folder: Made if it is not there.
        profile: Rows of ``traces.read_profile``, for the figure of step times.

    Raises:
        UserError: the folder cannot be written.
    """
    from fmlora_dist.report.figures import draw  # matplotlib takes time to import
    from fmlora_dist.report.page import to_html

    rows = read_rows(report)
    drawings = [*draw(rows, report.pooled, profile)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [_write(folder / name, form(report)) for name, form in _FORMS.items()]
        written += [file for drawing in drawings for file in drawing.write(folder)]
        written.append(_write(folder / PAGE, to_html(report, rows, drawings, folder)))
    except OSError as error:
        raise UserError(f"report: cannot write into {folder}: {error.strerror}; choose another --out") from error
    return written


def name_files(written: Sequence[Path | str]) -> str:
    """What was written, for a terminal: figures are many, so they are counted."""
    named = [str(file) for file in written if Path(file).suffix not in (".svg", ".pdf")]
    figures = sum(Path(file).suffix == ".svg" for file in written)
    counted = f"{figures} figure{'' if figures == 1 else 's'} beside it (SVG and PDF)"
    return ", ".join([*named, *([counted] if figures else [])])


def _write(file: Path, text: str) -> Path:
    with write_atomically(file) as path:
        path.write_text(text, encoding="utf-8")
    return file
