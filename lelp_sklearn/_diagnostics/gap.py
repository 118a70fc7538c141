"""How clustered the rows of a class are, and what their clusters explain."""

import numpy as np
from scipy import linalg

from lelp_sklearn._subclasses.directions import to_null_space
from lelp_sklearn._subclasses.kmeans import cluster
from lelp_sklearn._typing import FloatArray, IntArray

_N_CLUSTERS = 20
# With fewer rows a cluster the inertia says little.
_ROWS_A_CLUSTER = 5
# Clusters are found in a few dimensions more than there are clusters.
_N_AXES = _N_CLUSTERS + 10


def principal_points(rows: FloatArray, row_space: FloatArray) -> FloatArray:
    """Coordinates (n, m) of rows (n, d) about their mean, along m principal axes.

    The axes are in the null space: orthogonal to `row_space` (d, r), an orthonormal
    basis of the head's rows.
    """
    inside = to_null_space((rows - rows.mean(axis=0)).T, row_space).T
    is_wide = inside.shape[0] < inside.shape[1]
    products = inside @ inside.T if is_wide else inside.T @ inside
    last = len(products) - 1
    values, vectors = linalg.eigh(
        products, subset_by_index=(max(0, last - _N_AXES + 1), last)
    )
    if is_wide:
        vectors = vectors * np.sqrt(np.maximum(values, 0))
    points: FloatArray = vectors if is_wide else inside @ vectors
    return points


def clusters_of(points: FloatArray) -> IntArray:
    """Cluster (n,) of each point (n, m), about the origin."""
    n_clusters = max(1, min(_N_CLUSTERS, len(points) // _ROWS_A_CLUSTER))
    weight = np.full(len(points), 1 / len(points))
    # Rows that differ by the rounding of single precision are one.
    rounding = float(np.finfo(np.float32).eps ** 2 * np.mean(points**2))
    return cluster(points, weight, n_clusters, rounding)


def gap_ratio(points: FloatArray, random_state: np.random.RandomState) -> float:
    """Inertia that clusters leave of a Gaussian, over that which they leave of points.

    Of a Gaussian of as many points (n, m) and of their variances along their principal
    axes. 1 where the points are Gaussian themselves, or do not vary.
    """
    deviations = np.sqrt(np.mean(points**2, axis=0))
    gaussian = random_state.normal(size=points.shape) * deviations
    left, left_of_gaussian = _share_left(points), _share_left(gaussian)
    if not deviations.any():
        return 1.0
    return left_of_gaussian / left if left > 0 else np.inf


def _share_left(points: FloatArray) -> float:
    """Share of the variance of points (n, m) that their clusters do not tell."""
    centred = points - points.mean(axis=0)
    clusters = clusters_of(centred)
    explained = sum(_explained_squares(clusters, axis) for axis in centred.T)
    return 1 - explained / max(float(np.sum(centred**2)), np.finfo(float).tiny)


def adjusted_r2(clusters: IntArray, values: FloatArray) -> float:
    r"""Adjusted share of the variance of values (n,) that their clusters (n,) tell.

    With the means of the clusters :math:`\bar v`, n rows and S clusters,

    .. math:: 1 - \frac{n - 1}{n - S} \cdot \frac{\sum_i (v_i - \bar v_{s(i)})^2}
              {\sum_i (v_i - \bar v)^2}

    which clusters at random leave at 0 on average. 0 where there is nothing to tell.
    """
    n_rows, n_clusters = len(values), len(np.unique(clusters))
    centred = values - values.mean()
    total = float(centred @ centred)
    if n_rows <= n_clusters or not total > 0:
        return 0.0
    explained = _explained_squares(clusters, centred) / total
    return 1 - (1 - explained) * (n_rows - 1) / (n_rows - n_clusters)


def _explained_squares(clusters: IntArray, centred: FloatArray) -> float:
    sizes, sums = np.bincount(clusters), np.bincount(clusters, centred)
    return float(np.sum(sums**2 / np.maximum(sizes, 1)))
