"""The generated parts of README.md and docs/: tables of committed results, the study's report, and the ledger.

``python -m fmlora_dist.report.documents`` in a checkout writes them anew; a test compares the pages with what it makes.
"""

import re
import sys
from pathlib import Path

from cluster.journal import read_plans
from fmlora_dist.record import write_atomically
from fmlora_dist.report import FOLDER, write_report
from fmlora_dist.report.aggregate import read_runs
from fmlora_dist.report.contents import Report, make_report
from fmlora_dist.report.ledger import ledger
from fmlora_dist.report.markdown import table_to_markdown

__all__ = ["PAGES", "REPORTED", "RESULTS", "fill_in", "report_on"]

PAGES = ("README.md", "docs/reproducibility.md", "docs/study.md")
RESULTS = Path("docs", "results")
REPORTED = ("icons",)
"""Of these results the whole report lies beside them: the pages show figures of it."""


def fill_in(page: str, root: Path) -> str:
    """The page with what belongs between its markers.

    ``<!-- table:NAME -->`` … ``<!-- /table -->`` hold the first table of docs/results/NAME, and what its grid has
    not run yet where its journal lies there; ``<!-- table:NAME WORD -->`` the first one with that word in its title;
    ``<!-- ledger -->`` … ``<!-- /ledger -->`` the ledger of all below docs/results.

    Args:
        page: Its text.
        root: Folder of the checkout.

    Raises:
        ValueError: a result file cannot be read, or there is no table with that word.
        UserError: there are no results of that name, or some that cannot be compared.
    """
    results = root / RESULTS
    page = re.sub(
        r"(<!-- table:([\w-]+)(?: (\w+))? -->\n).*?(<!-- /table -->)",
        lambda found: f"{found[1]}{_table(report_on(results / found[2]), found[3])}{found[4]}",
        page,
        flags=re.DOTALL,
    )
    return re.sub(
        r"(<!-- ledger -->\n).*?(<!-- /ledger -->)",
        lambda found: f"{found[1]}{ledger(results)}{found[2]}",
        page,
        flags=re.DOTALL,
    )


def report_on(folder: Path) -> Report:
    """The report of committed results. Raises ``ValueError`` when one cannot be read."""
    runs = read_runs([folder], read_plans([folder]))
    if runs.broken:
        file, reason = runs.broken[0]
        raise ValueError(f"{file} {reason}")
    return make_report(runs)


def _table(report: Report, word: str | None) -> str:
    if word:
        (table, *_) = [table for table in report.tables if word in table.title]
        return table_to_markdown(table) + "\n"
    progress = f"**{report.progress}**\n\n" if report.progress else ""
    return progress + table_to_markdown(report.tables[0]) + "\n"


if __name__ == "__main__":
    root = Path(*sys.argv[1:])
    for name in PAGES:
        with write_atomically(root / name) as path:
            path.write_text(fill_in((root / name).read_text(encoding="utf-8"), root), encoding="utf-8")
    for name in REPORTED:
        write_report(report_on(root / RESULTS / name), root / RESULTS / name / FOLDER)
