"""Numba leaves. They trust their callers: no validation here."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._common.typing import BoolArray, FloatArray, IntArray
from lelp_sklearn._projection.compilation import compiled
from lelp_sklearn._projection.instructions import (
    COLUMNS_AT_ONCE,
    REGISTER_BYTES,
    ROWS_AHEAD,
    ROWS_AT_ONCE,
    add_dot_products,
    as_number,
    bits_of,
    exp,
    multiply_add,
    vector_width,
)

# Rows whose softmax is taken at once, and columns of X multiplied before the next ones
# are read: both keep what is worked on within the first- and second-level caches.
_TILE_ROWS = 64
_TILE_COLUMNS = 512
_TILE_BYTES = 2**18
# Products are written for so many columns at once that some may lie past the last.
_SPARE = 8
_HALF_OF_THE_BITS = np.uint64(32)


def pack(columns: FloatArray) -> FloatArray:
    """Copy columns (k, d), one a row, with zeros up to whole vectors, and whole calls.

    They begin where a vector may begin in memory: what lies across two lines of the
    cache is read at half the speed.
    """
    n_columns, n_features = columns.shape
    width = vector_width(columns.dtype)
    n_rows = -(-n_columns // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE
    n_numbers = -(-n_features // width) * width
    numbers = np.zeros(n_rows * n_numbers + width, columns.dtype)
    start = -numbers.ctypes.data % REGISTER_BYTES // columns.itemsize
    packed = numbers[start : start + n_rows * n_numbers].reshape(n_rows, n_numbers)
    packed[:n_columns, :n_features] = columns
    return packed


def class_products(
    rows: NDArray[Any],
    chosen: BoolArray,
    weight: FloatArray,
    centre: FloatArray,
    packed: FloatArray,
    n_vectors: int,
) -> tuple[FloatArray, FloatArray, float]:
    """Give the products (n_vectors, d), rows (d,) and squares of `add_products`."""
    n_features = rows.shape[1]
    total = np.zeros((n_vectors + 1 + _SPARE, packed.shape[1]), packed.dtype)
    squares = np.zeros(n_features, packed.dtype)
    index = np.flatnonzero(chosen)
    own_weight, unit = _scaled(weight[index], packed.dtype)
    add_products(rows, index, own_weight, centre, packed, n_vectors, total, squares)
    sums: FloatArray = total[: n_vectors + 1, :n_features].astype(np.float64) * unit
    return sums[:-1], sums[-1], float(squares.sum(dtype=np.float64)) * unit


def cluster_sums(
    rows: NDArray[Any],
    chosen: BoolArray,
    weight: FloatArray,
    centre: FloatArray,
    packed: FloatArray,
    centroids: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Sums (k, d) and weights (k,) of the chosen rows nearest to each centroid (k, d).

    `packed` holds the centroids, which are relative to `centre`.
    """
    half_squares = np.einsum("kd,kd->k", centroids, centroids) / 2
    sums = np.zeros(centroids.shape, packed.dtype)
    held = np.zeros(len(centroids))
    index = np.flatnonzero(chosen)
    own_weight, unit = _scaled(weight[index], packed.dtype)
    half_squares = half_squares.astype(packed.dtype)
    add_to_nearest(rows, index, own_weight, centre, packed, half_squares, sums, held)
    return sums.astype(np.float64) * unit, held * unit


