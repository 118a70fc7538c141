"""Weighted k-means of points in memory, from a start that draws nothing.

The points are divided along principal directions, so that row order and the splitting
of a row's weight over copies change nothing but rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from lelp_sklearn._typing import FloatArray, IntArray

# An improvement of the inertia below this share ends the search for a better one.
TOLERANCE = 1e-4
MAX_ITERATIONS = 100
# Of all ways to dissolve one cluster and divide another, so many are tried in a round.
_MAX_EXCHANGES = 10


def cluster(
    points: FloatArray,
    weight: FloatArray,
    n_clusters: int,
    rounding: float,
    start: FloatArray | None = None,
) -> FloatArray:
    """At most `n_clusters` centroids (k, m) of points (n, m), not far from the origin.

    Points whose squared distance is at most `rounding` are one. `start` are centroids
    of a sample of the points: few changes are worth a trial then.

    Lloyd's iterations find the nearest local optimum; from there the most promising
    changes (one cluster is dissolved and another becomes two, or two are divided anew)
    are tried, and the first that lowers the inertia is the start of a further round.
    Fewer clusters than asked for mean that there are no more distinct points.
    """
    # A power of two: nothing is rounded, and squares are neither too large nor small.
    unit = 2.0 ** np.frexp(np.abs(points).max(initial=0))[1]
    cloud = _Cloud.of(points / unit, weight / weight.sum(), rounding / unit**2)
    found = _start(cloud, None if start is None else start / unit, n_clusters)
    for _ in range(n_clusters):
        inertia = found.inertias.sum()
        changes = [_exchanges(cloud, found, np.inf if start is None else 0.0)]
        if start is None:
            changes.append(_divisions_anew(cloud, found))
        for changed in chain(*changes):
            other = _settle(cloud, changed, inertia * (1 - TOLERANCE))
            gain = inertia - other.inertias.sum()
            if len(other.sizes) == len(found.sizes) and gain > TOLERANCE * inertia:
                found = other
                break
        else:
            break
    centroids: FloatArray = found.centroids * unit
    return centroids


def assign(points: FloatArray, centroids: FloatArray) -> IntArray:
    """Nearest centroid (k, m) of each point (n, m)."""
    half_squares = np.einsum("km,km->k", centroids, centroids) / 2
    labels: IntArray = np.argmax(points @ centroids.T - half_squares, axis=1)
    return labels


def membership(labels: IntArray, weight: FloatArray, n: int) -> FloatArray:
    """Weights as a matrix (n clusters, rows): times the rows, their sums."""
    # Dense: sparse matrices take longer to build than these to multiply.
    return np.where(labels == np.arange(n)[:, None], weight, 0.0)


@dataclass(frozen=True)
class _Cloud:
    """Points (n, m), as they are and in the tiles that kernels read; weights (n,)."""

    points: FloatArray
    tiles: FloatArray
    weight: FloatArray
    rounding: float

    @classmethod
    def of(cls, points: FloatArray, weight: FloatArray, rounding: float) -> "_Cloud":
        # Imported at the first call: numba would slow the import of the package.
        from lelp_sklearn._subclasses.kernels import cluster_sums

        points = np.ascontiguousarray(points, dtype=np.float64)
        return cls(points, cluster_sums.tiles(points), weight, rounding)

    def mean(self) -> FloatArray:
        mean: FloatArray = self.weight @ self.points / self.weight.sum()
        return mean


@dataclass(frozen=True)
class _Clusters:
    """Centroids (k, m), labels (n,) of the points of which these are the means.

    `inertias` and `sizes` (k,) are sums over the points of a cluster, of weights and of
    weights times squared distances; `farthest` (k,) is its point farthest from the
    centroid.
    """

    centroids: FloatArray
    labels: NDArray[np.int32]
    sizes: FloatArray
    inertias: FloatArray
    farthest: IntArray

    def divided(self, k: int, index: IntArray, halves: "_Clusters") -> "_Clusters":
        """Put two halves in place of cluster k, whose points are `index`."""
        labels = self.labels.copy()
        labels[index[halves.labels == 1]] = len(self.sizes)
        joined = (
            np.concatenate([mine[:k], theirs[:1], mine[k + 1 :], theirs[1:]])
            for mine, theirs in (
                (self.centroids, halves.centroids),
                (self.sizes, halves.sizes),
                (self.inertias, halves.inertias),
                (self.farthest, index[halves.farthest]),
            )
        )
        centroids, sizes, inertias, farthest = joined
        return _Clusters(centroids, labels, sizes, inertias, farthest)


def _settle(cloud: _Cloud, centroids: FloatArray, goal: float = np.inf) -> _Clusters:
    """Lloyd's iterations; centroids that no point is nearest to vanish."""
    from lelp_sklearn._subclasses.kernels import cluster_sums

    centroids = centroids.copy()
    n_clusters = len(centroids)
    labels = np.empty(len(cloud.points), np.int32)
    farthest = np.full(n_clusters, -1, dtype=np.intp)
    sizes, inertias = np.zeros(n_clusters), np.zeros(n_clusters)
    cluster_sums.lloyd(
        cloud.tiles, cloud.weight, centroids, labels, TOLERANCE, MAX_ITERATIONS, goal
    )
    cluster_sums.measure(
        cloud.points,
        cloud.weight,
        centroids,
        labels,
        cloud.rounding,
        sizes,
        inertias,
        farthest,
    )
    used = farthest >= 0
    if not used.all():
        return _settle(cloud, centroids[used])
    return _Clusters(centroids, labels, sizes, inertias, farthest)


