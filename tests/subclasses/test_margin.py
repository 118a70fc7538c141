"""The teacher's margin, and the temperature that follows it."""

import dask.array as da
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from lelp_sklearn import LELPProjector
from tests import reference
from tests.problems import integer_weights, make_problem


def mean_margin(logits, weight=None):
    """The mean margin of rows by its definition."""
    ordered = np.sort(np.asarray(logits, dtype=np.float64), axis=1)
    return np.average(ordered[:, -1] - ordered[:, -2], weights=weight)


def chunks(array):
    return da.from_array(array, chunks=(50, *array.shape[1:]))


@pytest.mark.parametrize("place", [np.asarray, torch.as_tensor, chunks])
@pytest.mark.parametrize("head", ["given", "discriminant", "least squares"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_margin_is_the_mean_of_the_two_largest_logits_difference(
    place, head, n_classes
):
    problem = make_problem(n_classes)
    weight = integer_weights(len(problem.X))
    logits = np.tanh(problem.logits) if head == "least squares" else None
    projector = LELPProjector(
        3, head=problem.head if head == "given" else None, random_state=0
    ).fit(place(problem.X), problem.codes, teacher_logits=logits, sample_weight=weight)
    if logits is None:
        logits = problem.X @ projector.coef_.T + projector.intercept_
    assert_allclose(projector.margin_, mean_margin(logits, weight), rtol=1e-12)


@pytest.mark.parametrize("with_logits", [False, True])
def test_rows_without_a_label_count(with_logits):
    problem = make_problem()
    y = np.where(np.arange(len(problem.X)) % 3, -1, problem.codes)
    given = {"teacher_logits": problem.logits} if with_logits else {}
    projector = LELPProjector(
        3, head=problem.head, unlabeled=-1, splitter="pca", random_state=0
    ).fit(problem.X, y, **given)
    assert_allclose(projector.margin_, mean_margin(problem.logits), rtol=1e-12)


@pytest.mark.parametrize(("margin", "expected"), [(0.3, 1), (6.0, 2), (50.0, 4)])
def test_temperature_is_a_third_of_the_margin_within_bounds(margin, expected):
    problem = make_problem(n_classes=3)
    scale = margin / mean_margin(problem.logits)
    logits = scale * problem.logits
    head = scale * problem.coef, scale * problem.intercept
    options = {"n_subclasses": 3, "head": head, "random_state": 0}
    projector = LELPProjector(**options).fit(problem.X, problem.codes)
    assert_allclose(projector.temperature_, expected, rtol=1e-12)
    soft_labels = projector.transform(problem.X)
    assert_allclose(
        projector.inverse_transform(soft_labels),
        reference.class_probabilities(logits, expected),
    )
    given = LELPProjector(temperature=2.5, **options).fit(problem.X, problem.codes)
    assert given.temperature_ == 2.5
    assert_allclose(given.margin_, margin)


def test_of_a_large_class_a_sample_is_measured():
    """It is close to the margin of all rows, whatever their order and number."""
    problem = make_problem(n_rows=9_000)
    weight = integer_weights(len(problem.X))

    def margin(rows, sample_weight=None):
        projector = LELPProjector(2, head=problem.head, random_state=0)
        X, codes = problem.X[rows], problem.codes[rows]
        return projector.fit(X, codes, sample_weight=sample_weight).margin_

    rows = np.arange(len(problem.X))
    weighted = margin(rows, weight)
    exact = mean_margin(problem.logits, weight)
    assert weighted != pytest.approx(exact, rel=1e-9)
    assert weighted == pytest.approx(exact, rel=0.05)
    repeated = np.repeat(rows, weight.astype(int))
    shuffled = np.random.RandomState(0).permutation(repeated)
    assert_allclose(margin(shuffled), weighted, rtol=1e-9)


@pytest.mark.parametrize("with_logits", [False, True])
def test_a_stream_has_the_margin_of_its_first_block(with_logits):
    problem = make_problem()
    first, second = slice(0, 100), slice(100, 160)
    logits = problem.logits
    projector = LELPProjector(3, head=problem.head, random_state=0)
    for rows, scale in ((slice(0, 4), 9), (first, 1), (second, 5)):
        given = {"teacher_logits": scale * logits[rows]} if with_logits else {}
        projector.partial_fit(problem.X[rows], problem.codes[rows], [0, 1], **given)
    assert_allclose(projector.margin_, mean_margin(logits[first]), rtol=1e-12)
    given = {"teacher_logits": logits} if with_logits else {}
    projector.fit(problem.X, problem.codes, **given)
    assert_allclose(projector.margin_, mean_margin(logits), rtol=1e-12)
