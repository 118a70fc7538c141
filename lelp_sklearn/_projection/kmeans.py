"""Weighted k-means of each class in the head's null space, from a fixed start.

The start does not draw: a class is divided along principal directions, so row order
and the splitting of a row's weight over copies change nothing but rounding.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from lelp_sklearn._common.typing import FloatArray, IntArray
from lelp_sklearn._projection.blocks import Rows, class_blocks
from lelp_sklearn._projection.directions import Directions, to_null_space
from lelp_sklearn._projection.statistics import Covariance

# Iterations stop when a pass over the rows adds less than this share to the variation
# that the centroids explain.
_TOLERANCE = 1e-4
_MAX_ITERATIONS = 100


def class_centroids(
    X: Rows,
    codes: IntArray,
    sample_weight: FloatArray,
    covariance: Covariance,
    rows: FloatArray,
    directions: list[Directions],
    n_clusters: int,
) -> list[FloatArray]:
    """Centroids (k_c, d) of each class, relative to its mean and in the null space.

    Clusters are found in the coordinates of `directions`, where an iteration costs
    little, and then moved to rest in the whole space, a pass over the rows at a time.
    k_c is less than `n_clusters` where a class has fewer distinct rows.
    """
    vectors = [found.vectors for found in directions]
    points, weights = _coordinates(X, codes, sample_weight, covariance.mean, vectors)
    centroids: list[FloatArray] = []
    for basis, mine, weight in zip(vectors, points, weights, strict=True):
        labels = cluster(mine, weight, n_clusters)
        means = _means(mine, weight, labels, labels.max() + 1)
        # In the order of the first principal direction: the order in which clusters
        # came about hangs on rounding.
        if basis.size:
            means = means[means[:, 0].argsort()]
        centroids.append(means @ basis.T)
    data = X, codes, sample_weight
    return _settle(data, covariance, rows, centroids)


@dataclass
class RunningCentroids:
    """Centroids of a stream: the running mean of all rows assigned so far.

    Kept in the coordinates of the embeddings, since the class means and an estimated
    head, and with it the null space, move from block to block.
    """

    points: list[FloatArray]
    weights: list[FloatArray]

    @classmethod
    def start(cls, centroids: list[FloatArray], mean: FloatArray) -> "RunningCentroids":
        """Begin at centroids (S, d) relative to the class means, without weight."""
        points = [each + m for each, m in zip(centroids, mean, strict=True)]
        return cls(points, [np.zeros(len(each)) for each in centroids])

    def relative(self, mean: FloatArray, rows: FloatArray) -> list[FloatArray]:
        """Centroids (S, d) relative to the class means, in the null space."""
        return [
            to_null_space((points - m).T, rows).T
            for points, m in zip(self.points, mean, strict=True)
        ]

    def add(
        self,
        data: tuple[Rows, IntArray, FloatArray],
        mean: FloatArray,
        rows: FloatArray,
    ) -> None:
        """Assign a block of the stream to the centroids as they are, and move them."""
        centroids = self.relative(mean, rows)
        for code, block, weight, _ in class_blocks(*data, len(centroids)):
            labels = assign(block - mean[code], centroids[code])
            members = _members(labels, weight, len(centroids[code]))
            gained = members.sum(axis=1)
            points, total = self.points[code], self.weights[code]
            total += gained
            held = np.maximum(total, np.finfo(np.float64).tiny)[:, None]
            points += (members @ block - gained[:, None] * points) / held


def assign(points: FloatArray, centroids: FloatArray) -> IntArray:
    """Nearest centroid (k, m) of each point (n, m)."""
    half_squares = np.einsum("km,km->k", centroids, centroids) / 2
    labels: IntArray = np.argmax(points @ centroids.T - half_squares, axis=1)
    return labels


def cluster(points: FloatArray, weight: FloatArray, n_clusters: int) -> IntArray:
    """Labels (n,) of at most `n_clusters` clusters of points (n, m).

    Divides the cluster of largest inertia until there are enough, lets all settle, then
    improves: as long as it lowers the inertia, the cheapest cluster to do without is
    dissolved and the one that gains most is divided.
    """
    labels = np.zeros(len(points), dtype=np.intp)
    smallest = _rounding(points, weight)
    for new in range(1, n_clusters):
        inertia = _inertias(points, weight, labels, new)
        widest = int(inertia.argmax())
        if inertia[widest] <= smallest:
            break
        labels = _divide(points, weight, labels, widest, new)
    labels = _lloyd(points, weight, labels)
    for _ in range(int(labels.max()) - 1):
        other = _lloyd(points, weight, _exchange(points, weight, labels))
        gain = _total(points, weight, labels) - _total(points, weight, other)
        if gain <= smallest:
            break
        labels = other
    return labels


def _coordinates(
    X: Rows,
    codes: IntArray,
    sample_weight: FloatArray,
    mean: FloatArray,
    vectors: list[FloatArray],
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Coordinates (n_c, m) of each class's rows along its directions; their weights."""
    points: list[list[FloatArray]] = [[] for _ in vectors]
    weights: list[list[FloatArray]] = [[] for _ in vectors]
    for code, block, weight, _ in class_blocks(X, codes, sample_weight, len(vectors)):
        points[code].append((block - mean[code]) @ vectors[code])
        weights[code].append(weight)
    return [np.vstack(p) for p in points], [np.concatenate(w) for w in weights]


