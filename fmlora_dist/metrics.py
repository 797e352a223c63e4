"""The accuracy matrix of a run -> Acc, AAA, forgetting and backward transfer.

R[t, i] is the accuracy (%) on the test data of task i after task t was learned, i <= t, tasks from 1 to T. Tasks are
ordered by their number, and nothing is rounded before it is averaged.
"""

from collections.abc import Sequence
from math import fsum

__all__ = ["summarize"]

Matrix = Sequence[Sequence[float]]


def summarize(accuracy_matrix: Matrix, test_sizes: Sequence[int] | None = None) -> dict[str, float | None]:
    """The figures of one run, in %.

    - ``acc``: mean over tasks of the last row (the final average accuracy).
    - ``aaa``: mean over t of the mean of row t (the averaged anytime accuracy).
    - ``forgetting``: mean over i < T of (max over i <= t < T of R[t, i]) - R[T, i]; 0.0 for T = 1.
    - ``bwt``: mean over i < T of R[T, i] - R[i, i]; 0.0 for T = 1.
    - ``acc_samples``, ``aaa_samples``: the first two with every task weighted by its test images; only with
      ``test_sizes``.

    Args:
        accuracy_matrix: row t holds R[t, 1..t] (a square matrix is read below its diagonal). A run that learned all
            tasks at once has a single row R[T, 1..T]; all that needs the earlier rows is None then.
        test_sizes: number of test images of each of the T tasks.

    Raises:
        ValueError: no row, a row of the wrong length, or ``test_sizes`` that do not fit.
    """
    n_tasks = len(accuracy_matrix[-1]) if len(accuracy_matrix) else 0
    joint = len(accuracy_matrix) == 1 and n_tasks > 1
    if n_tasks == 0 or not (joint or len(accuracy_matrix) == n_tasks):
        raise ValueError(f"accuracy matrix: {len(accuracy_matrix)} rows, but the last has {n_tasks} entries")
    rows: list[list[float]] = []
    for number, row in enumerate(accuracy_matrix, start=n_tasks if joint else 1):
        if len(row) not in (number, n_tasks):
            raise ValueError(f"accuracy matrix: row {number} has {len(row)} entries, expected {number}")
        rows.append([float(value) for value in row[:number]])
    last, earlier = rows[-1], rows[:-1]
    metrics: dict[str, float | None] = {
        "acc": _mean(last),
        "aaa": None if joint else _mean([_mean(row) for row in rows]),
        "forgetting": None if joint else 0.0,
        "bwt": None if joint else 0.0,
    }
    if earlier:
        metrics["forgetting"] = _mean(
            [max(row[task] for row in earlier[task:]) - last[task] for task in range(n_tasks - 1)]
        )
        metrics["bwt"] = _mean([last[task] - rows[task][task] for task in range(n_tasks - 1)])
    if test_sizes is not None:
        sizes = [int(size) for size in test_sizes]
        if len(sizes) != n_tasks or min(sizes) < 1:
            raise ValueError(f"test sizes: found {sizes}, expected {n_tasks} positive numbers")
        metrics["acc_samples"] = _weighted_mean(last, sizes)
        metrics["aaa_samples"] = None if joint else _mean([_weighted_mean(row, sizes) for row in rows])
    return metrics


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def _weighted_mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    weights = sizes[: len(values)]
    return fsum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
