"""What a table can show of a run, and how that is written; its mean and spread over seeds."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import NamedTuple

from fmlora_dist.errors import UserError, nearest
from fmlora_dist.report.aggregate import Run, Seed

__all__ = ["ACCURACIES", "COSTS", "MEASURES", "ORIGINS", "Measure", "Spread", "by_seed", "find_measures", "spread"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure of a run as tables show it."""

    name: str
    """Its name in ``Run.figure``."""
    title: str
    """Heading, with the unit where it is not %."""
    sign: int = 1
    """1: more is better; -1: less is better; 0: neither, or it hangs on the machine, so that no row is marked."""
    scale: float = 1.0
    """What it is divided by before it is written."""
    digits: int = 2
    chance: bool = True
    """Whether seeds always differ in it, so that a standard deviation of 0 says something."""

    def write(self, value: float) -> str:
        """The figure in the measure's unit; the same in every form of a table."""
        return f"{value / self.scale:.{self.digits}f}"


class Spread(NamedTuple):
    """A figure over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None with a single seed."""
    n: int
    """Number of seeds."""


MEASURES = {
    measure.name: measure
    for measure in (
        Measure(name="acc", title="Acc"),
        Measure(name="aaa", title="AAA"),
        Measure(name="forgetting", title="Forgetting", sign=-1),
        Measure(name="bwt", title="BWT"),
        Measure(name="acc_samples", title="Acc (samples)"),
        Measure(name="aaa_samples", title="AAA (samples)"),
        Measure(name="learning", title="Learning"),
        Measure(name="drift", title="Drift", sign=0, digits=3),
        Measure(name="weight_change", title="Weight change", sign=0, digits=3),
        Measure(name="trainable", title="trained (k)", sign=-1, scale=1e3, digits=1, chance=False),
        Measure(name="stored", title="stored (k)", sign=-1, scale=1e3, digits=1, chance=False),
        Measure(name="growth", title="growth (k/task)", sign=-1, scale=1e3, digits=2, chance=False),
        Measure(name="step_seconds", title="step (ms)", sign=0, scale=1e-3, digits=1),
        Measure(name="images_per_second", title="images/s", sign=0, digits=1),
        Measure(name="peak_memory", title="peak (MiB)", sign=-1, scale=2**20, digits=0),
        Measure(name="hours", title="hours", sign=0),
    )
}
ACCURACIES = ("acc", "aaa")
ORIGINS = ("learning", "forgetting", "drift", "weight_change")
"""Where an accuracy comes from."""
COSTS = ("trainable", "stored", "growth", "step_seconds", "images_per_second", "peak_memory")


def find_measures(names: Sequence[str]) -> list[Measure]:
    """The measures of those names. Raises ``UserError`` with the nearest for an unknown one."""
    for name in names:
        if name not in MEASURES:
            raise UserError(f"--metrics: unknown '{name}': {nearest(name, MEASURES)}")
    return [MEASURES[name] for name in names]


def by_seed(runs: Iterable[Run], name: str) -> dict[Seed, float]:
    """One figure of each seed. A seed that was run several times (on another machine, say) has the mean of its runs."""
    found: dict[Seed, list[float]] = defaultdict(list)
    for run in runs:
        value = run.figure(name)
        if value is not None:
            found[run.seed].append(value)
    return {seed: fsum(values) / len(values) for seed, values in found.items()}


def spread(runs: Iterable[Run], name: str) -> Spread | None:
    """Mean and sample standard deviation of one figure over seeds; None when no run has it."""
    values = [*by_seed(runs, name).values()]
    if not values:
        return None
    mean = fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, sqrt(fsum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))
