"""From finished runs to tables."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fmlora_dist.commands.arguments import make_parser

if TYPE_CHECKING:
    from cluster.output import Output
    from fmlora_dist.report import Planned

__all__ = ["compare", "report"]


def report(argv: Sequence[str]) -> int:
    """Print the comparison tables of finished runs; write them into report/ of their folder, or into --out."""
    parser = make_parser("report", report.__doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR_OR_URL", help="folders with runs in them, or their URLs")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where tables.md, tables.tex and tables.csv are written; default: report/ in the folder. Of several "
        "folders, of a run directory and of a URL nothing is written without --out",
    )
    parser.add_argument(
        "--rows", type=_names, default=[], metavar="FIELDS", help="one table with a row for each value of"
    )
    parser.add_argument("--columns", type=_names, default=[], metavar="FIELDS", help="and a column for each value of")
    parser.add_argument("--metrics", type=_names, default=[], metavar="NAMES", help="what it shows (default: acc,aaa)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help="only these runs, such as method=lora,fmlora",
    )
    parser.add_argument("--allow-mixed", action="store_true", help="mark runs of other shared protocols, do not refuse")
    return _report(parser.parse_args(argv))


def compare(argv: Sequence[str]) -> int:
    """Show what differs between two runs, in config and result."""
    parser = make_parser("compare", compare.__doc__)
    parser.add_argument("runs", nargs=2, metavar="RUN", help="a run's directory, or its URL")
    arguments = parser.parse_args(argv)
    from cluster.output import open_output
    from fmlora_dist.report.compare import compare_runs, print_differing

    with ExitStack() as copies:
        one, other = (copies.enter_context(open_output(where).opened()).folder for where in arguments.runs)
        print_differing(compare_runs(one, other), tuple(arguments.runs), Console())
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from cluster.output import open_output
    from fmlora_dist.report import Grouping, make_report, print_report, read_runs, select, write_report

    console = Console()
    with ExitStack() as copies:
        outputs = [copies.enter_context(open_output(where).opened()) for where in arguments.folders]
        folders = [output.folder for output in outputs]
        runs = select(read_runs(folders, [*_planned(folders)]), arguments.where)
        grouping = Grouping(rows=arguments.rows, columns=arguments.columns, metrics=arguments.metrics)
        found = make_report(runs, grouping, allow_mixed=arguments.allow_mixed)
        print_report(found, console)
        out = arguments.out or _default(outputs)
        if out:
            written = ", ".join(map(str, write_report(found, out)))
            console.print(f"written: {written}", highlight=False, soft_wrap=True)
    return 0


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _planned(folders: Sequence[Path]) -> "Iterator[Planned]":
    """What the grids of these folders mean to run (a grid's folder may hold others, or be named by its runs/)."""
    from cluster.journal import Journal
    from fmlora_dist.report import Column, Planned

    for folder in folders:
        grids = [folder.parent] if folder.name == "runs" else [folder, *(runs.parent for runs in folder.glob("*/runs"))]
        for plan in (plan for grid in grids for plan in Journal.planned(grid)):
            yield Planned(plan["run"], Column(plan["benchmark"], plan["scenario"], plan["n_tasks"]), plan["method"])


def _default(outputs: "Sequence[Output]") -> Path | None:
    """The report's usual place; None where there is none: never in a run directory, nor unasked in a store."""
    from fmlora_dist.report import FOLDER

    folder = outputs[0].folder
    alone = len(outputs) == 1 and outputs[0].where == str(folder)
    return folder / FOLDER if alone and folder.is_dir() and not (folder / "config.yaml").exists() else None
