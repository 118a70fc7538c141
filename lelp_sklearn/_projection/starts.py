"""Samples of the rows of each class, and the principal subspaces that they give."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from lelp_sklearn._common.typing import FloatArray, IntArray
from lelp_sklearn._projection.blocks import LabelledRows
from lelp_sklearn._projection.digests import Digests, scramble
from lelp_sklearn._projection.directions import orthonormal, to_null_space

# Distinct rows of a class that are drawn: this share of them, within bounds on the rows
# and on the numbers in them. A class within the lower bound is taken whole.
_SAMPLE_SHARE = 0.08
_SAMPLE_ROWS = (2048, 8192)
_SAMPLE_NUMBERS = 2**24
# Up to this size the subspace of a sample is found exactly.
_MAX_EXACT = 128
# Multiplications by the covariance of the sample otherwise.
_SAMPLE_POWERS = 3


@dataclass(frozen=True)
class ClassSample:
    """Rows (m, d) of a class about their mean (d,), with weights (m,) that sum to 1.

    `is_whole` says whether these are all distinct rows of the class.
    """

    rows: FloatArray
    weight: FloatArray
    mean: FloatArray
    is_whole: bool


def class_samples(
    data: LabelledRows, n_classes: int, random_state: np.random.RandomState
) -> Iterator[ClassSample]:
    """Draw rows of each class, one class after the other; a small class is taken whole.

    Copies of a row count as one row of their joint weight, and what is drawn hangs on
    the content of the rows, not on their order.
    """
    seed = np.uint64(random_state.randint(2**31 - 1))
    for code in range(n_classes):
        index = np.flatnonzero(data.codes == code)
        first, weight = _distinct(data.digests[index], data.weight[index])
        index = index[first]
        size = _sample_size(len(index), data.X.shape[1])
        drawn, weight = _draw(data.digests[index] ^ seed, weight, size)
        # Read in the order of the rows.
        order = index[drawn].argsort()
        rows = data.X[index[drawn[order]]]
        rows = np.asarray(rows, dtype=np.result_type(rows.dtype, np.float32))
        weight = weight[order] / weight.sum()
        mean = weight @ rows
        centred = rows - mean.astype(rows.dtype)
        yield ClassSample(centred, weight, mean, is_whole=size == len(index))


def sampled_subspace(
    sample: ClassSample,
    removed: FloatArray,
    n_vectors: int,
    random_state: np.random.RandomState,
) -> FloatArray:
    """Orthonormal basis (d, <= n_vectors) of about the principal subspace of a sample.

    Without the directions `removed` (d, r).
    """
    start = random_start(removed, n_vectors, random_state)
    if not start.size:
        return start
    # Without units, since squares may be more than single precision holds.
    rows, weight = sample.rows, sample.weight.astype(sample.rows.dtype)
    largest = max(rows.max(), -rows.min()) or 1
    if rows.shape[1] <= _MAX_EXACT:
        scaled = np.sqrt(weight)[:, None] / largest * rows
        half = to_null_space((scaled.T @ scaled).astype(np.float64), removed)
        vectors = linalg.eigh(to_null_space(half.T, removed))[1]
        return _basis(vectors[:, : -start.shape[1] - 1 : -1], removed)
    if len(rows) <= _MAX_EXACT:
        scaled = np.sqrt(sample.weight)[:, None] * rows.astype(np.float64)
        projected = to_null_space(scaled.T, removed)
        vectors = linalg.svd(projected, full_matrices=False)[0]
        # Random vectors beside them where there are fewer rows than vectors wanted.
        return _basis(np.hstack([vectors, start])[:, : start.shape[1]], removed)
    found = start
    factor = (weight / largest)[:, None]
    for _ in range(_SAMPLE_POWERS):
        coordinates = rows @ (found / largest).astype(rows.dtype)
        moved = rows.T @ (factor * coordinates)
        found = _basis(moved.astype(np.float64), removed)
    return _basis(np.hstack([found, start])[:, : start.shape[1]], removed)


def random_start(
    removed: FloatArray, n_vectors: int, random_state: np.random.RandomState
) -> FloatArray:
    """Orthonormal basis (d, n_vectors) of a random subspace without `removed`."""
    n_features, rank = removed.shape
    size = min(n_vectors, n_features - rank)
    if not size:
        return np.empty((n_features, 0))
    return _basis(random_state.standard_normal((n_features, size)), removed)


def _distinct(digests: Digests, weight: FloatArray) -> tuple[IntArray, FloatArray]:
    """Index of the first of all equal rows, and the weight that they have together."""
    # With its number in the lowest bits of its digest each row is one number, and
    # sorting numbers is several times as fast as sorting an index.
    number = np.uint64(2 ** len(digests).bit_length() - 1)
    keys = digests & ~number | np.arange(len(digests), dtype=np.uint64)
    keys.sort()
    index = (keys & number).astype(np.intp)
    content = keys & ~number
    first = np.flatnonzero(np.append(True, content[1:] != content[:-1]))
    return index[first], np.add.reduceat(weight[index], first)


def _sample_size(n_rows: int, n_features: int) -> int:
    least, most = _SAMPLE_ROWS
    most = max(1, min(most, _SAMPLE_NUMBERS // n_features))
    return int(min(n_rows, most, max(least, _SAMPLE_SHARE * n_rows)))


def _draw(
    contents: Digests, weight: FloatArray, size: int
) -> tuple[IntArray, FloatArray]:
    """Rows drawn with the weights that make their sums those of all rows on average.

    Priority sampling (Duffield, Lund and Thorup, 2007).
    """
    if size == len(weight):
        return np.arange(size), weight
    uniform = (scramble(contents).astype(np.float64) + 1) / 2.0**64
    priority = weight / uniform
    order = np.argpartition(-priority, size)
    drawn = order[:size]
    return drawn, np.maximum(weight[drawn], priority[order[size]])


def _basis(vectors: FloatArray, removed: FloatArray) -> FloatArray:
    return orthonormal(to_null_space(vectors, removed))
