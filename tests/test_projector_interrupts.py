"""A projector whose fit is interrupted or fails is the one it was, or the new one."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lelp_sklearn import LELPProjector
from tests.interrupts import interrupted_at_line
from tests.student_problems import make_groups

X, y, E, HEAD = make_groups(n_rows=60)
FIRST, SECOND = slice(None, 30), slice(30, None)


def projector(splitter):
    return LELPProjector(2, splitter=splitter, head=HEAD, random_state=0)


@pytest.mark.parametrize("splitter", ["pca", "kmeans"])
def test_interrupt_at_any_moment_leaves_a_stream_before_or_after_a_block(splitter):
    former = projector(splitter).partial_fit(E[FIRST], y[FIRST])
    complete = copy.deepcopy(former).partial_fit(E[SECOND], y[SECOND])
    with interrupted_at_line(0) as n_lines:
        copy.deepcopy(former).partial_fit(E[SECOND], y[SECOND])
    before, after = (each.transform(E) for each in (former, complete))
    assert not np.array_equal(before, after)
    # Closer together towards the end, where the block is taken in.
    for line in n_lines() - np.geomspace(1, n_lines() - 1, 12).astype(int):
        stream = copy.deepcopy(former)
        with pytest.raises(KeyboardInterrupt), interrupted_at_line(line):
            stream.partial_fit(E[SECOND], y[SECOND])
        found = stream.transform(E)
        if not np.array_equal(found, after):
            assert_array_equal(found, before)
            stream.partial_fit(E[SECOND], y[SECOND])
            assert_array_equal(stream.transform(E), after)


def test_stream_goes_on_after_a_fit_that_failed():
    stream, expected = (projector("pca") for _ in range(2))
    for each in (stream, expected):
        each.partial_fit(E[FIRST], y[FIRST])
    with pytest.raises(ValueError, match="more than class 0 allows"):
        stream.fit(E[:2], y[:2])
    for each in (stream, expected):
        each.partial_fit(E[SECOND], y[SECOND])
    assert_array_equal(stream.transform(E), expected.transform(E))


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_failing_fit_leaves_the_number_of_features(method):
    fitted = projector("pca").fit(E, y)
    before = fitted.transform(E)
    with pytest.raises(ValueError, match="head"):
        getattr(fitted, method)(E[:, :4], y)
    assert fitted.n_features_in_ == E.shape[1]
    assert_array_equal(fitted.transform(E), before)
