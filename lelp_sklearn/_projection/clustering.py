"""Weighted k-means of points in memory, from a start that draws nothing.

The points are divided along principal directions, so that row order and the splitting
of a row's weight over copies change nothing but rounding.
"""

from collections.abc import Iterator

import numpy as np
from scipy import linalg

from lelp_sklearn._common.typing import FloatArray, IntArray

# An improvement of the inertia below this share ends the search for a better one.
TOLERANCE = 1e-4
MAX_ITERATIONS = 100
# Of all ways to dissolve one cluster and divide another, so many are tried in a round.
_MAX_EXCHANGES = 5


def cluster(
    points: FloatArray, weight: FloatArray, n_clusters: int, rounding: float
) -> IntArray:
    """Labels (n,) of at most `n_clusters` clusters of points (n, m).

    Points whose squared distance is at most `rounding` are one.

    Lloyd's iterations find the nearest local optimum; from there the most promising
    exchanges (two clusters become one, another becomes two) are tried, and the first
    that lowers the inertia is the start of a further round. Fewer clusters than asked
    for mean that there are no more distinct points.
    """
    labels = _divide_all(points, weight, n_clusters, rounding)
    labels = _lloyd(points, weight, labels)
    inertia = _inertias(points, weight, labels).sum()
    for _ in range(n_clusters):
        for exchanged in _exchanges(points, weight, labels):
            other = _lloyd(points, weight, exchanged)
            lower = _inertias(points, weight, other).sum()
            if other.max() == labels.max() and inertia - lower > TOLERANCE * inertia:
                labels, inertia = other, lower
                break
        else:
            break
    return labels


def assign(points: FloatArray, centroids: FloatArray) -> IntArray:
    """Nearest centroid (k, m) of each point (n, m)."""
    half_squares = np.einsum("km,km->k", centroids, centroids) / 2
    labels: IntArray = np.argmax(points @ centroids.T - half_squares, axis=1)
    return labels


def membership(labels: IntArray, weight: FloatArray, n: int) -> FloatArray:
    """Weights as a matrix (n clusters, rows): times the rows, their sums."""
    # Dense: sparse matrices take longer to build than these to multiply.
    return np.where(labels == np.arange(n)[:, None], weight, 0.0)


def cluster_means(
    points: FloatArray, weight: FloatArray, labels: IntArray
) -> FloatArray:
    """Weighted mean (k, m) of each cluster; zeros for a label that no point has."""
    members = membership(labels, weight, int(labels.max()) + 1)
    held = np.maximum(members.sum(axis=1), np.finfo(np.float64).tiny)
    means: FloatArray = (members @ points) / held[:, None]
    return means


def _inertias(
    points: FloatArray, weight: FloatArray, labels: IntArray, rounding: float = 0.0
) -> FloatArray:
    """Inertia of each cluster, without what may be rounding."""
    means = cluster_means(points, weight, labels)
    offsets = points - means[labels]
    squares = np.einsum("nm,nm->n", offsets, offsets)
    squares[squares <= rounding] = 0
    inertias = np.bincount(labels, weight * squares, len(means)).astype(np.float64)
    return inertias


def _lloyd(points: FloatArray, weight: FloatArray, labels: IntArray) -> IntArray:
    """Move points to their nearest mean until none moves; empty clusters vanish."""
    labels = _without_empty(labels)
    for _ in range(MAX_ITERATIONS):
        nearest = assign(points, cluster_means(points, weight, labels))
        nearest = _without_empty(nearest)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
    return labels


def _without_empty(labels: IntArray) -> IntArray:
    """Number anew the clusters that have points."""
    used = np.bincount(labels) > 0
    return labels if used.all() else (np.cumsum(used) - 1)[labels]


def _divide_all(
    points: FloatArray, weight: FloatArray, n_clusters: int, rounding: float
) -> IntArray:
    """Divide the cluster of largest inertia, again and again."""
    labels = np.zeros(len(points), dtype=np.intp)
    for new in range(1, n_clusters):
        inertia = _inertias(points, weight, labels, rounding)
        widest = int(inertia.argmax())
        if not inertia[widest]:
            break
        mine = np.flatnonzero(labels == widest)
        labels[mine[_halves(points[mine], weight[mine]) == 1]] = new
    return labels


def _halves(points: FloatArray, weight: FloatArray) -> IntArray:
    """Divide in two at the mean, across the first principal direction; then settle."""
    centred = points - weight @ points / weight.sum()
    scatter = centred.T @ (weight[:, None] * centred)
    last = len(scatter) - 1
    _, vector = linalg.eigh(scatter, subset_by_index=(last, last))
    side = (centred @ vector[:, 0] > 0).astype(np.intp)
    return _lloyd(centred, weight, side)


def _exchanges(
    points: FloatArray, weight: FloatArray, labels: IntArray
) -> Iterator[IntArray]:
    """Give labels in which two clusters are one and a third is two, the best first."""
    if labels.max() < 2:
        return
    gains, halves = _division_gains(points, weight, labels)
    pairs = np.column_stack(np.triu_indices(len(gains), 1))
    # Of the three best divisions one at least leaves both clusters of a pair alone.
    best = np.argsort(-gains, kind="stable")[:3]
    apart = np.all(best[:, None, None] != pairs, axis=2)
    divided = best[apart.argmax(axis=0)]
    balance = _merger_costs(points, weight, labels)[tuple(pairs.T)] - gains[divided]
    for place in np.argsort(balance, kind="stable")[:_MAX_EXCHANGES]:
        kept, gone = pairs[place]
        mine = np.flatnonzero(labels == divided[place])
        exchanged = np.where(labels == gone, kept, labels)
        exchanged[mine[halves[divided[place]] == 1]] = gone
        yield exchanged


def _division_gains(
    points: FloatArray, weight: FloatArray, labels: IntArray
) -> tuple[FloatArray, list[IntArray]]:
    """How much of the inertia each cluster would lose if divided, and how it would."""
    before = _inertias(points, weight, labels)
    gains, halves = np.zeros_like(before), []
    for k, inertia in enumerate(before):
        mine = labels == k
        halves.append(_halves(points[mine], weight[mine]))
        gains[k] = inertia - _inertias(points[mine], weight[mine], halves[k]).sum()
    return gains, halves


def _merger_costs(
    points: FloatArray, weight: FloatArray, labels: IntArray
) -> FloatArray:
    """Inertia (k, k) that it would cost to make one cluster of two (Ward)."""
    means = cluster_means(points, weight, labels)
    sizes = np.bincount(labels, weights=weight)
    apart = np.sum((means[:, None] - means) ** 2, axis=2)
    costs: FloatArray = apart * sizes[:, None] * sizes / (sizes[:, None] + sizes)
    return costs
