"""Measuring on this machine."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fmlora_dist.commands.arguments import make_parser, positive, write_text

__all__ = ["profile"]


def profile(argv: Sequence[str]) -> int:
    """Measure what the stream costs beside torchvision's ImageFolder and DataLoader (fmlora profile stream)."""
    parser = make_parser("profile", f"{profile.__doc__} The exit code is 1 when a bound is not met.")
    parser.add_argument("what", choices=("stream",), help="what to measure")
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
    figures = profile_stream(options, Console())
    if arguments.json:
        write_text(arguments.json, json.dumps(figures, indent=1) + "\n", "json")
    return 0 if all(bound["met"] for bound in figures["bounds"]) else 1
