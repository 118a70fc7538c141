"""A coreset of each class: coordinates of a sample of its rows, for k-means."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg

from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.directions import tidy, to_null_space
from lelp_sklearn._subclasses.moments import Covariance
from lelp_sklearn._subclasses.rows import Data, LabelledRows, row_slices
from lelp_sklearn._subclasses.subsample import (
    ClassSample,
    Sketch,
    class_sketches,
    draw_seed,
    sample_size,
    sampled_subspace,
    samples_of,
)
from lelp_sklearn._subclasses.threads import map_parts
from lelp_sklearn._subclasses.torch_backend import dispatch_to_device
from lelp_sklearn._typing import FloatArray, IntArray

# Largest number of distinct rows of a class whose coordinates are kept.
_MOST_POINTS = 2**16
# Number of principal axes beyond the number of clusters.
_EXTRA_DIRECTIONS = 10
# Multiplications by the covariance of the sample that find the axes: few, since
# clusters move among all coordinates afterwards.
_POWERS = 2
# Relative error of a fitted head, and so of rows projected to its null space.
_HEAD_ROUNDING = 1e-12
# Largest relative change of a point's distance from the mean that breaks ties.
_STRETCH = 1e-4

# For each class the coordinates and the importance of rows, block by block.
Pieces = list[list[tuple[FloatArray, FloatArray]]]


@dataclass(frozen=True)
class Coreset:
    """Coordinates (m, k) of rows of a class along `axes` (d, k), about its mean.

    Points whose squared distance is at most `rounding` count as one. `is_whole` says
    whether the points are all distinct rows of the class. `sample` is the index of a
    subset of the points, which represents the class with the weights `sample_weight`.
    """

    points: FloatArray
    weight: FloatArray
    axes: FloatArray
    rounding: float
    is_whole: bool
    sample: IntArray
    sample_weight: FloatArray


def class_coresets(
    data: Data,
    covariance: Covariance,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> list[Coreset]:
    """Return a coreset of each class, along the principal axes of a sample.

    A sample or coreset that is not the whole class is drawn by importance: rows far
    from the mean are likelier. It then estimates the inertia of any centroids well
    (Bachem, Lucic and Krause, 2018), and its axes miss no direction of large variance
    (Frieze, Kannan and Vempala, 2004).
    """
    seed = draw_seed(random_state)
    sketches = class_sketches(data, len(covariance.mean), seed)
    is_small = np.array(
        [_fits(each, sample_size(len(each.places), data.shape[1])) for each in sketches]
    )
    # All rows are equally important if nothing varies, or if no sample is drawn.
    alike = is_small | (covariance.null_variance <= covariance.rounding)
    spread = np.where(alike, np.inf, covariance.null_variance)
    by_importance = sketches
    if not is_small.all():
        data = data.map(
            with_importance_weights, covariance.mean, covariance.row_space, spread
        )
        by_importance = class_sketches(data, len(covariance.mean), seed)
    coresets = [
        _from_sample(sample, covariance, c, spread[c], n_clusters, random_state)
        for c, sample in enumerate(samples_of(data, by_importance, seed))
    ]
    if is_small.all():
        return coresets
    is_whole = np.array([_fits(each, _MOST_POINTS) for each in sketches])
    spread[is_whole] = np.inf
    drawn = [
        (plain if whole else weighted).draw(seed, 0 if small else _MOST_POINTS)
        for plain, weighted, whole, small in zip(
            sketches, by_importance, is_whole, is_small, strict=True
        )
    ]
    pieces = data.map_reduce(
        _at_places,
        _joined,
        [each.places for each in drawn],
        covariance.mean,
        covariance.row_space,
        [each.axes for each in coresets],
        spread,
    )
    for c in np.flatnonzero(~is_small):
        points, importance = map(np.concatenate, zip(*pieces[c], strict=True))
        sampled = by_importance[c].draw(seed, len(coresets[c].points))
        # The rows of a sample are sorted by their hashes.
        sampled_places = sampled.places[sampled.digests.argsort()]
        breaker = coresets[c].axes.T @ _tie_breaker(covariance.row_space)
        coresets[c] = replace(
            coresets[c],
            points=_untied(points, breaker),
            weight=drawn[c].weight / importance,
            is_whole=bool(is_whole[c]),
            sample=np.searchsorted(drawn[c].places, sampled_places),
        )
    return coresets


def _from_sample(
    sample: ClassSample,
    covariance: Covariance,
    c: int,
    spread: float,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> Coreset:
    """Return the coreset of a sample of class `c`, weighted by inverse importance."""
    mean, row_space = covariance.mean[c], covariance.row_space
    if np.isfinite(spread):
        shift = sample.mean - mean
        importance = _importance(sample.rows, -shift, row_space, spread)
        sample = sample.reweighted(sample.weight / importance)
    rows = _untied(sample.rows, _tie_breaker(row_space))
    sample = replace(sample, rows=rows)
    axes = _axes(sample, row_space, n_clusters, random_state)
    points = rows @ axes.astype(rows.dtype) + (sample.mean - mean) @ axes
    return Coreset(
        points=points,
        weight=sample.weight,
        axes=axes,
        rounding=_rounding(rows, sample.mean),
        is_whole=sample.is_whole,
        sample=np.arange(len(points)),
        sample_weight=sample.weight,
    )


def _tie_breaker(row_space: FloatArray) -> FloatArray:
    """Return a fixed random direction (d,) in the null space."""
    draw = np.random.RandomState(0).standard_normal((len(row_space), 1))
    return to_null_space(draw, row_space)[:, 0]


def _untied(points: FloatArray, direction: FloatArray) -> FloatArray:
    """Stretch points (n, m) slightly, in proportion to their place along `direction`.

    This breaks ties of distances in symmetric data, which rounding, and with it the
    order of rows, would decide otherwise. Clusters move among the original rows later.
    """
    along = points @ direction.astype(points.dtype)
    farthest = np.abs(along).max(initial=0)
    if not farthest:
        return points
    stretched: FloatArray = points * (1 + _STRETCH / farthest * along)[:, None]
    return stretched


def _fits(sketch: Sketch, size: int) -> bool:
    """Return whether a class has at most `size` distinct rows."""
    return sketch.is_whole and len(sketch.places) <= size


def with_importance_weights(
    data: LabelledRows, mean: FloatArray, row_space: FloatArray, spread: FloatArray
) -> LabelledRows:
    """Return the rows with weights multiplied by the importance of each."""
    weight = data.weight * _importances(data, mean, row_space, spread)
    return replace(data, weight=weight)


@dispatch_to_device(torch_backend.importances)
def _importances(
    data: LabelledRows, mean: FloatArray, row_space: FloatArray, spread: FloatArray
) -> FloatArray:
    """Return the importance of each row (n,), 1 for rows without a class."""
    dtype = np.result_type(data.dtype, np.float32)
    importances = np.ones(len(data.class_index))

    def work(block: slice) -> None:
        class_index = data.class_index[block]
        for c in range(len(mean)):
            own = np.flatnonzero(class_index == c)
            rows = np.asarray(data.X[block][own], dtype=dtype)
            importances[block][own] = _importance(rows, mean[c], row_space, spread[c])

    for _ in map_parts(work, row_slices(data.X)):
        pass
    return importances


def _importance(
    rows: FloatArray, centre: FloatArray, row_space: FloatArray, spread: float
) -> FloatArray:
    """Return the importance of rows (m, d), 1 + squared distance / `spread`."""
    # Divided first: squares in other units may overflow.
    centred = (rows - centre.astype(rows.dtype)) / rows.dtype.type(np.sqrt(spread))
    inside = centred @ row_space.astype(rows.dtype)
    squares = np.einsum("nd,nd->n", centred, centred)
    squares -= np.einsum("nr,nr->n", inside, inside)
    importance: FloatArray = 1 + np.maximum(squares, 0).astype(np.float64)
    return importance


def _axes(
    sample: ClassSample,
    row_space: FloatArray,
    n_clusters: int,
    random_state: np.random.RandomState,
) -> FloatArray:
    """Return approximate principal axes (d, k) of a sample."""
    n_vectors = n_clusters + _EXTRA_DIRECTIONS
    basis = sampled_subspace(sample, row_space, n_vectors, random_state, _POWERS)
    if not basis.size:
        return basis
    points = (sample.rows @ basis.astype(sample.rows.dtype)).astype(np.float64)
    values, turn = linalg.eigh(points.T @ (sample.weight[:, None] * points))
    return tidy(basis @ turn[:, ::-1], values[::-1], basis[:, :0], -1.0).vectors


@dispatch_to_device(torch_backend.at_places)
def _at_places(
    data: LabelledRows,
    places: list[IntArray],
    mean: FloatArray,
    row_space: FloatArray,
    axes: list[FloatArray],
    spread: FloatArray,
) -> Pieces:
    """Return coordinates and importance of those of the `places` in these rows."""
    dtype = np.result_type(data.dtype, np.float32)
    known = [each.astype(dtype) for each in axes]

    def work(block: slice) -> list[tuple[FloatArray, FloatArray]]:
        pieces = []
        ends = data.first_row + block.start, data.first_row + block.stop
        for c, index in enumerate(places):
            start, stop = np.searchsorted(index, ends)
            rows = np.asarray(data.X[index[start:stop] - data.first_row], dtype=dtype)
            importance: FloatArray = np.ones(len(rows))
            if np.isfinite(spread[c]):
                importance = _importance(rows, mean[c], row_space, spread[c])
            # In place: indexing by an array has made a copy.
            rows -= mean[c].astype(dtype)
            pieces.append((rows @ known[c], importance))
        return pieces

    blocks = list(map_parts(work, row_slices(data.X)))
    return [[block[c] for block in blocks] for c in range(len(places))]


def _joined(left: Pieces, right: Pieces) -> Pieces:
    return [first + second for first, second in zip(left, right, strict=True)]


def _rounding(rows: FloatArray, mean: FloatArray) -> float:
    """Return the squared distance between equal rows (m, d) that rounding may cause.

    Rows are relative to their mean (d,), whose rounding counts too.
    """
    with np.errstate(over="ignore"):
        farthest = rows[np.einsum("nd,nd->n", rows, rows).argmax()].astype(np.float64)
    eps = float(np.finfo(rows.dtype).eps)
    share, digits = max(10 * eps, _HEAD_ROUNDING), 4 * eps * mean
    return float(rows.shape[1] * share**2 * (farthest @ farthest) + digits @ digits)