def _scaled(weight: FloatArray, dtype: np.dtype[Any]) -> tuple[FloatArray, float]:
    """Weights in units of the largest, which single precision can hold; the unit."""
    unit = float(weight.max(initial=0)) or 1.0
    return (weight / unit).astype(dtype), unit


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
def soft_labels(
    X: NDArray[Any],
    centre: FloatArray,
    packed: FloatArray,
    offsets: FloatArray,
    logits: FloatArray,
    per_temperature: float,
    per_subclass_temperature: float,
    out: FloatArray,
) -> bool:
    r"""Write p_{c,s} = p_c q_{c,s} for every row; give whether all scores are finite.

    .. math:: z = (X - \mathrm{centre}) \, \mathrm{packed}^\top - \mathrm{offsets},
              \quad p_c = \mathrm{softmax}_c(\ell / \tau), \quad
              q_{c,s} = \mathrm{softmax}_s(z_{c,\cdot} / \beta)

    Every array but X has the dtype of `out`, and so do the temperatures.

    Parameters
    ----------
    X : (n, d) of that dtype, or the bits of float16 as uint16
    centre : (d,)
    packed : by `pack` of (C*S, d) or, with the head's columns after them, (C*S + C, d)
    offsets : one for each column
    logits : (n, C), or (0, C) where `packed` gives them
    per_temperature, per_subclass_temperature : float
        1 / tau and 1 / beta; 0 in place of the second gives the class mass whole to the
        first of the largest z.
    out : (n, C*S)
    """
    n_classes = logits.shape[1]
    n_outputs = out.shape[1]
    n_subclasses = n_outputs // n_classes
    tile = _zeros(ROWS_AT_ONCE, min(_TILE_COLUMNS, packed.shape[1]), packed)
    scores = _zeros(max(n_outputs + n_classes, len(packed)), _TILE_ROWS, packed)
    totals = np.empty((n_classes + 1, _TILE_ROWS), out.dtype)
    top, finite = np.empty(_TILE_ROWS, out.dtype), True
    for start in range(0, len(X), _TILE_ROWS):
        n_rows = min(_TILE_ROWS, len(X) - start)
        _multiply(X, start, n_rows, centre, packed, tile, scores)
        for k in range(len(offsets)):
            for r in range(_TILE_ROWS):
                scores[k, r] -= offsets[k]
        mass = scores[n_outputs : n_outputs + n_classes]
        for c in range(n_classes):
            for r in range(min(n_rows, len(logits) - start)):
                mass[c, r] = logits[start + r, c]
        finite &= _exponentials(mass, per_temperature, top, totals[n_classes])
        for c in range(n_classes):
            share = scores[c * n_subclasses : (c + 1) * n_subclasses]
            if per_subclass_temperature > 0:
                finite &= _exponentials(share, per_subclass_temperature, top, totals[c])
            else:
                finite &= _choose(share, totals[c])
        _write_products(scores, totals, out[start : start + n_rows])
    return finite


@compiled
def digest_rows(
    X: NDArray[Any],
    factors: NDArray[np.uint64],
    infinity: np.uint64,
    sign: np.uint64,
    digests: NDArray[np.uint64],
) -> bool:
    """Write the sum of bits times factors of each row; give whether all is finite.

    `infinity` and `sign` are the bits of infinity and of -0.0.
    """
    last_of_exponent, flags = sign - infinity, np.uint64(0)
    for r in range(len(X)):
        digest = np.uint64(0)
        for k in range(X.shape[1]):
            # Adding zero makes -0.0 positive.
            bits: np.uint64 = bits_of(as_number(X[r, k]) + np.float32(0))
            # The exponent of what is not finite is all ones: one more is carried over.
            flags |= (bits & infinity) + last_of_exponent
            # Small whole numbers have only zeros in the lower half of double precision.
            digest += (bits ^ (bits >> _HALF_OF_THE_BITS)) * factors[k]
        digests[r] = digest
    return bool(flags & sign == 0)


@compiled
def add_products(
    X: NDArray[Any],
    index: IntArray,
    weight: FloatArray,
    centre: FloatArray,
    packed: FloatArray,
    n_vectors: int,
    total: FloatArray,
    squares: FloatArray,
) -> None:
    r"""Add vectors times the covariance, of some rows about a centre, in one reading.

    .. math:: \mathrm{total} \mathrel{+}= [\mathrm{vectors} \, E^\top; 1] W E, \quad
              \mathrm{squares}_j \mathrel{+}= \textstyle\sum_i w_i E_{ij}^2, \quad
              E = X_{\mathrm{index}} - \mathrm{centre}

    Parameters
    ----------
    X : (n, d), as for `soft_labels`
    index, weight : (m,) rows of X and their weights
    centre : (d,)
    packed : by `pack` of vectors (n_vectors, d)
    total : (n_vectors + 1 + 8, width of `packed`); the last eight rows are scratch
    squares : (d,)
    """
    n_features = X.shape[1]
    tile_rows = _rows_of_tile(packed.shape[1] * total.itemsize)
    tile = _zeros(tile_rows, packed.shape[1], packed)
    scores = _zeros(max(len(packed), n_vectors + 1) + _SPARE, _TILE_ROWS, packed)
    for start in range(0, len(index), tile_rows):
        chosen = index[start : start + tile_rows]
        _multiply_chosen(X, chosen, centre, packed, tile, scores)
        scores[n_vectors] = 1
        for k in range(n_vectors + 1):
            for r in range(len(chosen)):
                scores[k, r] *= weight[start + r]
        for r in range(len(chosen)):
            row, w = tile[r], weight[start + r]
            for k in range(n_features):
                squares[k] += w * row[k] * row[k]
        rows = tile[: len(chosen), : packed.shape[1]]
        _add_product(scores[: n_vectors + 1, : len(chosen)], rows, total)