def _start(cloud: _Cloud, centroids: FloatArray | None, n_clusters: int) -> _Clusters:
    """Divide the cluster of largest inertia, again and again; then settle."""
    found = _settle(cloud, cloud.mean()[None] if centroids is None else centroids)
    # Again where clusters have lost all their points.
    for _ in range(n_clusters):
        while len(found.sizes) < n_clusters and found.inertias.any():
            widest = int(found.inertias.argmax())
            index = np.flatnonzero(found.labels == widest)
            halves = _halves(cloud, index)
            if len(halves.sizes) < 2:
                return _settle(cloud, found.centroids)
            found = found.divided(widest, index, halves)
        found = _settle(cloud, found.centroids)
        if len(found.sizes) == n_clusters or not found.inertias.any():
            break
    return found


def _halves(cloud: _Cloud, index: IntArray) -> _Clusters:
    """Divide some of the points in two.

    Either across their first principal direction or into the farthest point and the
    rest, and settled: the better of both. With heavy tails it is often the second.
    """
    part = _Cloud.of(cloud.points[index], cloud.weight[index], cloud.rounding)
    mean = part.mean()
    centred = part.points - mean
    scatter = centred.T @ (part.weight[:, None] * centred)
    last = len(scatter) - 1
    _, vector = linalg.eigh(scatter, subset_by_index=(last, last))
    above = centred @ vector[:, 0] > 0
    shift = part.weight[above] @ centred[above]
    sizes = np.array([part.weight[~above].sum(), part.weight[above].sum()])
    apart = mean + np.outer([-1, 1], shift) / np.maximum(sizes, 1e-300)[:, None]
    far = np.einsum("nm,nm->n", centred, centred).argmax()
    starts = apart, np.stack([mean, part.points[far]])
    tried = [_settle(part, start) for start in starts]
    return min(tried, key=lambda clusters: float(clusters.inertias.sum()))


def _exchanges(cloud: _Cloud, found: _Clusters, most: float) -> Iterator[FloatArray]:
    """Give centroids where one cluster is dissolved and another divided, best first.

    Only where the inertia before anything is settled grows by less than `most`.
    """
    n_clusters = len(found.sizes)
    if n_clusters < 3:
        return
    halves = [
        _halves(cloud, np.flatnonzero(found.labels == k)) for k in range(n_clusters)
    ]
    gains = found.inertias - [each.inertias.sum() for each in halves]
    costs, moved = _dissolutions(cloud, found)
    balance = costs[:, None] - gains
    np.fill_diagonal(balance, np.inf)
    for place in np.argsort(balance, axis=None, kind="stable")[:_MAX_EXCHANGES]:
        gone, divided = np.unravel_index(place, balance.shape)
        if len(halves[divided].sizes) == 2 and balance[gone, divided] < most:
            exchanged = moved[gone].copy()
            exchanged[[divided, gone]] = halves[divided].centroids
            yield exchanged


def _dissolutions(cloud: _Cloud, found: _Clusters) -> tuple[FloatArray, FloatArray]:
    """What it costs to hand the points of a cluster to the next nearest ones.

    Returns
    -------
    costs (k,), centroids afterwards (k, k, m)
    """
    n_clusters, n_axes = found.centroids.shape
    sums = np.zeros((n_clusters, n_clusters, n_axes))
    sizes = np.zeros((n_clusters, n_clusters))
    for k in range(n_clusters):
        mine = np.flatnonzero(found.labels == k)
        others = np.flatnonzero(np.arange(n_clusters) != k)
        points, weight = cloud.points[mine], cloud.weight[mine]
        nearest = assign(points, found.centroids[others])
        members = membership(nearest, weight, len(others))
        sums[k, others], sizes[k, others] = members @ points, members.sum(axis=1)
    parts = sums / np.maximum(sizes, np.finfo(np.float64).tiny)[:, :, None]
    before = np.sum((parts - found.centroids[:, None]) ** 2, axis=2)
    after = np.sum((parts - found.centroids) ** 2, axis=2)
    joint = sizes + found.sizes
    costs = np.sum(sizes * (found.sizes / joint * after - before), axis=1)
    moved = (found.sizes[:, None] * found.centroids + sums) / joint[:, :, None]
    return costs, moved


def _divisions_anew(cloud: _Cloud, found: _Clusters) -> Iterator[FloatArray]:
    """Give centroids where two clusters, made one, are divided better than before."""
    costs = _merger_costs(found)
    pairs = np.column_stack(np.triu_indices(len(costs), 1))
    nearest = np.argsort(costs[tuple(pairs.T)], kind="stable")[: len(costs)]
    inertia = found.inertias.sum()
    for pair in pairs[nearest]:
        index = np.flatnonzero(np.isin(found.labels, pair))
        halves = _halves(cloud, index)
        gain = found.inertias[pair].sum() - halves.inertias.sum()
        if gain > TOLERANCE * inertia:
            divided = found.centroids.copy()
            divided[pair] = halves.centroids
            yield divided


def _merger_costs(found: _Clusters) -> FloatArray:
    """Inertia (k, k) that it would cost to make one cluster of two (Ward)."""
    means, sizes = found.centroids, found.sizes
    apart = np.sum((means[:, None] - means) ** 2, axis=2)
    costs: FloatArray = apart * sizes[:, None] * sizes / (sizes[:, None] + sizes)
    return costs
