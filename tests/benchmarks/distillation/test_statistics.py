"""Paired differences, their intervals, and corrected p-values."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from benchmarks.distillation import statistics
from benchmarks.distillation.agreement import agreement
from benchmarks.distillation.config import BASELINE, OURS


def test_paired_differences_agree_with_scipy():
    one, other = np.random.default_rng(0).normal(size=(2, 8))
    one += 0.5
    expected = stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    found = statistics.paired(one - other)
    assert found.mean == pytest.approx((one - other).mean())
    assert found.error == pytest.approx(stats.sem(one - other))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)


def test_mean_over_two_tasks_agrees_with_welchs_test():
    """The mean of two is half the difference of the one and the other's negative."""
    rng = np.random.default_rng(0)
    few, many = rng.normal(1, 3, size=5), rng.normal(0, 1, size=10)
    expected = stats.ttest_ind(few, -many, equal_var=False)
    interval = expected.confidence_interval(0.95)
    found = statistics.mean_over_tasks([few, many])
    assert (found.low, found.high) == pytest.approx(
        (interval.low / 2, interval.high / 2)
    )
    assert found.p == pytest.approx(expected.pvalue)


def test_equal_scores_are_no_difference():
    assert statistics.paired(np.zeros(5)).p == 1
    always = statistics.paired(np.full(5, 0.25))
    assert (always.low, always.high, always.p) == (0.25, 0.25, 0)


def test_holm_is_bonferroni_over_every_subset():
    """By the closure principle, of which Holm's procedure is a short cut."""
    p = np.random.default_rng(0).uniform(0, 0.3, size=6)
    p[3] = p[1]
    closed = [
        max(
            min(1.0, len(subset) * p[list(subset)].min())
            for size in range(1, 7)
            for subset in combinations(range(6), size)
            if i in subset
        )
        for i in range(6)
    ]
    np.testing.assert_allclose(statistics.holm(p), closed)


def test_runs_are_compared_on_the_seeds_that_both_have():
    """Another seed and another task do not count."""
    before = {
        "letters": {
            BASELINE: {0: 80.0, 1: 82.0, 2: 50.0},
            OURS: {0: 84.0, 1: 87.0, 2: 99.0},
        },
        "digits": {BASELINE: {0: 90.0, 1: 91.0}},
    }
    now = {"letters": {BASELINE: {0: 80.0, 1: 82.0}, OURS: {0: 84.5, 1: 87.5}}}
    _, _, of_baseline, ours, _, summary = agreement(before, now).split("\n")
    assert "| 2 |" in of_baseline
    assert "+0.00 [+0.00, +0.00]" in of_baseline
    cells = [cell.split()[0] for cell in ours.strip("| ").split(" | ")[2:]]
    assert cells == ["2", "+4.50", "+5.00", "+0.50"]
    # All seeds differ alike, which is no chance.
    assert summary.startswith("Of 2 differences 1 are clear")
