"""From embeddings to soft labels, compiled. No validation: callers are trusted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._common.typing import FloatArray
from lelp_sklearn._projection import fallback
from lelp_sklearn._projection.compilation import compiled, kernel
from lelp_sklearn._projection.instructions import (
    COLUMNS_AT_ONCE,
    ROWS_AHEAD,
    ROWS_AT_ONCE,
    add_dot_products,
    as_number,
    bits_of,
    exp,
)
from lelp_sklearn._projection.tiles import TILE_COLUMNS, TILE_ROWS, zeros

_HALF_OF_THE_BITS = np.uint64(32)


@kernel(plain=fallback.soft_labels)
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
    packed : of `pack` of (C*S, d) or, with the head's columns after them, (C*S + C, d)
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
    tile = zeros(ROWS_AT_ONCE, min(TILE_COLUMNS, packed.shape[1]), packed)
    scores = zeros(max(n_outputs + n_classes, len(packed)), TILE_ROWS, packed)
    totals = np.empty((n_classes + 1, TILE_ROWS), out.dtype)
    top, finite = np.empty(TILE_ROWS, out.dtype), True
    for start in range(0, len(X), TILE_ROWS):
        n_rows = min(TILE_ROWS, len(X) - start)
        _multiply(X, start, n_rows, centre, packed, tile, scores)
        for k in range(len(offsets)):
            for r in range(TILE_ROWS):
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


@kernel(plain=fallback.digest_rows)
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
        for first in range(0, n_features, TILE_COLUMNS):
            last = min(first + TILE_COLUMNS, n_features)
            own_centre = centre[first:last]
            for r in range(min(ROWS_AT_ONCE, n_rows - group)):
                # Slices, since an index that is a sum keeps the loop from becoming
                # vector instructions.
                row, out = X[start + group + r][first:last], tile[r]
                for k in range(len(row)):
                    out[k] = as_number(row[k]) - own_centre[k]
            rows = tile[:, : min(TILE_COLUMNS, packed.shape[1] - first)]
            # Each call asks for a few of the rows of the next group: asked for all at
            # once, some would be forgotten.
            upcoming = start + group + ROWS_AT_ONCE
            for k in range(0, len(packed), COLUMNS_AT_ONCE):
                ahead = upcoming + k // COLUMNS_AT_ONCE * ROWS_AHEAD % ROWS_AT_ONCE
                add_dot_products(
                    rows, packed[k:, first:], scores[k:, group:], X[ahead:, first:]
                )


@compiled
def _exponentials(
    scores: FloatArray, per_temperature: float, top: FloatArray, total: FloatArray
) -> bool:
    """Put exp((scores - largest of a row) / temperature), their sums in `total`.

    Loops run along the rows of X, so that they become vector instructions. `top` is
    room for a number a row.
    """
    for r in range(TILE_ROWS):
        top[r] = scores[0, r]
        total[r] = 0
    for s in range(1, len(scores)):
        for r in range(TILE_ROWS):
            top[r] = max(top[r], scores[s, r])
    for s in range(len(scores)):
        for r in range(TILE_ROWS):
            scores[s, r] = exp((scores[s, r] - top[r]) * per_temperature)
        for r in range(TILE_ROWS):
            total[r] += scores[s, r]
    finite = True
    for r in range(TILE_ROWS):
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
        for r in range(TILE_ROWS):
            factor[r] = mass[r] / (totals[n_classes, r] * factor[r])
        for k in range(c * n_subclasses, (c + 1) * n_subclasses):
            for r in range(TILE_ROWS):
                scores[k, r] *= factor[r]
    for r in range(len(out)):
        for k in range(n_outputs):
            out[r, k] = scores[k, r]
