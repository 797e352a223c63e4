"""The tests of a report against their definitions, written out independently."""

import itertools
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fmlora_dist.report.significance import paired, ranking, signed

differences = st.lists(st.integers(-500, 500).map(lambda n: n / 100), min_size=3, max_size=9)


@given(differences)
def test_the_sign_flip_test_counts_all_signs(values: list[float]) -> None:
    found = abs(sum(values))
    signs = itertools.product((1, -1), repeat=len(values))
    sums = [abs(sum(s * v for s, v in zip(some, values, strict=True))) for some in signs]
    share = sum(total >= found - 1e-9 for total in sums) / len(sums)
    assert paired([values]).p == pytest.approx(share, abs=1e-12)


@given(differences)
def test_the_interval_is_students(values: list[float]) -> None:
    result = paired([values])
    assert result.mean == pytest.approx(np.mean(values))
    assert result.interval is not None
    if np.ptp(values) == 0:
        assert result.interval == pytest.approx((result.mean, result.mean))
    else:
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert result.interval == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.lists(differences, min_size=2, max_size=2))
def test_blocks_weigh_alike(blocks: list[list[float]]) -> None:
    result = paired(blocks)
    assert result.mean == pytest.approx((np.mean(blocks[0]) + np.mean(blocks[1])) / 2)
    assert result.n == len(blocks[0]) + len(blocks[1])
    assert result.interval is not None
    if max(map(np.ptp, blocks)) > 0 and min(map(np.ptp, blocks)) > 0:
        # Welch's interval of a difference of two means, whose second sample is turned round; half of it here
        welch = stats.ttest_ind(blocks[0], [-v for v in blocks[1]], equal_var=False).confidence_interval(0.95)
        assert result.interval == pytest.approx((welch.low / 2, welch.high / 2), abs=1e-9)


def test_signs_of_several_blocks_are_counted_by_their_weight_in_the_mean() -> None:
    blocks = [[1.0, 2.0, -0.5], [0.4, 0.1]]
    weighted = [v / (2 * len(block)) for block in blocks for v in block]
    sums = [
        abs(sum(s * v for s, v in zip(signs, weighted, strict=True))) for signs in itertools.product((1, -1), repeat=5)
    ]
    assert paired(blocks).p == sum(total >= abs(sum(weighted)) - 1e-12 for total in sums) / 32


@pytest.mark.parametrize(("n", "smallest"), [(3, 0.25), (5, 0.0625), (20, 2.0**-19), (40, 2.0**-39)])
def test_the_smallest_p_is_reached_when_all_differences_have_one_sign(n: int, smallest: float) -> None:
    result = paired([[1.0 + i / 7 for i in range(n)]])
    assert result.p == result.smallest_p == smallest


def test_five_seeds_print_the_smallest_p_beside_theirs() -> None:
    assert paired([[1.0, 1.5, 2.0, 0.5, 1.0]]).texts == ("+1.20", "+0.49", "+1.91", "0.0625", "0.0625")


def test_fewer_than_three_pairs_say_nothing() -> None:
    result = paired([[1.0, 2.0]])
    assert (result.mean, result.interval, result.p) == (1.5, None, None)
    assert result.texts == ("+1.50", "", "", "", "")


def test_more_pairs_than_can_be_counted_still_have_an_interval() -> None:
    result = paired([[float(i % 3) for i in range(41)]])
    assert result.p is None
    assert result.interval is not None


def test_no_difference_at_all_is_sure_and_not_significant() -> None:
    assert paired([[0.0] * 5]).texts == ("+0.00", "+0.00", "+0.00", "1.0000", "0.0625")


def test_what_rounds_to_nothing_has_no_negative_sign() -> None:
    assert [signed(value) for value in (-0.001, 0.001, -0.01)] == ["+0.00", "+0.00", "-0.01"]


SCORES = {
    "a": {"x": 90.0, "y": 80.0, "z": 70.0, "w": 60.0},
    "b": {"x": 85.0, "y": 81.0, "z": 65.0, "w": 55.0},
    "c": {"x": 80.0, "y": 70.0, "z": 60.0, "w": 50.0},
}


def test_ranks_and_friedmans_test_are_those_of_their_definition() -> None:
    found = ranking(SCORES)
    assert found is not None
    assert found.blocks == ["x", "y", "z", "w"]
    assert found.ranks == {"a": 1.25, "b": 1.75, "c": 3.0}
    n, k = 4, 3
    chi = 12 * n / (k * (k + 1)) * (sum(rank**2 for rank in found.ranks.values()) - k * (k + 1) ** 2 / 4)
    assert found.statistic == pytest.approx(chi)
    assert found.p == pytest.approx(stats.chi2.sf(chi, k - 1))


def test_the_critical_difference_is_that_of_demsars_table() -> None:
    found = ranking(SCORES)
    assert found is not None
    assert found.critical_difference == pytest.approx(2.343 * sqrt(3 * 4 / (6 * 4)), abs=1e-3)  # q at 5 % for k = 3
    assert found.groups == [["a", "b"], ["b", "c"]]


def test_ties_share_their_ranks_and_all_ties_are_no_difference() -> None:
    tied = ranking({name: {"x": 1.0, "y": 2.0} for name in "abc"})
    assert tied is not None
    assert tied.ranks == {"a": 2.0, "b": 2.0, "c": 2.0}
    assert (tied.statistic, tied.p, tied.groups) == (0.0, 1.0, [["a", "b", "c"]])


def test_two_methods_or_one_benchmark_are_not_ranked() -> None:
    assert ranking({name: SCORES[name] for name in "ab"}) is None
    assert ranking({name: {"x": 1.0} for name in "abc"}) is None
    assert ranking({}) is None
