"""Finished runs of any number of folders, and their figures over seeds."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import fsum, sqrt
from pathlib import Path
from typing import Any, NamedTuple

from fmlora_dist.errors import UserError
from fmlora_dist.record import load_result

__all__ = ["Column", "Run", "Runs", "Spread", "columns", "flatten", "read_result", "read_runs", "spread"]


class Column(NamedTuple):
    """What is compared within one column of a table."""

    benchmark: str
    scenario: str
    n_tasks: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run, as far as tables need it."""

    folder: Path
    column: Column
    method: str
    seed: tuple[int, int | None]
    """Seed of the run, and of its class order."""
    metrics: dict[str, float | None]
    shared: dict[str, Any]
    """The shared protocol."""
    shared_hash: str
    recipe: dict[str, Any]
    """The row's recipe."""
    recipe_hash: str
    result: dict[str, Any]
    """The whole result.json (schema 1)."""


@dataclass(frozen=True)
class Runs:
    """All runs found, and the result files that could not be read, each with its reason."""

    runs: list[Run] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)


class Spread(NamedTuple):
    """A figure over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None with a single seed."""
    n: int
    """Number of seeds."""


def read_runs(paths: Iterable[Path | str]) -> Runs:
    """Every finished run in or below ``paths``; a result file that cannot be read is named and left out.

    Raises:
        UserError: a path does not exist.
    """
    found = Runs()
    for file in dict.fromkeys(file for path in paths for file in _result_files(Path(path))):
        try:
            found.runs.append(read_result(file))
        except ValueError as error:
            found.broken.append((file, str(error)))
    return found


def read_result(file: Path) -> Run:
    """The run of one result.json.

    Raises:
        ValueError: it cannot be read, is of another schema, or of a run that is not complete.
    """
    result = load_result(file)
    protocol = result.get("protocol") or {}
    return Run(
        folder=file.parent,
        column=Column(result["benchmark"], str(result.get("scenario", "cil")), result["n_tasks"]),
        method=result["method"],
        seed=(result["seed"], result.get("order_seed")),
        metrics=result["metrics"],
        shared=protocol.get("shared", {}),
        shared_hash=str(protocol.get("shared_hash", result.get("protocol_hash", ""))),
        recipe=protocol.get("recipe", {}),
        recipe_hash=str(protocol.get("recipe_hash", "")),
        result=result,
    )


def columns(runs: Runs) -> dict[Column, list[Run]]:
    """The runs by benchmark, scenario and number of tasks, in that order.

    Raises:
        UserError: runs that would stand in one column have different shared protocols.
    """
    grouped: dict[Column, list[Run]] = defaultdict(list)
    for run in runs.runs:
        grouped[run.column].append(run)
    for members in grouped.values():
        _must_share_protocol(members)
    return dict(sorted(grouped.items()))


def spread(runs: Iterable[Run], metric: str) -> Spread | None:
    """Mean and sample standard deviation of one metric over seeds; None when no run has it.

    A seed that was run several times (on another machine, say) counts once, with the mean of its runs.
    """
    by_seed: dict[tuple[int, int | None], list[float]] = defaultdict(list)
    for run in runs:
        value = run.metrics.get(metric)
        if value is not None:
            by_seed[run.seed].append(value)
    if not by_seed:
        return None
    values = [fsum(repeats) / len(repeats) for repeats in by_seed.values()]
    mean = fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, sqrt(fsum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _must_share_protocol(runs: list[Run]) -> None:
    first = runs[0]
    for run in runs:
        if run.shared_hash != first.shared_hash:
            one, other = flatten(first.shared), flatten(run.shared)
            differences = [
                f"{name} is {one.get(name)!r} in the first and {other.get(name)!r} in the second"
                for name in sorted(one.keys() | other.keys())
                if one.get(name) != other.get(name)
            ]
            raise UserError(
                f"report: {first.folder} and {run.folder} cannot stand in one table, their shared protocols differ: "
                f"{'; '.join(differences) or f'{first.shared_hash} and {run.shared_hash}'}; report them apart"
            )


def _result_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path.resolve()
        return
    if not path.is_dir():
        raise UserError(f"report: {path} does not exist; give a run directory, or a folder of them")
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith("."))
        if "result.json" in files:
            names.clear()  # a run directory holds no other run
            yield Path(folder, "result.json").resolve()
