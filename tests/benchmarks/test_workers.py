"""Jobs in worker processes: all done, errors raised, a killed worker told, and no pile of jobs ahead of the results."""

import os
from collections.abc import Iterator

import pytest

from benchmarks.preparation.workers import run_jobs
from fmlora_dist.errors import UserError


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once_and_none_is_taken_far_ahead(workers: int) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        for number in range(-40, 0):
            taken += 1
            yield number

    results = []
    for result in run_jobs(abs, jobs(), workers):
        results.append(result)
        assert taken - len(results) <= workers + 1
    assert sorted(results) == list(range(1, 41))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_job_is_raised(workers: int) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(run_jobs(int, ["1", "x", "2"], workers))


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(UserError, match="found a worker process killed"):
        list(run_jobs(os._exit, [9], 2))
