"""k-means of each class in the head's null space, the rows read in blocks."""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from lelp_sklearn._common.typing import FloatArray, IntArray
from lelp_sklearn._projection.blocks import Rows, class_blocks, row_slices
from lelp_sklearn._projection.clustering import (
    MAX_ITERATIONS,
    TOLERANCE,
    assign,
    cluster,
    cluster_means,
    membership,
)
from lelp_sklearn._projection.directions import tidy, to_null_space
from lelp_sklearn._projection.starts import class_samples, sampled_subspace
from lelp_sklearn._projection.threads import map_parts

# Clusters are found in a few dimensions more than there are clusters.
_EXTRA_DIRECTIONS = 10


def class_centroids(
    X: Rows,
    codes: IntArray,
    sample_weight: FloatArray,
    mean: FloatArray,
    removed: FloatArray,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> list[FloatArray]:
    """Centroids (k_c, d) of each class, relative to its mean and in the null space.

    Clusters are found among a sample of the class, in its principal coordinates, where
    an iteration costs little; then they move among all rows in the whole space, a pass
    over the rows at a time, until that explains little more. k_c is less than
    `n_clusters` where the sample has fewer distinct rows.
    """
    samples = class_samples(X, codes, sample_weight, len(mean), random_state)
    centroids: list[FloatArray] = []
    for sample in samples:
        n_vectors = n_clusters + _EXTRA_DIRECTIONS
        basis = sampled_subspace(sample, removed, n_vectors, random_state)
        points = sample.rows @ basis.astype(sample.rows.dtype)
        axes = _principal_axes(points, sample.weight, basis)
        points = (sample.rows @ axes.astype(sample.rows.dtype)).astype(np.float64)
        labels = cluster(points, sample.weight, n_clusters)
        means = cluster_means(points, sample.weight, labels)
        # In the order of the first principal direction: the order in which clusters
        # came about hangs on rounding.
        if axes.size:
            means = means[means[:, 0].argsort()]
        centroids.append(means @ axes.T)
    return _settle((X, codes, sample_weight), mean, removed, centroids)


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


def _principal_axes(
    points: FloatArray, weight: FloatArray, basis: FloatArray
) -> FloatArray:
    """Turn a basis (d, k) into the principal axes of its coordinates (n, k)."""
    if not basis.size:
        return basis
    points = points.astype(np.float64)
    values, turn = linalg.eigh(points.T @ (weight[:, None] * points))
    return tidy(basis @ turn[:, ::-1], values[::-1], basis[:, :0], -1.0).vectors


def _settle(
    data: tuple[Rows, IntArray, FloatArray],
    mean: FloatArray,
    removed: FloatArray,
    centroids: list[FloatArray],
) -> list[FloatArray]:
    """Lloyd's iterations over all rows in the whole space, all classes in one pass."""
    explained = 0.0
    for _ in range(MAX_ITERATIONS):
        # A pass that explains little more is the last.
        before = explained
        centroids, explained = _lloyd_pass(data, mean, removed, centroids)
        if explained - before <= TOLERANCE * explained:
            break
    return centroids


def _lloyd_pass(
    data: tuple[Rows, IntArray, FloatArray],
    mean: FloatArray,
    removed: FloatArray,
    centroids: list[FloatArray],
) -> tuple[list[FloatArray], float]:
    """Move each centroid to the mean of its rows; the variation that these explain."""
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._projection import kernels

    X, codes, sample_weight = data
    codes = np.where(sample_weight > 0, codes, -1)
    dtype = np.result_type(X.dtype, np.float32)
    known = [
        (kernels.readable(m, dtype), kernels.pack(each.T.astype(dtype)), each)
        for m, each in zip(mean, centroids, strict=True)
    ]

    def work(block: slice) -> list[tuple[FloatArray, FloatArray]]:
        rows = kernels.readable(X[block], dtype)
        chosen = [codes[block] == c for c in range(len(known))]
        return [
            kernels.cluster_sums(rows, mine, sample_weight[block], *own)
            for mine, own in zip(chosen, known, strict=True)
        ]

    sums = [np.zeros_like(each) for each in centroids]
    weights = [np.zeros(len(each)) for each in centroids]
    for found in map_parts(work, row_slices(X)):
        for c, (total, held) in enumerate(found):
            sums[c] += total
            weights[c] += held
    moved = []
    explained = 0.0
    for total, weight, old in zip(sums, weights, centroids, strict=True):
        # A cluster that lost all its rows stays where it was.
        held = np.where(weight > 0, weight, 1)[:, None]
        new = to_null_space((total / held).T, removed).T
        moved.append(np.where(weight[:, None] > 0, new, old))
        explained += float(weight @ np.einsum("kd,kd->k", new, new))
    return moved, explained
