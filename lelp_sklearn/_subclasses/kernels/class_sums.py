"""Sums over the rows of each class, compiled.

Nothing is validated: callers are trusted. Three sums repeat one loop, over tiles that
fill up with rows of a class: compiled code that takes a function is not kept on disk.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses.kernels import fallback
from lelp_sklearn._subclasses.kernels.jit import (
    REGISTER_BYTES,
    as_number,
    compiled,
    multiply_add,
    vector_width,
    with_plain_twin,
)
from lelp_sklearn._subclasses.kernels.tiles import (
    TILE_ROWS,
    Centroids,
    ClassRows,
    add_products,
    class_rows,
    empty_panel,
    panel_rows,
    zeros,
)
from lelp_sklearn._typing import FloatArray, IntArray

# Rows of a class that wait until they are multiplied fill the second-level cache.
_TILE_BYTES = 2**18
# Products are written for so many columns at once that some may be past the last.
_SPARE = 8
# So many rows are summed in single precision, the sums of them in double.
_PART_ROWS = 4096
# The first rows of a class in a block, whose mean is its centre.
_CENTRE_ROWS = 64


class _Tiles(NamedTuple):
    """Rows of each class, less its centre, that wait until they are multiplied."""

    rows: FloatArray  # (C, n, >= d)
    weight: FloatArray  # (C, n)
    filled: IntArray  # (C,) rows that wait
    summed: IntArray  # (C,) rows in the sums in single precision
    next_row: IntArray  # (1,) the first row that is not read yet
    panel: FloatArray  # room for `add_products`
    no_centre: FloatArray  # (1, >= d) zeros


class _Sums(NamedTuple):
    """Sums (C, k, >= d) in the precision of the rows; sums of these, in double."""

    part: FloatArray
    total: FloatArray


@with_plain_twin(fallback.class_products)
def class_products(
    rows: ClassRows, packed: FloatArray, n_vectors: IntArray
) -> tuple[FloatArray, FloatArray]:
    r"""Return vectors times the scatter of each class about a centre, in one reading.

    .. math:: \mathrm{total}_c = [\mathrm{vectors}_c \, E_c^\top; 1] W E_c,
              \quad \mathrm{squares}_c = \mathrm{tr}\, E_c^\top W E_c, \quad
              E_c = X_c - \mathrm{centre}_c

    `packed` are by `pack` the vectors (k_c, d) of each class, `n_vectors` (C,) the k_c.
    In the total (C, k + 1, d) row k_c of a class is the sum of its rows.
    """
    n_classes, n_columns, width = packed.shape
    most, dtype = int(n_vectors.max()) + 1, packed.dtype
    tiles = _empty_tiles(rows.centres, width)
    n_scores = max(n_columns, most) + _SPARE
    scores = zeros(n_scores, tiles.weight.shape[1], dtype)
    sums = _empty_sums((n_classes, most, rows.X.shape[1]), width, dtype)
    squares = np.zeros((n_classes, width), dtype)
    totals = np.zeros(n_classes)
    _add_products(rows, tiles, packed, n_vectors, scores, sums, squares, totals)
    return sums.total * rows.unit, totals * rows.unit


def class_scatters(
    X: NDArray[Any],
    class_index: IntArray,
    weight: FloatArray,
    n_classes: int,
    dtype: np.dtype[Any],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return weights (C,), means (C, d) and scatters (C, d, d) of rows."""
    centres = np.zeros((n_classes, X.shape[1]), dtype)
    for c in np.unique(class_index[class_index >= 0]):
        first = np.flatnonzero(class_index == c)[:_CENTRE_ROWS]
        centres[c] = X[first].mean(axis=0, dtype=dtype)
    rows = class_rows(X, class_index, weight, centres)
    scatter, sums, weights = scatters(rows)
    step = sums / np.where(weights > 0, weights, 1)[:, None]
    scatter -= sums[:, :, None] * step[:, None, :]
    scatter = np.triu(scatter) + np.triu(scatter, 1).transpose(0, 2, 1)
    return weights * rows.unit, centres + step, scatter * rows.unit


