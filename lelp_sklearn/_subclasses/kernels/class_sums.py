"""Sums over the rows of each class, compiled. No validation: callers are trusted.

Three sums repeat one loop, over tiles that fill up with rows of a class: compiled code
that takes a function is not kept on disk.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses.kernels import fallback
from lelp_sklearn._subclasses.kernels.fallback import CENTRE_ROWS
from lelp_sklearn._subclasses.kernels.jit import compiled, kernel
from lelp_sklearn._subclasses.kernels.simd import (
    COLUMNS_AT_ONCE,
    REGISTER_BYTES,
    ROWS_AHEAD,
    ROWS_AT_ONCE,
    add_dot_products,
    as_number,
    multiply_add,
)
from lelp_sklearn._subclasses.kernels.tiles import (
    TILE_COLUMNS,
    TILE_ROWS,
    readable,
    zeros,
)
from lelp_sklearn._typing import FloatArray, IntArray

# Rows of a class that wait until they are multiplied fill the second-level cache.
_TILE_BYTES = 2**18
# Products are written for so many columns at once that some may lie past the last.
_SPARE = 8
# So many rows are summed in single precision, the sums of them in double.
_PART_ROWS = 4096


def class_products(
    rows: NDArray[Any],
    codes: IntArray,
    weight: FloatArray,
    centres: FloatArray,
    packed: FloatArray,
    n_vectors: IntArray,
) -> tuple[FloatArray, FloatArray]:
    """Give the sums (C, k + 1, d) and squares (C,) of `add_products`."""
    n_classes, n_features = centres.shape
    total = np.zeros((n_classes, int(n_vectors.max()) + 1, n_features))
    squares = np.zeros(n_classes)
    own_weight, unit = _scaled(weight, packed.dtype)
    add_products(rows, codes, own_weight, centres, packed, n_vectors, total, squares)
    return total * unit, squares * unit


def class_scatters(
    rows: NDArray[Any], codes: IntArray, weight: FloatArray, n_classes: int, dtype: Any
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weights (C,), means (C, d) and scatters (C, d, d) of rows, by `add_scatters`."""
    n_features = rows.shape[1]
    centres = np.zeros((n_classes, n_features), dtype)
    find_centres(rows, codes, centres)
    scatter = np.zeros((n_classes, n_features, n_features))
    sums, held = np.zeros((n_classes, n_features)), np.zeros(n_classes)
    own_weight, unit = _scaled(weight, centres.dtype)
    add_scatters(rows, codes, own_weight, readable(centres, dtype), scatter, sums, held)
    step = sums / np.where(held > 0, held, 1)[:, None]
    scatter -= sums[:, :, None] * step[:, None, :]
    scatter = np.triu(scatter) + np.triu(scatter, 1).transpose(0, 2, 1)
    return held * unit, centres + step, scatter * unit


