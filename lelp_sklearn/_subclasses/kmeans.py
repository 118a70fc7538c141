"""k-means of each class in the head's null space, the rows read in blocks."""

from dataclasses import dataclass

import numpy as np

from lelp_sklearn._subclasses import tensor_passes
from lelp_sklearn._subclasses.coordinates import Coreset, class_points
from lelp_sklearn._subclasses.coreset import (
    MAX_ITERATIONS,
    TOLERANCE,
    assign,
    cluster,
    membership,
)
from lelp_sklearn._subclasses.directions import to_null_space
from lelp_sklearn._subclasses.moments import Covariance
from lelp_sklearn._subclasses.rows import (
    Data,
    LabelledRows,
    added,
    class_blocks,
    row_slices,
)
from lelp_sklearn._subclasses.tensors import dispatch_to_device, tie_share
from lelp_sklearn._subclasses.threads import map_parts, one_blas_thread
from lelp_sklearn._typing import FloatArray
from lelp_sklearn._validation import check_no_overflow, check_no_underflow


def class_centroids(
    data: Data,
    covariance: Covariance,
    row_space: FloatArray,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> list[FloatArray]:
    """Centroids (k_c, d) of each class, relative to its mean and in the null space.

    Clusters are found among few coordinates of many rows, in memory, where an iteration
    costs little. Then they move among all rows in the whole space, a pass over the rows
    at a time, until that explains little more. k_c is less than `n_clusters` where the
    class has fewer distinct rows.
    """
    mean = covariance.mean
    given = covariance, row_space, n_clusters, random_state
    centroids = []
    with one_blas_thread:
        for code, known in enumerate(class_points(data, *given)):
            found = _cluster(known, n_clusters)
            if not known.is_whole and len(found) < n_clusters:
                found = _add_rare(data, code, mean, row_space, found, n_clusters)
            centroids.append(found)
        return _settle(data, covariance, row_space, centroids)


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
        data: LabelledRows,
        mean: FloatArray,
        rows: FloatArray,
    ) -> None:
        """Assign a block of the stream to the centroids as they are, and move them."""
        centroids = self.relative(mean, rows)
        moved = _assigned_sums(data, mean, centroids)
        sums, weights = moved[: len(centroids)], moved[len(centroids) :]
        for points, total, own_mean, own, gained in zip(
            self.points, self.weights, mean, sums, weights, strict=True
        ):
            total += gained
            held = np.maximum(total, np.finfo(np.float64).tiny)[:, None]
            points += (own + gained[:, None] * (own_mean - points)) / held


@dispatch_to_device(tensor_passes.nearest_sums)
def _assigned_sums(
    data: LabelledRows, mean: FloatArray, centroids: list[FloatArray]
) -> list[FloatArray]:
    """As `_nearest_sums`, in double precision."""
    sums = [np.zeros_like(each) for each in centroids]
    weights = [np.zeros(len(each)) for each in centroids]
    for code, block, weight, _ in class_blocks(data, len(centroids)):
        centred = block - mean[code]
        labels = assign(centred, centroids[code])
        members = membership(labels, weight, len(centroids[code]))
        sums[code] += members @ centred
        weights[code] += members.sum(axis=1)
    return [*sums, *weights]


def _cluster(known: Coreset, n_clusters: int) -> FloatArray:
    """Centroids (k, d) of points, in the whole space."""
    chosen, rounding = known.sample, known.rounding
    means = cluster(known.points[chosen], known.sample_weight, n_clusters, rounding)
    if len(chosen) < len(known.points):
        means = cluster(known.points, known.weight, n_clusters, rounding, means)
    # In the order of the first principal direction: the order in which clusters came
    # about hangs on rounding.
    if means.size:
        means = means[means[:, 0].argsort()]
    found: FloatArray = means @ known.axes.T
    return found


def _add_rare(
    data: Data,
    code: int,
    mean: FloatArray,
    row_space: FloatArray,
    centroids: FloatArray,
    n_clusters: int,
) -> FloatArray:
    """Make rows of a class centroids that are far from all, the farthest first."""
    while len(centroids) < n_clusters:
        apart, farthest = data.map_reduce(
            _farthest, _farther, code, mean, row_space, centroids
        )
        if not apart:
            break
        centroids = np.vstack([centroids, farthest])
    return centroids


