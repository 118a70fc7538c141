"""Samples of the rows of each class, and the principal subspaces that they give."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from lelp_sklearn._common.typing import FloatArray, IntArray
from lelp_sklearn._projection.blocks import Rows
from lelp_sklearn._projection.directions import to_null_space

# Rows of a class that are drawn: this share of them, within bounds on the rows and on
# the numbers in them. A class within the lower bound is taken whole, so that the order
# of rows and copies of a row change nothing there.
_SAMPLE_SHARE = 0.08
_SAMPLE_ROWS = (2048, 8192)
_SAMPLE_NUMBERS = 2**24
# Up to this size the subspace of a sample is found exactly.
_MAX_EXACT = 128
# Multiplications by the covariance of the sample otherwise.
_SAMPLE_POWERS = 3


@dataclass(frozen=True)
class ClassSample:
    """Rows (m, d) of a class about their mean (d,), with weights (m,) that sum to 1."""

    rows: FloatArray
    weight: FloatArray
    mean: FloatArray


def class_samples(
    X: Rows,
    codes: IntArray,
    sample_weight: FloatArray,
    n_classes: int,
    random_state: np.random.RandomState,
) -> Iterator[ClassSample]:
    """Draw rows of each class, one class after the other; a small class is taken whole.

    At random, since neighbouring rows may be alike.
    """
    for code in range(n_classes):
        index = np.flatnonzero((codes == code) & (sample_weight > 0))
        index = _draw(index, X.shape[1], random_state)
        rows = np.asarray(X[index], dtype=np.result_type(X.dtype, np.float32))
        weight = sample_weight[index] / sample_weight[index].sum()
        mean = weight @ rows
        yield ClassSample(rows - mean.astype(rows.dtype), weight, mean)


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
    rows = np.sqrt(sample.weight).astype(sample.rows.dtype)[:, None] * sample.rows
    if rows.shape[1] <= _MAX_EXACT:
        half = to_null_space((rows.T @ rows).astype(np.float64), removed)
        vectors = linalg.eigh(to_null_space(half.T, removed))[1]
        return _basis(vectors[:, : -start.shape[1] - 1 : -1], removed)
    if len(rows) <= _MAX_EXACT:
        projected = to_null_space(rows.T.astype(np.float64), removed)
        vectors = linalg.svd(projected, full_matrices=False)[0]
        # Random vectors beside them where there are fewer rows than vectors wanted.
        return _basis(np.hstack([vectors, start])[:, : start.shape[1]], removed)
    found = start
    for _ in range(_SAMPLE_POWERS):
        moved = rows.T @ (rows @ found.astype(rows.dtype))
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


def _draw(
    index: IntArray, n_features: int, random_state: np.random.RandomState
) -> IntArray:
    least, most = _SAMPLE_ROWS
    most = max(1, min(most, _SAMPLE_NUMBERS // n_features))
    size = int(min(most, max(least, _SAMPLE_SHARE * len(index))))
    if size >= len(index):
        return index
    drawn: IntArray = np.sort(random_state.choice(index, size, replace=False))
    return drawn


def _basis(vectors: FloatArray, removed: FloatArray) -> FloatArray:
    basis: FloatArray = linalg.orth(to_null_space(vectors, removed))
    return basis
