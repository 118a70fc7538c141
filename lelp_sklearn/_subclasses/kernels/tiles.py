"""How kernels want their arrays: in tiles that fit the caches, and aligned."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses.kernels.jit import compiled
from lelp_sklearn._subclasses.kernels.simd import (
    COLUMNS_AT_ONCE,
    REGISTER_BYTES,
    vector_width,
)
from lelp_sklearn._typing import FloatArray

# Rows whose softmax is taken at once, and columns of X multiplied before the next ones
# are read: both keep what is worked on within the first- and second-level caches.
TILE_ROWS = 64
TILE_COLUMNS = 512
# Columns of X that are transposed at once, into the first-level cache.
PANEL_COLUMNS = 128


def pack(columns: Sequence[FloatArray], dtype: np.dtype[Any]) -> FloatArray:
    """Copy arrays of columns (k, d), one a row, to one of (len(columns), >= k, >= d).

    With zeros up to whole vectors and whole calls. Each column begins where a vector
    may begin in memory: what lies across two lines of the cache is read at half the
    speed.
    """
    width = vector_width(dtype)
    n_features = -(-columns[0].shape[1] // width) * width
    most = max(len(each) for each in columns)
    n_columns = -(-most // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE
    shape = len(columns), n_columns, n_features
    numbers = np.zeros(math.prod(shape) + width, dtype)
    start = -numbers.ctypes.data % REGISTER_BYTES // dtype.itemsize
    packed = numbers[start : start + math.prod(shape)].reshape(shape)
    for own, each in zip(packed, columns, strict=True):
        own[: each.shape[0], : each.shape[1]] = each
    packed.flags.writeable = False
    return packed


def readable(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Give an array as kernels read it: read-only, rows contiguous, halves as bits.

    Of one type whatever the caller has, so that a kernel is compiled once a precision.
    """
    if array.dtype == np.float16 and dtype == np.float32:
        array = np.ascontiguousarray(array).view(np.uint16)
    else:
        array = np.ascontiguousarray(array, dtype=dtype)
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


@compiled
def zeros(n_rows: int, n_columns: int, like: FloatArray) -> FloatArray:
    """Zeros of the dtype of `like`, each row beginning where a vector may begin.

    Rows are longer than `n_columns`: a power of two apart they would fall into the same
    few lines of the first-level cache.
    """
    width = REGISTER_BYTES // like.itemsize
    size = n_rows * (n_columns + width)
    numbers = np.zeros(size + width, like.dtype)
    start = -numbers.ctypes.data % REGISTER_BYTES // like.itemsize
    return numbers[start : start + size].reshape(n_rows, n_columns + width)
