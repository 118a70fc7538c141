"""k-means of each class in the head's null space, the rows read in blocks."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import linalg
from sklearn.utils.parallel import _get_threadpool_controller

from lelp_sklearn._common.typing import FloatArray
from lelp_sklearn._common.validation import check_no_overflow
from lelp_sklearn._projection.blocks import (
    Data,
    LabelledRows,
    added,
    class_blocks,
    row_slices,
)
from lelp_sklearn._projection.clustering import (
    MAX_ITERATIONS,
    TOLERANCE,
    assign,
    cluster,
    cluster_means,
    membership,
)
from lelp_sklearn._projection.directions import tidy, to_null_space
from lelp_sklearn._projection.starts import (
    ClassSample,
    class_samples,
    sampled_subspace,
)
from lelp_sklearn._projection.statistics import Covariance
from lelp_sklearn._projection.threads import map_parts

# Clusters are found in a few dimensions more than there are clusters.
_EXTRA_DIRECTIONS = 10


def class_centroids(
    data: Data,
    covariance: Covariance,
    removed: FloatArray,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> list[FloatArray]:
    """Centroids (k_c, d) of each class, relative to its mean and in the null space.

    Clusters are found among a sample of the class, in its principal coordinates, where
    an iteration costs little, and where the sample is not the whole class again in a
    sample that prefers rows far from these, lest small groups be missed. Then they move
    among all rows in the whole space, a pass over the rows at a time, until that
    explains little more. k_c is less than `n_clusters` where the class has fewer
    distinct rows.
    """
    mean = covariance.mean
    given = removed, n_clusters, random_state
    samples = class_samples(data, len(mean), random_state)
    starts = [
        _Start.of(sample, m, *given) for sample, m in zip(samples, mean, strict=True)
    ]
    if not all(start.is_whole for start in starts):
        preferred = data.map(_prefer_far, mean, removed, starts)
        samples = class_samples(preferred, len(mean), random_state)
        starts = [
            start
            if start.is_whole
            else _Start.of(start.unbiased(sample, m, removed), m, *given)
            for start, sample, m in zip(starts, samples, mean, strict=True)
        ]
    centroids = [start.centroids for start in starts]
    for code, start in enumerate(starts):
        if not start.is_whole and len(start.centroids) < n_clusters:
            centroids[code] = _add_rare(
                data, code, mean, removed, start.centroids, n_clusters
            )
    return _settle(data, covariance, removed, centroids)


@dataclass(frozen=True)
class _Start:
    """Centroids (k, d) of a sample of a class, relative to the mean of the class.

    `inertia` is the mean squared distance to them; `is_whole` says whether the sample
    is the class.
    """

    centroids: FloatArray
    inertia: float
    is_whole: bool

    @classmethod
    def of(
        cls,
        sample: ClassSample,
        mean: FloatArray,
        removed: FloatArray,
        n_clusters: int,
        random_state: np.random.RandomState,
    ) -> "_Start":
        """Cluster a sample."""
        centroids = _sample_centroids(sample, removed, n_clusters, random_state)
        shift = sample.mean - mean
        centroids += to_null_space(shift, removed)
        squares = _to_nearest(sample.rows, shift, removed, centroids)
        # Where nothing is left to explain, any unit does.
        return cls(centroids, float(sample.weight @ squares) or 1.0, sample.is_whole)

    def unbiased(
        self, sample: ClassSample, mean: FloatArray, removed: FloatArray
    ) -> ClassSample:
        """Take the preference out of the weights of a sample drawn with it."""
        preference = self.preference(sample.rows, sample.mean - mean, removed)
        return sample.reweighted(sample.weight / preference)

    def preference(
        self, rows: FloatArray, shift: FloatArray, removed: FloatArray
    ) -> FloatArray:
        """How much more a row (m,) is to be drawn, by its share of the inertia."""
        squares = _to_nearest(rows, shift, removed, self.centroids)
        preference: FloatArray = 1 + squares / self.inertia
        return preference


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
        for code, block, weight, _ in class_blocks(data, len(centroids)):
            labels = assign(block - mean[code], centroids[code])
            members = membership(labels, weight, len(centroids[code]))
            gained = members.sum(axis=1)
            points, total = self.points[code], self.weights[code]
            total += gained
            held = np.maximum(total, np.finfo(np.float64).tiny)[:, None]
            points += (members @ block - gained[:, None] * points) / held


def _sample_centroids(
    sample: ClassSample,
    removed: FloatArray,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> FloatArray:
    """Centroids (k, d) of a sample, relative to its mean."""
    n_vectors = n_clusters + _EXTRA_DIRECTIONS
    basis = sampled_subspace(sample, removed, n_vectors, random_state)
    points = sample.rows @ basis.astype(sample.rows.dtype)
    axes = _principal_axes(points, sample.weight, basis)
    points = (sample.rows @ axes.astype(sample.rows.dtype)).astype(np.float64)
    farthest = np.einsum("nd,nd->n", sample.rows, sample.rows, dtype=np.float64).max()
    rounding = farthest * _rounding(sample.rows.shape[1], sample.rows.dtype)
    # Products so small are slower on several threads of BLAS.
    with _get_threadpool_controller().limit(limits=1, user_api="blas"):
        labels = cluster(points, sample.weight, n_clusters, rounding)
    means = cluster_means(points, sample.weight, labels)
    # In the order of the first principal direction: the order in which clusters came
    # about hangs on rounding.
    if axes.size:
        means = means[means[:, 0].argsort()]
    found: FloatArray = means @ axes.T
    return found


def _to_nearest(
    rows: FloatArray, shift: FloatArray, removed: FloatArray, centroids: FloatArray
) -> FloatArray:
    """Squared distance (m,) of rows + shift to the nearest centroid, in null space."""
    dtype = rows.dtype
    moved = rows + shift.astype(dtype)
    lengths = np.einsum("nd,nd->n", moved, moved, dtype=np.float64)
    inside = moved @ removed.astype(dtype)
    inside_lengths = np.einsum("nr,nr->n", inside, inside, dtype=np.float64)
    half_squares = np.einsum("kd,kd->k", centroids, centroids) / 2
    nearest = (moved @ centroids.T.astype(dtype) - half_squares).max(axis=1)
    squares: FloatArray = lengths - inside_lengths - 2 * nearest
    # The difference of large numbers: a small one may be rounding.
    squares[squares <= 100 * np.finfo(dtype).eps * lengths] = 0
    return squares


def _prefer_far(
    data: LabelledRows,
    mean: FloatArray,
    removed: FloatArray,
    starts: list[_Start],
) -> LabelledRows:
    """Multiply the weight of each row by its preference.

    Drawn in proportion to that, a sample estimates the inertia of any centroids well
    (Feldman and Langberg, 2011).
    """
    dtype = np.result_type(data.dtype, np.float32)
    weight = data.weight.copy()

    def work(block: slice) -> None:
        codes = data.codes[block]
        for c in range(len(mean)):
            mine = np.flatnonzero(codes == c)
            rows = np.asarray(data.X[block][mine], dtype=dtype)
            weight[block][mine] *= starts[c].preference(rows, -mean[c], removed)

    for _ in map_parts(work, row_slices(data.X)):
        pass
    return replace(data, weight=weight)


def _principal_axes(
    points: FloatArray, weight: FloatArray, basis: FloatArray
) -> FloatArray:
    """Turn a basis (d, k) into the principal axes of its coordinates (n, k)."""
    if not basis.size:
        return basis
    points = points.astype(np.float64)
    values, turn = linalg.eigh(points.T @ (weight[:, None] * points))
    return tidy(basis @ turn[:, ::-1], values[::-1], basis[:, :0], -1.0).vectors


def _add_rare(
    data: Data,
    code: int,
    mean: FloatArray,
    removed: FloatArray,
    centroids: FloatArray,
    n_clusters: int,
) -> FloatArray:
    """Make rows of a class centroids that are far from all, the farthest first."""
    while len(centroids) < n_clusters:
        apart, farthest = data.fold(_farthest, _farther, code, mean, removed, centroids)
        if not apart:
            break
        centroids = np.vstack([centroids, farthest])
    return centroids


def _farthest(
    data: LabelledRows,
    code: int,
    mean: FloatArray,
    removed: FloatArray,
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
        offsets = to_null_space(centred.T, removed).T
        apart = offsets - centroids[assign(offsets, centroids)]
        squares = np.einsum("nd,nd->n", apart, apart)
        # Centroids may come from far rows too.
        lengths = np.einsum("nd,nd->n", centred, centred)
        squares[squares <= share * lengths.max()] = 0
        place = squares.argmax()
        found = _farther(found, (float(squares[place]), offsets[place]))
    return found


def _rounding(n_features: int, dtype: np.dtype[Any]) -> float:
    """Squared distance that rounding may leave between equal rows of unit length."""
    return float(n_features * (10 * np.finfo(dtype).eps) ** 2)


def _farther(
    left: tuple[float, FloatArray], right: tuple[float, FloatArray]
) -> tuple[float, FloatArray]:
    return right if right[0] > left[0] else left


def _settle(
    data: Data,
    covariance: Covariance,
    removed: FloatArray,
    centroids: list[FloatArray],
) -> list[FloatArray]:
    """Lloyd's iterations over all rows in the whole space, all classes in one pass."""
    variation = float(covariance.weight @ covariance.null_variance)
    explained = 0.0
    for _ in range(MAX_ITERATIONS):
        before = explained
        centroids, explained = _lloyd_pass(data, covariance.mean, removed, centroids)
        # A pass that lowers the inertia by little is the last; less than this part of
        # what is explained may be rounding.
        inertia = max(variation - explained, TOLERANCE * explained)
        if explained - before <= TOLERANCE * inertia:
            break
    return centroids


