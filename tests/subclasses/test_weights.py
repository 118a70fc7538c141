"""Row weights act as repetitions; unlabelled rows take the teacher's argmax."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression

from lelp_sklearn import LELPProjector
from tests import reference
from tests.problems import integer_weights, make_problem

SPLITTERS = ["pca", "random", "kmeans"]
HEADS = ["given", "discriminant", "least squares"]


def build(problem, head, **params):
    params = {
        "n_subclasses": 3,
        "splitter": "pca",
        "head": problem.head if head == "given" else None,
        "svd_solver": "full",
        "random_state": 0,
        **params,
    }
    return LELPProjector(**params)


def assert_same_fit(left, right, X, atol=1e-7):
    """Equal means, spans and, sign and rotation apart, soft labels."""
    assert_allclose(left.coef_, right.coef_, atol=atol)
    assert_allclose(left.mean_, right.mean_, atol=atol)
    spans = [
        np.einsum("csd,cse->cde", p.components_, p.components_) for p in (left, right)
    ]
    assert_allclose(spans[0], spans[1], atol=atol)
    assert_allclose(left.subclass_temperature_, right.subclass_temperature_, rtol=1e-6)
    if left.splitter == "kmeans":
        assert_allclose(left.transform(X), right.transform(X), atol=atol)


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("subclass_temperature", [0.5, "auto"])
def test_weighted_fit_equals_repeated_and_absent_rows(
    splitter, head, subclass_temperature
):
    problem = make_problem(n_classes=3)
    weight = integer_weights(len(problem.X))
    logits = np.tanh(problem.logits)
    repeat = np.repeat(np.arange(len(problem.X)), weight.astype(int))
    left, right = (
        build(
            problem, head, splitter=splitter, subclass_temperature=subclass_temperature
        )
        for _ in range(2)
    )
    metadata = {"teacher_logits": logits} if head == "least squares" else {}
    left.fit(problem.X, problem.codes, sample_weight=weight, **metadata)
    metadata = {name: value[repeat] for name, value in metadata.items()}
    right.fit(problem.X[repeat], problem.codes[repeat], **metadata)
    assert_same_fit(left, right, problem.X)


@pytest.mark.parametrize(
    "svd_solver", ["auto", "full", "covariance_eigh", "randomized"]
)
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_rows_of_zero_weight_are_absent(splitter, svd_solver):
    problem = make_problem(n_classes=3)
    weight = np.ones(len(problem.X))
    weight[::3] = 0
    X = problem.X.copy()
    X[::3] += 100
    left, right = (
        build(problem, "given", splitter=splitter, svd_solver=svd_solver)
        for _ in range(2)
    )
    left.fit(X, problem.codes, sample_weight=weight)
    right.fit(X[weight > 0], problem.codes[weight > 0])
    assert_same_fit(left, right, problem.X, atol=1e-6)


def test_unit_and_constant_weights_change_nothing():
    problem = make_problem()
    plain = build(problem, "given").fit(problem.X, problem.codes)
    for value in (1, 2.5):
        weighted = build(problem, "given").fit(
            problem.X, problem.codes, sample_weight=np.full(len(problem.X), value)
        )
        assert_same_fit(plain, weighted, problem.X)


def test_weights_in_fit_transform():
    problem = make_problem()
    weight = integer_weights(len(problem.X))
    together = build(problem, None).fit_transform(
        problem.X, problem.codes, sample_weight=weight
    )
    apart = build(problem, None).fit(problem.X, problem.codes, sample_weight=weight)
    assert_allclose(together, apart.transform(problem.X))


def marked(codes, kind):
    """Labels of one kind with every third row unlabelled, and the marker."""
    hidden = np.arange(len(codes)) % 3 == 0
    if kind == "minus one":
        return np.where(hidden, -1, codes), -1, codes
    if kind == "nan":
        return np.where(hidden, np.nan, codes), np.nan, codes.astype(float)
    names = ["ant", "bee", "cow"]
    if kind == "nan in objects":
        labels = np.array(names, dtype=object)[codes]
        return np.where(hidden, np.nan, labels), np.nan, labels
    labels = np.array(names)[codes]
    return np.where(hidden, "?", labels), "?", labels


@pytest.mark.parametrize("kind", ["minus one", "nan", "string", "nan in objects"])
@pytest.mark.parametrize("teacher", ["head", "logits", "both"])
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_unlabelled_rows_take_the_teachers_argmax(kind, teacher, splitter):
    problem = make_problem(n_classes=3)
    logits = np.random.RandomState(0).normal(size=(len(problem.X), 3))
    y, marker, labels = marked(problem.codes, kind)
    hidden = np.arange(len(y)) % 3 == 0
    argmax = np.argmax(problem.logits if teacher == "head" else logits, axis=1)
    values = np.unique(labels)
    filled = np.where(hidden, values[argmax], labels)
    metadata = {} if teacher == "head" else {"teacher_logits": logits}
    head = "least squares" if teacher == "logits" else "given"
    left = build(problem, head, splitter=splitter, unlabeled=marker)
    right = build(problem, head, splitter=splitter)
    left.fit(problem.X, y, **metadata)
    right.fit(problem.X, filled.astype(labels.dtype), **metadata)
    assert_array_equal(left.classes_, values)
    assert_same_fit(left, right, problem.X)
    assert_allclose(left.transform(problem.X), right.transform(problem.X), atol=1e-7)


@pytest.mark.parametrize("dtype", ["string", "Int64", "category", "Float64"])
@pytest.mark.parametrize("marker", [np.nan, np.float32("nan"), pd.NA])
def test_missing_values_of_pandas_mark_unlabelled_rows(dtype, marker):
    problem = make_problem(n_classes=3)
    hidden = np.arange(len(problem.X)) % 3 == 0
    names = np.array(["1", "2", "3"])[problem.codes]
    labels = pd.Series(names if dtype in ("string", "category") else problem.codes + 1)
    y = labels.astype(dtype).mask(hidden)
    left = build(problem, "given", unlabeled=marker).fit(problem.X, y)
    marked_codes = np.where(hidden, -1, problem.codes)
    right = build(problem, "given", unlabeled=-1).fit(problem.X, marked_codes)
    assert [str(int(label)) for label in left.classes_] == ["1", "2", "3"]
    assert_array_equal(left.components_, right.components_)


def test_none_beside_integers_marks_unlabelled_rows():
    problem = make_problem(n_classes=3)
    hidden = np.arange(len(problem.X)) % 3 == 0
    y = np.where(hidden, None, problem.codes.astype(object))
    left = build(problem, "given", unlabeled=np.nan).fit(problem.X, y)
    right = build(problem, "given", unlabeled=-1)
    right.fit(problem.X, np.where(hidden, -1, problem.codes))
    assert_array_equal(left.classes_, right.classes_)
    assert_array_equal(left.components_, right.components_)


def test_closed_form_head_comes_from_the_labelled_rows():
    problem = make_problem(n_classes=3)
    y, marker, _ = marked(problem.codes, "minus one")
    known = y != -1
    coef, intercept = reference.discriminant_head(
        problem.X[known], problem.codes[known], 3
    )
    left = build(problem, None, unlabeled=marker).fit(problem.X, y)
    assert_allclose(left.coef_, coef, rtol=1e-8)
    assert_allclose(left.intercept_, intercept, rtol=1e-8)
    filled = np.where(known, y, np.argmax(problem.X @ coef.T + intercept, axis=1))
    right = build(problem, "given").set_params(head=(coef, intercept))
    right.fit(problem.X, filled)
    assert_same_fit(left, right, problem.X)


def test_unfitted_classifier_is_fitted_on_the_labelled_rows():
    problem = make_problem(n_classes=3)
    y, marker, _ = marked(problem.codes, "minus one")
    trained = LogisticRegression(max_iter=5000).fit(problem.X[y != -1], y[y != -1])
    projector = build(problem, None, unlabeled=marker)
    projector.set_params(head=LogisticRegression(max_iter=5000))
    projector.fit(problem.X, y)
    assert_allclose(projector.coef_, trained.coef_, rtol=1e-6)


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("teacher", ["head", "logits"])
def test_without_y_all_rows_take_the_teachers_argmax(splitter, teacher):
    problem = make_problem(n_classes=3)
    logits = np.random.RandomState(0).normal(size=(len(problem.X), 3))
    metadata = {} if teacher == "head" else {"teacher_logits": logits}
    argmax = np.argmax(problem.logits if teacher == "head" else logits, axis=1)
    head = "given" if teacher == "head" else "least squares"
    left = build(problem, head, splitter=splitter).fit(problem.X, **metadata)
    right = build(problem, head, splitter=splitter).fit(problem.X, argmax, **metadata)
    assert_array_equal(left.classes_, np.arange(3))
    assert_same_fit(left, right, problem.X)


def test_minus_one_is_a_class_unless_it_is_said_to_be_the_marker():
    problem = make_problem()
    y = np.where(problem.codes == 0, -1, 1)
    projector = build(problem, "given").fit(problem.X, y)
    assert_array_equal(projector.classes_, [-1, 1])
    coded = build(problem, "given").fit(problem.X, problem.codes)
    assert_array_equal(projector.components_, coded.components_)


def test_a_marker_that_no_row_carries_changes_nothing():
    problem = make_problem()
    plain = build(problem, "given").fit(problem.X, problem.codes)
    marker = build(problem, "given", unlabeled=-1).fit(problem.X, problem.codes)
    assert_array_equal(plain.components_, marker.components_)
