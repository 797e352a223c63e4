"""What `fmlora prepare` and `fmlora verify` say."""

from __future__ import annotations

import sys
from argparse import Namespace

from rich.console import Console

from benchmarks.index import SPLITS, Index
from benchmarks.preparation.pipeline import prepare
from benchmarks.preparation.plan import Options
from benchmarks.preparation.splits import parse_split
from benchmarks.preparation.verification import verify
from fmlora_dist.errors import UserError
from fmlora_dist.registry import get_benchmark

__all__ = ["run_prepare", "run_verify"]

_TOLD = 10
"""Faults that are printed; the others are counted."""


def run_prepare(arguments: Namespace, *, version: str) -> int:
    """Prepare a data set and say what it is, and what to do with it; gives the exit code.

    Raises:
        UserError: See ``prepare``.
    """
    spec = get_benchmark(arguments.data_set)
    split = parse_split(arguments.split, arguments.split_seed, spec.splits, spec.name)
    try:
        made = prepare(
            spec,
            arguments.source,
            arguments.out,
            split,
            Options(short_side=arguments.short_side, shard_size=arguments.shard_size),
            version=version,
            skip=arguments.on_error == "skip",
            allow_partial=arguments.allow_partial,
            workers=arguments.workers,
            console=Console(stderr=True),
        )
    except KeyboardInterrupt:
        print("fmlora: interrupted; the same command goes on from the finished shards", file=sys.stderr)
        return 130
    said = "complete already, from the same source and options" if made.already else f"{made.rate:,.0f} images/s"
    print(f"{_summary(made.index)}: {arguments.out} ({said})")
    if made.skipped:
        print(f"skipped {made.skipped} broken images; manifest.json names them")
    if split.kind == "random":
        print("the split is drawn at random: numbers on it are not comparable with published ones")
    n_classes = len(made.index.classes)
    n_tasks = next((n for n in (*spec.task_counts, *range(2, n_classes)) if n_classes % n == 0), n_classes)
    root = f"--benchmark {spec.name} --data-root {arguments.out}"
    print(f"next: fmlora run {root} --tasks {n_tasks} --method fmlora")
    return 0


def run_verify(arguments: Namespace) -> None:
    """Verify shards and print the first faults.

    Raises:
        UserError: If there are faults; and see ``verify``.
    """
    found = verify(arguments.folder, workers=arguments.workers, console=Console(stderr=True))
    for fault in found.faults[:_TOLD]:
        print(fault, file=sys.stderr)
    if found.faults:
        raise UserError(
            f"{arguments.folder}: found {len(found.faults)} faults, expected none; restore the shards, or prepare the"
            " data set again"
        )
    against = "manifest and index" if found.manifest else "the index (there is no manifest)"
    shards = f"{len(found.index.shards)} shards"
    print(f"{_summary(found.index)}: {shards} as {against} say ({found.rate:,.0f} images/s)")


def _summary(index: Index) -> str:
    splits = ", ".join(f"{int((index.split == number).sum())} {name}" for number, name in enumerate(SPLITS))
    domains = f"{len(index.domains)} domain{'s' if len(index.domains) > 1 else ''}"
    what = f"{len(index)} images ({splits}), {len(index.classes)} classes, {domains}"
    return f"{index.name}: {what}, split {index.split_rule}"
