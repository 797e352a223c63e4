"""Finished runs of any number of folders: what tables need of each, and no more, so that thousands fit in memory."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import fsum, isfinite
from pathlib import Path
from typing import Any, NamedTuple

from fmlora_dist.errors import UserError
from fmlora_dist.record import load_result

__all__ = ["Column", "Planned", "Run", "Runs", "flatten", "read_result", "read_runs", "result_files"]

Seed = tuple[int, int | None]


class Column(NamedTuple):
    """A sequence of tasks: what runs must have in common to be compared at all."""

    benchmark: str
    scenario: str
    n_tasks: int

    @property
    def title(self) -> str:
        """As tables name it."""
        return f"{self.block} N={self.n_tasks}"

    @property
    def block(self) -> str:
        """The benchmark, with the scenario where it is not the usual one."""
        return self.benchmark if self.scenario == "cil" else f"{self.benchmark} ({self.scenario})"


class Planned(NamedTuple):
    """A run that a grid means to make."""

    name: str
    """Name of its folder."""
    column: Column
    method: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One finished run. Runs of one protocol share its dictionaries."""

    folder: Path
    column: Column
    method: str
    seed: Seed
    """Seed of the run, and of its class order."""
    metrics: dict[str, float | None]
    cost: dict[str, float | None]
    """Beside the accuracies: see ``_cost``."""
    shared: dict[str, Any]
    """The shared protocol, by dotted names."""
    shared_hash: str
    recipe: dict[str, Any]
    """The row's recipe, by dotted names."""
    recipe_hash: str

    def load(self) -> dict[str, Any]:
        """The whole result.json, read anew: curves, matrix and config of thousands of runs need not be held.

        Raises:
            ValueError: it cannot be read any more.
        """
        return load_result(self.folder / "result.json")

    def figure(self, name: str) -> float | None:
        """A metric or a cost by its name; None where the run has none."""
        return self.metrics.get(name, self.cost.get(name))

    def facts(self) -> dict[str, Any]:
        """All that tells the run from others, by the names that stand below the tables."""
        named = {"method": self.method, **self.column._asdict(), "seed": self.seed[0], "order_seed": self.seed[1]}
        return self.shared | self.recipe | named


@dataclass(frozen=True)
class Runs:
    """All runs found, and the result files that could not be read, each with its reason."""

    runs: list[Run] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
    """What grids whose folders were read mean to run, as far as they say it."""

    @property
    def missing(self) -> list[Planned]:
        """The planned runs that are not finished."""
        finished = {run.folder.name for run in self.runs}
        return [planned for planned in self.planned if planned.name not in finished]


def read_runs(paths: Iterable[Path | str], planned: Sequence[Planned] = ()) -> Runs:
    """Every finished run in or below ``paths``; a result file that cannot be read is named and left out.

    Raises:
        UserError: a path does not exist.
    """
    found = Runs(planned=[*dict.fromkeys(planned)])
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for file in dict.fromkeys(file for path in paths for file in result_files(Path(path))):
        try:
            found.runs.append(read_result(file, known))
        except ValueError as error:
            found.broken.append((file, str(error)))
    return found


def read_result(file: Path, known: dict[tuple[str, str], dict[str, Any]] | None = None) -> Run:
    """The run of one result.json.

    Args:
        file: The result.json.
        known: Protocols of runs that were read before, by part and hash; this run's are added.

    Raises:
        ValueError: it cannot be read, is of another schema, or of a run that is not complete.
    """
    result = load_result(file)
    protocol = result.get("protocol") or {}
    known = {} if known is None else known
    try:
        _check_matrix(result)
        return Run(
            folder=file.parent,
            column=Column(result["benchmark"], str(result.get("scenario", "cil")), result["n_tasks"]),
            method=result["method"],
            seed=(result["seed"], _figures({"order_seed": result.get("order_seed")})["order_seed"]),
            metrics=_figures(result["metrics"] | _learning(result)),
            cost=_figures(_cost(result)),
            shared=_part(protocol, "shared", known),
            shared_hash=str(protocol.get("shared_hash", result.get("protocol_hash", ""))),
            recipe=_part(protocol, "recipe", known),
            recipe_hash=str(protocol.get("recipe_hash", "")),
        )
    except (TypeError, AttributeError, LookupError, ValueError, ArithmeticError) as error:
        raise ValueError(f"is not as a run writes it: {error}") from error


