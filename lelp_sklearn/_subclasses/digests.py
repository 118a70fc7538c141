"""A digest of the content of each row, read once with the check for NaN."""

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses import tensor_passes
from lelp_sklearn._subclasses.rows import Rows, row_slices
from lelp_sklearn._subclasses.tensors import is_on_device
from lelp_sklearn._subclasses.threads import map_parts
from lelp_sklearn._validation import check_finite_block

Digests = NDArray[np.uint64]

# The constants of SplitMix64 (Steele, Lea and Flood, 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def hash_rows(X: Rows, first_row: int = 0) -> Digests:
    """Digest (n,) of each row of X, the same for equal rows and hardly for others.

    The same also in half and single precision, and of 0.0 and -0.0. Multilinear
    hashing (Carter and Wegman, 1979).

    Raises
    ------
    ValueError
        If X holds NaN or infinity; rows are counted from `first_row`.
    """
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._subclasses.kernels import soft_labels, tiles

    n_rows, n_features = X.shape
    dtype = np.result_type(X.dtype, np.float32)
    factors = splitmix64(np.arange(1, n_features + 1, dtype=np.uint64) * _STEP)
    if is_on_device(X):
        digests, finite = tensor_passes.hash_rows(X, factors)
        row = None if finite else tensor_passes.first_nonfinite_row(X)
        if row is not None:
            check_finite_block(X[row : row + 1], first_row + row, "X")
        return digests
    digests = np.empty(n_rows, dtype=np.uint64)
    unsigned = f"u{dtype.itemsize}"
    infinity, sign = np.array([np.inf, -0.0], dtype).view(unsigned).astype(np.uint64)

    def work(block: slice) -> tuple[slice, bool]:
        rows = tiles.readable(X[block], dtype)
        return block, soft_labels.digest_rows(
            rows, factors, infinity, sign, digests[block]
        )

    for block, finite in map_parts(work, row_slices(X)):
        if not finite:
            check_finite_block(X[block], first_row + block.start, "X")
    return digests


def scrambling() -> list[tuple[int, int | None]]:
    """Give the shifts and, as signed numbers, the factors of `splitmix64`."""
    factors = [*np.array(_MULTIPLIERS).view(np.int64).tolist(), None]
    return list(zip(map(int, _SHIFTS), factors, strict=True))


def splitmix64(numbers: Digests) -> Digests:
    """Turn 64-bit numbers, one to one, into such as look drawn at random."""
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        numbers = (numbers ^ (numbers >> shift)) * multiplier
    return numbers ^ (numbers >> _SHIFTS[-1])
