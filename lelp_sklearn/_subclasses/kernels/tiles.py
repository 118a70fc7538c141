"""How kernels want their arrays: in tiles that fit the caches, and aligned."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses.kernels.simd import (
    COLUMNS_AT_ONCE,
    REGISTER_BYTES,
    vector_width,
)
from lelp_sklearn._typing import FloatArray, IntArray

# Rows whose softmax is taken at once, and columns of X multiplied before the next ones
# are read: both keep what is worked on within the first- and second-level caches.
TILE_ROWS = 64
TILE_COLUMNS = 512
# Columns of X that are transposed at once, into the first-level cache.
PANEL_COLUMNS = 128


class ClassRows(NamedTuple):
    """A block of rows with their classes, as kernels read them.

    Parameters
    ----------
    X : (n, d) numbers, or the bits of float16 as uint16
    class_index : (n,) class of each row, or -1 for none
    weight : (n,) in units of `unit`
    centres : (C, d) point of each class that is subtracted from its rows
    unit : float
    """

    X: NDArray[Any]
    class_index: IntArray
    weight: FloatArray
    centres: FloatArray
    unit: float


class Projection(NamedTuple):
    """What soft labels are computed with, all of one dtype.

    Parameters
    ----------
    centre : (1, d)
    packed : of `pack` of (C*S, d) or, with the head's columns after them, (C*S + C, d)
    offsets : one for each column
    per_temperature, per_subclass_temperature : float
        1 / tau and 1 / beta; 0 in place of the second gives the class mass whole to the
        first of the largest z.
    """

    centre: FloatArray
    packed: FloatArray
    offsets: FloatArray
    per_temperature: float
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
    n_columns = -(-most // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE
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
