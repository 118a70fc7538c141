"""From embeddings to soft labels, compiled. No validation: callers are trusted."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses.kernels import fallback
from lelp_sklearn._subclasses.kernels.jit import (
    as_number,
    bits_of,
    compiled,
    exp,
    with_plain_twin,
)
from lelp_sklearn._subclasses.kernels.tiles import (
    TILE_ROWS,
    Projection,
    add_products,
    empty_panel,
    write_transposed,
    zeros,
)
from lelp_sklearn._typing import FloatArray

_HALF_OF_THE_BITS = np.uint64(32)


class _Room(NamedTuple):
    """What a tile of rows is worked on in; vectors run along its rows."""

    panel: FloatArray  # few rows and columns of X, transposed
    scores: FloatArray  # (>= C*S + C, rows) scores, then exponentials
    totals: FloatArray  # (C + 1, rows) their sums: within each class, over the classes
    tops: FloatArray  # (2, rows) the largest score so far and the next such
    no_centre: FloatArray  # (1, rows) zeros


@with_plain_twin(fallback.soft_labels)
def soft_labels(
    X: NDArray[Any], logits: FloatArray, projection: Projection, out: FloatArray
) -> bool:
    r"""Write p_{c,s} = p_c q_{c,s} for every row; return whether all scores are finite.

    .. math:: z = (X - \mathrm{centre}) \, \mathrm{packed}^\top - \mathrm{offsets},
              \quad p_c = \mathrm{softmax}_c(\ell / \tau), \quad
              q_{c,s} = \mathrm{softmax}_s(z_{c,\cdot} / \beta)

    `out` (n, C*S) has the dtype of every array but X (n, d), which may be the bits of
    float16 as uint16. `logits` are (0, C) where the projection gives them.
    """
    dtype, n_classes = out.dtype, logits.shape[1]
    n_scores = max(out.shape[1] + n_classes, len(projection.packed))
    room = _Room(
        empty_panel(dtype),
        zeros(n_scores, TILE_ROWS, dtype),
        np.zeros((n_classes + 1, TILE_ROWS), dtype),
        np.zeros((2, TILE_ROWS), dtype),
        np.zeros((1, TILE_ROWS), dtype),
    )
    return _soft_labels(X, logits, projection, room, out)


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
    # What is read after the rows of the first panel.
    numbers, panel_rows = X.reshape(1, -1), room.panel.shape[1]
    for start in range(0, len(X), TILE_ROWS):
        n_rows = min(TILE_ROWS, len(X) - start)
        for k in range(len(projection.offsets)):
            scores[k] = -projection.offsets[k]
        rows, upcoming = X[start:], numbers[:, (start + panel_rows) * X.shape[1] :]
        add_products(
            rows,
            n_rows,
            projection.centre,
            projection.packed,
            room.panel,
            scores,
            upcoming,
        )
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


@with_plain_twin(fallback.hash_rows)
@compiled
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
    write_transposed(scores[:n_outputs, : len(out)], room.no_centre, out)
