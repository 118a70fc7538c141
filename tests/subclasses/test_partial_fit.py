"""partial_fit over blocks is one fit over all rows."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import subspace_angles
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from lelp_sklearn import LELPProjector
from tests import reference
from tests.problems import integer_weights, make_problem

GIVEN = np.random.RandomState(3).normal(size=(3, 4, 12))


def blocks(n_rows, size=37):
    return [slice(start, start + size) for start in range(0, n_rows, size)]


def fit_in_blocks(projector, X, y, size=37, classes=None, **metadata):
    for rows in blocks(len(X), size):
        labels = None if y is None else y[rows]
        aligned = {k: v[rows] for k, v in metadata.items() if v is not None}
        projector.partial_fit(X[rows], labels, classes=classes, **aligned)
    return projector


def assert_same_projector(left, right, tolerance=1e-6):
    assert_array_equal(left.classes_, right.classes_)
    assert left.n_subclasses_ == right.n_subclasses_
    assert_allclose(left.coef_, right.coef_, rtol=1e-7, atol=1e-9)
    assert_allclose(left.intercept_, right.intercept_, rtol=1e-7, atol=1e-9)
    assert_allclose(left.mean_, right.mean_, rtol=1e-9)
    for ours, theirs in zip(left.components_, right.components_, strict=True):
        assert subspace_angles(ours.T, theirs.T).max() < tolerance
    assert_allclose(left.subclass_temperature_, right.subclass_temperature_, rtol=1e-6)
    assert_allclose(
        left.explained_variance_.sum(axis=1),
        right.explained_variance_.sum(axis=1),
        rtol=1e-6,
    )


@pytest.mark.parametrize("splitter", ["pca", "random", GIVEN], ids=str)
@pytest.mark.parametrize("head", ["given", "discriminant", "least squares"])
@pytest.mark.parametrize("svd_solver", ["covariance_eigh", "full"])
def test_blocks_equal_one_fit(splitter, head, svd_solver):
    problem = make_problem(n_classes=3)
    weight = integer_weights(len(problem.X)) + 0.5
    logits = np.tanh(problem.logits) if head == "least squares" else None
    left, right = (
        LELPProjector(
            n_subclasses=4,
            splitter=splitter,
            head=problem.head if head == "given" else None,
            subclass_temperature=0.5,
            svd_solver=svd_solver,
            random_state=0,
        )
        for _ in range(2)
    )
    left.fit(problem.X, problem.codes, teacher_logits=logits, sample_weight=weight)
    fit_in_blocks(
        right,
        problem.X,
        problem.codes,
        classes=[0, 1, 2],
        teacher_logits=logits,
        sample_weight=weight,
    )
    assert_same_projector(left, right)


@pytest.mark.parametrize("size", [1, 50, 160])
def test_size_of_the_blocks_does_not_matter(size):
    problem = make_problem(n_rows=160)
    left, right = (
        LELPProjector(
            n_subclasses=3, splitter="pca", svd_solver="covariance_eigh", random_state=0
        )
        for _ in range(2)
    )
    left.fit(problem.X, problem.codes)
    fit_in_blocks(right, problem.X, problem.codes, size, classes=[0, 1])
    assert_same_projector(left, right)


def test_blocks_of_one_class_each():
    problem = make_problem(n_classes=3)
    order = np.argsort(problem.codes, kind="stable")
    left, right = (
        LELPProjector(
            n_subclasses=3, splitter="pca", svd_solver="covariance_eigh", random_state=0
        )
        for _ in range(2)
    )
    left.fit(problem.X, problem.codes)
    fit_in_blocks(right, problem.X[order], problem.codes[order], classes=[0, 1, 2])
    assert_same_projector(left, right)


def test_automatic_choices_over_blocks():
    problem = make_problem()
    left, right = (
        LELPProjector(
            head=problem.head,
            splitter="pca",
            svd_solver="covariance_eigh",
            random_state=0,
        )
        for _ in range(2)
    )
    left.fit(problem.X, problem.codes)
    fit_in_blocks(right, problem.X, problem.codes, classes=[0, 1])
    assert_same_projector(left, right)


def test_blocks_without_labels():
    problem = make_problem(n_classes=3)
    left, right = (
        LELPProjector(
            n_subclasses=3,
            head=problem.head,
            splitter="pca",
            svd_solver="covariance_eigh",
        )
        for _ in range(2)
    )
    left.fit(problem.X)
    fit_in_blocks(right, problem.X, None)
    assert_same_projector(left, right)


def test_blocks_with_a_fitted_classifier_and_strings():
    problem = make_problem(n_classes=3)
    y = np.array(["ant", "bee", "cow"])[problem.codes]
    head = LogisticRegression(max_iter=5000).fit(problem.X, y)
    left, right = (
        LELPProjector(
            n_subclasses=3, head=head, splitter="pca", svd_solver="covariance_eigh"
        )
        for _ in range(2)
    )
    left.fit(problem.X, y)
    fit_in_blocks(right, problem.X, y, classes=["ant", "bee", "cow"])
    assert_same_projector(left, right)


def test_mean_far_from_zero_survives_merging():
    problem = make_problem(mean=1e5)
    projector = LELPProjector(
        n_subclasses=3, head=problem.head, splitter="pca", svd_solver="covariance_eigh"
    )
    fit_in_blocks(projector, problem.X, problem.codes, classes=[0, 1])
    spectrum, _ = reference.principal_directions(
        problem.X, problem.codes, problem.coef, 3
    )
    assert_allclose(projector.spectrum_, spectrum, rtol=1e-5)


def test_projector_is_usable_after_every_block():
    problem = make_problem()
    projector = LELPProjector(
        n_subclasses=2, head=problem.head, splitter="pca", svd_solver="covariance_eigh"
    )
    n_seen = 0
    for rows in blocks(len(problem.X), 50):
        n_seen = rows.stop
        projector.partial_fit(problem.X[rows], problem.codes[rows], classes=[0, 1])
        assert projector.transform(problem.X).shape == (len(problem.X), 4)
        _, means = reference.class_weights_and_means(
            problem.X[:n_seen], problem.codes[:n_seen], 2
        )
        assert_allclose(projector.mean_, means)


def test_what_a_stream_still_lacks_is_said_until_it_comes():
    problem = make_problem()
    projector = LELPProjector(n_subclasses=3, splitter="pca", head=problem.head)
    first, second = (np.flatnonzero(problem.codes == c) for c in range(2))
    for rows, fragment in [(first, "class 1"), (second[:3], "n_subclasses")]:
        projector.partial_fit(problem.X[rows], problem.codes[rows], classes=[0, 1])
        with pytest.raises(NotFittedError, match=fragment):
            projector.transform(problem.X)
    projector.partial_fit(problem.X[second[3:]], problem.codes[second[3:]])
    whole = LELPProjector(n_subclasses=3, splitter="pca", head=problem.head)
    assert_same_projector(whole.fit(problem.X, problem.codes), projector)


def test_fit_forgets_earlier_blocks():
    problem = make_problem()
    projector = LELPProjector(
        n_subclasses=2, head=problem.head, splitter="pca", svd_solver="covariance_eigh"
    )
    projector.partial_fit(problem.X + 5, problem.codes, classes=[0, 1])
    projector.fit(problem.X, problem.codes)
    _, means = reference.class_weights_and_means(problem.X, problem.codes, 2)
    assert_allclose(projector.mean_, means)


def test_clusters_over_blocks_stay_near_those_of_one_fit():
    rng = np.random.RandomState(0)
    centres = rng.normal(scale=20, size=(6, 5))
    group = np.arange(600) % 6
    X = centres[group] + rng.normal(size=(600, 5))
    head = (np.array([[1.0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0]]), np.zeros(2))
    left, right = (
        LELPProjector(n_subclasses=3, splitter="kmeans", head=head, random_state=0)
        for _ in range(2)
    )
    left.fit(X, group % 2)
    fit_in_blocks(right, X, group % 2, size=100, classes=[0, 1])
    for c in range(2):
        distance = np.linalg.norm(
            (left.mean_[c] + left.components_[c])[:, None]
            - (right.mean_[c] + right.components_[c])[None],
            axis=2,
        )
        assert distance.min(axis=1).max() < 1.0


def test_classes_that_a_later_block_brings_are_named():
    problem = make_problem(n_classes=3)
    projector = LELPProjector(
        n_subclasses=2, splitter="pca", svd_solver="covariance_eigh"
    )
    known = problem.codes < 2
    projector.partial_fit(problem.X[known], problem.codes[known], classes=[0, 1])
    with pytest.raises(ValueError, match="2"):
        projector.partial_fit(problem.X, problem.codes)


def test_first_block_without_classes_takes_those_it_holds():
    problem = make_problem(n_classes=3)
    projector = LELPProjector(n_subclasses=2, splitter="pca", head=problem.head)
    projector.partial_fit(problem.X, problem.codes)
    assert_array_equal(projector.classes_, [0, 1, 2])


@pytest.mark.parametrize("fault", ["NaN", "label", "width", "logits"])
def test_a_refused_block_changes_nothing(fault):
    problem = make_problem(n_classes=3)
    left, right = (
        LELPProjector(
            n_subclasses=2,
            head=problem.head,
            splitter="pca",
            svd_solver="covariance_eigh",
            random_state=0,
        )
        for _ in range(2)
    )
    for rows in blocks(len(problem.X), 80):
        X, y = problem.X[rows], problem.codes[rows]
        left.partial_fit(X, y, classes=[0, 1, 2])
        with pytest.raises(ValueError):  # noqa: PT011 - the fault is not the matter
            spoil(right, X, y, fault)
        right.partial_fit(X, y, classes=[0, 1, 2])
    assert_array_equal(left.transform(problem.X), right.transform(problem.X))


def test_directions_changed_between_blocks_are_refused_before_work_starts():
    problem = make_problem(n_classes=3)
    n_features = problem.X.shape[1]
    projector = LELPProjector(
        splitter=np.ones((3, 2, n_features)), head=problem.head, random_state=0
    )
    projector.partial_fit(problem.X[:80], problem.codes[:80], classes=[0, 1, 2])
    before = projector.partial_fit(problem.X[80:], problem.codes[80:]).mean_
    projector.set_params(splitter=np.ones((3, 2, n_features + 1)))
    with pytest.raises(ValueError, match="splitter is an array"):
        projector.partial_fit(problem.X[:80] + 9, problem.codes[:80])
    projector.set_params(splitter=np.ones((3, 2, n_features)))
    # A row without weight changes nothing: what is left is what the two blocks gave.
    projector.partial_fit(
        problem.X[:4], problem.codes[:4], sample_weight=[1e-300, 0, 0, 0]
    )
    assert_allclose(projector.mean_, before, rtol=1e-12)


def test_classifier_that_is_not_fitted_is_refused():
    problem = make_problem(n_classes=3)
    projector = LELPProjector(2, head=LogisticRegression())
    with pytest.raises(ValueError, match="LogisticRegression, not fitted"):
        projector.partial_fit(problem.X, problem.codes, classes=[0, 1, 2])


def test_classes_are_sorted_and_named_once():
    problem = make_problem(n_classes=3)
    projector = LELPProjector(2, head=problem.head, random_state=0)
    projector.partial_fit(problem.X, problem.codes, classes=[2, 1, 0, 1])
    assert_array_equal(projector.classes_, [0, 1, 2])


def spoil(projector, X, y, fault):
    """Call partial_fit with one thing wrong."""
    options = {"classes": [0, 1, 2]}
    if fault == "NaN":
        X = np.where(np.arange(len(X))[:, None] == 3, np.nan, X)
    elif fault == "label":
        y = y + 1
    elif fault == "width":
        X = X[:, :5]
    else:
        options["teacher_logits"] = np.zeros((len(X), 2))
    projector.partial_fit(X, y, **options)


@pytest.mark.parametrize("splitter", ["kmeans", "pca"])
def test_a_stream_recovers_from_a_small_first_block(splitter):
    rng = np.random.RandomState(0)
    X, codes = rng.normal(size=(400, 8)), np.arange(400) % 2
    head = rng.normal(size=(2, 8)), np.zeros(2)
    projector = LELPProjector(4, splitter=splitter, head=head, random_state=0)
    projector.partial_fit(X[:6], codes[:6], classes=[0, 1])
    with pytest.raises(NotFittedError, match="n_subclasses=4"):
        projector.transform(X)
    projector.partial_fit(X[6:200], codes[6:200]).partial_fit(X[200:], codes[200:])
    assert projector.transform(X).shape == (400, 8)
    assert_allclose(projector.mean_, [X[codes == c].mean(axis=0) for c in range(2)])


@pytest.mark.parametrize(
    ("splitter", "n_features", "n_subclasses"), [("pca", 4, 4), ("kmeans", 2, 2)]
)
def test_more_subclasses_than_any_stream_can_have_are_refused(
    splitter, n_features, n_subclasses
):
    rng = np.random.RandomState(0)
    X, y = rng.normal(size=(40, n_features)), np.arange(40) % 2
    head = rng.normal(size=(2, n_features)), np.zeros(2)
    projector = LELPProjector(n_subclasses, splitter=splitter, head=head)
    with pytest.raises(ValueError, match=f"n_subclasses={n_subclasses}"):
        projector.fit(X, y)
    # Whether the block has rows enough or not.
    for rows in (slice(4), slice(40)):
        with pytest.raises(ValueError, match=f"n_subclasses={n_subclasses}"):
            projector.partial_fit(X[rows], y[rows])