def _check_matrix(result: dict[str, Any]) -> None:
    """Raises ``ValueError`` when the accuracies are not those of so many tasks."""
    rows, n_tasks = result.get("accuracy_matrix") or [], result["n_tasks"]
    if max(len(rows), *map(len, rows), 0) > n_tasks:
        raise ValueError(f"found accuracies of more than n_tasks {n_tasks}")
    if not all(0 <= value <= 100 for row in rows for value in row):
        raise ValueError("found an accuracy that is not between 0 and 100")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _figures(values: dict[str, Any]) -> dict[str, Any]:
    """The same, if all are numbers or None: one that is none would spoil a whole table."""
    for name, value in values.items():
        if value is not None and (type(value) not in (int, float) or not isfinite(value)):
            raise ValueError(f"found {name} {value!r}, expected a number")
    return values


def _part(protocol: dict[str, Any], name: str, known: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    digest = protocol.get(f"{name}_hash")
    if not digest:
        return flatten(protocol.get(name, {}))
    if (name, digest) not in known:
        flat = flatten(protocol.get(name, {}))
        flat.pop("method.name", None)  # it stands in the result itself
        known[name, digest] = flat
    return known[name, digest]


def _learning(result: dict[str, Any]) -> dict[str, float | None]:
    """How much was learned and how much moved, beside what is left; None where the result does not say it.

    - ``learning``: accuracy in % on a task's test data just after the task, mean over tasks.
    - ``drift``: 1 - mean cosine of task 1's test features to what they were after task 1, after the last task.
    - ``weight_change``: norm of what all tasks added to the adapted weights, over the weights' own.
    """
    rows = result.get("accuracy_matrix") or []
    whole = bool(rows) and len(rows) == result["n_tasks"]  # joint training has one row
    return {
        "learning": fsum(row[-1] for row in rows) / len(rows) if whole else None,
        "drift": (result.get("drift") or [None])[-1] if whole else None,
        "weight_change": (result.get("weight_change") or [None])[-1],
    }


def _cost(result: dict[str, Any]) -> dict[str, float | None]:
    """What the run cost; None where its result does not say it.

    - ``trainable``: numbers that train in the last task; ``stored``: numbers kept after it, without the backbone.
    - ``growth``: stored numbers that a further task adds, mean over tasks; None for a single row.
    - ``step_seconds``: seconds a training step; ``images_per_second``: training images through data and step.
    - ``peak_memory``: most bytes that the main process used (on a GPU: of the GPU's memory).
    - ``hours``: of the whole run.
    """
    parameters, seconds = result.get("parameters") or {}, result.get("seconds") or {}
    trainable, stored = parameters.get("trainable") or [None], parameters.get("stored") or [None]
    steps, train, total = sum(result.get("steps") or []), seconds.get("train"), seconds.get("total")
    protocol = result.get("protocol") or {}
    images = protocol.get("shared", {}).get("train_images", 0) * protocol.get("recipe", {}).get("epochs", 0)
    spent = (train or 0.0) + seconds.get("data", 0.0)
    return {
        "trainable": trainable[-1],
        "stored": stored[-1],
        "growth": (stored[-1] - stored[0]) / (len(stored) - 1) if len(stored) > 1 else None,
        "step_seconds": train / steps if train and steps else None,
        "images_per_second": images / spent if images and spent else None,
        "peak_memory": result.get("peak_memory_bytes"),
        "hours": None if total is None else total / 3600,
    }


def result_files(path: Path) -> Iterator[Path]:
    """Every result.json in or below ``path``. Raises ``UserError`` when ``path`` does not exist."""
    path = path.resolve()
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise UserError(f"report: {path} does not exist; give a run directory, or a folder of them")
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith("."))
        if "result.json" in files:
            names.clear()  # a run directory holds no other run
            yield Path(folder, "result.json")
