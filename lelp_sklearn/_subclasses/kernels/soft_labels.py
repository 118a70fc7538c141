"""From embeddings to soft labels, compiled. No validation: callers are trusted."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses.kernels import fallback
from lelp_sklearn._subclasses.kernels.jit import compiled, with_plain_twin
from lelp_sklearn._subclasses.kernels.simd import (
    COLUMNS_AT_ONCE,
    REGISTER_BYTES,
    SQUARE_BYTES,
    as_number,
    bits_of,
    exp,
    multiply_add_ahead,
    transpose,
)
from lelp_sklearn._subclasses.kernels.tiles import (
    PANEL_COLUMNS,
    TILE_ROWS,
    Projection,
    zeros,
)
from lelp_sklearn._typing import FloatArray

# Vectors of rows whose products with six columns, twice COLUMNS_AT_ONCE, are summed in
# registers at once; their bytes.
_VECTORS_AT_ONCE = 4 if REGISTER_BYTES == 64 else 2
_PANEL_BYTES = _VECTORS_AT_ONCE * REGISTER_BYTES
_HALF_OF_THE_BITS = np.uint64(32)


class _Room(NamedTuple):
    """What a tile of rows is worked on in; vectors run along its rows.

    Parameters
    ----------
    panel : few rows and columns of X, transposed
    scores : (>= C*S + C, rows) scores, then exponentials
    totals : (C + 1, rows) their sums: within each class, over the classes
    tops : (2, rows) the largest score so far and the next such
    no_centre : (1, rows) zeros
    """

    panel: FloatArray
    scores: FloatArray
    totals: FloatArray
    tops: FloatArray
    no_centre: FloatArray


@with_plain_twin(fallback.soft_labels)
def soft_labels(
    X: NDArray[Any], logits: FloatArray, projection: Projection, out: FloatArray
) -> bool:
    r"""Write p_{c,s} = p_c q_{c,s} for every row; return whether all scores are finite.

    .. math:: z = (X - \mathrm{centre}) \, \mathrm{packed}^\top - \mathrm{offsets},
              \quad p_c = \mathrm{softmax}_c(\ell / \tau), \quad
              q_{c,s} = \mathrm{softmax}_s(z_{c,\cdot} / \beta)

    Every array but X has the dtype of `out`.

    Parameters
    ----------
    X : (n, d) of that dtype, or the bits of float16 as uint16
    logits : (n, C), or (0, C) where the projection gives them
    projection : Projection
    out : (n, C*S)
    """
    dtype, n_classes = out.dtype, logits.shape[1]
    n_scores = max(out.shape[1] + n_classes, len(projection.packed))
    room = _Room(
        zeros(PANEL_COLUMNS, _PANEL_BYTES // dtype.itemsize, dtype),
        zeros(n_scores, TILE_ROWS, dtype),
        np.zeros((n_classes + 1, TILE_ROWS), dtype),
        np.zeros((2, TILE_ROWS), dtype),
        np.zeros((1, TILE_ROWS), dtype),
    )
    return _soft_labels(X, logits, projection, room, out)


@with_plain_twin(fallback.hash_rows)
def hash_rows(
    X: NDArray[Any],
    factors: NDArray[np.uint64],
    infinity: np.uint64,
    sign: np.uint64,
    hashes: NDArray[np.uint64],
) -> bool:
    """Write the sum of bits times factors of each row; return whether all is finite.

    `infinity` and `sign` are the bits of infinity and of -0.0.
    """
    return _hash_rows(X, factors, infinity, sign, hashes)


@compiled
def _soft_labels(
    X: NDArray[Any],
    logits: FloatArray,
    projection: Projection,
    room: _Room,
    out: FloatArray,
) -> bool:
    n_classes, n_outputs = logits.shape[1], out.shape[1]
    n_subclasses = n_outputs // n_classes
    scores, totals, finite = room.scores, room.totals, True
    for start in range(0, len(X), TILE_ROWS):
        n_rows = min(TILE_ROWS, len(X) - start)
        for k in range(len(projection.offsets)):
            scores[k] = -projection.offsets[k]
        _add_scores(X, start, n_rows, projection, room)
        mass = scores[n_outputs : n_outputs + n_classes]
        for c in range(n_classes):
            for r in range(min(n_rows, len(logits) - start)):
                mass[c, r] = logits[start + r, c]
        # The masses of the classes, then the shares in each.
        for c in range(-1, n_classes):
            part = mass if c < 0 else scores[c * n_subclasses : (c + 1) * n_subclasses]
            per_temperature = (
                projection.per_temperature
                if c < 0
                else projection.per_subclass_temperature
            )
            total = totals[n_classes if c < 0 else c]
            if per_temperature > 0:
                finite &= _exponentials(part, per_temperature, room.tops, total)
            else:
                finite &= _choose(part, total)
        _write_products(room, out[start : start + n_rows])
    return finite


@compiled
def _hash_rows(
    X: NDArray[Any],
    factors: NDArray[np.uint64],
    infinity: np.uint64,
    sign: np.uint64,
    hashes: NDArray[np.uint64],
) -> bool:
    last_of_exponent, flags = sign - infinity, np.uint64(0)
    for r in range(len(X)):
        total = np.uint64(0)
        for k in range(X.shape[1]):
            # Adding zero makes -0.0 positive.
            bits: np.uint64 = bits_of(as_number(X[r, k]) + np.float32(0))
            # The exponent of what is not finite is all ones: one more is carried over.
            flags |= (bits & infinity) + last_of_exponent
            # Small whole numbers have only zeros in the lower half of double precision.
            total += (bits ^ (bits >> _HALF_OF_THE_BITS)) * factors[k]
        hashes[r] = total
    return bool(flags & sign == 0)


@compiled
def _add_scores(
    X: NDArray[Any], start: int, n_rows: int, projection: Projection, room: _Room
) -> None:
    """Add packed @ (X[start : start + n_rows] - centre).T to the scores.

    Rows are transposed, a panel of few rows and columns at a time, so that vectors run
    along them and no sum over a vector is left.
    """
    centre, packed, panel, scores = (
        projection.centre,
        projection.packed,
        room.panel,
        room.scores,
    )
    n_features, panel_rows = X.shape[1], _PANEL_BYTES // packed.itemsize
    # Each product asks for a share of the rows of the next panels: asked for all at
    # once, some would be forgotten.
    numbers = X.reshape(1, -1)
    step = -(-panel_rows // -(-len(packed) // 6))
    for group in range(0, n_rows, panel_rows):
        rows = X[start + group : start + min(group + panel_rows, n_rows)]
        ahead = (start + group + panel_rows) * n_features
        for first in range(0, n_features, PANEL_COLUMNS):
            last = min(first + PANEL_COLUMNS, n_features)
            _transpose(rows[:, first:last], centre[:, first:last], panel)
            own = panel[: last - first]
            for k in range(0, len(packed), 6):
                columns, sums = packed[k:, first:last], scores[k:, group:]
                upcoming = numbers[:, ahead:]
                if len(columns) > COLUMNS_AT_ONCE:
                    multiply_add_ahead(
                        columns, own, sums, 6, _VECTORS_AT_ONCE, upcoming, step
                    )
                else:
                    multiply_add_ahead(
                        columns, own, sums, 3, _VECTORS_AT_ONCE, upcoming, step
                    )
                ahead += (last - first) * step


@compiled
def _transpose(rows: NDArray[Any], centre: FloatArray, out: FloatArray) -> None:
    """Write (rows - centre).T to `out`."""
    side = SQUARE_BYTES // out.itemsize
    n_rows, n_columns = rows.shape
    n_whole = n_rows // side * side if n_columns >= side else 0
    for r in range(0, n_whole, side):
        transpose(rows[r:], centre, out[:, r:])
    for r in range(n_whole, n_rows):
        for k in range(n_columns):
            out[k, r] = as_number(rows[r, k]) - centre[0, k]


@compiled
def _exponentials(
    scores: FloatArray, per_temperature: float, tops: FloatArray, total: FloatArray
) -> bool:
    """Put exp((scores - largest of a row) / temperature), their sums in `total`.

    Loops run along the rows of X, so that they become vector instructions.
    """
    top = tops[0]
    for r in range(TILE_ROWS):
        total[r] = 0
        top[r] = scores[0, r]
    for s in range(1, len(scores)):
        # Into another array, since one that is written in part becomes slow.
        larger = tops[s % 2]
        for r in range(TILE_ROWS):
            larger[r] = max(top[r], scores[s, r])
        top = larger
    for s in range(len(scores)):
        for r in range(TILE_ROWS):
            scores[s, r] = exp((scores[s, r] - top[r]) * per_temperature)
        for r in range(TILE_ROWS):
            total[r] += scores[s, r]
    n_flawed = 0
    for r in range(TILE_ROWS):
        n_flawed += total[r] != total[r]
    return n_flawed == 0


@compiled
def _choose(scores: FloatArray, total: FloatArray) -> bool:
    """Put 1 where the first of the largest scores stands, 0 elsewhere."""
    finite = True
    for r in range(TILE_ROWS):
        best, top = 0, scores[0, r]
        for s in range(1, len(scores)):
            # NaN is the largest too, as it is for `argmax`.
            if scores[s, r] > top or scores[s, r] != scores[s, r]:
                best, top = s, scores[s, r]
        finite &= np.isfinite(top)
        for s in range(len(scores)):
            scores[s, r] = s == best
        total[r] = 1
    return finite


@compiled
def _write_products(room: _Room, out: FloatArray) -> None:
    """Write class mass times share: both are exponentials, not yet over their sums."""
    scores, totals = room.scores, room.totals
    n_classes, n_outputs = len(totals) - 1, out.shape[1]
    n_subclasses = n_outputs // n_classes
    for c in range(n_classes):
        mass, factor = scores[n_outputs + c], totals[c]
        for r in range(TILE_ROWS):
            factor[r] = mass[r] / (totals[n_classes, r] * factor[r])
        for k in range(c * n_subclasses, (c + 1) * n_subclasses):
            for r in range(TILE_ROWS):
                scores[k, r] *= factor[r]
    _transpose(scores[:n_outputs, : len(out)], room.no_centre, out)
