"""Split by k-means of each class in the head's null space.

Clusters are found in a sample of each class by scikit-learn's k-means, and then move
among all rows, one pass at a time. The order of rows, and copies of a row in place of a
weight, change nothing but rounding: copies are one row of the sample, whose rows are in
an order of their own.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist

from lelp_sklearn._callers import ignored_warnings
from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.moments import (
    Covariance,
    class_weights,
    tidy,
    to_null_space,
)
from lelp_sklearn._subclasses.rows import (
    Data,
    LabelledRows,
    add_sums,
    sum_blocks,
)
from lelp_sklearn._subclasses.splitters import (
    AUTO_N_SUBCLASSES,
    Split,
    SplitProblem,
    Splitter,
)
from lelp_sklearn._subclasses.subsample import (
    ClassSample,
    class_samples,
    sampled_subspace,
)
from lelp_sklearn._subclasses.torch_backend import is_on_device, tie_share
from lelp_sklearn._threads import (
    one_blas_thread,
    one_openmp_thread,
)
from lelp_sklearn._typing import FloatArray, IntArray
from lelp_sklearn._validation import (
    check_every_class,
    check_no_overflow,
    check_no_underflow,
)

# An improvement of the inertia below this share ends the search for a better one.
_TOLERANCE = 1e-4
_MAX_ITERATIONS = 100
# Starts of k-means in a sample, of which the best counts; the rows that are tried for
# each centroid of a start; and the iterations from it: few, since clusters move among
# the rows themselves afterwards.
_N_STARTS = 5
_N_TRIALS = 20
_START_ITERATIONS = 10
# Number of principal axes of a sample beyond the number of clusters, and the
# multiplications by its covariance that find them: few, since clusters move among the
# rows themselves afterwards.
_EXTRA_AXES = 10
_POWERS = 2
# Relative error of a fitted head, and so of rows projected to its null space.
_HEAD_ROUNDING = 1e-12
# Largest relative change of a point's distance from the mean that breaks ties.
_STRETCH = 1e-4


def centroid_split(problem: SplitProblem) -> Split:
    r"""Split by the nearest centroid m of each class, relative to its mean.

    .. math:: -\tfrac12 \|h - \mu - m\|^2
              = m \cdot (h - \mu) - \tfrac12 \|m\|^2 + \mathrm{const}
    """
    centroids = _find_centroids(problem)
    n_subclasses = problem.resolve_n_subclasses(
        [len(each) for each in centroids],
        "distinct rows",
        # In a space without dimensions all rows are alike.
        most=np.inf if problem.n_dimensions else 1,
    )
    if n_subclasses == 1:
        return Split.single(problem.covariance)
    split = Split.about_means(np.stack(centroids), problem.covariance)
    half_squares = np.einsum("csd,csd->cs", split.components, split.components) / 2
    return replace(split, offsets=split.offsets + half_squares)


KMEANS = Splitter(centroid_split, auto_temperature=0.1)


def _find_centroids(problem: SplitProblem) -> list[FloatArray]:
    """Return the centroids (S, d) of each class; a stream continues from its own."""
    data, covariance, stream = problem.data, problem.covariance, problem.stream
    if stream is not None and stream.centroids is not None:
        stream.centroids.add(data, covariance)
        return list(stream.centroids.relative(covariance))
    if stream is not None:
        # Clusters start at the first block that by itself has all classes.
        weight = class_weights(data, len(problem.classes))
        check_every_class(weight, problem.classes)
    n_clusters = problem.n_subclasses or AUTO_N_SUBCLASSES
    random_state = problem.random_states.samples
    centroids = class_centroids(data, covariance, n_clusters, random_state)
    fewest = min(len(each) for each in centroids)
    if problem.n_subclasses is None and fewest < n_clusters:
        # The same number for every class.
        centroids = class_centroids(data, covariance, fewest, random_state)
    if stream is not None and fewest >= (problem.n_subclasses or 1):
        stream.centroids = RunningCentroids.start(centroids, covariance)
        stream.centroids.add(data, covariance)
        return list(stream.centroids.relative(covariance))
    return centroids


def class_centroids(
    data: Data,
    covariance: Covariance,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> list[FloatArray]:
    """Return centroids (k_c, d) of each class, about its mean and in the null space.

    k_c is less than `n_clusters` if the class has fewer distinct rows.
    """
    centroids = []
    with one_blas_thread:
        samples = class_samples(data, len(covariance.mean), random_state)
        for c, sample in enumerate(samples):
            centroids.append(
                _cluster_sample(sample, c, covariance, n_clusters, random_state)
            )
        return _settle_among_rows(data, covariance, centroids)


@dataclass
class RunningCentroids:
    """Centroids of a stream: the running mean of all rows assigned so far.

    In the coordinates of the embeddings, because the class means and the null space of
    an estimated head change with each block.
    """

    points: list[FloatArray]
    weights: list[FloatArray]

    @classmethod
    def start(
        cls, centroids: list[FloatArray], covariance: Covariance
    ) -> "RunningCentroids":
        """Start at centroids (S, d) relative to the class means, with weight 0."""
        pairs = zip(centroids, covariance.mean, strict=True)
        points = [each + mean for each, mean in pairs]
        return cls(points, [np.zeros(len(each)) for each in centroids])

    def relative(self, covariance: Covariance) -> list[FloatArray]:
        """Return centroids (S, d) relative to the class means, in the null space."""
        return [
            to_null_space((points - mean).T, covariance.row_space).T
            for points, mean in zip(self.points, covariance.mean, strict=True)
        ]

    def add(self, data: Data, covariance: Covariance) -> None:
        """Assign a block of the stream to the centroids, then move them."""
        sums, weights = _sum_clusters(data, covariance, self.relative(covariance))
        for points, total, own_mean, own, gained in zip(
            self.points, self.weights, covariance.mean, sums, weights, strict=True
        ):
            total += gained
            divisor = np.maximum(total, np.finfo(np.float64).tiny)[:, None]
            points += (own + gained[:, None] * (own_mean - points)) / divisor


def _cluster_sample(
    sample: ClassSample,
    c: int,
    covariance: Covariance,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> FloatArray:
    """Return at most `n_clusters` centroids (k, d) of a sample of class `c`."""
    row_space = covariance.row_space
    untied = _untied(sample, row_space)
    axes = _principal_axes(untied, row_space, n_clusters, random_state)
    points, untied_points = (
        (each.rows @ axes.astype(each.rows.dtype)).astype(np.float64)
        for each in (sample, untied)
    )
    labels = cluster(untied_points, untied.weight, n_clusters, _rounding(untied))
    members = (labels == np.arange(labels.max() + 1)[:, None]) * sample.weight
    means = members @ points / members.sum(axis=1)[:, None]
    # Sorted along the first principal direction: the order in which clusters were found
    # depends on rounding.
    if means.size:
        means = means[means[:, 0].argsort()]
    shift = to_null_space((sample.mean - covariance.mean[c])[:, None], row_space)
    centroids: FloatArray = means @ axes.T + shift.T
    return centroids


def _untied(sample: ClassSample, row_space: FloatArray) -> ClassSample:
    """Stretch rows and weights slightly, by their place along a fixed random direction.

    This breaks ties, which rounding, and with it the order of rows, would decide
    otherwise: of distances in symmetric data, and of two points of equal weight that
    lower the inertia by the same as the next start.
    """
    draw = np.random.RandomState(0).standard_normal((len(row_space), 1))
    direction = to_null_space(draw, row_space)[:, 0]
    along = sample.rows @ direction.astype(sample.rows.dtype)
    farthest = np.abs(along).max(initial=0)
    if not farthest:
        return sample
    factor = 1 + _STRETCH / farthest * along
    return replace(
        sample, rows=sample.rows * factor[:, None], weight=sample.weight * factor
    )


def _principal_axes(
    sample: ClassSample,
    row_space: FloatArray,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> FloatArray:
    """Return approximate principal axes (d, k) of a sample."""
    n_vectors = n_clusters + _EXTRA_AXES
    basis = sampled_subspace(sample, row_space, n_vectors, random_state, _POWERS)
    if not basis.size:
        return basis
    points = (sample.rows @ basis.astype(sample.rows.dtype)).astype(np.float64)
    values, turn = linalg.eigh(points.T @ (sample.weight[:, None] * points))
    return tidy(basis @ turn[:, ::-1], values[::-1], basis[:, :0], -1.0).vectors


def _rounding(sample: ClassSample) -> float:
    """Return the squared distance between equal rows that rounding may cause."""
    rows = sample.rows
    with np.errstate(over="ignore"):
        farthest = rows[np.einsum("nd,nd->n", rows, rows).argmax()].astype(np.float64)
    eps = float(np.finfo(rows.dtype).eps)
    # The rows are relative to their mean, whose rounding counts too.
    share, digits = max(10 * eps, _HEAD_ROUNDING), 4 * eps * sample.mean
    return float(rows.shape[1] * share**2 * (farthest @ farthest) + digits @ digits)


def _settle_among_rows(
    data: Data, covariance: Covariance, centroids: list[FloatArray]
) -> list[FloatArray]:
    """Run Lloyd's iterations over all rows, all classes in one pass."""
    # By the means: centroids are small also if nothing varies in the null space.
    dtype = np.result_type(data.dtype, np.float32)
    check_no_underflow(covariance.mean, covariance.variance, dtype)
    variation = float(covariance.weight @ covariance.null_variance)
    explained = 0.0
    for _ in range(_MAX_ITERATIONS):
        before = explained
        centroids, explained = _lloyd_pass(data, covariance, centroids)
        # Stop when a pass lowers the inertia by little. An inertia below this share of
        # the explained variation may be rounding.
        inertia = max(variation - explained, _TOLERANCE * explained)
        if explained - before <= _TOLERANCE * inertia:
            break
    return centroids