@compiled
def add_to_nearest(
    X: NDArray[Any],
    index: IntArray,
    weight: FloatArray,
    centre: FloatArray,
    packed: FloatArray,
    half_squares: FloatArray,
    sums: FloatArray,
    held: FloatArray,
) -> None:
    """Add each of some rows, times its weight, to the sum of its nearest centroid.

    Parameters
    ----------
    X, index, weight, centre : as for `add_products`
    packed : by `pack` of centroids (k, d) relative to the centre
    half_squares : (k,) half of their squared lengths
    sums : (k, d); held : (k,) the weights added
    """
    n_features = X.shape[1]
    tile_rows = _rows_of_tile(packed.shape[1] * sums.itemsize)
    tile = _zeros(tile_rows, packed.shape[1], packed)
    scores = _zeros(len(packed), _TILE_ROWS, packed)
    nearest = np.empty(_TILE_ROWS, np.int64)
    best = np.empty(_TILE_ROWS, sums.dtype)
    for start in range(0, len(index), tile_rows):
        chosen = index[start : start + tile_rows]
        _multiply_chosen(X, chosen, centre, packed, tile, scores)
        nearest[:] = 0
        best[:] = -np.inf
        for k in range(len(half_squares)):
            for r in range(_TILE_ROWS):
                ahead = scores[k, r] - half_squares[k]
                nearest[r] = k if ahead > best[r] else nearest[r]
                best[r] = max(best[r], ahead)
        for r in range(len(chosen)):
            w, total, row = weight[start + r], sums[nearest[r]], tile[r]
            held[nearest[r]] += w
            for k in range(n_features):
                total[k] += w * row[k]


@compiled
def _multiply_chosen(
    X: NDArray[Any],
    chosen: IntArray,
    centre: FloatArray,
    packed: FloatArray,
    tile: FloatArray,
    scores: FloatArray,
) -> None:
    """Write X[chosen] - centre to `tile`, and packed @ tile.T to `scores`."""
    scores[:] = 0
    for r in range(len(chosen)):
        row, out = X[chosen[r]], tile[r]
        for k in range(len(row)):
            out[k] = as_number(row[k]) - centre[k]
    for r in range(0, len(chosen), ROWS_AT_ONCE):
        for first in range(0, packed.shape[1], _TILE_COLUMNS):
            last = min(first + _TILE_COLUMNS, packed.shape[1])
            rows = tile[r : r + ROWS_AT_ONCE, first:last]
            for k in range(0, len(packed), COLUMNS_AT_ONCE):
                # The next rows may lie anywhere: nothing is worth asking for ahead.
                add_dot_products(rows, packed[k:, first:], scores[k:, r:], rows)


