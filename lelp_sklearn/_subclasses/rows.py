"""Rows of embeddings, read a block at a time, and their hashes."""

import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches
from sklearn.utils._chunking import get_chunk_n_rows

from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.torch_backend import is_on_device, to_array
from lelp_sklearn._threads import map_parts
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray
from lelp_sklearn._validation import check_finite_block

# Largest number of rows, or of entries, of a block: enough for the cost per block to be
# small.
_MANY_ROWS = 4096
_MANY_NUMBERS = 2**20
# The number of blocks is a multiple of this, so that threads end together, unless that
# leaves a block fewer entries than `_LEAST_NUMBERS`.
_BLOCKS = 8
_LEAST_NUMBERS = 2**16
# Arrays of a block's size that are alive at once: the block, its rows of one class,
# those rows centred, and weighted.
_BLOCK_TEMPORARIES = 4
# Weights that differ by more are very unequal.
_LIKE_WEIGHTS = 100

# The constants of SplitMix64 (Steele, Lea and Flood, 2014): shifts and multipliers.
_STEP = np.uint64(0x9E3779B97F4A7C15)
SPLITMIX64 = (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)

Result = TypeVar("Result")
Sums = tuple[Any, ...]
Digests = NDArray[np.uint64]


class Rows(Protocol):
    """Interface of embeddings: an array, a memory map, or `TensorRows`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: Any) -> NDArray[Any]: ...


class Data:
    """Rows that are one chunk, in this process; `DaskRows` are chunks elsewhere.

    A pass over the rows is a function of labelled rows, called once for rows in this
    process and once a chunk otherwise, whose results can be merged.
    """

    X: Rows  # (n, d)
    is_in_memory = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.X.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.X.dtype

    def __sizeof__(self) -> int:
        """Return the size in bytes, by which dask places a chunk."""
        values = vars(self).values()
        return sum(getattr(each, "nbytes", sys.getsizeof(each)) for each in values)

    def map_reduce(
        self,
        function: Callable[..., Result],
        merge: Callable[[Result, Result], Result],
        *arguments: Any,
    ) -> Result:
        """Return ``function(rows, *arguments)``, merged over the chunks of rows.

        `merge` may change its first argument and return it.
        """
        return function(self, *arguments)

    def map(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the rows as ``function(rows, *arguments)`` labels them."""
        return function(self, *arguments)

    def take(self, places: Sequence[IntArray]) -> Iterator[NDArray[Any]]:
        """Yield copies of the rows at each of several ascending lists of indices."""
        return (self.X[index] for index in places)


@dataclass(frozen=True)
class LabelledRows(Data):
    """Rows of embeddings, each with a class and a weight."""

    X: Rows  # (n, d)
    class_index: IntArray  # (n,), -1 for a row without a class or without weight
    weight: FloatArray  # (n,)
    digests: Digests  # (n,) by `hash_rows`
    logits: FloatArray | None = None  # the teacher's (n, C)
    first_row: int = 0  # its index in the array that these are a chunk of

    def class_weights(self, n_classes: int) -> FloatArray:
        """Return the sum of the weights of each class (C,)."""
        has_class = self.class_index >= 0
        sums = np.bincount(
            self.class_index[has_class], self.weight[has_class], minlength=n_classes
        )
        return sums.astype(np.float64)

    def weight_range(self) -> FloatArray:
        """Return the smallest weight with a class, negated, and the largest."""
        weight = self.weight[self.class_index >= 0]
        return np.array([-weight.min(initial=np.inf), weight.max(initial=0)])

    def only_unlabelled(
        self, head: Callable[[FloatArray], FloatArray] | None
    ) -> "LabelledRows":
        """Give rows without a class the teacher's, and take the others' away.

        The teacher's class is the largest logit, of `logits` if given, else of `head`.
        """
        unlabelled = (self.class_index < 0) & (self.weight > 0)
        class_index = np.full(len(self.class_index), -1)
        if self.logits is not None:
            class_index[unlabelled] = self.logits[unlabelled].argmax(axis=1)
        elif head is not None and unlabelled.any():
            class_index[unlabelled] = _likeliest(self, unlabelled, head)
        return replace(self, class_index=class_index)

    def completed(
        self, head: Callable[[FloatArray], FloatArray] | None
    ) -> "LabelledRows":
        """Give rows without a class the teacher's, as `only_unlabelled` does."""
        teacher = self.only_unlabelled(head).class_index
        return replace(
            self, class_index=np.where(self.class_index < 0, teacher, self.class_index)
        )