def _lloyd_pass(
    data: Data, covariance: Covariance, centroids: list[FloatArray]
) -> tuple[list[FloatArray], float]:
    """Return the means of the rows of each centroid, and the variation explained."""
    moved = []
    explained = 0.0
    sums, weights = _sum_clusters(data, covariance, centroids)
    for total, weight, old in zip(sums, weights, centroids, strict=True):
        # A cluster that lost all its rows stays where it was.
        divisor = np.where(weight > 0, weight, 1)[:, None]
        new = to_null_space((total / divisor).T, covariance.row_space).T
        moved.append(np.where(weight[:, None] > 0, new, old))
        explained += float(weight @ np.einsum("kd,kd->k", new, new))
    check_no_overflow(explained, np.result_type(data.dtype, np.float32))
    return moved, explained


def _sum_clusters(
    data: Data, covariance: Covariance, centroids: list[FloatArray]
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Return the sums (k_c, d) and weights (k_c,) of the rows nearest to each centroid.

    Rows and centroids are relative to the class mean.
    """
    dtype = np.result_type(data.dtype, np.float32)
    with np.errstate(over="ignore"):
        check_no_overflow(
            [np.vdot(each, each).astype(dtype) for each in centroids], dtype
        )
    mean = covariance.mean.astype(dtype)
    sums, weights = data.map_reduce(_cluster_sums, add_sums, mean, centroids)
    sizes = [len(each) for each in centroids]
    own_sums = [own[:k] for own, k in zip(sums, sizes, strict=True)]
    return own_sums, [own[:k] for own, k in zip(weights, sizes, strict=True)]


def _cluster_sums(
    data: LabelledRows, mean: FloatArray, centroids: list[FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Return sums (C, k, d) and weights (C, k) of the rows nearest to each centroid.

    If several centroids are equally near up to rounding, the first takes the row, so
    that the order of rows does not decide.
    """
    if is_on_device(data.X):
        return torch_backend.cluster_sums(data, mean, centroids)
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._subclasses.kernels import class_sums, tiles

    dtype = mean.dtype
    half_squares = np.full((len(centroids), max(map(len, centroids))), np.inf, dtype)
    for own, each in zip(half_squares, centroids, strict=True):
        own[: len(each)] = np.einsum("kd,kd->k", each, each) / 2
    ties = np.where(np.isfinite(half_squares), tie_share(dtype) * half_squares, 0)
    packed = tiles.Centroids(
        tiles.pack(centroids, dtype), half_squares, ties.astype(dtype)
    )

    def work(block: slice) -> tuple[FloatArray, FloatArray]:
        class_index, weight = data.class_index[block], data.weight[block]
        rows = tiles.class_rows(data.X[block], class_index, weight, mean)
        return class_sums.cluster_sums(rows, packed)

    sums, weights = sum_blocks(work, data.X)
    return sums, weights


def cluster(
    points: FloatArray, weight: FloatArray, n_clusters: int, rounding: float
) -> IntArray:
    """Return the labels (n,) of at most `n_clusters` clusters of points (n, m).

    Points whose squared distance is at most `rounding` count as one. Fewer clusters
    than asked for mean that there are no more distinct points.
    """
    # Imported here: it would slow the import of the package.
    from sklearn.cluster import KMeans, kmeans_plusplus

    if not points.size:
        return np.zeros(len(points), dtype=np.intp)
    # Division by a power of two rounds nothing, and keeps squares from overflow.
    unit = 2.0 ** np.frexp(np.abs(points).max())[1]
    points = points / unit
    # The starts are drawn from points in this order, which units and precision of the
    # embeddings do not change.
    order = points[:, 0].argsort(kind="stable")
    in_order, weights = points[order], weight[order]
    random_state, models = np.random.RandomState(0), []
    n_clusters = min(n_clusters, len(points))
    # More threads of OpenMP would not survive a fork. scikit-learn warns of equal
    # points.
    with one_openmp_thread(), ignored_warnings():
        for _ in range(_N_STARTS):
            start, _ = kmeans_plusplus(
                in_order,
                n_clusters,
                sample_weight=weights,
                n_local_trials=_N_TRIALS,
                random_state=random_state,
            )
            model = KMeans(n_clusters, init=start, max_iter=_START_ITERATIONS, n_init=1)
            models.append(model.fit(in_order, sample_weight=weights))
    best = min(models, key=lambda model: float(model.inertia_))
    centroids = best.cluster_centers_
    is_close = cdist(centroids, centroids, "sqeuclidean") <= rounding / unit**2
    distinct = centroids[~np.tril(is_close, -1).any(axis=1)]
    nearest = cdist(points, distinct, "sqeuclidean").argmin(axis=1)
    # A cluster may have lost its last point in the last iteration.
    labels: IntArray = np.unique(nearest, return_inverse=True)[1]
    return labels
