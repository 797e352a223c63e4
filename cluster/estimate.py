"""How long runs will take: from those that are done, or from a profile of steps."""

import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.plan import PlannedRun
from fmlora_dist.config import explain
from fmlora_dist.errors import UserError

__all__ = ["Estimate", "Profile", "estimate", "load_profile"]

_NAMED = 4
"""Most methods that are named where times are missing."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    method: str
    task: int = Field(ge=1)
    seconds_per_step: float = Field(ge=0, allow_inf_nan=False)


class Profile(BaseModel):
    """Time of a step by method and task, as ``fmlora profile steps --json`` writes it; other fields are ignored.

    {"rows": [{"method": "fmlora", "task": 1, "seconds_per_step": 0.21}, …]}, measured with the grid's batch size and
    on what one of its runs gets.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows: list[_Row] = Field(min_length=1)

    def seconds(self, method: str, steps: list[int]) -> float | None:
        """Of training ``steps`` of each task: linear between the measured tasks, constant outside of them."""
        rows = sorted((row.task, row.seconds_per_step) for row in self.rows if row.method == method)
        if not rows:
            return None
        tasks, times = zip(*rows, strict=True)
        return float(np.dot(np.interp(range(1, len(steps) + 1), tasks, times), steps))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of runs, and why others have none."""

    seconds: dict[str, float]
    """Of each run whose time is known, by the name of its directory."""
    source: str
    """Where they come from."""
    reason: str
    """Why runs have none; '' when all have."""


def load_profile(file: Path) -> Profile:
    """Raises ``UserError`` when the file is missing or is no profile."""
    try:
        return Profile.model_validate(json.loads(file.read_bytes()))
    except OSError as error:
        raise UserError(f"profile: cannot read {file}: {error.strerror}; give an existing file") from error
    except ValidationError as error:
        raise UserError(
            f"profile {file}: {explain(error, Profile)}; expected rows of method, task and seconds_per_step"
        ) from error
    except ValueError as error:  # JSON or UTF-8
        raise UserError(f"profile: {file} is no JSON: {error}") from error


def estimate(runs: Iterable[PlannedRun], measured: Mapping[str, float], profile: Profile | None) -> Estimate:
    """Seconds of each run.

    With a profile: its training steps, without tests and passes. Without: as long as the finished runs of the same
    config but for the seed took on average, else those of another number of tasks, whose training images are the same.

    Args:
        runs: All runs of the grid.
        measured: Seconds, start included, of runs that were watched from start to end, by name.
        profile: Times of steps.
    """
    runs = list(runs)
    if profile:
        from_steps = {run.name: _from_profile(run, profile) for run in runs}
        no_rows = sorted({run.config.method.name for run in runs if run.steps and from_steps[run.name] is None})
        no_steps = sorted({run.config.benchmark for run in runs if not run.steps})
        reasons = [f"the profile has no row of {', '.join(no_rows)}"] if no_rows else []
        if no_steps:
            reasons.append(f"no data of {', '.join(no_steps)} to count the steps of; name their folder by --data-root")
        known = {name: seconds for name, seconds in from_steps.items() if seconds is not None}
        return Estimate(seconds=known, source="the profile, training steps alone", reason="; ".join(reasons))
    done = {run.name: seconds for run in runs if (seconds := _seconds(run, measured)) is not None}
    alike, similar = _Means(runs, done, exact=True), _Means(runs, done, exact=False)
    guessed = {run.name: done.get(run.name) or alike.of(run) or similar.of(run) for run in runs}
    unknown = list(dict.fromkeys(run.variant for run in runs if not guessed[run.name]))
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    named = f"{', '.join(unknown[:_NAMED])}{more}"
    reason = f"no run of {named} is done yet, and no --profile was given" if unknown else ""
    times = {name: seconds for name, seconds in guessed.items() if seconds}
    return Estimate(seconds=times, source="finished runs", reason=reason)


class _Means:
    """Mean seconds of the finished runs that are alike."""

    def __init__(self, runs: Iterable[PlannedRun], done: Mapping[str, float], *, exact: bool):
        self.exact = exact
        groups: dict[Hashable, list[float]] = defaultdict(list)
        for run in runs:
            if run.name in done:
                groups[self._group(run)].append(done[run.name])
        self.means = {group: fmean(seconds) for group, seconds in groups.items()}

    def of(self, run: PlannedRun) -> float | None:
        return self.means.get(self._group(run))

    def _group(self, run: PlannedRun) -> Hashable:
        config = run.config
        sequence = (config.tasks, config.scenario) if self.exact else ()
        return config.benchmark, run.variant, config.epochs, *sequence


def _from_profile(run: PlannedRun, profile: Profile) -> float | None:
    return profile.seconds(run.config.method.name, run.steps) if run.steps else None


def _seconds(run: PlannedRun, measured: Mapping[str, float]) -> float | None:
    """What a finished run took; without the start of its process where nobody watched it."""
    if not run.finished:
        return None
    if run.name in measured:
        return measured[run.name]
    result: dict[str, Any] = json.loads((run.folder / "result.json").read_bytes())
    total = result.get("seconds", {}).get("total")
    return float(total) if isinstance(total, int | float) and total > 0 else None
