"""The user's choice of training and test images, where the data set itself has none or has several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmlora_dist.errors import UserError, nearest

__all__ = ["OFFICIAL", "Split", "parse_split"]

OFFICIAL = "official"
_PLAIN = (OFFICIAL, "folders", "random")  # every other kind reads lists


@dataclass(frozen=True, kw_only=True)
class Split:
    """What `--split` and `--split-seed` say."""

    kind: str = OFFICIAL
    """'official' (the data say it), 'folders' (train/ and test/), 'random', or whose lists are read, such as 'coda'."""
    files: tuple[Path, ...] = ()
    """The lists of training and of test images, in this order; empty for the first three kinds."""
    seed: int = 0
    """For 'random'."""


def parse_split(text: str | None, seed: int | None, choices: Sequence[str], benchmark: str) -> Split:
    """Check the two options against a benchmark's ``splits``.

    Lists are given as `KIND:TRAIN,TEST`, or as `KIND:FILE` with either of two files whose names differ in 'train' and
    'test' only, as CODA-Prompt publishes them.

    Args:
        text: `--split`; None where it is left out.
        seed: `--split-seed`, likewise; 0 by default.
        choices: The kinds among which the user must choose; empty where the data set has one split only.
        benchmark: Its name, for errors.

    Raises:
        UserError: If a choice is missing or unknown, a list is missing, or the seed has nothing to draw.
    """
    expected = ", ".join(f"--split {kind}{'' if kind in _PLAIN else ':FILE'}" for kind in choices)
    if text is None and choices:
        raise UserError(
            f"split: found none, expected one of {expected}, since '{benchmark}' has no official split; choose one"
        )
    kind, colon, rest = (OFFICIAL if text is None else text).partition(":")
    if kind not in (choices or (OFFICIAL,)):
        advice = nearest(kind, choices) if choices else f"leave --split out, '{benchmark}' has its own"
        raise UserError(f"split: found '{text}', expected {expected or 'none'}; {advice}")
    if colon if kind in _PLAIN else not rest:
        expected = f"--split {kind}" if kind in _PLAIN else f"--split {kind}:FILE"
        raise UserError(f"split: found '{text}', expected {expected}; correct it")
    if seed is not None and (kind != "random" or seed < 0):
        raise UserError(f"split-seed: found {seed}, expected one >= 0, with --split random only; leave it out")
    return Split(kind=kind, files=_lists(rest) if colon else (), seed=seed or 0)


def _lists(text: str) -> tuple[Path, Path]:
    paths = [Path(part).expanduser() for part in text.split(",")]
    if len(paths) == 1:
        places = list(re.finditer("train|test", paths[0].name))
        if places:
            start, end = places[-1].span()
            name = paths[0].name
            paths = [paths[0].with_name(name[:start] + word + name[end:]) for word in ("train", "test")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"split: found no list {path}, expected the training and the test list; correct the path")
    if len(paths) != 2:
        raise UserError(
            f"split: found {len(paths)} list{'s' if len(paths) > 1 else ''} in '{text}', expected one for training and"
            " one for test; give --split KIND:TRAIN,TEST"
        )
    return paths[0], paths[1]
