"""Data sets: making shards, reading them again, looking at tasks."""

from collections.abc import Sequence
from pathlib import Path

from fmlora_dist import __version__
from fmlora_dist.commands.arguments import byte_count, make_parser, positive, write_text
from fmlora_dist.errors import UserError

__all__ = ["prepare", "show", "verify"]


def prepare(argv: Sequence[str]) -> int:
    """Make the shards of a data set from its published files; an interrupted call goes on where it was."""
    parser = make_parser("prepare", prepare.__doc__)
    parser.add_argument("data_set", metavar="DATA_SET", help="registered name of the benchmark")
    parser.add_argument("--source", metavar="PATH", required=True, help="the published files: a folder or an archive")
    parser.add_argument("--out", metavar="DIR_OR_URL", required=True, help="the shards' folder, or its fsspec URL")
    parser.add_argument(
        "--split", metavar="KIND", help="random, folders, or coda:FILE, where the data set has no split"
    )
    parser.add_argument("--split-seed", type=int, metavar="N", help="seed of --split random (default: 0)")
    help = "make larger images smaller, to N pixels on the shorter side (default: keep the original bytes)"
    parser.add_argument("--short-side", type=positive, default=0, metavar="N", help=help)
    help = "what a broken image does: stop, or skip it, which the manifest lists (default: stop)"
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help=help)
    help = "go on where counts differ from the published ones; the split's rule says so"
    parser.add_argument("--allow-partial", action="store_true", help=help)
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    help = "bytes of a shard, at most (default: 64MiB)"
    parser.add_argument("--shard-size", type=byte_count, default=64 << 20, metavar="SIZE", help=help)
    arguments = parser.parse_args(argv)
    from benchmarks.preparation.command import run_prepare

    return run_prepare(arguments, version=__version__)


def verify(argv: Sequence[str]) -> int:
    """Read shards again, every image of them, and compare them with their manifest and index."""
    parser = make_parser("verify", verify.__doc__)
    parser.add_argument("folder", metavar="DIR_OR_URL", help="the shards' folder, or its fsspec URL")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    arguments = parser.parse_args(argv)
    from benchmarks.preparation.command import run_verify

    run_verify(arguments)
    return 0


def show(argv: Sequence[str]) -> int:
    """Draw a contact sheet of a benchmark's tasks: a page of HTML with a few images of each class."""
    from fmlora_dist.config import add_sequence_arguments, make_config

    parser = make_parser("show", show.__doc__)
    parser.add_argument("benchmark", metavar="BENCHMARK", help="registered name of the benchmark")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="the page")
    parser.add_argument("--per-class", type=positive, default=3, metavar="K", help="images of a class (default: 3)")
    add_sequence_arguments(parser)
    fields = vars(parser.parse_args(argv))
    out, per_class = fields.pop("out"), fields.pop("per_class")
    from benchmarks.contact_sheet import MOST_PER_CLASS, contact_sheet
    from fmlora_dist.data import RunData
    from fmlora_dist.distributed import World

    if per_class > MOST_PER_CLASS:
        raise UserError(f"per-class: found {per_class}, expected at most {MOST_PER_CLASS}; a page holds all its images")
    config = make_config(fields)
    data = RunData(config, World("cpu", 1))
    page = contact_sheet(data.sequence, data.store, per_class=per_class, workers=config.workers)
    write_text(out, page, "out")
    print(f"{out}: {data.n_tasks} tasks, {len(page) / 1e6:.1f} MB")
    return 0
