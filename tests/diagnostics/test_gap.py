"""How clustered rows are, beside scikit-learn's clusters and regression."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from lelp_sklearn._diagnostics import gap
from lelp_sklearn._subclasses.directions import row_space_basis
from tests.reference import null_space_rows


def gaussian(n_rows=1500, d=12, seed=0):
    rng = np.random.RandomState(seed)
    return rng.normal(size=(n_rows, d)) * np.geomspace(3, 0.3, d)


def points_of(X):
    return gap.principal_points(X, np.zeros((X.shape[1], 0)))


@pytest.mark.parametrize("n_rows", [25, 400], ids=["wide", "tall"])
def test_points_are_the_principal_coordinates_in_the_null_space(n_rows):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(n_rows, 60)) * np.geomspace(9, 1, 60)
    coef = rng.normal(size=(1, 60))
    found = gap.principal_points(X, row_space_basis(coef))
    inside = null_space_rows(X, np.zeros(n_rows, int), coef)
    expected = PCA(svd_solver="full").fit_transform(inside)[:, : found.shape[1]]
    assert found.shape[1] == min(n_rows, 30)
    found = found[:, np.argsort(-found.var(axis=0))]
    assert_allclose(np.abs(found), np.abs(expected), atol=1e-6)


def test_a_gaussian_is_as_clustered_as_a_gaussian():
    ratio = gap.gap_ratio(points_of(gaussian()), np.random.RandomState(1))
    assert ratio == pytest.approx(1, abs=0.05)


def test_the_ratio_is_that_of_scikit_learns_inertias():
    X, _ = make_blobs(1000, 10, centers=20, cluster_std=2.0, random_state=0)
    rng = np.random.RandomState(0)
    like = rng.multivariate_normal(X.mean(axis=0), np.cov(X.T, bias=True), size=1000)
    left = [
        KMeans(20, n_init=10, random_state=0).fit(rows).inertia_
        / rows.var(axis=0).sum()
        for rows in (like, X)
    ]
    found = gap.gap_ratio(points_of(X), rng)
    assert found > 2
    assert found == pytest.approx(left[0] / left[1], rel=0.05)


def test_rows_that_are_all_alike_have_no_structure():
    points = points_of(np.ones((50, 4)))
    assert gap.gap_ratio(points, np.random.RandomState(0)) == 1


def test_the_share_told_is_the_adjusted_r_squared_of_a_regression():
    rng = np.random.RandomState(0)
    clusters = rng.randint(5, size=200)
    values = clusters**2 + rng.normal(size=200) * 4
    indicators = (clusters[:, None] == np.arange(1, 5)).astype(float)
    r2 = LinearRegression().fit(indicators, values).score(indicators, values)
    adjusted = 1 - (1 - r2) * 199 / 195
    assert gap.adjusted_r2(clusters, values) == pytest.approx(adjusted)


def test_clusters_at_random_tell_nothing_on_average():
    rng = np.random.RandomState(0)
    shares = [
        gap.adjusted_r2(rng.randint(10, size=60), rng.normal(size=60))
        for _ in range(400)
    ]
    assert np.mean(shares) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("clusters", "values"),
    [([0, 0, 1, 1], [2.0, 2, 2, 2]), ([0, 1, 2, 3], [1.0, 2, 3, 4])],
    ids=["constant", "a cluster a row"],
)
def test_where_there_is_nothing_to_tell_the_share_is_zero(clusters, values):
    assert gap.adjusted_r2(np.array(clusters), np.array(values)) == 0
