"""From finished runs to tables, figures and a page."""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fmlora_dist.commands.arguments import make_parser, whole
from fmlora_dist.errors import UserError

if TYPE_CHECKING:
    from cluster.output import Output
    from fmlora_dist.report import Report

__all__ = ["compare", "report"]

_LOOK_EVERY = 2.0
"""Seconds between two looks for results, where a page is served."""


def report(argv: Sequence[str]) -> int:
    """Print the comparison tables of finished runs; write them, figures and a page into report/ of their folder."""
    parser = make_parser("report", report.__doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR_OR_URL", help="folders with runs in them, or their URLs")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where tables.md, tables.tex, tables.csv, figures and index.html are written; default: report/ in the "
        "folder. Of several folders, of a run directory and of a URL nothing is written without --out",
    )
    parser.add_argument(
        "--rows", type=_names, default=[], metavar="FIELDS", help="one table: a row for each value of these fields"
    )
    parser.add_argument("--columns", type=_names, default=[], metavar="FIELDS", help="and a column for each of these")
    parser.add_argument("--metrics", type=_names, default=[], metavar="NAMES", help="what it shows (default: acc,aaa)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help="only these runs, such as method=lora,fmlora",
    )
    parser.add_argument("--allow-mixed", action="store_true", help="mark runs of other shared protocols, do not refuse")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="draw what profile steps --json FILE measured, too"
    )
    parser.add_argument(
        "--serve", action="store_true", help="show the page on this machine, anew with every new result"
    )
    parser.add_argument(
        "--port", type=whole, default=8000, metavar="N", help="of --serve (default: 8000; 0: any free one)"
    )
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
    from fmlora_dist.report import name_files, print_report, read_profile, write_report

    console = Console()
    profile = read_profile(arguments.profile) if arguments.profile else []
    with ExitStack() as copies:
        outputs = [copies.enter_context(open_output(where).opened()) for where in arguments.folders]
        out = arguments.out or _default(outputs)
        if out and any((folder / "result.json").exists() for folder in (out, out.resolve().parent)):
            raise UserError(f"out: found {out}, which is or lies in a run's directory; choose another --out")
        if arguments.serve:
            folder = out or Path(copies.enter_context(TemporaryDirectory()))
            _serve(lambda: _make(arguments, outputs), outputs, folder, profile, arguments.port, console)
            return 0
        found = _make(arguments, outputs)
        print_report(found, console)
        if out:
            written = name_files(write_report(found, out, profile))
            console.print(f"written: {written}", highlight=False, soft_wrap=True)
    return 0


def _make(arguments: argparse.Namespace, outputs: "Sequence[Output]") -> "Report":
    from cluster.journal import read_plans
    from fmlora_dist.report import Grouping, make_report, read_runs, select

    folders = [output.folder for output in outputs]
    runs = select(read_runs(folders, read_plans(folders)), arguments.where)
    grouping = Grouping(rows=arguments.rows, columns=arguments.columns, metrics=arguments.metrics)
    return make_report(runs, grouping, allow_mixed=arguments.allow_mixed)


def _serve(
    make: "Callable[[], Report]",
    outputs: "Sequence[Output]",
    folder: Path,
    profile: list[dict[str, Any]],
    port: int,
    console: Console,
) -> None:
    """Show the page until Ctrl-C, anew whenever there is another result."""
    from fmlora_dist.report import PAGE, result_files, write_report
    from fmlora_dist.report.page import empty_page
    from fmlora_dist.report.serve import Site

    with suppress(KeyboardInterrupt), Site(folder, port) as site:
        console.print(f"the report is at {site.url} and follows the runs; Ctrl-C ends it", highlight=False)
        seen = None
        while True:
            for output in outputs:
                output.refresh((), ())
            files = [file for output in outputs for file in result_files(output.folder)]
            there = {file: file.stat().st_mtime_ns for file in files if file.exists()}
            if there != seen:
                seen = there
                try:
                    write_report(make(), folder, profile)
                    site.show((folder / PAGE).read_text(encoding="utf-8"))
                except UserError as error:
                    site.show(empty_page(str(error)))
            time.sleep(_LOOK_EVERY)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _default(outputs: "Sequence[Output]") -> Path | None:
    """The report's usual place; None where there is none: never in a run directory, nor unasked in a store."""
    from fmlora_dist.report import FOLDER

    folder = outputs[0].folder
    alone = len(outputs) == 1 and outputs[0].where == str(folder)
    return folder / FOLDER if alone and folder.is_dir() and not _is_run(folder) else None


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.yaml", "result.json"))
