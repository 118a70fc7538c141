"""The kernels in plain NumPy, for where they cannot be compiled.

Each function has the signature and the results of the kernel of the same name, whose
docstring describes them. The rows of X are read in batches, so temporary arrays stay
small.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.utils import gen_batches

from lelp_sklearn._subclasses.kernels.tiles import Centroids, ClassRows, Projection
from lelp_sklearn._threads import one_blas_thread
from lelp_sklearn._typing import FloatArray, IntArray

# Rows of a batch. Its sums are in the precision of the kernel, those of the batches in
# double precision.
_ROWS = 1024

Function = TypeVar("Function", bound=Callable[..., Any])


def _like_compiled(function: Function) -> Function:
    """Have a function keep to its thread and be silent on overflow, as kernels are."""

    @wraps(function)
    def run(*arguments: Any) -> Any:
        with one_blas_thread, np.errstate(over="ignore", invalid="ignore"):
            return function(*arguments)

    return cast("Function", run)


@_like_compiled
def soft_labels(
    X: NDArray[Any], logits: FloatArray, projection: Projection, out: FloatArray
) -> bool:
    n_outputs, n_classes = out.shape[1], logits.shape[1]
    columns = projection.packed[: len(projection.offsets), : X.shape[1]].T
    finite = True
    for rows in _batches(X):
        scores = (_numbers(X[rows]) - projection.centre) @ columns - projection.offsets
        class_scores = logits[rows] if len(logits) else scores[:, n_outputs:]
        subclass_scores = scores[:, :n_outputs].reshape(len(scores), n_classes, -1)
        p, p_finite = _softmax(class_scores, projection.per_temperature)
        q, q_finite = _softmax(subclass_scores, projection.per_subclass_temperature)
        out[rows] = (p[:, :, None] * q).reshape(-1, n_outputs)
        finite &= p_finite and q_finite
    return finite


@_like_compiled
def hash_rows(
    X: NDArray[Any],
    factors: NDArray[np.uint64],
    infinity: np.uint64,
    sign: np.uint64,
    hashes: NDArray[np.uint64],
) -> bool:
    finite = True
    for rows in _batches(X):
        # Adding zero makes -0.0 positive.
        numbers = _numbers(X[rows]) + np.float32(0)
        bits = numbers.view(f"u{numbers.itemsize}").astype(np.uint64)
        hashes[rows] = (bits ^ (bits >> np.uint64(32))) @ factors
        finite &= not ((bits & infinity) == infinity).any()
    return finite


@_like_compiled
def class_products(
    rows: ClassRows, packed: FloatArray, n_vectors: IntArray
) -> tuple[FloatArray, FloatArray]:
    n_classes, n_features = rows.centres.shape
    total = np.zeros((n_classes, int(n_vectors.max()) + 1, n_features))
    squares = np.zeros(n_classes)
    for c, block, w in _centred_rows(rows):
        k = n_vectors[c]
        weighted = w[:, None] * block
        total[c, :k] += (packed[c, :k, :n_features] @ block.T) @ weighted
        total[c, k] += weighted.sum(axis=0)
        squares[c] += np.einsum("nd,nd->d", weighted, block).sum(dtype=np.float64)
    return total * rows.unit, squares * rows.unit


@_like_compiled
def scatters(rows: ClassRows) -> tuple[FloatArray, FloatArray, FloatArray]:
    n_classes, n_features = rows.centres.shape
    total = np.zeros((n_classes, n_features, n_features))
    sums, weights = np.zeros((n_classes, n_features)), np.zeros(n_classes)
    for c, block, w in _centred_rows(rows):
        weighted = w[:, None] * block
        total[c] += block.T @ weighted
        sums[c] += weighted.sum(axis=0)
        weights[c] += w.sum(dtype=np.float64)
    return total, sums, weights


@_like_compiled
def cluster_sums(
    rows: ClassRows, centroids: Centroids
) -> tuple[FloatArray, FloatArray]:
    packed, half_squares, ties = centroids
    n_clusters, n_features = half_squares.shape[1], rows.X.shape[1]
    sums = np.zeros((*half_squares.shape, n_features))
    weights = np.zeros(half_squares.shape)
    for c, block, w in _centred_rows(rows):
        scores = block @ packed[c, :n_clusters, :n_features].T - half_squares[c]
        is_near = scores >= scores.max(axis=1, keepdims=True) - ties[c]
        is_member = is_near.argmax(axis=1) == np.arange(n_clusters)[:, None]
        members = np.where(is_member, w, 0)
        sums[c] += members @ block
        weights[c] += members.sum(axis=1, dtype=np.float64)
    return sums * rows.unit, weights * rows.unit


def _numbers(X: NDArray[Any]) -> FloatArray:
    """Return numbers as they are, and the bits of float16 in single precision."""
    return X.view(np.float16).astype(np.float32) if X.dtype == np.uint16 else X


def _batches(X: NDArray[Any]) -> Iterator[slice]:
    """Yield slices of at most `_ROWS` rows."""
    yield from gen_batches(len(X), _ROWS) if len(X) else ()


def _softmax(scores: FloatArray, per_temperature: float) -> tuple[FloatArray, bool]:
    """Softmax over the last axis, of temperature 0 too; whether it is finite."""
    top = scores.max(axis=-1, keepdims=True)
    if per_temperature > 0:
        shares = softmax((scores - top) * per_temperature, axis=-1)
    else:
        first = scores.argmax(axis=-1, keepdims=True)
        shares = (np.arange(scores.shape[-1]) == first).astype(scores.dtype)
    return shares, bool(np.isfinite(top).all())


def _centred_rows(rows: ClassRows) -> Iterator[tuple[int, FloatArray, FloatArray]]:
    """Yield a class, some of its rows less its centre, and their weights."""
    for block in _batches(rows.X):
        for c, centre in enumerate(rows.centres):
            index = block.start + np.flatnonzero(rows.class_index[block] == c)
            if index.size:
                yield c, _numbers(rows.X[index]) - centre, rows.weight[index]
