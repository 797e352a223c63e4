"""From finished runs to tables. Reads run directories and never writes into one."""

from collections.abc import Callable
from pathlib import Path

from fmlora_dist.errors import UserError
from fmlora_dist.record import write_atomically
from fmlora_dist.report.aggregate import Column, Planned, Runs, read_runs
from fmlora_dist.report.contents import Report, make_report
from fmlora_dist.report.latex import to_latex
from fmlora_dist.report.layouts import Grouping, select
from fmlora_dist.report.markdown import to_markdown
from fmlora_dist.report.plain import to_csv
from fmlora_dist.report.terminal import print_report

__all__ = [
    "FOLDER",
    "Column",
    "Grouping",
    "Planned",
    "Report",
    "Runs",
    "make_report",
    "print_report",
    "read_runs",
    "select",
    "write_report",
]

FOLDER = "report"
"""Where a folder of runs has its report."""
_FORMS: dict[str, Callable[[Report], str]] = {
    "tables.md": to_markdown,
    "tables.tex": to_latex,
    "tables.csv": to_csv,
}


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write every form of the report into ``folder``, each whole or not at all; gives their paths.

    Raises:
        UserError: the folder cannot be written.
    """
    written = []
    for name, form in _FORMS.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with write_atomically(folder / name) as path:
                path.write_text(form(report), encoding="utf-8")
        except OSError as error:
            raise UserError(f"report: cannot write {folder / name}: {error.strerror}; choose another --out") from error
        written.append(folder / name)
    return written