@with_plain_twin(fallback.scatters)
def scatters(rows: ClassRows) -> tuple[FloatArray, FloatArray, FloatArray]:
    r"""Return the upper triangle of the scatter of each class about a centre.

    .. math:: \mathrm{total}_c = E_c^\top W E_c, \quad \mathrm{sums}_c = 1^\top W E_c,
              \quad E_c = X_c - \mathrm{centre}_c

    And the sums, and the weights (C,), all in units of `rows.unit`. What is below the
    diagonal of the total (C, d, d) is undefined.
    """
    n_classes, n_features = rows.centres.shape
    dtype = rows.centres.dtype
    vector = vector_width(dtype)
    width = -(-n_features // vector) * vector
    tiles = _empty_tiles(rows.centres, width)
    weighted = zeros(tiles.weight.shape[1], width, dtype)
    products = _empty_sums((n_classes, n_features, n_features), width, dtype)
    sums = _empty_sums((n_classes, 1, n_features), width, dtype)
    weights = np.zeros(n_classes)
    _add_scatters(rows, tiles, weighted, products, sums, weights)
    return products.total, sums.total[:, 0], weights


@with_plain_twin(fallback.cluster_sums)
def cluster_sums(
    rows: ClassRows, centroids: Centroids
) -> tuple[FloatArray, FloatArray]:
    """Return sums (C, k, d) and weights of the rows nearest to each centroid."""
    n_columns, width = centroids.packed.shape[1:]
    dtype = centroids.packed.dtype
    tiles = _empty_tiles(rows.centres, width)
    tile_rows = tiles.weight.shape[1]
    scores = zeros(n_columns, tile_rows, dtype)
    nearest, best = np.zeros(tile_rows, np.int64), np.zeros(tile_rows, dtype)
    shape = centroids.half_squares.shape
    sums = _empty_sums((*shape, rows.X.shape[1]), width, dtype)
    weights = np.zeros(shape)
    _add_to_nearest(rows, tiles, centroids, scores, nearest, best, sums, weights)
    return sums.total * rows.unit, weights * rows.unit


def _empty_tiles(centres: FloatArray, width: int) -> _Tiles:
    n_classes, dtype = len(centres), centres.dtype
    together = panel_rows(dtype)
    tile_rows = _TILE_BYTES // (width * dtype.itemsize) // together * together
    tile_rows = min(TILE_ROWS, max(together, tile_rows))
    rows = zeros(n_classes * tile_rows, width, dtype)
    filled, summed = np.zeros((2, n_classes), np.int64)
    return _Tiles(
        rows.reshape(n_classes, tile_rows, -1),
        np.zeros((n_classes, tile_rows), dtype),
        filled,
        summed,
        np.zeros(1, np.int64),
        empty_panel(dtype),
        np.zeros((1, width), dtype),
    )


def _empty_sums(shape: tuple[int, ...], width: int, dtype: np.dtype[Any]) -> _Sums:
    n_classes, n_rows = shape[:2]
    return _Sums(np.zeros((n_classes, n_rows + _SPARE, width), dtype), np.zeros(shape))


@compiled
def _add_products(
    rows: ClassRows,
    tiles: _Tiles,
    packed: FloatArray,
    n_vectors: IntArray,
    scores: FloatArray,
    sums: _Sums,
    squares: FloatArray,
    totals: FloatArray,
) -> None:
    """Do what `class_products` does; `squares` (C, >= d) are those of a tile."""
    width = packed.shape[2]
    while True:
        c = _fill(rows, tiles)
        if c < 0:
            break
        tile, weight, n = tiles.rows[c], tiles.weight[c], tiles.filled[c]
        _multiply_tile(rows, tiles, c, packed[c], scores)
        k = n_vectors[c]
        for r in range(n):
            scores[k, r] = 1
        for j in range(k + 1):
            for r in range(n):
                scores[j, r] *= weight[r]
        own_squares = squares[c]
        for j in range(width):
            own_squares[j] = 0
        for r in range(n):
            own, w = tile[r], weight[r]
            for j in range(width):
                own_squares[j] += w * own[j] * own[j]
        total = own_squares[0]
        for j in range(1, width):
            total += own_squares[j]
        totals[c] += total
        _add_product(scores[: k + 1, :n], tile[:n, :width], sums.part[c], False)
        _empty(tiles, sums, c)
    for c in range(len(packed)):
        _move(sums, c)


@compiled
def _add_scatters(
    rows: ClassRows,
    tiles: _Tiles,
    weighted: FloatArray,
    products: _Sums,
    sums: _Sums,
    weights: FloatArray,
) -> None:
    """Do what `scatters` does; `weighted` is a tile, times its weights."""
    n_features, width = rows.centres.shape[1], products.part.shape[2]
    while True:
        c = _fill(rows, tiles)
        if c < 0:
            break
        tile, weight, n = tiles.rows[c], tiles.weight[c], tiles.filled[c]
        own_sums = sums.part[c, 0]
        for r in range(n):
            own, own_weighted, w = tile[r], weighted[r], weight[r]
            weights[c] += w
            for j in range(width):
                own_weighted[j] = w * own[j]
            for j in range(width):
                own_sums[j] += own_weighted[j]
        columns = tile.T[:n_features, :n]
        _add_product(columns, weighted[:n, :width], products.part[c], True)
        _move(sums, c)
        _empty(tiles, products, c)
    for c in range(len(weights)):
        _move(products, c)


@compiled
def _add_to_nearest(
    rows: ClassRows,
    tiles: _Tiles,
    centroids: Centroids,
    scores: FloatArray,
    nearest: IntArray,
    best: FloatArray,
    sums: _Sums,
    weights: FloatArray,
) -> None:
    """Do what `cluster_sums` does; `nearest` and `best` are of the rows of a tile."""
    packed, half_squares, ties = centroids
    width, n_clusters = packed.shape[2], half_squares.shape[1]
    while True:
        c = _fill(rows, tiles)
        if c < 0:
            break
        tile, weight, n = tiles.rows[c], tiles.weight[c], tiles.filled[c]
        _multiply_tile(rows, tiles, c, packed[c], scores)
        for r in range(n):
            nearest[r] = 0
            best[r] = -np.inf
        for k in range(n_clusters):
            for r in range(n):
                scores[k, r] -= half_squares[c, k]
                best[r] = max(best[r], scores[k, r])
        for k in range(n_clusters - 1, -1, -1):
            for r in range(n):
                is_near = scores[k, r] >= best[r] - ties[c, k]
                nearest[r] = k if is_near else nearest[r]
        for r in range(n):
            own_sum, own, w = sums.part[c, nearest[r]], tile[r], weight[r]
            weights[c, nearest[r]] += w
            for j in range(width):
                own_sum[j] += w * own[j]
        _empty(tiles, sums, c)
    for c in range(len(packed)):
        _move(sums, c)


@compiled
def _fill(rows: ClassRows, tiles: _Tiles) -> int:
    """Read the next rows, less the centre of their class, each into its tile.

    Rows are read in their order, once for all classes. Returns a class whose tile is
    full; after the last row a class whose tile is not empty, or -1.
    """
    tile_rows = tiles.weight.shape[1]
    for r in range(tiles.next_row[0], len(rows.X)):
        c = rows.class_index[r]
        if c < 0:
            continue
        place = tiles.filled[c]
        row, out, centre = rows.X[r], tiles.rows[c, place], rows.centres[c]
        for k in range(len(row)):
            out[k] = as_number(row[k]) - centre[k]
        tiles.weight[c, place] = rows.weight[r]
        tiles.filled[c] = place + 1
        if place + 1 == tile_rows:
            tiles.next_row[0] = r + 1
            return int(c)
    tiles.next_row[0] = len(rows.X)
    for c in range(len(tiles.filled)):
        if tiles.filled[c]:
            return c
    return -1


@compiled
def _multiply_tile(
    rows: ClassRows, tiles: _Tiles, c: int, packed: FloatArray, scores: FloatArray
) -> None:
    """Write packed @ tile.T of the tile of a class to `scores`."""
    scores[:] = 0
    width = packed.shape[1]
    add_products(
        tiles.rows[c, :, :width],
        tiles.filled[c],
        tiles.no_centre,
        packed,
        tiles.panel,
        scores,
        rows.X[tiles.next_row[0] :].reshape(1, -1),
    )


@compiled
def _empty(tiles: _Tiles, sums: _Sums, c: int) -> None:
    """Note that the rows of a tile are in the sums; begin new ones after many rows."""
    tiles.summed[c] += tiles.filled[c]
    tiles.filled[c] = 0
    if tiles.summed[c] >= _PART_ROWS:
        _move(sums, c)
        tiles.summed[c] = 0


@compiled
def _move(sums: _Sums, c: int) -> None:
    """Add the sums of a class so far in double precision, and set them to zero."""
    part, total = sums.part[c], sums.total[c]
    for k in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[k, j] += part[k, j]
    part[:] = 0


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