def _lloyd_pass(
    data: Data,
    mean: FloatArray,
    removed: FloatArray,
    centroids: list[FloatArray],
) -> tuple[list[FloatArray], float]:
    """Move each centroid to the mean of its rows; the variation that these explain."""
    dtype = np.result_type(data.dtype, np.float32)
    with np.errstate(over="ignore"):
        check_no_overflow(
            [np.vdot(each, each).astype(dtype) for each in centroids], dtype
        )
    totals = data.fold(_nearest_sums, added, mean.astype(dtype), centroids)
    sums, weights = totals[: len(centroids)], totals[len(centroids) :]
    moved = []
    explained = 0.0
    for total, weight, old in zip(sums, weights, centroids, strict=True):
        # A cluster that lost all its rows stays where it was.
        held = np.where(weight > 0, weight, 1)[:, None]
        new = to_null_space((total / held).T, removed).T
        moved.append(np.where(weight[:, None] > 0, new, old))
        explained += float(weight @ np.einsum("kd,kd->k", new, new))
    check_no_overflow(explained, dtype)
    return moved, explained


def _nearest_sums(
    data: LabelledRows, mean: FloatArray, centroids: list[FloatArray]
) -> list[FloatArray]:
    """Sums (k_c, d) and then weights (k_c,) of the rows nearest to each centroid."""
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._projection import class_kernels, tiles

    dtype = mean.dtype
    packed = tiles.pack(centroids, dtype)
    centres = tiles.readable(mean, dtype)
    sizes = [len(each) for each in centroids]
    half_squares = np.full((len(sizes), max(sizes)), np.inf, dtype)
    for own, each in zip(half_squares, centroids, strict=True):
        own[: len(each)] = np.einsum("kd,kd->k", each, each) / 2

    def work(block: slice) -> tuple[FloatArray, FloatArray]:
        rows = tiles.readable(data.X[block], dtype)
        codes, weight = data.codes[block], data.weight[block]
        return class_kernels.cluster_sums(
            rows, codes, weight, centres, packed, half_squares
        )

    sums = np.zeros((*half_squares.shape, mean.shape[1]))
    held = np.zeros(half_squares.shape)
    for found, found_held in map_parts(work, row_slices(data.X)):
        sums += found
        held += found_held
    return [
        own[:k] for each in (sums, held) for own, k in zip(each, sizes, strict=True)
    ]
