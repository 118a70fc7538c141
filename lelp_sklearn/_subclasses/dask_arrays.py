"""Dask arrays as rows of embeddings, without importing dask before one comes."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn import _validation
from lelp_sklearn._subclasses import dask_validation, tensors
from lelp_sklearn._subclasses.soft_labels import class_sums

if TYPE_CHECKING:
    from dask.array import Array

_FLOATING = np.float64, np.float32, np.float16


def is_dask_array(array: object) -> bool:
    """Whether `array` is a dask array."""
    dask_array = sys.modules.get("dask.array")
    return dask_array is not None and isinstance(array, dask_array.Array)


def as_rows(X: "Array") -> "Array":
    """Give X checked, floating, and chunked by rows alone."""
    dask_validation.check_dask_embeddings(X)
    if X.dtype not in _FLOATING:
        X = X.astype(np.float64)
    return by_rows(X, X.chunks[0])


def by_rows(array: "Array", sizes: tuple[int, ...]) -> "Array":
    """Give an array whose chunks are of so many rows, each with all columns."""
    columns = (-1,) * (array.ndim - 1)
    rechunked: Array = array.rechunk((sizes, *columns))
    return rechunked


def beside(values: Any, X: "Array", name: str) -> "Array":
    """Give what comes with the rows of X, in memory or not, chunked as X is."""
    import dask.array as da

    if not is_dask_array(values):
        values = da.from_array(np.asarray(tensors.to_array(values)))
    dask_validation.check_dask_array(values, name)
    _validation.check_length(values, X.shape[0], name)
    return by_rows(values, X.chunks[0])


def map_rows(
    function: Callable[..., NDArray[Any]],
    X: "Array",
    logits: "Array | None",
    n_columns: int,
    dtype: np.dtype[Any],
) -> "Array":
    """Give a lazy array (n, n_columns) of what `function` makes of each chunk.

    It is called with rows, logits or None, and the number of the first row.
    """
    import dask
    import dask.array as da

    sizes = X.chunks[0]
    first_rows = da.from_array(np.cumsum((0, *sizes[:-1]))[:, None], chunks=1)
    # A task of its own, which goes to each worker once and not with each chunk.
    shared = dask.delayed(function, pure=True, traverse=False)
    arrays = [X, first_rows] if logits is None else [X, first_rows, logits]
    soft_labels: Array = da.map_blocks(
        _call,
        *arrays,
        function=shared,
        chunks=(sizes, (n_columns,)),
        dtype=dtype,
        meta=np.empty((0, 0), dtype),
    )
    return soft_labels


def sum_subclasses(soft_labels: "Array", shape: tuple[int, int]) -> "Array":
    """Give a lazy array of the sums over the subclasses; `shape` is (C, S)."""
    dtype = soft_labels.dtype if soft_labels.dtype.kind == "f" else np.dtype(float)
    by_row = soft_labels.rechunk({1: -1})
    sums: Array = by_row.map_blocks(
        _class_sums,
        shape,
        chunks=(by_row.chunks[0], (shape[0],)),
        dtype=dtype,
        meta=np.empty((0, 0), dtype),
    )
    return sums


def _class_sums(soft_labels: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    soft_labels = _validation.check_soft_labels(soft_labels, shape[0] * shape[1])
    return class_sums(soft_labels, shape)


def _call(
    rows: NDArray[Any],
    first_row: NDArray[np.intp],
    logits: NDArray[Any] | None = None,
    *,
    function: Callable[..., NDArray[Any]],
) -> NDArray[Any]:
    return function(rows, logits, int(first_row[0, 0]))