def cluster_sums(
    rows: NDArray[Any],
    codes: IntArray,
    weight: FloatArray,
    centres: FloatArray,
    packed: FloatArray,
    half_squares: FloatArray,
    ties: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Give the sums (C, k, d) and weights (C, k) of `add_to_nearest`."""
    sums = np.zeros((*half_squares.shape, centres.shape[1]))
    held = np.zeros(half_squares.shape)
    own_weight, unit = _scaled(weight, packed.dtype)
    add_to_nearest(
        rows, codes, own_weight, centres, packed, half_squares, ties, sums, held
    )
    return sums * unit, held * unit


def _scaled(weight: FloatArray, dtype: np.dtype[Any]) -> tuple[FloatArray, float]:
    """Weights in units of the largest, which single precision can hold; the unit."""
    unit = float(weight.max(initial=0)) or 1.0
    return (weight / unit).astype(dtype), unit


@kernel(plain=fallback.add_products)
def add_products(
    X: NDArray[Any],
    codes: IntArray,
    weight: FloatArray,
    centres: FloatArray,
    packed: FloatArray,
    n_vectors: IntArray,
    total: FloatArray,
    squares: FloatArray,
) -> None:
    r"""Add vectors times the covariance of each class about a centre, in one reading.

    .. math:: \mathrm{total}_c \mathrel{+}= [\mathrm{vectors}_c \, E_c^\top; 1] W E_c,
              \quad \mathrm{squares}_c \mathrel{+}= \mathrm{tr}\, E_c^\top W E_c, \quad
              E_c = X_c - \mathrm{centre}_c

    Parameters
    ----------
    X : (n, d), as for `soft_labels`
    codes, weight : (n,) class of each row, or -1 for none, and its weight
    centres : (C, d)
    packed : by `pack` of vectors (n_vectors_c, d) of each class
    total : (C, >= n_vectors_c + 1, d) float64; squares : (C,) float64
    """
    n_classes, n_columns, width = packed.shape
    tile_rows = _rows_of_tile(width * packed.itemsize)
    tile = zeros(n_classes * tile_rows, width, packed)
    tile_weight = np.zeros((n_classes, tile_rows), packed.dtype)
    filled, summed = np.zeros((2, n_classes), np.int64)
    scores = zeros(max(n_columns, n_vectors.max() + 1) + _SPARE, tile_rows, packed)
    shape = n_classes, n_vectors.max() + 1 + _SPARE, width
    part, part_squares = np.zeros(shape, packed.dtype), np.zeros(width, packed.dtype)
    row = 0
    while True:
        row, c = _fill(X, row, codes, weight, centres, tile, tile_weight, filled)
        n, k = filled[c], n_vectors[c]
        if not n:
            break
        rows = tile[c * tile_rows : (c + 1) * tile_rows]
        _multiply_tile(rows, n, packed[c], scores, X[row:])
        scores[k] = 1
        for j in range(k + 1):
            for r in range(n):
                scores[j, r] *= tile_weight[c, r]
        part_squares[:] = 0
        for r in range(n):
            own, w = rows[r], tile_weight[c, r]
            for j in range(width):
                part_squares[j] += w * own[j] * own[j]
        squares[c] += part_squares.sum()
        _add_product(scores[: k + 1, :n], rows[:n, :width], part[c], False)
        filled[c] = 0
        summed[c] += n
        if summed[c] >= _PART_ROWS:
            _move(part[c], total[c])
            summed[c] = 0
    for c in range(n_classes):
        _move(part[c], total[c])


@kernel(plain=fallback.add_scatters)
def add_scatters(
    X: NDArray[Any],
    codes: IntArray,
    weight: FloatArray,
    centres: FloatArray,
    total: FloatArray,
    sums: FloatArray,
    held: FloatArray,
) -> None:
    r"""Add the upper triangle of the scatter of each class about a centre.

    .. math:: \mathrm{total}_c \mathrel{+}= E_c^\top W E_c, \quad
              \mathrm{sums}_c \mathrel{+}= 1^\top W E_c, \quad
              E_c = X_c - \mathrm{centre}_c

    Parameters
    ----------
    X, codes, weight, centres : as for `add_products`
    total : (C, d, d) float64, of which what is below the diagonal is left undefined
    sums : (C, d), held : (C,) float64, the weights added
    """
    n_classes, n_features = centres.shape
    numbers_of_vector = REGISTER_BYTES // centres.itemsize
    width = -(-n_features // numbers_of_vector) * numbers_of_vector
    tile_rows = _rows_of_tile(width * centres.itemsize)
    tile = zeros(n_classes * tile_rows, width, centres)
    tile_weight = np.zeros((n_classes, tile_rows), centres.dtype)
    filled, summed = np.zeros((2, n_classes), np.int64)
    weighted = zeros(tile_rows, width, centres)
    part = np.zeros((n_classes, n_features + _SPARE, width), centres.dtype)
    part_sums = np.zeros((n_classes, 1, width), centres.dtype)
    row = 0
    while True:
        row, c = _fill(X, row, codes, weight, centres, tile, tile_weight, filled)
        n = filled[c]
        if not n:
            break
        rows = tile[c * tile_rows : (c + 1) * tile_rows]
        own_sums = part_sums[c, 0]
        for r in range(n):
            own, own_weighted, w = rows[r], weighted[r], tile_weight[c, r]
            held[c] += w
            for j in range(width):
                own_weighted[j] = w * own[j]
            for j in range(width):
                own_sums[j] += own_weighted[j]
        _add_product(rows.T[:n_features, :n], weighted[:n, :width], part[c], True)
        filled[c] = 0
        summed[c] += n
        if summed[c] >= _PART_ROWS:
            _move(part[c], total[c])
            _move(part_sums[c], sums[c : c + 1])
            summed[c] = 0
    for c in range(n_classes):
        _move(part[c], total[c])
        _move(part_sums[c], sums[c : c + 1])


@kernel(plain=fallback.add_to_nearest)
def add_to_nearest(
    X: NDArray[Any],
    codes: IntArray,
    weight: FloatArray,
    centres: FloatArray,
    packed: FloatArray,
    half_squares: FloatArray,
    ties: FloatArray,
    sums: FloatArray,
    held: FloatArray,
) -> None:
    """Add each row, times its weight, to the sum of the nearest centroid of its class.

    Parameters
    ----------
    X, codes, weight, centres : as for `add_products`
    packed : by `pack` of centroids (k_c, d) of each class relative to its centre
    half_squares : (C, k) half of their squared lengths; infinity where there is none
    ties : (C, k) by how much less the score of a centroid may be than the largest: the
        first of such centroids counts as the nearest
    sums : (C, k, d), held : (C, k) float64
    """
    n_classes, n_columns, width = packed.shape
    tile_rows = _rows_of_tile(width * packed.itemsize)
    tile = zeros(n_classes * tile_rows, width, packed)
    tile_weight = np.zeros((n_classes, tile_rows), packed.dtype)
    filled, summed = np.zeros((2, n_classes), np.int64)
    scores = zeros(n_columns, tile_rows, packed)
    part = np.zeros((n_classes, half_squares.shape[1], width), packed.dtype)
    nearest, best = np.empty(tile_rows, np.int64), np.empty(tile_rows, packed.dtype)
    row = 0
    while True:
        row, c = _fill(X, row, codes, weight, centres, tile, tile_weight, filled)
        n = filled[c]
        if not n:
            break
        rows = tile[c * tile_rows : (c + 1) * tile_rows]
        _multiply_tile(rows, n, packed[c], scores, X[row:])
        nearest[:] = 0
        best[:] = -np.inf
        for k in range(half_squares.shape[1]):
            for r in range(n):
                scores[k, r] -= half_squares[c, k]
                best[r] = max(best[r], scores[k, r])
        for k in range(half_squares.shape[1] - 1, -1, -1):
            for r in range(n):
                is_near = scores[k, r] >= best[r] - ties[c, k]
                nearest[r] = k if is_near else nearest[r]
        for r in range(n):
            own_sum, own, w = part[c, nearest[r]], rows[r], tile_weight[c, r]
            held[c, nearest[r]] += w
            for j in range(width):
                own_sum[j] += w * own[j]
        filled[c] = 0
        summed[c] += n
        if summed[c] >= _PART_ROWS:
            _move(part[c], sums[c])
            summed[c] = 0
    for c in range(n_classes):
        _move(part[c], sums[c])


@kernel(plain=fallback.find_centres)
def find_centres(X: NDArray[Any], codes: IntArray, centres: FloatArray) -> None:
    """Write the mean of the first rows of each class; `centres` (C, d) is zeros."""
    n_classes = len(centres)
    taken, n_full = np.zeros(n_classes, np.int64), 0
    for r in range(len(X)):
        c = codes[r]
        if c >= 0 and taken[c] < CENTRE_ROWS:
            for k in range(X.shape[1]):
                centres[c, k] += as_number(X[r, k])
            taken[c] += 1
            n_full += taken[c] == CENTRE_ROWS
        if n_full == n_classes:
            break
    for c in range(n_classes):
        centres[c] /= max(taken[c], 1)


@compiled
def _fill(
    X: NDArray[Any],
    start: int,
    codes: IntArray,
    weight: FloatArray,
    centres: FloatArray,
    tile: FloatArray,
    tile_weight: FloatArray,
    filled: IntArray,
) -> tuple[int, int]:
    """Read rows from `start` on, less the centre of their class, each into its tile.

    Rows are read in their order, once for all classes. Gives the next row and a class
    whose tile is full; after the last row a class whose tile is not empty, if any.
    """
    tile_rows = tile_weight.shape[1]
    for r in range(start, len(X)):
        c = codes[r]
        if c < 0:
            continue
        row, out, centre = X[r], tile[c * tile_rows + filled[c]], centres[c]
        for k in range(len(row)):
            out[k] = as_number(row[k]) - centre[k]
        tile_weight[c, filled[c]] = weight[r]
        filled[c] += 1
        if filled[c] == tile_rows:
            return r + 1, c
    return len(X), int(np.argmax(filled))


@compiled
def _multiply_tile(
    tile: FloatArray,
    n_rows: int,
    packed: FloatArray,
    scores: FloatArray,
    upcoming: NDArray[Any],
) -> None:
    """Write packed @ tile[:n_rows].T to `scores`; ask for as many upcoming rows."""
    scores[:] = 0
    for r in range(0, n_rows, ROWS_AT_ONCE):
        for first in range(0, packed.shape[1], TILE_COLUMNS):
            last = min(first + TILE_COLUMNS, packed.shape[1])
            rows = tile[r : r + ROWS_AT_ONCE, first:last]
            for k in range(0, len(packed), COLUMNS_AT_ONCE):
                ahead = r + k // COLUMNS_AT_ONCE * ROWS_AHEAD % ROWS_AT_ONCE
                add_dot_products(
                    rows, packed[k:, first:], scores[k:, r:], upcoming[ahead:, first:]
                )


@compiled
def _move(part: FloatArray, total: FloatArray) -> None:
    """Add what has been summed so far to `total`, in double precision; begin anew."""
    for k in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[k, j] += part[k, j]
    part[:] = 0


@compiled
def _rows_of_tile(row_bytes: int) -> int:
    return min(TILE_ROWS, max(8, _TILE_BYTES // row_bytes // 8 * 8))


@compiled
def _add_product(
    rows: FloatArray, columns: FloatArray, total: FloatArray, upper: bool
) -> None:
    """Add rows @ columns to `total`, three vectors of columns at a time.

    Two and two are better than three and one. As many rows at once as it takes to fill
    most of the registers with their sums: up to seven rows past the last are read and
    their products written, so arrays have to be longer. Where only the upper triangle
    is wanted, rows below it are left out.
    """
    width = REGISTER_BYTES // columns.itemsize
    first = 0
    while first < columns.shape[1]:
        n_left = (columns.shape[1] - first) // width
        n_vectors = 2 if n_left == 4 else min(n_left, 3)
        panel = slice(first, first + n_vectors * width)
        own, sums = columns[:, panel], total[:, panel]
        n_rows = min(len(rows), panel.stop) if upper else len(rows)
        if n_vectors == 3:
            for r in range(0, n_rows, 4):
                multiply_add(rows[r:], own, sums[r:], 4, 3)
        elif n_vectors == 2:
            for r in range(0, n_rows, 6):
                multiply_add(rows[r:], own, sums[r:], 6, 2)
        else:
            for r in range(0, n_rows, 8):
                multiply_add(rows[r:], own, sums[r:], 8, 1)
        first = panel.stop