def _settle(
    data: tuple[Rows, IntArray, FloatArray],
    covariance: Covariance,
    rows: FloatArray,
    centroids: list[FloatArray],
) -> list[FloatArray]:
    """Lloyd's iterations over the rows themselves, all classes in one pass."""
    explained = 0.0
    for _ in range(_MAX_ITERATIONS):
        before = explained
        centroids, explained = _lloyd_pass(data, covariance.mean, rows, centroids)
        if explained - before <= _TOLERANCE * explained:
            break
    return centroids


def _lloyd_pass(
    data: tuple[Rows, IntArray, FloatArray],
    mean: FloatArray,
    rows: FloatArray,
    centroids: list[FloatArray],
) -> tuple[list[FloatArray], float]:
    """Move each centroid to the mean of its rows; the variation that these explain."""
    sums = [np.zeros_like(c) for c in centroids]
    weights = [np.zeros(len(c)) for c in centroids]
    for code, block, weight, _ in class_blocks(*data, len(centroids)):
        centred = block - mean[code]
        members = _members(assign(centred, centroids[code]), weight, len(sums[code]))
        sums[code] += members @ centred
        weights[code] += members.sum(axis=1)
    moved = []
    explained = 0.0
    for total, weight, old in zip(sums, weights, centroids, strict=True):
        # A cluster that lost all its rows stays where it was.
        held = np.where(weight > 0, weight, 1)[:, None]
        new = to_null_space((total / held).T, rows).T
        moved.append(np.where(weight[:, None] > 0, new, old))
        explained += float(weight @ np.einsum("kd,kd->k", new, new))
    return moved, explained


def _members(labels: IntArray, weight: FloatArray, n: int) -> sparse.csr_array:
    """Weights as a sparse matrix (n clusters, rows): times the rows, their sums."""
    shape = (n, len(labels))
    return sparse.csr_array((weight, (labels, np.arange(len(labels)))), shape=shape)


def _means(
    points: FloatArray, weight: FloatArray, labels: IntArray, n: int
) -> FloatArray:
    members = _members(labels, weight, n)
    # An empty cluster, which no row refers to, gets zeros and no division by zero.
    held = np.maximum(members.sum(axis=1), np.finfo(np.float64).tiny)
    means: FloatArray = (members @ points) / held[:, None]
    return means


def _inertias(
    points: FloatArray, weight: FloatArray, labels: IntArray, n: int
) -> FloatArray:
    offsets = points - _means(points, weight, labels, n)[labels]
    squares = np.einsum("nm,nm->n", offsets, offsets)
    inertias: FloatArray = _members(labels, weight, n) @ squares
    return inertias


def _total(points: FloatArray, weight: FloatArray, labels: IntArray) -> float:
    return float(_inertias(points, weight, labels, labels.max() + 1).sum())


def _rounding(points: FloatArray, weight: FloatArray) -> float:
    """Inertia that rounding alone can leave."""
    return float(10 * np.finfo(np.float64).eps * (weight @ np.sum(points**2, axis=1)))


def _divide(
    points: FloatArray, weight: FloatArray, labels: IntArray, old: int, new: int
) -> IntArray:
    """Divide cluster `old` in two at its mean, across its first principal direction."""
    mine = np.flatnonzero(labels == old)
    mean = weight[mine] @ points[mine] / weight[mine].sum()
    centred = points[mine] - mean
    scatter = centred.T @ (weight[mine, None] * centred)
    last = scatter.shape[0] - 1
    _, vector = linalg.eigh(scatter, subset_by_index=(last, last))
    side = (centred @ vector[:, 0] > 0).astype(np.intp)
    side = _lloyd(centred, weight[mine], side)
    divided = labels.copy()
    divided[mine[side == 1]] = new
    return divided


def _lloyd(points: FloatArray, weight: FloatArray, labels: IntArray) -> IntArray:
    """Move points to their nearest mean until none moves; empty clusters vanish."""
    labels = np.unique(labels, return_inverse=True)[1]
    for _ in range(_MAX_ITERATIONS):
        means = _means(points, weight, labels, labels.max() + 1)
        nearest = np.unique(assign(points, means), return_inverse=True)[1]
        if np.array_equal(nearest, labels):
            break
        labels = nearest
    return labels


def _exchange(points: FloatArray, weight: FloatArray, labels: IntArray) -> IntArray:
    """Dissolve the cheapest cluster into its neighbour; divide the most rewarding."""
    n = int(labels.max()) + 1
    means = _means(points, weight, labels, n)
    sizes = np.bincount(labels, weights=weight, minlength=n)
    apart = np.sum((means[:, None] - means) ** 2, axis=2)
    cost = apart * sizes[:, None] * sizes / (sizes[:, None] + sizes)
    np.fill_diagonal(cost, np.inf)
    gone, neighbour = np.unravel_index(cost.argmin(), cost.shape)
    merged = np.where(labels == gone, neighbour, labels)
    inertia = _inertias(points, weight, labels, n)
    inertia[[gone, neighbour]] = -np.inf
    widest = int(inertia.argmax())
    return _divide(points, weight, merged, widest, int(gone))
