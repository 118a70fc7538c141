"""The rotation within a class's principal subspace."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import kstest

from lelp_sklearn import LELPProjector
from lelp_sklearn._subclasses.pca import draw_rotation
from tests import reference
from tests.problems import Problem, make_problem


def fit(problem, **params):
    params = {"splitter": "pca", "head": problem.head, "random_state": 0, **params}
    return LELPProjector(**params).fit(problem.X, problem.codes)


def rotations(projector, problem):
    """Q_c with components_ = Q_c V_c, V_c the reference's principal axes."""
    _, axes = reference.principal_directions(
        problem.X, problem.codes, problem.coef, projector.n_subclasses_
    )
    return np.einsum("csd,ctd->cst", projector.components_, axes)


@pytest.mark.parametrize("rotation", ["equal", "random", None])
@pytest.mark.parametrize("n_subclasses", [2, 5])
def test_rotation_is_orthonormal(rotation, n_subclasses):
    problem = make_problem(n_classes=3)
    projector = fit(problem, n_subclasses=n_subclasses, rotation=rotation)
    for q in rotations(projector, problem):
        assert_allclose(q @ q.T, np.eye(n_subclasses), atol=1e-6)


@pytest.mark.parametrize("n_subclasses", [2, 3, 8])
@pytest.mark.parametrize("decay", [0.3, 0.9])
@pytest.mark.parametrize(
    "svd_solver", ["auto", "full", "covariance_eigh", "randomized"]
)
def test_equal_rotation_gives_every_subclass_the_same_variance(
    n_subclasses, decay, svd_solver
):
    problem = make_problem(n_classes=2, decay=decay)
    projector = fit(problem, n_subclasses=n_subclasses, svd_solver=svd_solver)
    variances = reference.direction_variances(
        problem.X, problem.codes, projector.components_
    )
    spectrum, _ = reference.principal_directions(
        problem.X, problem.codes, problem.coef, n_subclasses
    )
    equal = spectrum.mean(axis=1, keepdims=True) * np.ones(n_subclasses)
    assert_allclose(variances, equal, rtol=1e-6)
    assert_allclose(projector.explained_variance_, equal, rtol=1e-6)
    assert_allclose(projector.spectrum_, spectrum, rtol=1e-6)


def test_equal_rotation_is_random_and_not_the_identity():
    problem = make_problem()
    first = rotations(fit(problem, n_subclasses=4, random_state=0), problem)
    second = rotations(fit(problem, n_subclasses=4, random_state=1), problem)
    assert np.abs(first - second).max() > 0.05
    assert np.abs(np.abs(first) - np.eye(4)).max() > 0.05


def test_equal_rotation_of_an_isotropic_class():
    rng = np.random.RandomState(0)
    half = np.linalg.qr(rng.normal(size=(40, 6)))[0]
    X = np.concatenate([half, -half, half, -half])
    codes = np.repeat([0, 1], 80)
    problem = Problem(X, codes, np.eye(6)[:2], np.zeros(2))
    projector = fit(problem, n_subclasses=4)
    assert_allclose(projector.explained_variance_, 1 / 40, rtol=1e-6)


def test_random_rotation_is_haar():
    problem = make_problem(n_rows=60, n_features=6)
    entries = [
        rotations(
            fit(problem, n_subclasses=3, rotation="random", random_state=seed), problem
        )[:, 0, 0]
        for seed in range(60)
    ]
    # On the sphere in three dimensions a coordinate is uniform on [-1, 1].
    assert kstest(np.ravel(entries), "uniform", args=(-1, 2)).pvalue > 0.01


@pytest.mark.parametrize("splitter", ["random", "kmeans"])
def test_rotation_is_ignored_by_the_other_splitters(splitter):
    problem = make_problem()
    options = {"n_subclasses": 3, "splitter": splitter}
    rotated = fit(problem, rotation="equal", **options)
    plain = fit(problem, rotation=None, **options)
    assert_allclose(rotated.components_, plain.components_)


@pytest.mark.parametrize("seed", [4, 15])
def test_rounding_of_many_variances_does_not_matter(seed):
    n = 300
    spectrum = 1 / np.arange(1, n + 1) ** np.random.RandomState(seed).uniform(0.5, 3)
    # Scaled to sum to n, they do so to no better than this.
    assert abs(np.sum(spectrum * (n / spectrum.sum())) - n) > 1e-13
    turn = draw_rotation("equal", spectrum, np.random.RandomState(0))
    assert_allclose(turn**2 @ spectrum, spectrum.mean(), rtol=1e-9)
