"""From embeddings to soft labels on CUDA, in one kernel written in Triton.

Imported where a CUDA tensor comes, since Triton is there with torch's CUDA builds only.
No validation: callers are trusted.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from lelp_sklearn._typing import FloatArray

# More columns than these would not fit the registers beside what is read.
_MOST_COLUMNS = 128
_MOST_CLASSES = 16
# How far rounding may move a score, in units of its temperature: soft labels move less.
_ROUNDING = 1e-4
# Features that a tensor core sums before it rounds.
_SUMMED_AT_ONCE = 16
# A half precision number holds the largest of a column times this, and what is left of
# the smallest is not yet subnormal.
_TOP_EXPONENT = 14
# Parts that hold as many digits as single precision, or nearly.
_PARTS = {torch.float16: 2, torch.bfloat16: 3, torch.float32: 1}
# Bytes of shared memory that every device has for a program, of those that are served.
_LEAST_SHARED = 99 * 2**10


@dataclass(frozen=True)
class Tiling:
    """Rows of a program, features that it reads at once, warps, loads under way."""

    rows: int
    features: int
    warps: int
    stages: int


# Kept in one function: no split of it has been measured on a GPU.
@triton.jit
def _soft_labels(
    x,
    parts,
    scales,
    offsets,
    centre,
    logits,
    out,
    has_nonfinite,
    n_rows,
    row_stride,
    feature_stride,
    per_temperature,
    per_subclass_temperature,
    N_FEATURES: tl.constexpr,
    N_CLASSES: tl.constexpr,
    N_SUBCLASSES: tl.constexpr,
    N_PARTS: tl.constexpr,
    GIVEN: tl.constexpr,
    HARD: tl.constexpr,
    CENTRED: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Soft labels of ROWS rows: products, softmax and store with no trip to memory.

    `parts` (N_PARTS, >= d, COLUMNS) add up to the directions times `scales`, the
    head's columns behind them. `has_nonfinite` becomes 1 where a score is not finite.
    """
    n_outputs: tl.constexpr = N_CLASSES * N_SUBCLASSES
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < n_rows
    column = tl.arange(0, COLUMNS)
    x_rows = x + row[:, None] * row_stride
    part_size: tl.constexpr = (
        (N_FEATURES + FEATURES - 1) // FEATURES * FEATURES * COLUMNS
    )
    scores = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, N_FEATURES, FEATURES):
        feature = first + tl.arange(0, FEATURES)
        where = x_rows + feature[None, :].to(tl.int64) * feature_stride
        if EVEN:
            tile = tl.load(where, mask=is_row[:, None], other=0.0)
        else:
            inside = is_row[:, None] & (feature < N_FEATURES)[None, :]
            tile = tl.load(where, mask=inside, other=0.0)
        own = parts + feature[:, None] * COLUMNS + column[None, :]
        if CENTRED:
            tile = tile.to(tl.float32) - tl.load(centre + feature)[None, :]
            scores = tl.dot(tile, tl.load(own), scores, input_precision="tf32x3")
        else:
            for part in tl.static_range(N_PARTS):
                scores = tl.dot(tile, tl.load(own + part * part_size), scores)
    scores = scores * tl.load(scales + column)[None, :]
    scores = scores - tl.load(offsets + column)[None, :]

    # The largest score of each softmax, in all of its columns.
    lowest = float("-inf")
    top = tl.zeros((ROWS, COLUMNS), tl.float32)
    bad = tl.zeros((ROWS,), tl.int32)
    for c in tl.static_range(N_CLASSES):
        mine = ((column >= c * N_SUBCLASSES) & (column < (c + 1) * N_SUBCLASSES))[
            None, :
        ]
        best = tl.max(tl.where(mine, scores, lowest), axis=1)
        top = tl.where(mine, best[:, None], top)
    top_mass = tl.full((ROWS,), lowest, tl.float32)
    if GIVEN:
        for c in tl.static_range(N_CLASSES):
            given = tl.load(logits + row * N_CLASSES + c, mask=is_row, other=0.0)
            top_mass = tl.maximum(top_mass, given)
    else:
        of_head = (column >= n_outputs) & (column < n_outputs + N_CLASSES)
        top_mass = tl.max(tl.where(of_head[None, :], scores, lowest), axis=1)
        top = tl.where(of_head[None, :], top_mass[:, None], top)
    per_unit = tl.where(column < n_outputs, per_subclass_temperature, per_temperature)
    shares = tl.exp((scores - top) * per_unit[None, :])

    total_mass = tl.zeros((ROWS,), tl.float32)
    for c in tl.static_range(N_CLASSES):
        if GIVEN:
            given = tl.load(logits + row * N_CLASSES + c, mask=is_row, other=0.0)
            total_mass += tl.exp((given - top_mass) * per_temperature)
        else:
            is_mass = (column == n_outputs + c)[None, :]
            total_mass += tl.sum(tl.where(is_mass, shares, 0.0), axis=1)
    bad = tl.where(total_mass == total_mass, bad, 1)
    factor = tl.zeros((ROWS, COLUMNS), tl.float32)
    for c in tl.static_range(N_CLASSES):
        mine = ((column >= c * N_SUBCLASSES) & (column < (c + 1) * N_SUBCLASSES))[
            None, :
        ]
        if HARD:
            # The first of the largest.
            reached = mine & (scores == top)
            first_best = tl.min(tl.where(reached, column[None, :], COLUMNS), axis=1)
            chosen = column[None, :] == first_best[:, None]
            shares = tl.where(mine, tl.where(chosen, 1.0, 0.0), shares)
            # What is not finite differs from itself less itself.
            apart = tl.where(mine, scores - scores, 0.0)
            total = 1.0 + tl.sum(apart, axis=1)
        else:
            total = tl.sum(tl.where(mine, shares, 0.0), axis=1)
        bad = tl.where(total == total, bad, 1)
        if GIVEN:
            given = tl.load(logits + row * N_CLASSES + c, mask=is_row, other=0.0)
            mass = tl.exp((given - top_mass) * per_temperature)
        else:
            is_mass = (column == n_outputs + c)[None, :]
            mass = tl.sum(tl.where(is_mass, shares, 0.0), axis=1)
        factor = tl.where(mine, (mass / (total_mass * total))[:, None], factor)
    tl.store(has_nonfinite, 1, mask=tl.max(tl.where(is_row, bad, 0), axis=0) > 0)
    here = out + row[:, None] * n_outputs + column[None, :]
    tl.store(
        here, shares * factor, mask=is_row[:, None] & (column < n_outputs)[None, :]
    )