def _likeliest(
    data: LabelledRows, wanted: BoolArray, head: Callable[[Any], Any]
) -> IntArray:
    """Return the class that the head gives each of the `wanted` rows (n,)."""
    chosen = replace(data, class_index=np.where(wanted, 0, -1))
    blocks = class_blocks(chosen, n_classes=1)
    classes = [to_array(head(rows).argmax(1)) for _, rows, _, _ in blocks]
    return np.concatenate(classes).astype(np.intp)


def sum_dtype(dtype: np.dtype[Any], lightest: float, heaviest: float) -> np.dtype[Any]:
    """Return the dtype in which a block of rows is summed.

    The precision of the rows, at least single; double if weights are so unequal that
    single precision would lose what the light rows add.
    """
    if are_unequal(lightest, heaviest):
        return np.dtype(np.float64)
    return np.result_type(dtype, np.float32)


def are_unequal(lightest: float, heaviest: float) -> bool:
    """Return whether weights differ by a large factor."""
    return bool(heaviest > _LIKE_WEIGHTS * lightest)


def add_sums(totals: Sums, parts: Sums) -> Sums:
    """Add the sums over other rows."""
    return tuple(map(operator.add, totals, parts))


def sum_blocks(work: Callable[[slice], Sums], X: Rows) -> Sums:
    """Return the sums over all rows of what `work` returns for a block."""
    return reduce(add_sums, map_parts(work, row_slices(X)))


def row_slices(X: Rows) -> Iterator[slice]:
    """Cut the rows of X into slices that fit scikit-learn's ``working_memory``."""
    n_rows, n_features = X.shape
    bytes_per_row = max(1, n_features * 8 * _BLOCK_TEMPORARIES)
    most = max(_MANY_ROWS, _MANY_NUMBERS // max(1, n_features))
    most = max(1, get_chunk_n_rows(bytes_per_row, max_n_rows=most))
    least = min(most, -(-_LEAST_NUMBERS // max(1, n_features)))
    n_blocks = _BLOCKS * -(-n_rows // (_BLOCKS * most))
    size = max(least, -(-n_rows // max(1, n_blocks)))
    # A chunk may have no rows, which `gen_batches` refuses.
    yield from gen_batches(n_rows, size) if n_rows else (slice(0, 0),)


def class_blocks(data: LabelledRows, n_classes: int) -> Iterator[Any]:
    """Yield the rows of each class, block by block, in double precision.

    Yields class index, rows (m, d), their weights (m,) and indices in X (m,): tensors
    on the device of X if it is on one, else arrays.
    """
    if is_on_device(data.X):
        yield from torch_backend.class_blocks(data, n_classes)
        return
    for rows in row_slices(data.X):
        block = np.asarray(data.X[rows], dtype=np.float64)
        for c in range(n_classes):
            mine = np.flatnonzero(data.class_index[rows] == c)
            if mine.size:
                index = mine + rows.start
                yield c, block[mine], data.weight[index], index


def hash_rows(X: Rows, first_row: int = 0) -> Digests:
    """Return a hash (n,) of each row of X, by multilinear hashing.

    Equal rows have equal hashes, in half and single precision alike and with -0.0 for
    0.0; different rows almost never do (Carter and Wegman, 1979). Raises if X holds NaN
    or infinity; the message counts rows from `first_row`.
    """
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._subclasses.kernels import soft_labels, tiles

    n_rows, n_features = X.shape
    dtype = np.result_type(X.dtype, np.float32)
    factors = splitmix64(np.arange(1, n_features + 1, dtype=np.uint64) * _STEP)
    if is_on_device(X):
        hashes, finite = torch_backend.hash_rows(X, factors)
        row = None if finite else torch_backend.first_nonfinite_row(X)
        if row is not None:
            check_finite_block(X[row : row + 1], first_row + row, "X")
        return hashes
    hashes = np.empty(n_rows, dtype=np.uint64)
    unsigned = f"u{dtype.itemsize}"
    infinity, sign = np.array([np.inf, -0.0], dtype).view(unsigned).astype(np.uint64)

    def work(block: slice) -> tuple[slice, bool]:
        rows = tiles.readable(X[block], dtype)
        finite = soft_labels.hash_rows(rows, factors, infinity, sign, hashes[block])
        return block, finite

    for block, finite in map_parts(work, row_slices(X)):
        if not finite:
            check_finite_block(X[block], first_row + block.start, "X")
    return hashes


def splitmix64(numbers: Digests) -> Digests:
    """Map 64-bit numbers one to one to pseudorandom ones."""
    for shift, multiplier in SPLITMIX64:
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(multiplier)
    return numbers
