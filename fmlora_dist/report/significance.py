"""Whether a difference is real: paired over seeds, with benchmarks as blocks, and over several benchmarks.

scipy is imported where it is used: it takes long, and many reports have too few seeds for any of this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt

import numpy as np

__all__ = ["FEWEST", "Paired", "Ranking", "paired", "ranking", "signed"]

FEWEST = 3
"""Pairs below which nothing can be said."""
_MOST = 40
"""Pairs up to which all 2ⁿ signs are counted."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Paired differences of two methods, each from the same seed (and class order) on the same benchmark."""

    n: int
    """Number of pairs."""
    mean: float
    """Mean over blocks of the blocks' mean differences."""
    interval: tuple[float, float] | None
    """95 % t-interval of the mean; None where there are too few pairs."""
    p: float | None
    """Two-sided, of the exact sign-flip test; None where there are too few pairs, or too many to count."""
    smallest_p: float
    """The smallest p that so many pairs can reach."""

    @property
    def texts(self) -> tuple[str, str, str, str, str]:
        """(difference, its interval's ends, p, smallest p) as every form of a report has them; '' where unknown."""
        low, high = ("", "") if self.interval is None else map(signed, self.interval)
        tested = ("", "") if self.p is None else (_write(self.p), _write(self.smallest_p))
        return (signed(self.mean), low, high, *tested)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Methods ranked on several benchmarks: Friedman's test, and Nemenyi's critical difference (Demšar, JMLR 2006)."""

    blocks: list[str]
    """The benchmarks."""
    ranks: dict[str, float]
    """Average rank of each method, the best (1 at the least) first."""
    statistic: float
    """Friedman's χ²."""
    p: float
    critical_difference: float
    """Average ranks that differ by less cannot be told apart at 5 %."""

    @property
    def groups(self) -> list[list[str]]:
        """Largest sets of methods that cannot be told apart: the bars of a critical-difference diagram."""
        names = [*self.ranks]
        found: list[list[str]] = []
        for start, first in enumerate(names):
            group = [name for name in names[start:] if self.ranks[name] - self.ranks[first] < self.critical_difference]
            if len(group) > 1 and not any({*group} <= {*other} for other in found):
                found.append(group)
        return found


def paired(blocks: Sequence[Sequence[float]]) -> Paired:
    """Compare two methods by their differences, in one block or in several that weigh alike.

    The interval is that of a sum of block means with variances of their own (Welch and Satterthwaite's degrees of
    freedom; Student's for one block). The sign-flip test asks how many of all 2ⁿ choices of the differences' signs
    give a mean as far from 0: exact, and without an assumption but that under the null hypothesis either sign is as
    likely.
    """
    n, mean = sum(map(len, blocks)), float(np.mean([np.mean(block) for block in blocks]))
    enough = n >= FEWEST
    weighted = np.concatenate([np.asarray(block, float) / (len(block) * len(blocks)) for block in blocks])
    return Paired(
        n=n,
        mean=mean,
        interval=_interval(blocks, mean) if enough and all(len(block) > 1 for block in blocks) else None,
        p=_sign_flip(weighted) if enough and n <= _MOST else None,
        smallest_p=2.0 ** (1 - n),
    )


def ranking(scores: Mapping[str, Mapping[str, float]]) -> Ranking | None:
    """Rank methods by their scores on each benchmark, more being better; equal ones share their ranks.

    Args:
        scores: For each method its score on each benchmark, the same ones for all.

    Returns:
        None with fewer than three methods or two benchmarks.
    """
    names = [*scores]
    blocks = [*scores[names[0]]] if names else []
    if len(names) < 3 or len(blocks) < 2:
        return None
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    table = np.array([[scores[name][block] for name in names] for block in blocks])
    ranks = rankdata(-table, axis=1)
    average = dict(sorted(zip(names, ranks.mean(axis=0).tolist(), strict=True), key=lambda item: item[1]))
    tied = all(a == b for a, b in pairwise(average.values()))
    statistic, p = (0.0, 1.0) if tied else friedmanchisquare(*table.T)
    k = len(names)
    return Ranking(
        blocks=blocks,
        ranks=average,
        statistic=float(statistic),
        p=float(p),
        critical_difference=float(
            studentized_range.ppf(0.95, k, inf) / sqrt(2) * sqrt(k * (k + 1) / (6 * len(blocks)))
        ),
    )


def signed(difference: float) -> str:
    """A difference of percentages with its sign; what rounds to nothing is not negative."""
    return f"{round(difference, 2) + 0.0:+.2f}"


def _interval(blocks: Sequence[Sequence[float]], mean: float) -> tuple[float, float]:
    from scipy.special import stdtrit  # Student's t by its inverse; scipy.stats takes much longer to import

    parts = np.array([np.var(block, ddof=1) / len(block) for block in blocks])
    if not parts.any():
        return (mean, mean)
    freedom = parts.sum() ** 2 / sum(part**2 / (len(block) - 1) for part, block in zip(parts, blocks, strict=True))
    half = float(stdtrit(freedom, 0.975) * sqrt(parts.sum()) / len(blocks))
    return (mean - half, mean + half)


def _sign_flip(values: np.ndarray) -> float:
    """Share of the 2ⁿ sums ±v₁ ± … ± vₙ at least as far from 0 as the one found, counted from the two halves' sums."""
    half = len(values) // 2
    one, other = _signed_sums(values[:half]), np.sort(_signed_sums(values[half:]))
    found = abs(values.sum()) - 1e-9 * np.abs(values).sum()  # sums that are equal but for rounding count
    if found <= 0:
        return 1.0
    above = len(other) - np.searchsorted(other, found - one, side="left")
    below = np.searchsorted(other, -found - one, side="right")
    return float((above.sum() + below.sum()) / 2.0 ** len(values))


def _signed_sums(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _write(p: float) -> str:
    return f"{p:.4f}" if p >= 1e-4 else f"{p:.1e}"
