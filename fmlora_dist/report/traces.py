"""What figures and page need of a run beside its metrics: how it went, task by task."""

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmlora_dist.errors import UserError
from fmlora_dist.report.aggregate import Column, Run
from fmlora_dist.report.contents import Report
from fmlora_dist.report.layouts import ORDER
from fmlora_dist.report.tables import BOUNDS

__all__ = ["CHANGE", "DRIFT", "Move", "Rows", "Trace", "Values", "over_seeds", "read_profile", "read_rows"]

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One finished run, task by task; what its result does not hold is empty."""

    run: Run
    matrix: list[list[float]]
    """Accuracies (%): row t on tasks 1..t after task t. A run that learned all tasks at once has the last row alone."""
    ranks: list[float]
    complexity: list[float]
    drift: list[float]
    """1 - mean cosine of task 1's test features to what they were after task 1, after each task."""
    weight_change: list[float]
    """Norm of all that was added to the adapted weights, over their own, after each task."""
    stored: list[float]
    """Numbers kept after each task, without the backbone."""
    step_seconds: list[float]
    """Mean time of a training step, in each task."""
    config: dict[str, Any]

    @property
    def anytime(self) -> list[float]:
        """Mean accuracy over the tasks seen so far, after each task."""
        return [float(np.mean(row)) for row in self.matrix]

    @property
    def lower(self) -> list[float]:
        """The accuracy matrix row by row, in one list."""
        return [value for row in self.matrix for value in row]

    @property
    def acc(self) -> list[float]:
        value = self.run.metrics.get("acc")
        return [] if value is None else [value]


class Move(NamedTuple):
    """What moves from task to task, if a run measured it after each."""

    values: Callable[[Trace], list[float]]
    axis: str
    """Label of a figure's axis."""
    what: str
    """In a sentence."""


DRIFT = Move(
    lambda trace: trace.drift,
    "drift of task 1's features",
    "1 − mean cosine of task 1's test features to what they were after task 1.",
)
CHANGE = Move(
    lambda trace: trace.weight_change,
    "change of weights",
    "Norm of all that the tasks so far have added to the adapted weights, over the weights' own.",
)


Rows = dict[str, dict[Column, list[Trace]]]
"""Runs by row and column of the comparison table."""


def read_rows(report: Report) -> Rows:
    """All runs of a report, task by task, by the row of the first table that shows them, in the usual order of methods.

    A result that cannot be read any more (its run was removed meanwhile, say) is left out.
    """
    rows: Rows = {}
    seen: set[Path] = set()
    for table in report.tables:
        shown = [
            (row.label, head.group, run)
            for row in table.rows
            for head, cell in zip(table.heads, row.cells, strict=True)
            for run in cell.runs
        ]
        groups: dict[tuple[str, Column], set[str]] = defaultdict(set)
        for label, group, run in shown:
            groups[label, run.column].add(group)
        # What the table keeps apart in columns of its own is not averaged.
        apart = any(len(found) > 1 for found in groups.values())
        for label, group, run in shown:
            if run.folder not in seen:
                seen.add(run.folder)
                name = f"{label}, {group}" if apart and group else label
                with contextlib.suppress(ValueError):
                    rows.setdefault(name, {}).setdefault(run.column, []).append(_read(run))
    return dict(sorted(rows.items(), key=lambda row: _place(next(iter(row[1].values()))[0].run.method)))


def _place(method: str) -> tuple[bool, int]:
    return method in BOUNDS, ORDER.index(method) if method in ORDER else len(ORDER)


def _read(run: Run) -> Trace:
    result = run.load()
    steps, seconds = _numbers(result.get("steps")), _numbers(result.get("train_seconds"))
    return Trace(
        run=run,
        matrix=[row for row in map(_numbers, result.get("accuracy_matrix") or []) if row],
        ranks=_numbers(result.get("ranks")),
        complexity=_numbers(result.get("complexity")),
        drift=_numbers(result.get("drift")),
        weight_change=_numbers(result.get("weight_change")),
        stored=_numbers((result.get("parameters") or {}).get("stored")),
        step_seconds=[time / n for time, n in zip(seconds, steps, strict=False) if n],
        config=result.get("config") or {},
    )


def over_seeds(traces: Iterable[Trace], values: Callable[[Trace], Sequence[float]]) -> Values | None:
    """``values`` of the runs with a row for each seed; None when no run has any, or they are not equally many.

    A seed that was run several times counts once, with the mean of its runs.
    """
    by_seed: dict[str, list[Sequence[float]]] = defaultdict(list)
    for trace in traces:
        if figures := values(trace):
            by_seed[str(trace.run.seed)].append(figures)
    if len({len(figures) for repeats in by_seed.values() for figures in repeats}) != 1:
        return None
    return np.array([np.mean(repeats, axis=0) for _, repeats in sorted(by_seed.items())])


def read_profile(file: Path) -> list[dict[str, Any]]:
    """The rows of what ``fmlora profile steps --json FILE`` wrote, each with method, task and seconds_per_step.

    The frozen backbone's step, which it measured beside them, is a method named "floor".

    Raises:
        UserError: it cannot be read, or holds no such rows.
    """
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"profile: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"profile: {file} is no JSON: {error}") from error
    rows = found.get("rows") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows or not all(map(_is_measured, rows)):
        raise UserError(
            f"profile: {file} has no rows of method, task and seconds_per_step; give a file that "
            "`fmlora profile steps --json` wrote"
        )
    floor = found.get("floor") or {}
    least = {"method": "floor", "seconds_per_step": floor.get("seconds_per_step")}
    tasks = sorted({row["task"] for row in rows})
    return [*rows, *(row for task in tasks if _is_measured(row := least | {"task": task}))]


def _is_measured(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("method"), str)
        and isinstance(row.get("task"), int)
        and _is_number(row.get("seconds_per_step"))
    )


def _numbers(values: Any) -> list[float]:
    return values if isinstance(values, list) and all(map(_is_number, values)) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
