"""Numba leaves. They trust their callers: no validation here."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._common.typing import BoolArray, FloatArray, IntArray
from lelp_sklearn._projection.compilation import compiled
from lelp_sklearn._projection.instructions import (
    REGISTER_BYTES,
    as_number,
    bits_of,
    exp,
    multiply_add,
    multiply_add_transposed,
    vector_width,
)

# Rows whose softmax is taken at once, and columns of X multiplied before the next ones
# are read: both keep what is worked on within the second-level cache.
_TILE_ROWS = 64
_TILE_COLUMNS = 1024
_TILE_BYTES = 2**18
# A row of the tile is this many numbers longer than needed: rows a power of two apart
# would fall into the same few lines of the first-level cache.
_SKEW = 16
# Products are written for so many rows at once that some may lie past the last.
_SPARE_ROWS = 8
_HALF_OF_THE_BITS = np.uint64(32)


def pack(columns: FloatArray) -> FloatArray:
    """Copy columns (d, k), with zeros beside them up to whole vectors."""
    n_rows, n_columns = columns.shape
    width = vector_width(columns.dtype)
    packed = np.zeros((n_rows, -(-n_columns // width) * width), columns.dtype)
    packed[:, :n_columns] = columns
    return packed


def pack_with_ones(basis: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """Pack a basis (d, k) for `add_products`, which wants a column to spare."""
    spare = np.zeros((len(basis), 1))
    return readable(pack(np.hstack([basis, spare]).astype(dtype)), dtype)


def class_products(
    rows: NDArray[Any],
    chosen: BoolArray,
    weight: FloatArray,
    centre: FloatArray,
    packed: FloatArray,
) -> tuple[FloatArray, float]:
    """Give the sums (d, k) and squares of `add_products` over the chosen rows."""
    n_features, width = packed.shape
    total = np.zeros((n_features + _SPARE_ROWS, width), packed.dtype)
    squares = np.zeros(n_features, packed.dtype)
    index = np.flatnonzero(chosen)
    own_weight, unit = _scaled(weight[index], packed.dtype)
    add_products(rows, index, own_weight, centre, packed, total, squares)
    sums: FloatArray = total[:n_features].astype(np.float64) * unit
    return sums, float(squares.sum(dtype=np.float64)) * unit


def cluster_sums(
    rows: NDArray[Any],
    chosen: BoolArray,
    weight: FloatArray,
    centre: FloatArray,
    packed: FloatArray,
    centroids: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Sums (k, d) and weights (k,) of the chosen rows nearest to each centroid (k, d).

    `packed` holds the centroids, which are relative to `centre`, as columns.
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

    .. math:: z = (X - \mathrm{centre}) \, \mathrm{packed} - \mathrm{offsets}, \quad
              p_c = \mathrm{softmax}_c(\ell / \tau), \quad
              q_{c,s} = \mathrm{softmax}_s(z_{c,\cdot} / \beta)

    Every array but X has the dtype of `out`, and so do the temperatures.

    Parameters
    ----------
    X : (n, d) of that dtype, or the bits of float16 as uint16
    centre : (d,)
    packed : (d, >= C*S) or, with a column for each logit after them, (d, >= C*S + C)
    offsets : as many as `packed` has columns that are not zeros
    logits : (n, C), or (0, C) where `packed` gives them
    per_temperature, per_subclass_temperature : float
        1 / tau and 1 / beta; 0 in place of the second gives the class mass whole to the
        first of the largest z.
    out : (n, C*S)
    """
    n_classes = logits.shape[1]
    n_outputs = out.shape[1]
    n_subclasses = n_outputs // n_classes
    tile_width = min(_TILE_COLUMNS, X.shape[1]) + _SKEW
    # Whole tiles are computed, the last one too: what it lacks is zeros or old rows.
    tile = np.zeros((_TILE_ROWS + _SPARE_ROWS, tile_width), out.dtype)
    products = np.empty((_TILE_ROWS + _SPARE_ROWS, packed.shape[1]), out.dtype)
    scores = np.zeros((n_outputs + n_classes, _TILE_ROWS), out.dtype)
    totals = np.empty((n_classes + 1, _TILE_ROWS), out.dtype)
    top, finite = np.empty(_TILE_ROWS, out.dtype), True
    for start in range(0, len(X), _TILE_ROWS):
        n_rows = min(_TILE_ROWS, len(X) - start)
        _multiply(X, start, n_rows, centre, packed, tile, products)
        for k in range(len(offsets)):
            for r in range(_TILE_ROWS):
                scores[k, r] = products[r, k] - offsets[k]
        mass = scores[n_outputs:]
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
    total: FloatArray,
    squares: FloatArray,
) -> None:
    r"""Add the covariance times vectors, of some rows about a centre, in one reading.

    .. math:: \mathrm{total} \mathrel{+}= E^\top W [E \, \mathrm{vectors}, 1], \quad
              \mathrm{squares}_j \mathrel{+}= \textstyle\sum_i w_i E_{ij}^2, \quad
              E = X_{\mathrm{index}} - \mathrm{centre}

    Parameters
    ----------
    X : (n, d), as for `soft_labels`
    index, weight : (m,) rows of X and their weights
    centre : (d,)
    packed : (d, k), by `pack`; its last column is not read, since ones take its place
    total : (d + 8, k); the last eight rows are scratch
    squares : (d,)
    """
    n_features = X.shape[1]
    tile_rows = _rows_of_tile(n_features * total.itemsize)
    tile = np.zeros((tile_rows + _SPARE_ROWS, n_features + _SKEW), total.dtype)
    products = np.empty((_TILE_ROWS + _SPARE_ROWS, packed.shape[1]), total.dtype)
    for start in range(0, len(index), tile_rows):
        chosen = index[start : start + tile_rows]
        rows = tile[: len(chosen), :n_features]
        _multiply_chosen(X, chosen, centre, packed, rows, products)
        for r in range(len(chosen)):
            mine, row, w = products[r], rows[r], weight[start + r]
            mine[-1] = 1
            mine *= w
            for k in range(n_features):
                squares[k] += w * row[k] * row[k]
        _add_transposed_product(rows, products[: len(chosen)], total)


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
    packed : (d, >= k) centroids relative to the centre, by `pack`
    half_squares : (k,) half of their squared lengths
    sums : (k, d); held : (k,) the weights added
    """
    n_features = X.shape[1]
    tile_rows = _rows_of_tile(n_features * sums.itemsize)
    tile = np.zeros((tile_rows + _SPARE_ROWS, n_features + _SKEW), sums.dtype)
    products = np.empty((_TILE_ROWS + _SPARE_ROWS, packed.shape[1]), sums.dtype)
    for start in range(0, len(index), tile_rows):
        chosen = index[start : start + tile_rows]
        rows = tile[: len(chosen), :n_features]
        _multiply_chosen(X, chosen, centre, packed, rows, products)
        for r in range(len(chosen)):
            nearest = 0
            for k in range(1, len(half_squares)):
                ahead = products[r, k] - half_squares[k]
                if ahead > products[r, nearest] - half_squares[nearest]:
                    nearest = k
            w, total, row = weight[start + r], sums[nearest], rows[r]
            held[nearest] += w
            for k in range(n_features):
                total[k] += w * row[k]


@compiled
def _multiply_chosen(
    X: NDArray[Any],
    chosen: IntArray,
    centre: FloatArray,
    packed: FloatArray,
    rows: FloatArray,
    products: FloatArray,
) -> None:
    """Write X[chosen] - centre to `rows`, and rows @ packed to `products`."""
    products[:] = 0
    for r in range(len(chosen)):
        row, out = X[chosen[r]], rows[r]
        for k in range(len(row)):
            out[k] = as_number(row[k]) - centre[k]
    # The next rows may lie anywhere: nothing is worth asking for ahead.
    _add_product(rows, packed, products, rows)


@compiled
def _rows_of_tile(row_bytes: int) -> int:
    return min(_TILE_ROWS, max(8, _TILE_BYTES // row_bytes // 8 * 8))


@compiled
def _multiply(
    X: NDArray[Any],
    start: int,
    n_rows: int,
    centre: FloatArray,
    packed: FloatArray,
    tile: FloatArray,
    products: FloatArray,
) -> None:
    """Write (X[start : start + n_rows] - centre) @ packed, a few columns at a time."""
    n_features = X.shape[1]
    products[:] = 0
    for first in range(0, n_features, _TILE_COLUMNS):
        last = min(first + _TILE_COLUMNS, n_features)
        own_centre = centre[first:last]
        for r in range(n_rows):
            # Slices, since an index that is a sum keeps the loop from becoming vector
            # instructions.
            row, out = X[start + r][first:last], tile[r]
            for k in range(len(row)):
                out[k] = as_number(row[k]) - own_centre[k]
        # What will be read next: further columns of these rows, or the next rows.
        upcoming = X[start:, last:] if last < n_features else X[start + n_rows :, :]
        rows = tile[:n_rows, : last - first]
        _add_product(rows, packed[first:last], products, upcoming)


@compiled
def _add_product(
    rows: FloatArray, packed: FloatArray, products: FloatArray, upcoming: NDArray[Any]
) -> None:
    """Add rows @ packed to `products`, three vectors of columns at a time.

    Two and two are better than three and one. As many rows at once as it takes to fill
    most of the registers with their sums: up to seven rows past the last are read and
    their products written, so arrays have to be longer.
    """
    width = REGISTER_BYTES // packed.itemsize
    first = 0
    while first < packed.shape[1]:
        n_left = (packed.shape[1] - first) // width
        n_vectors = 2 if n_left == 4 else min(n_left, 3)
        panel = slice(first, first + n_vectors * width)
        columns, sums = packed[:, panel], products[:, panel]
        if n_vectors == 3:
            for r in range(0, len(rows), 4):
                multiply_add(rows[r:], columns, sums[r:], upcoming[r:], 4, 3)
        elif n_vectors == 2:
            for r in range(0, len(rows), 6):
                multiply_add(rows[r:], columns, sums[r:], upcoming[r:], 6, 2)
        else:
            for r in range(0, len(rows), 8):
                multiply_add(rows[r:], columns, sums[r:], upcoming[r:], 8, 1)
        first = panel.stop


@compiled
def _add_transposed_product(
    rows: FloatArray, columns: FloatArray, total: FloatArray
) -> None:
    """Add rows.T @ columns to `total`; as `_add_product` for the rest."""
    n_outputs = rows.shape[1]
    width = REGISTER_BYTES // columns.itemsize
    first = 0
    while first < columns.shape[1]:
        n_left = (columns.shape[1] - first) // width
        n_vectors = 2 if n_left == 4 else min(n_left, 3)
        panel = slice(first, first + n_vectors * width)
        own, sums = columns[:, panel], total[:, panel]
        if n_vectors == 3:
            for k in range(0, n_outputs, 4):
                multiply_add_transposed(rows[:, k:], own, sums[k:], 4, 3)
        elif n_vectors == 2:
            for k in range(0, n_outputs, 6):
                multiply_add_transposed(rows[:, k:], own, sums[k:], 6, 2)
        else:
            for k in range(0, n_outputs, 8):
                multiply_add_transposed(rows[:, k:], own, sums[k:], 8, 1)
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
    for r in range(scores.shape[1]):
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
