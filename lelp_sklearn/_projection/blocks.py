"""Rows of embeddings, read a block at a time: the only place that up-casts them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches
from sklearn.utils._chunking import get_chunk_n_rows

from lelp_sklearn._common.typing import FloatArray, IntArray

# The sums of a small block are exact enough in single precision.
_MAX_BLOCK_ROWS = 4096
# Blocks are as many as this or a multiple, so that threads end together; fewer where
# they would be smaller than is worth handing to a thread.
_BLOCKS = 8
_LEAST_NUMBERS = 2**16
# Arrays of a block's size that are alive at once: the block, its rows of one class,
# those rows centred, and weighted.
_BLOCK_TEMPORARIES = 4


class Rows(Protocol):
    """What is asked of embeddings: an array, a memory map, or a tensor behind it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: Any) -> NDArray[Any]: ...


@dataclass(frozen=True)
class LabelledRows:
    """Rows of embeddings, each with a class and a weight.

    Parameters
    ----------
    X : (n, d)
    codes : (n,) class of each row; -1 for a row without a class or without weight
    weight : (n,)
    digests : (n,) uint64
        Alike for rows that are alike, by `row_digests`.
    """

    X: Rows
    codes: IntArray
    weight: FloatArray
    digests: NDArray[np.uint64]

    @classmethod
    def of(
        cls,
        X: Rows,
        codes: IntArray,
        weight: FloatArray,
        digests: NDArray[np.uint64],
    ) -> "LabelledRows":
        """Take rows without weight out of their classes."""
        return cls(X, np.where(weight > 0, codes, -1), weight, digests)

    def class_weights(self, n_classes: int) -> FloatArray:
        """Sum of the weights of each class (C,)."""
        held = self.codes >= 0
        sums = np.bincount(self.codes[held], self.weight[held], minlength=n_classes)
        return sums.astype(np.float64)


def row_slices(X: Rows) -> Iterator[slice]:
    """Cut the rows of X into slices that fit scikit-learn's ``working_memory``."""
    n_rows, n_features = X.shape
    bytes_per_row = max(1, n_features * 8 * _BLOCK_TEMPORARIES)
    most = max(1, get_chunk_n_rows(bytes_per_row, max_n_rows=_MAX_BLOCK_ROWS))
    least = min(most, -(-_LEAST_NUMBERS // max(1, n_features)))
    n_blocks = _BLOCKS * -(-n_rows // (_BLOCKS * most))
    size = max(least, -(-n_rows // max(1, n_blocks)))
    yield from gen_batches(n_rows, size)


def read_block(X: Rows, rows: slice, dtype: type[np.floating[Any]]) -> FloatArray:
    """Read rows of X as `dtype`; a view of X where nothing has to be cast."""
    return np.asarray(X[rows], dtype=dtype)


def class_blocks(
    data: LabelledRows, n_classes: int
) -> Iterator[tuple[int, FloatArray, FloatArray, IntArray]]:
    """Give the rows of each class, block by block, in double precision.

    Rows without a class are left out.

    Yields
    ------
    code, rows (m, d) float64, their weights (m,), their indices in X (m,)
    """
    for rows in row_slices(data.X):
        block = read_block(data.X, rows, np.float64)
        for code in range(n_classes):
            mine = np.flatnonzero(data.codes[rows] == code)
            if mine.size:
                index = mine + rows.start
                yield code, block[mine], data.weight[index], index
