"""Lloyd's iterations of k-means in memory, against scikit-learn's."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans

from lelp_sklearn._subclasses import kmeans


def points_and_weights(n_points, n_axes):
    rng = np.random.RandomState(0)
    return rng.normal(size=(n_points, n_axes)), rng.uniform(0.1, 2, size=n_points)


@pytest.mark.parametrize(
    ("n_points", "n_axes", "n_clusters"),
    [(5, 1, 2), (192, 3, 4), (1000, 12, 7), (700, 5, 1)],
)
def test_lloyd_ends_where_that_of_scikit_learn_does(
    n_points, n_axes, n_clusters, monkeypatch
):
    monkeypatch.setattr(kmeans, "_TOLERANCE", 0.0)
    points, weight = points_and_weights(n_points, n_axes)
    start = points[:n_clusters]
    centroids, labels = kmeans.lloyd(points, weight, start)
    model = KMeans(n_clusters, init=start, n_init=1, max_iter=1000, tol=0)
    model.fit(points, sample_weight=weight)
    assert_array_equal(labels, model.labels_)
    assert_allclose(centroids, model.cluster_centers_, rtol=1e-10, atol=1e-12)


def test_points_without_axes_are_one_cluster():
    points, weight = points_and_weights(200, 0)
    _, labels = kmeans.lloyd(points, weight, points[:1])
    assert_array_equal(labels, 0)


def test_a_centroid_without_points_stays():
    points, weight = points_and_weights(100, 3)
    start = np.vstack([points[:2], np.full((1, 3), 50.0)])
    centroids, labels = kmeans.lloyd(points, weight, start)
    assert_array_equal(centroids[2], start[2])
    assert set(labels) == {0, 1}


def test_lloyd_gives_up_a_goal_that_is_far(monkeypatch):
    points, weight = points_and_weights(1000, 12)
    start = points[:7]
    given_up, labels = kmeans.lloyd(points, weight, start, goal=0.0)
    monkeypatch.setattr(kmeans, "_MAX_ITERATIONS", 2)
    second, expected = kmeans.lloyd(points, weight, start)
    assert_array_equal(labels, expected)
    assert_allclose(given_up, second, rtol=1e-12)
