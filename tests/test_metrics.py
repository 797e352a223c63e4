"""``summarize`` against the definitions of the design, written out independently in numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmlora_dist.metrics import summarize


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    n_tasks = draw(st.one_of(st.integers(1, 12), st.integers(100, 120)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    matrix = [(100 * rng.random(t)).tolist() for t in range(1, n_tasks + 1)]
    return matrix, rng.integers(1, 5000, n_tasks).tolist()


def by_numpy(matrix: list[list[float]], sizes: list[int]) -> dict[str, float]:
    n_tasks = len(matrix)
    full = np.full((n_tasks, n_tasks), np.nan)
    for t, row in enumerate(matrix):
        full[t, : t + 1] = row
    weights = np.where(np.isnan(full), 0.0, np.asarray(sizes, float)[None])
    weighted = (np.nan_to_num(full) * weights).sum(1) / weights.sum(1)
    best = np.nanmax(full[:-1, :-1], axis=0) if n_tasks > 1 else np.zeros(0)
    return {
        "acc": full[-1].mean(),
        "aaa": np.nanmean(full, axis=1).mean(),
        "forgetting": (best - full[-1, :-1]).mean() if n_tasks > 1 else 0.0,
        "bwt": (full[-1, :-1] - np.diagonal(full)[:-1]).mean() if n_tasks > 1 else 0.0,
        "acc_samples": weighted[-1],
        "aaa_samples": weighted.mean(),
    }


@settings(deadline=None)
@given(sequences())
def test_summarize_agrees_with_the_definitions_in_numpy(sequence: tuple[list[list[float]], list[int]]) -> None:
    matrix, sizes = sequence
    assert summarize(matrix, sizes) == pytest.approx(by_numpy(matrix, sizes), abs=1e-9)


@settings(deadline=None)
@given(sequences())
def test_equal_tasks_weigh_alike_and_a_square_matrix_is_read_below_its_diagonal(
    sequence: tuple[list[list[float]], list[int]],
) -> None:
    matrix, _ = sequence
    metrics = summarize(matrix, [7] * len(matrix))
    assert metrics["acc_samples"] == pytest.approx(metrics["acc"])
    assert metrics["aaa_samples"] == pytest.approx(metrics["aaa"])
    square = np.full((len(matrix), len(matrix)), np.nan)
    for t, row in enumerate(matrix):
        square[t, : t + 1] = row
    assert summarize(square, [7] * len(matrix)) == metrics  # type: ignore[arg-type]


@st.composite
def judged_images(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(task of each test image [n], whether it was right after each task [T, n]) of either scenario.

    Class-incremental: up to 220 classes with numbers of images of their own, a first task and equal further ones.
    Domain-incremental: the same classes in each of up to six domains, a domain a task.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_classes = draw(st.integers(1, 220))
    if draw(st.booleans()):
        first, step = draw(st.integers(1, n_classes)), draw(st.integers(1, 60))
        of_class = np.where(np.arange(n_classes) < first, 0, 1 + (np.arange(n_classes) - first) // step)
        task = np.repeat(of_class, rng.integers(1, 9, n_classes))
    else:
        n_domains = draw(st.integers(1, 6))
        task = np.repeat(np.arange(n_domains), n_classes * rng.integers(1, 9, n_domains))
    return rng.permutation(task), rng.random((task.max() + 1, len(task))) < rng.random((task.max() + 1, 1))


@settings(deadline=None)
@given(judged_images())
def test_the_figures_are_those_of_the_single_images_in_both_scenarios(images: tuple[np.ndarray, np.ndarray]) -> None:
    task, right = images
    n_tasks = len(right)
    accuracy = np.array([[100 * right[t][task == i].mean() for i in range(n_tasks)] for t in range(n_tasks)])
    seen = [100 * right[t][task <= t].mean() for t in range(n_tasks)]
    drops = [accuracy[i : n_tasks - 1, i].max() - accuracy[-1, i] for i in range(n_tasks - 1)]
    changes = [accuracy[-1, i] - accuracy[i, i] for i in range(n_tasks - 1)]
    rows = [accuracy[t, : t + 1].tolist() for t in range(n_tasks)]
    assert summarize(rows, np.bincount(task).tolist()) == pytest.approx(
        {
            "acc": accuracy[-1].mean(),
            "aaa": np.mean([np.mean(row) for row in rows]),
            "forgetting": np.mean(drops) if drops else 0.0,
            "bwt": np.mean(changes) if changes else 0.0,
            "acc_samples": seen[-1],
            "aaa_samples": np.mean(seen),
        },
        abs=1e-9,
    )


def test_a_small_matrix_by_hand() -> None:
    metrics = summarize([[90.0], [70.0, 80.0], [60.0, 85.0, 50.0]], [1, 1, 2])
    assert metrics == pytest.approx(
        {
            "acc": 65.0,
            "aaa": (90 + 75 + 65) / 3,
            "forgetting": (30 - 5) / 2,  # task 2 became better after it was learned: negative forgetting
            "bwt": (-30 + 5) / 2,
            "acc_samples": 61.25,
            "aaa_samples": (90 + 75 + 61.25) / 3,
        }
    )


def test_one_task_forgets_nothing() -> None:
    assert summarize([[42.0]]) == {"acc": 42.0, "aaa": 42.0, "forgetting": 0.0, "bwt": 0.0}


def test_a_joint_run_has_only_its_last_row() -> None:
    metrics = summarize([[80.0, 60.0]], [3, 1])
    assert metrics == {
        "acc": 70.0,
        "aaa": None,
        "forgetting": None,
        "bwt": None,
        "acc_samples": 75.0,
        "aaa_samples": None,
    }


@pytest.mark.parametrize("matrix", [[], [[]], [[1.0], [1.0]], [[1.0], [1.0, 2.0], [1.0, 2.0]]])
def test_a_matrix_that_is_none_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="accuracy matrix"):
        summarize(matrix)


@pytest.mark.parametrize("sizes", [[1], [1, 0], [1, 2, 3]])
def test_sizes_that_do_not_fit_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="test sizes"):
        summarize([[1.0], [1.0, 2.0]], sizes)
