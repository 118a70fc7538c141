"""What the benchmark of bits computes, beside identities of mutual information."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from benchmarks.distillation import bits


def test_hard_targets_carry_the_entropy_of_their_subclasses():
    """The information of a row and its subclass is then that of the subclass."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.resize([0, 1], 1_000))
    subclass = np.where(y, rng.integers(4, size=1_000), rng.integers(2, size=1_000))
    within = np.zeros((1_000, 2, 4))
    within[np.arange(1_000), y, subclass] = 1
    expected = sum(
        np.mean(y == label)
        * mutual_info_score(subclass[y == label], subclass[y == label])
        for label in (0, 1)
    )
    np.testing.assert_allclose(bits.bits_within(within, y), expected / np.log(2))


def test_targets_that_are_all_alike_carry_nothing():
    alike = np.random.default_rng(0).dirichlet(np.ones(5), size=2)
    within = np.tile(alike, (20, 1, 1))
    assert bits.bits_within(within, np.resize([0, 1], 20)) == pytest.approx(
        0, abs=1e-12
    )


def test_what_is_said_of_the_other_class_does_not_count():
    rng = np.random.default_rng(0)
    y = np.resize([0, 1], 20)
    within = rng.dirichlet(np.ones(5), size=(20, 2))
    other = within.copy()
    other[np.arange(20), 1 - y] = rng.dirichlet(np.ones(5), size=20)
    assert bits.bits_within(other, y) == bits.bits_within(within, y)
