"""Why subclasses help, or not: can they be learned, and do they say anything new?"""

import numpy as np
from scipy import linalg
from sklearn.metrics import adjusted_mutual_info_score

from lelp_sklearn._subclasses.kmeans import cluster
from lelp_sklearn._subclasses.moments import row_space_basis, to_null_space
from lelp_sklearn._threads import one_blas_thread
from lelp_sklearn._typing import FloatArray, IntArray

_N_CLUSTERS = 20
# With fewer rows a cluster says little.
_ROWS_A_CLUSTER = 5
# Clusters are found in a few dimensions more than there are clusters.
_N_AXES = _N_CLUSTERS + 10


def agreement_in_classes(
    class_index: IntArray, subclass: IntArray, predicted: IntArray
) -> float:
    """Return the adjusted mutual information in a class, on the mean of the rows."""
    present, sizes = np.unique(class_index, return_counts=True)
    scores = [
        adjusted_mutual_info_score(
            subclass[class_index == c], predicted[class_index == c]
        )
        for c in present
    ]
    return float(np.average(scores, weights=sizes))


def mean_margin_r2(
    embeddings: FloatArray, logits: FloatArray, coef: FloatArray, class_index: IntArray
) -> float:
    """Return how well clusters in the null space explain the margin, over classes."""
    row_space, shares = row_space_basis(coef), []
    for c in range(logits.shape[1]):
        in_class = class_index == c
        points = principal_points(embeddings[in_class].astype(np.float64), row_space)
        of_class = logits[in_class].astype(np.float64)
        margin = of_class[:, c] - np.delete(of_class, c, axis=1).max(axis=1)
        shares.append(adjusted_r2(clusters_of(points), margin))
    return float(np.mean(shares))


def principal_points(rows: FloatArray, row_space: FloatArray) -> FloatArray:
    """Return coordinates (n, m) of rows (n, d) along principal axes in the null space.

    `row_space` (d, r) is an orthonormal basis of the head's rows.
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
    """Return the cluster (n,) of each point (n, m), about the origin."""
    n_clusters = max(1, min(_N_CLUSTERS, len(points) // _ROWS_A_CLUSTER))
    weight = np.full(len(points), 1 / len(points))
    # Rows that differ by the rounding of single precision are one.
    rounding = float(np.finfo(np.float32).eps ** 2 * np.mean(points**2))
    with one_blas_thread:
        return cluster(points, weight, n_clusters, rounding)


def adjusted_r2(clusters: IntArray, values: FloatArray) -> float:
    """Return the adjusted R² of values (n,) by their clusters (n,), 0 for constants."""
    n_rows, n_clusters = len(values), len(np.unique(clusters))
    centred = values - values.mean()
    total = float(centred @ centred)
    if n_rows <= n_clusters or not total > 0:
        return 0.0
    sizes, sums = np.bincount(clusters), np.bincount(clusters, centred)
    explained = float(np.sum(sums**2 / np.maximum(sizes, 1))) / total
    return 1 - (1 - explained) * (n_rows - 1) / (n_rows - n_clusters)
