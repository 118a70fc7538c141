"""k-means of each class in the head's null space, the rows read in blocks."""

from dataclasses import dataclass

import numpy as np

from lelp_sklearn._common.typing import FloatArray, IntArray
from lelp_sklearn._projection.blocks import Rows, class_blocks
from lelp_sklearn._projection.clustering import (
    MAX_ITERATIONS,
    TOLERANCE,
    assign,
    cluster,
    cluster_means,
    membership,
)
from lelp_sklearn._projection.directions import Directions, to_null_space
from lelp_sklearn._projection.statistics import Covariance


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
        means = cluster_means(mine, weight, labels)
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
            members = membership(labels, weight, len(centroids[code]))
            gained = members.sum(axis=1)
            points, total = self.points[code], self.weights[code]
            total += gained
            held = np.maximum(total, np.finfo(np.float64).tiny)[:, None]
            points += (members @ block - gained[:, None] * points) / held


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
    for _ in range(MAX_ITERATIONS):
        # A pass that explains little more is the last.
        before = explained
        centroids, explained = _lloyd_pass(data, covariance.mean, rows, centroids)
        if explained - before <= TOLERANCE * explained:
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
        members = membership(assign(centred, centroids[code]), weight, len(sums[code]))
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
