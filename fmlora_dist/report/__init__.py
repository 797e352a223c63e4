"""From finished runs to tables. Reads run directories and never writes into one."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from fmlora_dist.report.aggregate import read_runs
from fmlora_dist.report.tables import print_comparison, write_report

__all__ = ["print_comparison", "print_report", "read_runs", "write_report"]


def print_report(folders: Iterable[Path | str], console: Console, *, out: Path | None = None) -> None:
    """Print the comparison table of all finished runs in ``folders``; write tables.md and tables.csv into ``out``.

    Raises:
        UserError: a folder does not exist, holds no finished run, or runs that cannot be compared.
    """
    runs = read_runs(folders)
    print_comparison(runs, console)
    if out is not None:
        write_report(runs, out)