@triton.jit
def _digest_rows(
    x,
    factors,
    digests,
    has_nonfinite,
    n_rows,
    row_stride,
    feature_stride,
    N_FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Sums of the bits in single precision times factors, of ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < n_rows
    total = tl.zeros((ROWS,), tl.int64)
    bad = tl.zeros((ROWS,), tl.int32)
    for first in range(0, N_FEATURES, FEATURES):
        feature = first + tl.arange(0, FEATURES)
        inside = feature < N_FEATURES
        where = (
            x
            + row[:, None] * row_stride
            + feature[None, :].to(tl.int64) * feature_stride
        )
        held = tl.load(where, mask=is_row[:, None] & inside[None, :], other=0.0)
        number = held.to(tl.float32)
        # -0.0 counts as 0.0.
        number = tl.where(number == 0.0, 0.0, number)
        bits = number.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        factor = tl.load(factors + feature, mask=inside, other=0)
        total += tl.sum(bits * factor[None, :], axis=1)
        # The exponent of what is not finite is all ones.
        ones = (bits & 0x7F800000) == 0x7F800000
        bad = tl.maximum(bad, tl.max(ones.to(tl.int32), axis=1))
    tl.store(digests + row, total, mask=is_row)
    tl.store(has_nonfinite, 1, mask=tl.max(bad, axis=0) > 0)


def digest_rows(
    rows: torch.Tensor, factors: torch.Tensor, digests: torch.Tensor
) -> bool:
    """Write the digest of each row, in single precision; say whether all is finite."""
    n_features = rows.shape[1]
    features = min(128, max(16, triton.next_power_of_2(n_features)))
    has_nonfinite = torch.zeros(1, dtype=torch.int32, device=rows.device)
    with _current(rows):
        _digest_rows[(triton.cdiv(len(rows), 32),)](
            rows,
            factors,
            digests,
            has_nonfinite,
            len(rows),
            rows.stride(0),
            rows.stride(1),
            N_FEATURES=n_features,
            ROWS=32,
            FEATURES=features,
        )
    return not bool(has_nonfinite)


class Kernel:
    """The kernel with all that does not change from one block of rows to the next.

    Rows in half precision are multiplied as they are: by the directions in two or three
    parts of that precision, which lose no more than single precision does. A tensor
    core sums the products in single precision, which is exact enough where the scores
    do not come from a mean far off: `_rounding` tells. Else, and for rows in single
    precision, the centre is taken out of the rows in registers, and each factor is
    divided into two parts of TensorFloat-32.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        centre: FloatArray,
        columns: FloatArray,
        offsets: FloatArray,
        n_outputs: int,
        n_classes: int,
        per_temperature: float,
        per_subclass_temperature: float,
    ) -> None:
        self._sizes = n_classes, n_outputs // n_classes
        self._per_unit = per_temperature, per_subclass_temperature
        self._given = len(columns) == n_outputs
        per_unit = np.full(len(columns), per_temperature)
        per_unit[:n_outputs] = per_subclass_temperature
        far = _rounding(columns, centre, per_unit) > _ROUNDING
        # A hard choice has no temperature that says how exact it has to be.
        hard = per_subclass_temperature == 0 and columns[:n_outputs].any()
        centred = tensor.dtype == torch.float32 or far or bool(hard)
        self.centred = centred
        self._width = max(16, triton.next_power_of_2(len(columns)))
        n_features = columns.shape[1]
        self.tiling = _tiling(n_features, self._width, tensor, centred=centred)
        padded = -(-n_features // self.tiling.features) * self.tiling.features
        wide = np.zeros((padded, self._width))
        wide[:n_features, : len(columns)] = columns.T
        dtype = torch.float32 if centred else tensor.dtype
        scales = _scales(wide) if dtype == torch.float16 else np.ones(self._width)
        parts = _parts(torch.from_numpy(wide / scales), dtype)
        shifted = offsets if centred else offsets + columns @ centre
        numbers = np.zeros(2 * self._width + padded, np.float32)
        of_columns, of_features = np.split(numbers, [2 * self._width])
        with np.errstate(over="ignore"):
            of_columns[: self._width] = scales
            of_columns[self._width :][: len(shifted)] = shifted
            of_features[:n_features] = centre
        self._scales, self._offsets, self._centre = _sent(
            torch.from_numpy(numbers), tensor.device
        ).split([self._width, self._width, padded])
        self._parts = _sent(parts, tensor.device)

    def __call__(
        self,
        rows: torch.Tensor,
        logits: torch.Tensor | None,
        out: torch.Tensor,
        has_nonfinite: torch.Tensor,
    ) -> None:
        """Write the soft labels of rows (n, d) to `out` (n, K), rows contiguous.

        `has_nonfinite` (1,) becomes 1 where a score is not finite.
        """
        n_classes, n_subclasses = self._sizes
        tiling, n_features = self.tiling, rows.shape[1]
        with _current(rows):
            _soft_labels[(triton.cdiv(len(rows), tiling.rows),)](
                rows,
                self._parts,
                self._scales,
                self._offsets,
                self._centre,
                self._offsets if logits is None else logits,
                out,
                has_nonfinite,
                len(rows),
                rows.stride(0),
                rows.stride(1),
                *self._per_unit,
                N_FEATURES=n_features,
                N_CLASSES=n_classes,
                N_SUBCLASSES=n_subclasses,
                N_PARTS=len(self._parts),
                GIVEN=self._given,
                HARD=self._per_unit[1] == 0,
                CENTRED=self.centred,
                EVEN=n_features % tiling.features == 0,
                ROWS=tiling.rows,
                FEATURES=tiling.features,
                COLUMNS=self._width,
                num_warps=tiling.warps,
                num_stages=tiling.stages,
            )


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy numbers to a device; the host does not wait for their arrival."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def fits(tensor: torch.Tensor, n_columns: int, n_classes: int) -> bool:
    """Whether the kernel is for such rows and so many columns."""
    is_held = tensor.dtype in _PARTS
    return is_held and n_columns <= _MOST_COLUMNS and n_classes <= _MOST_CLASSES


def _current(rows: torch.Tensor) -> AbstractContextManager[object]:
    """Make the device of rows the current one: Triton starts kernels on that."""
    if rows.device.type != "cuda":
        return nullcontext()
    return torch.cuda.device(rows.device)


def _tiling(
    n_features: int, width: int, tensor: torch.Tensor, *, centred: bool
) -> Tiling:
    """Choose what keeps enough loads under way, as far as shared memory has room."""
    size = tensor.element_size()
    most = 64 if size == 2 and not centred else 32
    features = max(16, min(most, triton.next_power_of_2(n_features)))
    rows = 64 if width > 64 else 128
    parts_size = 4 if centred else size * _PARTS[tensor.dtype]
    # The centre of these features is held too.
    stage = features * (rows * size + width * parts_size + 4)
    # Where rows are divided into parts, so are the directions, once more.
    room = _shared_bytes(tensor) - centred * features * width * 4
    return Tiling(rows, features, rows // 16, max(1, min(4, room // stage)))


def _shared_bytes(tensor: torch.Tensor) -> int:
    """Shared memory that a program may have on the device of a tensor."""
    if tensor.device.type != "cuda":
        return _LEAST_SHARED
    properties = torch.cuda.get_device_properties(tensor.device)
    return getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED)


def _rounding(columns: FloatArray, centre: FloatArray, per_unit: FloatArray) -> float:
    """How far a score may be moved where the centre is not taken out of the rows.

    Each sum of a few products is rounded to the size that the sum has reached.
    """
    starts = np.arange(0, columns.shape[1], _SUMMED_AT_ONCE)
    sums = np.cumsum(np.add.reduceat(columns * centre, starts, axis=1), axis=1)
    moved = np.sqrt(np.sum(sums**2, axis=1)) * per_unit
    return float(2.0**-22 * moved.max(initial=0))


def _scales(columns: FloatArray) -> FloatArray:
    """Powers of two that bring the largest of each column near the top of the range."""
    exponents = np.frexp(np.abs(columns).max(axis=0))[1]
    scales: FloatArray = np.ldexp(1.0, exponents - _TOP_EXPONENT)
    return scales


def _parts(columns: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Divide columns into parts of a dtype that add up to them in single precision."""
    parts = []
    for _ in range(_PARTS[dtype]):
        parts.append(columns.to(dtype))
        columns = columns - parts[-1].double()
    return torch.stack(parts)
