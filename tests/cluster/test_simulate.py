"""The simulated cluster: bounds that every schedule keeps, cases known by hand, and what never fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.simulate import fitting, makespan

ONE_CORE = {"CPU": 1.0}
runs = st.lists(st.floats(0.1, 100).map(lambda seconds: (seconds, ONE_CORE, 1)), min_size=1, max_size=30)


def longest_first(runs):  # type: ignore[no-untyped-def]
    return sorted(runs, key=lambda run: -run[0])


@given(runs, st.integers(1, 5), st.integers(1, 4))
def test_no_makespan_is_below_the_longest_run_or_the_mean_load_nor_above_one_after_the_other(
    runs, nodes, cores
) -> None:  # type: ignore[no-untyped-def]
    total = makespan(runs, [{"CPU": float(cores)}] * nodes)
    alone, longest = sum(run[0] for run in runs), max(run[0] for run in runs)
    assert max(longest, alone / (nodes * cores)) <= total + 1e-6
    assert total <= alone + 1e-6


@given(runs, st.integers(1, 6))
def test_longest_first_keeps_grahams_bound(runs, slots) -> None:  # type: ignore[no-untyped-def]
    total = makespan(longest_first(runs), [ONE_CORE] * slots)
    # The best schedule is at least as long as both of these, so this is a weaker bound than 4/3 of it.
    longest, mean = max(run[0] for run in runs), sum(run[0] for run in runs) / slots
    assert total <= mean + longest * (1 - 1 / slots) + 1e-6


@given(runs, st.integers(1, 4))
def test_where_the_cores_lie_does_not_matter_to_runs_of_one_core(runs, cores) -> None:  # type: ignore[no-untyped-def]
    assert makespan(runs, [{"CPU": float(cores)}]) == pytest.approx(makespan(runs, [ONE_CORE] * cores))


def test_the_longest_first_wins_where_the_shortest_first_leaves_a_slot_empty() -> None:
    runs = [(seconds, ONE_CORE, 1) for seconds in (1.0, 1.0, 1.0, 1.0, 4.0)]
    assert makespan(runs, [{"CPU": 2.0}]) == 6.0
    assert makespan(longest_first(runs), [{"CPU": 2.0}]) == 4.0


def test_runs_share_a_gpu_by_fractions_and_a_run_of_many_gpus_may_span_nodes() -> None:
    half, whole = {"GPU": 0.5, "CPU": 1.0}, {"GPU": 1.0, "CPU": 1.0}
    nodes = [{"GPU": 2.0, "CPU": 8.0}] * 2
    assert fitting(nodes, half) == 8
    assert makespan([(10.0, half, 1)] * 8, nodes) == 10.0
    assert makespan([(10.0, half, 1)] * 9, nodes) == 20.0
    assert makespan([(10.0, whole, 4), (1.0, whole, 1)], nodes) == 11.0


def test_a_run_that_fits_goes_past_one_that_does_not() -> None:
    wide, small = {"GPU": 1.0}, {"GPU": 1.0}
    assert makespan([(5.0, small, 1), (5.0, wide, 2), (5.0, small, 1)], [{"GPU": 2.0}]) == 10.0


def test_a_bundle_must_fit_one_node() -> None:
    assert fitting([{"CPU": 2.0}] * 4, {"CPU": 3.0}) == 0
    with pytest.raises(ValueError, match="does not fit"):
        makespan([(1.0, {"CPU": 3.0}, 1)], [{"CPU": 2.0}] * 4)
