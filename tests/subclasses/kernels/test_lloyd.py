"""Kernels of k-means in memory, compiled and plain, against formulas."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans

from lelp_sklearn._subclasses.kernels import class_sums, fallback

compiled_and_plain = pytest.mark.parametrize(
    "module", [class_sums, fallback], ids=["compiled", "plain"]
)


def points_and_weights(n_points, n_axes):
    rng = np.random.RandomState(0)
    return rng.normal(size=(n_points, n_axes)), rng.uniform(0.1, 2, size=n_points)


def run_lloyd(module, points, weight, centroids, max_iterations=100, goal=np.inf):
    centroids, labels = centroids.copy(), np.empty(len(points), np.int32)
    tiles = class_sums.point_tiles(points)
    module.lloyd(tiles, weight, centroids, labels, 0.0, max_iterations, goal)
    return centroids, labels


# Points up to a tile and past it, clusters up to a number that is multiplied at once.
@compiled_and_plain
@pytest.mark.parametrize(
    ("n_points", "n_axes", "n_clusters"),
    [(5, 1, 2), (192, 3, 4), (1000, 12, 7), (700, 5, 1)],
)
def test_lloyd_ends_where_that_of_scikit_learn_does(
    n_points, n_axes, n_clusters, module
):
    points, weight = points_and_weights(n_points, n_axes)
    start = points[:n_clusters]
    centroids, labels = run_lloyd(module, points, weight, start, 1000)
    model = KMeans(n_clusters, init=start, n_init=1, max_iter=1000, tol=0)
    model.fit(points, sample_weight=weight)
    assert_array_equal(labels, model.labels_)
    assert_allclose(centroids, model.cluster_centers_, rtol=1e-10, atol=1e-12)


@compiled_and_plain
def test_points_without_axes_are_one_cluster(module):
    points, weight = points_and_weights(200, 0)
    _, labels = run_lloyd(module, points, weight, points[:1])
    assert_array_equal(labels, 0)


@compiled_and_plain
def test_a_centroid_without_points_stays(module):
    points, weight = points_and_weights(100, 3)
    start = np.vstack([points[:2], np.full((1, 3), 50.0)])
    centroids, labels = run_lloyd(module, points, weight, start)
    assert_array_equal(centroids[2], start[2])
    assert set(labels) == {0, 1}


@compiled_and_plain
def test_lloyd_gives_up_a_goal_that_is_far(module):
    points, weight = points_and_weights(1000, 12)
    start = points[:7]
    given_up, labels = run_lloyd(module, points, weight, start, goal=0.0)
    second, expected = run_lloyd(module, points, weight, start, max_iterations=2)
    assert_array_equal(labels, expected)
    assert_allclose(given_up, second, rtol=1e-12)


@compiled_and_plain
def test_measure(module):
    points, weight = points_and_weights(500, 4)
    labels = np.random.RandomState(1).randint(3, size=500).astype(np.int32)
    means = np.array(
        [np.average(points[labels == k], 0, weight[labels == k]) for k in range(3)]
    )
    # The last one has no points; the others are moved to their means.
    centroids = np.vstack([means + 1e-6, np.ones((1, 4))])
    squares = np.sum((points - means[labels]) ** 2, axis=1)
    rounding = float(np.median(squares))
    sizes, inertias, farthest = module.measure(
        points, weight, centroids, labels, rounding
    )
    assert_allclose(centroids, np.vstack([means, np.ones((1, 4))]), rtol=1e-12)
    counted = weight * np.where(squares > rounding, squares, 0)
    assert_allclose(sizes, np.bincount(labels, weight, 4), rtol=1e-12)
    assert_allclose(inertias, np.bincount(labels, counted, 4), rtol=1e-12)
    for k in range(3):
        assert farthest[k] == np.where(labels == k, squares, -1).argmax()
    assert farthest[3] == -1
