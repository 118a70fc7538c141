"""Directions of every splitter and solver against the reference."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import subspace_angles
from scipy.stats import ortho_group

from lelp_sklearn import LELPProjector
from tests import reference
from tests.problems import Problem, integer_weights, make_problem

SOLVERS = ["auto", "full", "covariance_eigh", "randomized"]


def largest_angle(rows, others):
    """Largest principal angle between two row spaces."""
    return subspace_angles(np.asarray(rows).T, np.asarray(others).T).max()


def fit(problem, *, sample_weight=None, **params):
    params = {"splitter": "pca", "head": problem.head, "random_state": 0, **params}
    return LELPProjector(**params).fit(
        problem.X, problem.codes, sample_weight=sample_weight
    )


@pytest.mark.parametrize("svd_solver", SOLVERS)
@pytest.mark.parametrize("rotation", ["equal", "random", None])
@pytest.mark.parametrize("null_space", [True, False])
def test_directions_span_the_principal_subspace(svd_solver, rotation, null_space):
    problem = make_problem(n_classes=3)
    projector = fit(
        problem,
        n_subclasses=3,
        svd_solver=svd_solver,
        rotation=rotation,
        null_space=null_space,
    )
    variances, axes = reference.principal_directions(
        problem.X, problem.codes, problem.coef, 3, null_space=null_space
    )
    for c in range(3):
        assert largest_angle(projector.components_[c], axes[c]) < 1e-6
    assert_allclose(projector.spectrum_, variances, rtol=1e-6)


@pytest.mark.parametrize("svd_solver", SOLVERS)
def test_unrotated_directions_are_the_principal_axes_in_order(svd_solver):
    problem = make_problem()
    projector = fit(problem, n_subclasses=3, svd_solver=svd_solver, rotation=None)
    _, axes = reference.principal_directions(problem.X, problem.codes, problem.coef, 3)
    overlap = np.abs(np.sum(projector.components_ * axes, axis=2))
    assert_allclose(overlap, 1, atol=1e-6)
    assert_allclose(projector.explained_variance_, projector.spectrum_, rtol=1e-6)


@pytest.mark.parametrize("svd_solver", SOLVERS)
def test_more_features_than_rows(svd_solver):
    problem = make_problem(n_rows=40, n_features=90, decay=0.95)
    projector = fit(problem, n_subclasses=4, svd_solver=svd_solver)
    variances, axes = reference.principal_directions(
        problem.X, problem.codes, problem.coef, 4
    )
    for c in range(2):
        assert largest_angle(projector.components_[c], axes[c]) < 1e-5
    assert_allclose(projector.spectrum_, variances, rtol=1e-6)


@pytest.mark.parametrize("splitter", ["pca", "random"])
@pytest.mark.parametrize("svd_solver", SOLVERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_directions_are_orthonormal_and_orthogonal_to_the_head(
    splitter, svd_solver, dtype
):
    problem = make_problem(n_classes=3)
    projector = LELPProjector(
        n_subclasses=4,
        splitter=splitter,
        svd_solver=svd_solver,
        head=problem.head,
        random_state=0,
    ).fit(problem.X.astype(dtype), problem.codes)
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    for directions in np.asarray(projector.components_, dtype=np.float64):
        assert_allclose(directions @ directions.T, np.eye(4), atol=tolerance)
        assert_allclose(directions @ problem.coef.T, 0, atol=tolerance)


@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
@pytest.mark.parametrize("splitter", ["pca", "random", "kmeans"])
def test_a_head_without_full_rank_removes_only_its_row_space(splitter):
    problem = make_problem(n_classes=3, n_features=6)
    direction = problem.coef[0]
    coef = np.array([direction, 2 * direction, -direction])
    projector = fit(
        problem, n_subclasses=5, splitter=splitter, head=(coef, problem.intercept)
    )
    overlap = np.asarray(projector.components_) @ direction
    assert_allclose(overlap, 0, atol=1e-8)


def test_random_directions_differ_between_classes_and_fill_the_null_space():
    problem = make_problem(n_features=6)
    projector = fit(problem, n_subclasses=4, splitter="random")
    null_space = reference.null_space_projector(problem.coef)
    for directions in projector.components_:
        assert_allclose(directions.T @ directions, null_space, atol=1e-10)
    narrow = fit(problem, n_subclasses=2, splitter="random")
    assert largest_angle(*narrow.components_) > 1e-3


def test_random_directions_without_null_space_use_every_feature():
    problem = make_problem(n_features=4)
    projector = fit(problem, n_subclasses=4, splitter="random", null_space=False)
    for directions in projector.components_:
        assert_allclose(directions @ directions.T, np.eye(4), atol=1e-10)


def test_an_array_of_directions_is_used_as_given():
    problem = make_problem()
    directions = np.random.RandomState(0).normal(size=(2, 5, 12))
    projector = fit(problem, splitter=directions)
    _, means = reference.class_weights_and_means(problem.X, problem.codes, 2)
    assert_allclose(projector.components_, directions)
    assert_allclose(
        projector.offsets_, reference.centred_offsets(directions, means), rtol=1e-9
    )
    assert projector.n_subclasses_ == 5


@pytest.mark.parametrize("svd_solver", SOLVERS)
def test_weights_enter_mean_and_scatter(svd_solver):
    problem = make_problem()
    weight = integer_weights(len(problem.X)) + 0.25
    projector = fit(
        problem, n_subclasses=3, svd_solver=svd_solver, sample_weight=weight
    )
    variances, axes = reference.principal_directions(
        problem.X, problem.codes, problem.coef, 3, sample_weight=weight
    )
    _, means = reference.class_weights_and_means(
        problem.X, problem.codes, 2, sample_weight=weight
    )
    assert_allclose(projector.mean_, means, rtol=1e-9)
    assert_allclose(projector.spectrum_, variances, rtol=1e-6)
    for c in range(2):
        assert largest_angle(projector.components_[c], axes[c]) < 1e-6


@pytest.mark.parametrize("splitter", ["pca", "random", "kmeans", "array"])
def test_means_offsets_and_explained_variance(splitter):
    problem = make_problem(n_classes=3)
    if splitter == "array":
        splitter = np.random.RandomState(0).normal(size=(3, 4, 12))
    weight = integer_weights(len(problem.X)) + 0.5
    projector = fit(
        problem,
        n_subclasses=4,
        splitter=splitter,
        svd_solver="full",
        sample_weight=weight,
    )
    _, means = reference.class_weights_and_means(problem.X, problem.codes, 3, weight)
    expected = reference.direction_variances(
        problem.X, problem.codes, projector.components_, weight
    )
    spectrum, _ = reference.class_spectrum(
        problem.X, problem.codes, problem.coef, weight
    )
    totals = np.array([values.sum() for values in spectrum])
    offsets = reference.centred_offsets(projector.components_, means)
    if isinstance(splitter, str) and splitter == "kmeans":
        offsets = offsets + 0.5 * np.sum(projector.components_**2, axis=2)
    assert_allclose(projector.mean_, means, rtol=1e-9)
    assert_allclose(projector.offsets_, offsets, rtol=1e-8)
    assert_allclose(projector.explained_variance_, expected, rtol=1e-6)
    assert_allclose(
        projector.explained_variance_ratio_, expected / totals[:, None], rtol=1e-6
    )


@pytest.mark.parametrize("decay", [0.7, 0.97, 1.0])
@pytest.mark.parametrize("n_rows", [150, 900])
def test_randomized_solver_captures_what_the_exact_one_does(decay, n_rows):
    rng = np.random.RandomState(0)
    d = 120
    axes = ortho_group.rvs(d, random_state=rng)
    X = rng.normal(size=(n_rows, d)) * decay ** np.arange(d) @ axes
    codes = np.arange(n_rows) % 2
    problem = Problem(X, codes, rng.normal(size=(2, d)), np.zeros(2))
    projector = fit(problem, n_subclasses=8, svd_solver="randomized")
    exact, _ = reference.principal_directions(X, codes, problem.coef, 8)
    captured = reference.direction_variances(X, codes, projector.components_)
    ratio = captured.sum(axis=1) / exact.sum(axis=1)
    assert np.all(ratio > 0.999)
    assert np.all(ratio < 1 + 1e-9)


def test_solver_options_sharpen_the_randomized_solver():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(400, 150))
    problem = Problem(X, np.arange(400) % 2, rng.normal(size=(2, 150)), np.zeros(2))
    captured = [
        fit(
            problem,
            n_subclasses=5,
            svd_solver="randomized",
            n_oversamples=n_oversamples,
            iterated_power=iterated_power,
        ).explained_variance_.sum()
        for n_oversamples, iterated_power in [(0, 0), (20, 0), (20, 6)]
    ]
    assert captured[0] < captured[1] < captured[2]


def test_auto_solver_gives_the_principal_subspace():
    for n_features in (12, 60):
        problem = make_problem(n_features=n_features)
        projector = fit(problem, n_subclasses=3)
        _, axes = reference.principal_directions(
            problem.X, problem.codes, problem.coef, 3
        )
        for c in range(2):
            assert largest_angle(projector.components_[c], axes[c]) < 1e-5


def test_two_rows_and_a_sigmoid_row_differ_in_the_rank_they_remove():
    problem = make_problem()
    row = problem.coef[1:] - problem.coef[:1]
    bias = problem.intercept[1:] - problem.intercept[:1]
    sigmoid = fit(problem, n_subclasses=3, head=(row, bias), rotation=None)
    _, axes = reference.principal_directions(
        problem.X, problem.codes, reference.two_rows(row, bias)[0], 3
    )
    for c in range(2):
        assert largest_angle(sigmoid.components_[c], axes[c]) < 1e-6
    softmax = fit(problem, n_subclasses=3, rotation=None)
    assert largest_angle(sigmoid.components_[0], softmax.components_[0]) > 1e-3
    assert_array_equal(sigmoid.coef_, reference.two_rows(row, bias)[0])


def drifting_groups(rng, n_features):
    """Rows in several blocks that come in groups and drift; class, group and time."""
    n_rows = 12_000
    group = rng.randint(8, size=n_rows)
    time = np.linspace(-1, 1, n_rows)
    spread = 0.9 ** np.arange(n_features)
    X = rng.normal(size=(n_rows, n_features)) * spread
    X += 3 * rng.normal(size=(8, n_features))[group] * spread
    X += 2 * time[:, None] * rng.normal(size=n_features) * spread
    return X, {"class": group % 2, "cluster": group, "time": time}


@pytest.mark.parametrize("svd_solver", SOLVERS)
@pytest.mark.parametrize("key", ["class", "cluster", "time"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sorted_rows_capture_as_much(svd_solver, key, dtype):
    X, keys = drifting_groups(np.random.RandomState(0), 40)
    order = keys[key].argsort(kind="stable")
    X, codes = X[order].astype(dtype), keys["class"][order]
    head = np.random.RandomState(1).normal(size=(2, 40)), np.zeros(2)
    problem = Problem(X, codes, *head)
    projector = fit(problem, n_subclasses=5, svd_solver=svd_solver)
    variances, _ = reference.principal_directions(X, codes, head[0], 5)
    captured = reference.direction_variances(X, codes, projector.components_)
    assert_allclose(captured.sum(axis=1), variances.sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("svd_solver", SOLVERS)
def test_single_precision_does_not_lose_a_mean_far_away(svd_solver):
    X, keys = drifting_groups(np.random.RandomState(0), 40)
    X = (X + 1e4).astype(np.float32)
    head = np.random.RandomState(1).normal(size=(2, 40)), np.zeros(2)
    problem = Problem(X, keys["class"], *head)
    projector = fit(problem, n_subclasses=5, svd_solver=svd_solver)
    _, means = reference.class_weights_and_means(X, keys["class"], 2)
    assert_allclose(projector.mean_, means, rtol=0, atol=1e-4)
    variances, _ = reference.principal_directions(X, keys["class"], head[0], 5)
    captured = reference.direction_variances(X, keys["class"], projector.components_)
    assert_allclose(captured.sum(axis=1), variances.sum(axis=1), rtol=1e-4)
    assert_allclose(projector.spectrum_, variances, rtol=1e-3)
