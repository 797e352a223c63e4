"""Measuring on this machine."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fmlora_dist.commands.arguments import make_parser, positive, write_text
from fmlora_dist.errors import UserError, nearest

__all__ = ["profile"]

_OF_A_RUN = ("benchmark", "batch_size", "train.precision", "train.optimizer")
"""Fields of a run, beside its backbone's, that a step depends on."""


def profile(argv: Sequence[str]) -> int:
    """Measure what a step, a whole run or the stream costs, beside what it cannot do without."""
    kinds = {"steps": _steps, "run": _run, "stream": _stream}
    parser = make_parser("profile", f"{profile.__doc__} The exit code is 1 when a bound is not met.")
    parser.add_argument("what", choices=kinds, help="what to measure; fmlora profile WHAT --help says more")
    parser.usage = "fmlora profile {steps,run,stream} …"
    arguments = parser.parse_args(argv[:1])
    return kinds[arguments.what](argv[1:])


def _steps(argv: Sequence[str]) -> int:
    """Measure steps of methods at the tasks 1, 2 and N beside the frozen backbone's forward and backward."""
    from fmlora_dist.config import parse_config
    from fmlora_dist.profile.steps import DEFAULT_METHODS, StepsProfile, profile_steps

    parser = make_parser("profile steps", f"{_steps.__doc__} A method is NAME or NAME:FIELD=VALUE:… .")
    parser.epilog = "Also a run's " + ", ".join(f"--{name}" for name in (*_OF_A_RUN, "backbone.…")) + "."
    parser.add_argument(
        "--methods",
        type=lambda text: tuple(text.split(",")),
        default=DEFAULT_METHODS,
        metavar="A,B",
        help=f"'all', or by name (default: {','.join(DEFAULT_METHODS)})",
    )
    parser.add_argument("--tasks", type=positive, default=20, metavar="N", help="number of tasks (default: 20)")
    parser.add_argument(
        "--rounds", type=positive, metavar="N", help="steps of each (default: 3 to 15, as many as 45 seconds take)"
    )
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="S",
        help="pixels (default: those of --backbone.name, or else of the benchmark)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    arguments, rest = parser.parse_known_args(argv)
    _refuse_others(rest, parser)
    beside = ["--device", arguments.device, "--threads", str(arguments.threads)]
    config, _ = parse_config([*rest, *beside], prog="fmlora profile steps")
    options = StepsProfile(
        config=config,
        methods=arguments.methods,
        tasks=arguments.tasks,
        rounds=arguments.rounds,
        image_size=arguments.image_size,
    )
    return _finish(profile_steps(options, Console()), arguments.json)


def _refuse_others(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Fields of a run that would go unread here."""
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name not in _OF_A_RUN and not name.startswith("backbone."):
            known = [*_OF_A_RUN, "backbone.name", "backbone.weights", "backbone.options"]
            known += [text.removeprefix("--") for text in parser._option_string_actions if text.startswith("--")]
            raise UserError(f"unknown option '--{name}': {nearest(name, known)}")


def _run(argv: Sequence[str]) -> int:
    """Show where the time of a finished run went, and its training's beside the frozen backbone's on this machine."""
    parser = make_parser("profile run", _run.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--rounds", type=positive, default=15, metavar="N", help="steps of the floor (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    arguments = parser.parse_args(argv)
    from fmlora_dist.profile.whole_run import profile_run

    return _finish(profile_run(arguments.run, Console(), rounds=arguments.rounds), arguments.json)


def _stream(argv: Sequence[str]) -> int:
    """Measure the stream beside torchvision's ImageFolder and DataLoader."""
    parser = make_parser("profile stream", _stream.__doc__)
    parser.add_argument("--images", type=positive, default=2000, metavar="N", help="JPEGs to make (default: 2000)")
    parser.add_argument("--epochs", type=positive, default=10, metavar="N", help="passes over them (default: 10)")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="of either side (default: 2)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    arguments = parser.parse_args(argv)
    from fmlora_dist.profile.stream import StreamProfile, profile_stream

    options = StreamProfile(
        images=arguments.images, epochs=arguments.epochs, workers=arguments.workers, device=arguments.device
    )
    return _finish(profile_stream(options, Console()), arguments.json)


def _finish(figures: dict[str, Any], file: Path | None) -> int:
    if file:
        write_text(file, json.dumps(figures, indent=1) + "\n", "json")
    return 0 if all(bound["met"] for bound in figures["bounds"]) else 1