@compiled
def _rows_of_tile(row_bytes: int) -> int:
    return min(_TILE_ROWS, max(8, _TILE_BYTES // row_bytes // 8 * 8))


@compiled
def _zeros(n_rows: int, n_columns: int, like: FloatArray) -> FloatArray:
    """Zeros of the dtype of `like`, each row beginning where a vector may begin.

    Rows are longer than `n_columns`: a power of two apart they would fall into the same
    few lines of the first-level cache.
    """
    width = REGISTER_BYTES // like.itemsize
    size = n_rows * (n_columns + width)
    numbers = np.zeros(size + width, like.dtype)
    start = -numbers.ctypes.data % REGISTER_BYTES // like.itemsize
    return numbers[start : start + size].reshape(n_rows, n_columns + width)


@compiled
def _multiply(
    X: NDArray[Any],
    start: int,
    n_rows: int,
    centre: FloatArray,
    packed: FloatArray,
    tile: FloatArray,
    scores: FloatArray,
) -> None:
    """Write packed @ (X[start : start + n_rows] - centre).T to `scores`.

    One function, since calls and the slices that they take cost as much as a product of
    few features.
    """
    n_features = X.shape[1]
    scores[:] = 0
    for group in range(0, n_rows, ROWS_AT_ONCE):
        for first in range(0, n_features, _TILE_COLUMNS):
            last = min(first + _TILE_COLUMNS, n_features)
            own_centre = centre[first:last]
            for r in range(min(ROWS_AT_ONCE, n_rows - group)):
                # Slices, since an index that is a sum keeps the loop from becoming
                # vector instructions.
                row, out = X[start + group + r][first:last], tile[r]
                for k in range(len(row)):
                    out[k] = as_number(row[k]) - own_centre[k]
            rows = tile[:, : min(_TILE_COLUMNS, packed.shape[1] - first)]
            # Each call asks for a few of the rows of the next group: asked for all at
            # once, some would be forgotten.
            upcoming = start + group + ROWS_AT_ONCE
            for k in range(0, len(packed), COLUMNS_AT_ONCE):
                ahead = upcoming + k // COLUMNS_AT_ONCE * ROWS_AHEAD % ROWS_AT_ONCE
                add_dot_products(
                    rows, packed[k:, first:], scores[k:, group:], X[ahead:, first:]
                )


@compiled
def _add_product(rows: FloatArray, columns: FloatArray, total: FloatArray) -> None:
    """Add rows @ columns to `total`, three vectors of columns at a time.

    Two and two are better than three and one. As many rows at once as it takes to fill
    most of the registers with their sums: up to seven rows past the last are read and
    their products written, so arrays have to be longer.
    """
    width = REGISTER_BYTES // columns.itemsize
    first = 0
    while first < columns.shape[1]:
        n_left = (columns.shape[1] - first) // width
        n_vectors = 2 if n_left == 4 else min(n_left, 3)
        panel = slice(first, first + n_vectors * width)
        own, sums = columns[:, panel], total[:, panel]
        if n_vectors == 3:
            for r in range(0, len(rows), 4):
                multiply_add(rows[r:], own, sums[r:], 4, 3)
        elif n_vectors == 2:
            for r in range(0, len(rows), 6):
                multiply_add(rows[r:], own, sums[r:], 6, 2)
        else:
            for r in range(0, len(rows), 8):
                multiply_add(rows[r:], own, sums[r:], 8, 1)
        first = panel.stop


@compiled
def _exponentials(
    scores: FloatArray, per_temperature: float, top: FloatArray, total: FloatArray
) -> bool:
    """Put exp((scores - largest of a row) / temperature), their sums in `total`.

    Loops run along the rows of X, so that they become vector instructions. `top` is
    room for a number a row.
    """
    for r in range(_TILE_ROWS):
        top[r] = scores[0, r]
        total[r] = 0
    for s in range(1, len(scores)):
        for r in range(_TILE_ROWS):
            top[r] = max(top[r], scores[s, r])
    for s in range(len(scores)):
        for r in range(_TILE_ROWS):
            scores[s, r] = exp((scores[s, r] - top[r]) * per_temperature)
        for r in range(_TILE_ROWS):
            total[r] += scores[s, r]
    finite = True
    for r in range(_TILE_ROWS):
        finite &= total[r] == total[r]
    return finite


@compiled
def _choose(scores: FloatArray, total: FloatArray) -> bool:
    """Put 1 where the first of the largest scores stands, 0 elsewhere."""
    finite = True
    for r in range(len(total)):
        best = np.argmax(scores[:, r])
        finite &= np.isfinite(scores[best, r])
        scores[:, r] = 0
        scores[best, r] = 1
        total[r] = 1
    return finite


@compiled
def _write_products(scores: FloatArray, totals: FloatArray, out: FloatArray) -> None:
    """Write class mass times share: both are exponentials, not yet over their sums."""
    n_classes, n_outputs = len(totals) - 1, out.shape[1]
    n_subclasses = n_outputs // n_classes
    for c in range(n_classes):
        mass, factor = scores[n_outputs + c], totals[c]
        for r in range(_TILE_ROWS):
            factor[r] = mass[r] / (totals[n_classes, r] * factor[r])
        for k in range(c * n_subclasses, (c + 1) * n_subclasses):
            for r in range(_TILE_ROWS):
                scores[k, r] *= factor[r]
    for r in range(len(out)):
        for k in range(n_outputs):
            out[r, k] = scores[k, r]