@dispatch_to_device(tensor_passes.farthest)
def _farthest(
    data: LabelledRows,
    code: int,
    mean: FloatArray,
    row_space: FloatArray,
    centroids: FloatArray,
) -> tuple[float, FloatArray]:
    """Squared distance to its centroid of the row farthest from all; the row (d,).

    0 where no distance is more than rounding.
    """
    # A direction along which a class hardly varies is found to this only.
    share = 10 * np.finfo(np.result_type(data.dtype, np.float32)).eps
    found = 0.0, centroids[0]
    for mine, block, _, _ in class_blocks(data, len(mean)):
        if mine != code:
            continue
        centred = block - mean[code]
        offsets = to_null_space(centred.T, row_space).T
        apart = offsets - centroids[assign(offsets, centroids)]
        squares = np.einsum("nd,nd->n", apart, apart)
        # Centroids may come from far rows too.
        lengths = np.einsum("nd,nd->n", centred, centred)
        squares[squares <= share * lengths.max()] = 0
        place = squares.argmax()
        found = _farther(found, (float(squares[place]), offsets[place]))
    return found


def _farther(
    left: tuple[float, FloatArray], right: tuple[float, FloatArray]
) -> tuple[float, FloatArray]:
    return right if right[0] > left[0] else left


def _settle(
    data: Data,
    covariance: Covariance,
    row_space: FloatArray,
    centroids: list[FloatArray],
) -> list[FloatArray]:
    """Lloyd's iterations over all rows in the whole space, all classes in one pass."""
    # Not by the centroids, which are as small where nothing varies in the null space.
    dtype = np.result_type(data.dtype, np.float32)
    check_no_underflow(covariance.mean, covariance.variance, dtype)
    variation = float(covariance.weight @ covariance.null_variance)
    explained = 0.0
    for _ in range(MAX_ITERATIONS):
        before = explained
        centroids, explained = _lloyd_pass(data, covariance.mean, row_space, centroids)
        # A pass that lowers the inertia by little is the last; less than this part of
        # what is explained may be rounding.
        inertia = max(variation - explained, TOLERANCE * explained)
        if explained - before <= TOLERANCE * inertia:
            break
    return centroids


def _lloyd_pass(
    data: Data,
    mean: FloatArray,
    row_space: FloatArray,
    centroids: list[FloatArray],
) -> tuple[list[FloatArray], float]:
    """Move each centroid to the mean of its rows; the variation that these explain."""
    dtype = np.result_type(data.dtype, np.float32)
    with np.errstate(over="ignore"):
        check_no_overflow(
            [np.vdot(each, each).astype(dtype) for each in centroids], dtype
        )
    totals = data.map_reduce(_nearest_sums, added, mean.astype(dtype), centroids)
    sums, weights = totals[: len(centroids)], totals[len(centroids) :]
    moved = []
    explained = 0.0
    for total, weight, old in zip(sums, weights, centroids, strict=True):
        # A cluster that lost all its rows stays where it was.
        held = np.where(weight > 0, weight, 1)[:, None]
        new = to_null_space((total / held).T, row_space).T
        moved.append(np.where(weight[:, None] > 0, new, old))
        explained += float(weight @ np.einsum("kd,kd->k", new, new))
    check_no_overflow(explained, dtype)
    return moved, explained


@dispatch_to_device(tensor_passes.nearest_sums)
def _nearest_sums(
    data: LabelledRows, mean: FloatArray, centroids: list[FloatArray]
) -> list[FloatArray]:
    """Sums (k_c, d) and then weights (k_c,) of the rows nearest to each centroid.

    Of centroids that are as near but for rounding the first: the order of rows, on
    which rounding depends, must not decide.
    """
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._subclasses.kernels import class_sums, tiles

    dtype = mean.dtype
    packed = tiles.pack(centroids, dtype)
    centres = tiles.readable(mean, dtype)
    sizes = [len(each) for each in centroids]
    half_squares = np.full((len(sizes), max(sizes)), np.inf, dtype)
    for own, each in zip(half_squares, centroids, strict=True):
        own[: len(each)] = np.einsum("kd,kd->k", each, each) / 2
    ties = np.where(np.isfinite(half_squares), tie_share(dtype) * half_squares, 0)

    def work(block: slice) -> tuple[FloatArray, FloatArray]:
        rows = tiles.readable(data.X[block], dtype)
        class_index, weight = data.class_index[block], data.weight[block]
        return class_sums.cluster_sums(
            rows, class_index, weight, centres, packed, half_squares, ties.astype(dtype)
        )

    sums = np.zeros((*half_squares.shape, mean.shape[1]))
    held = np.zeros(half_squares.shape)
    for found, found_held in map_parts(work, row_slices(data.X)):
        sums += found
        held += found_held
    return [
        own[:k] for each in (sums, held) for own, k in zip(each, sizes, strict=True)
    ]
