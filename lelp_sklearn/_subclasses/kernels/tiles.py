"""How kernels want their arrays: in tiles that fit the caches, and aligned."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses.kernels.jit import (
    REGISTER_BYTES,
    SQUARE_BYTES,
    as_number,
    compiled,
    multiply_add_ahead,
    transpose,
    vector_width,
)
from lelp_sklearn._typing import FloatArray, IntArray

# Rows that are worked on at once, within the second-level cache.
TILE_ROWS = 64
# Columns of X that are transposed at once, into the first-level cache.
_PANEL_COLUMNS = 128
# Vectors of rows whose products with six columns are summed in registers at once.
_VECTORS_AT_ONCE = 4 if REGISTER_BYTES == 64 else 2
_PANEL_BYTES = _VECTORS_AT_ONCE * REGISTER_BYTES
# Packed columns are a multiple of so many.
_COLUMNS_AT_ONCE = 3


class ClassRows(NamedTuple):
    """A block of rows with their classes, as kernels read them."""

    X: NDArray[Any]  # (n, d) numbers, or the bits of float16 as uint16
    class_index: IntArray  # (n,), -1 for none
    weight: FloatArray  # (n,) in units of `unit`
    centres: FloatArray  # (C, d), subtracted from the rows of a class
    unit: float


class Centroids(NamedTuple):
    """Centroids of each class relative to its centre, as kernels read them.

    The score of a centroid, its product with a row less half its square, may be less
    than the largest by its tie: the first of such centroids counts as the nearest.
    """

    packed: FloatArray  # by `pack` of (k_c, d)
    half_squares: FloatArray  # (C, k), infinity where there is none
    ties: FloatArray  # (C, k)


class Projection(NamedTuple):
    """What soft labels are computed with, all of one dtype."""

    centre: FloatArray  # (1, d)
    packed: FloatArray  # by `pack` of (C*S, d), or (C*S + C, d) with the head's columns
    offsets: FloatArray  # one for each column
    per_temperature: float  # 1 / tau
    # 1 / beta; 0 gives the class mass whole to the largest z.
    per_subclass_temperature: float


def class_rows(
    X: NDArray[Any], class_index: IntArray, weight: FloatArray, centres: FloatArray
) -> ClassRows:
    """Return rows as kernels read them, in the precision of the centres.

    Weights are in units of the largest, which single precision can hold.
    """
    dtype = centres.dtype
    unit = float(weight.max(initial=0)) or 1.0
    own_weight = (weight / unit).astype(dtype)
    return ClassRows(
        readable(X, dtype), class_index, own_weight, readable(centres, dtype), unit
    )


def pack(columns: Sequence[FloatArray], dtype: np.dtype[Any]) -> FloatArray:
    """Copy arrays of columns (k, d), one a row, to one of (len(columns), >= k, >= d).

    With zeros up to whole vectors and whole calls. Each column begins where a vector
    may begin in memory: what is on two lines of the cache is read at half the speed.
    """
    width = vector_width(dtype)
    n_features = -(-columns[0].shape[1] // width) * width
    most = max(len(each) for each in columns)
    n_columns = -(-most // _COLUMNS_AT_ONCE) * _COLUMNS_AT_ONCE
    packed = _aligned_zeros((len(columns), n_columns, n_features), dtype)
    for own, each in zip(packed, columns, strict=True):
        own[: each.shape[0], : each.shape[1]] = each
    packed.flags.writeable = False
    return packed


def readable(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array as kernels read it: read-only, rows contiguous, halves as bits.

    Of one type whatever the caller has, so that a kernel is compiled once a precision.
    """
    if array.dtype == np.float16 and dtype == np.float32:
        array = np.ascontiguousarray(array).view(np.uint16)
    else:
        array = np.ascontiguousarray(array, dtype=dtype)
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


def zeros(n_rows: int, n_columns: int, dtype: np.dtype[Any]) -> FloatArray:
    """Return zeros of which each row begins where a vector may begin.

    Rows are longer than `n_columns`: a power of two apart they would fall into the same
    few lines of the first-level cache.
    """
    return _aligned_zeros((n_rows, n_columns + vector_width(dtype)), dtype)


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> FloatArray:
    size = math.prod(shape)
    numbers = np.zeros(size + vector_width(dtype), dtype)
    address = numbers.__array_interface__["data"][0]
    start = -address % REGISTER_BYTES // dtype.itemsize
    return numbers[start : start + size].reshape(shape)


def panel_rows(dtype: np.dtype[Any]) -> int:
    """Return the number of rows whose products are summed in registers at once."""
    return _PANEL_BYTES // dtype.itemsize


def empty_panel(dtype: np.dtype[Any]) -> FloatArray:
    """Return room for the few rows and columns that `add_products` transposes."""
    return zeros(_PANEL_COLUMNS, panel_rows(dtype), dtype)


@compiled
def add_products(
    X: NDArray[Any],
    n_rows: int,
    centre: FloatArray,
    packed: FloatArray,
    panel: FloatArray,
    sums: FloatArray,
    upcoming: NDArray[Any],
) -> None:
    """Add packed @ (X[:n_rows] - centre).T to `sums`.

    Rows are transposed, a panel of few rows and columns at a time, so that vectors run
    along them and no sum over a vector is left. The numbers of `upcoming` (1, >= 0) are
    asked for from memory on the way.
    """
    n_features, n_together = X.shape[1], _PANEL_BYTES // packed.itemsize
    # Each product asks for a share of the upcoming numbers: asked for all at once, some
    # would be forgotten.
    step, ahead = -(-n_together // -(-len(packed) // 6)), 0
    for group in range(0, n_rows, n_together):
        rows = X[group : min(group + n_together, n_rows)]
        for first in range(0, n_features, _PANEL_COLUMNS):
            last = min(first + _PANEL_COLUMNS, n_features)
            write_transposed(rows[:, first:last], centre[:, first:last], panel)
            own = panel[: last - first]
            for k in range(0, len(packed), 6):
                columns, part = packed[k:, first:last], sums[k:, group:]
                numbers = upcoming[:, ahead:]
                if len(columns) > _COLUMNS_AT_ONCE:
                    multiply_add_ahead(
                        columns, own, part, 6, _VECTORS_AT_ONCE, numbers, step
                    )
                else:
                    multiply_add_ahead(
                        columns, own, part, 3, _VECTORS_AT_ONCE, numbers, step
                    )
                ahead += (last - first) * step


@compiled
def write_transposed(rows: NDArray[Any], centre: FloatArray, out: FloatArray) -> None:
    """Write (rows - centre).T to `out`."""
    side = SQUARE_BYTES // out.itemsize
    n_rows, n_columns = rows.shape
    n_whole = n_rows // side * side if n_columns >= side else 0
    for r in range(0, n_whole, side):
        transpose(rows[r:], centre, out[:, r:])
    for r in range(n_whole, n_rows):
        for k in range(n_columns):
            out[k, r] = as_number(rows[r, k]) - centre[0, k]
