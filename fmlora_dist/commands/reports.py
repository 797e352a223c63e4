"""From finished runs to tables."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from fmlora_dist.commands.arguments import make_parser

__all__ = ["report"]


def report(argv: Sequence[str]) -> int:
    """Print the comparison table of finished runs: mean ± std over seeds of Acc and AAA."""
    parser = make_parser("report", report.__doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR_OR_URL", help="folders with runs in them, or their URLs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write tables.md and tables.csv there, too")
    arguments = parser.parse_args(argv)
    from cluster.output import open_output
    from fmlora_dist.report import print_report

    with ExitStack() as copies:
        folders = [copies.enter_context(open_output(where).opened()).folder for where in arguments.folders]
        print_report(folders, Console(), out=arguments.out)
    return 0
