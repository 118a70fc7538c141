"""Rows of embeddings, read a block at a time: the only place that up-casts them."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches
from sklearn.utils._chunking import get_chunk_n_rows

from lelp_sklearn._common.typing import FloatArray, IntArray

# A small block stays in the cache, and its sums in single precision are exact enough.
_MAX_BLOCK_ROWS = 4096
# Arrays of a block's size that are alive at once: the block, its rows of one class,
# those rows centred, and weighted.
_BLOCK_TEMPORARIES = 4


class Rows(Protocol):
    """What is asked of embeddings: an array, a memory map, or a tensor behind it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: Any) -> NDArray[Any]: ...


def row_slices(X: Rows) -> Iterator[slice]:
    """Cut the rows of X into slices that fit scikit-learn's ``working_memory``."""
    n_rows, n_features = X.shape
    bytes_per_row = max(1, n_features * 8 * _BLOCK_TEMPORARIES)
    size = get_chunk_n_rows(bytes_per_row, max_n_rows=_MAX_BLOCK_ROWS)
    yield from gen_batches(n_rows, max(1, size))


def read_block(X: Rows, rows: slice, dtype: type[np.floating[Any]]) -> FloatArray:
    """Read rows of X as `dtype`; a view of X where nothing has to be cast."""
    return np.asarray(X[rows], dtype=dtype)


def class_blocks(
    X: Rows, codes: IntArray, sample_weight: FloatArray, n_classes: int
) -> Iterator[tuple[int, FloatArray, FloatArray, IntArray]]:
    """Give the rows of each class, block by block, in double precision.

    Rows without weight and rows without a class (code -1) are left out.

    Yields
    ------
    code, rows (m, d) float64, their weights (m,), their indices in X (m,)
    """
    for rows in row_slices(X):
        block = read_block(X, rows, np.float64)
        block_codes = np.where(sample_weight[rows] > 0, codes[rows], -1)
        for code in range(n_classes):
            mine = np.flatnonzero(block_codes == code)
            if mine.size:
                index = mine + rows.start
                yield code, block[mine], sample_weight[index], index
