"""Compute soft labels of embeddings, a block of rows at a time."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lelp_sklearn import _validation
from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.rows import Rows, row_slices
from lelp_sklearn._subclasses.torch_backend import (
    TensorRows,
    exact_products,
    is_on_device,
    is_tensor,
    like,
)
from lelp_sklearn._threads import map_parts
from lelp_sklearn._typing import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from lelp_sklearn._subclasses.torch_backend import torch


@dataclass(frozen=True)
class SoftLabeller:
    """The arrays of a fitted projector: small, so that they are sent to the rows."""

    components: FloatArray  # (C, S, d)
    offsets: FloatArray  # (C, S)
    coef: FloatArray  # (C, d), the head
    intercept: FloatArray  # (C,)
    centre: FloatArray  # (d,) amid the embeddings: subtracted first, it keeps precision
    temperature: float
    subclass_temperature: float

    def __call__(
        self, rows: Rows, logits: FloatArray | None = None, first_row: int = 0
    ) -> Any:
        """Return soft labels (n, C*S) of rows, at least in single precision.

        The result is a tensor on the device of `rows` if these are a tensor there.
        """
        shape = rows.shape[0], self.offsets.size
        if is_on_device(rows):
            soft_labels: Any = rows.empty(shape)
        else:
            soft_labels = np.empty(shape, np.result_type(rows.dtype, np.float32))
        self.write(rows, logits, soft_labels, first_row)
        return soft_labels

    def of_chunk(self, rows: Rows, teacher_logits: Any, first_row: int) -> FloatArray:
        """Return soft labels of a chunk of rows, and check its logits."""
        logits = teacher_logits
        if logits is not None:
            logits = _validation.check_logits(logits, rows.shape[0], first_row)
            logits = _validation.logits_of_classes(logits)
        soft_labels: FloatArray = self(rows, logits, first_row)
        return soft_labels

    def write(
        self,
        rows: Rows,
        logits: FloatArray | None,
        target: Any,
        first_row: int = 0,
    ) -> None:
        """Fill `target` (n, C*S) with soft labels, computed in its precision.

        `target` is an array, or a tensor on the device of the rows. Raises if a row,
        counted from `first_row`, holds NaN or infinity, which is found on the way.
        """
        if is_on_device(rows):
            self._write_on_device(rows, logits, target, first_row)
            return
        # A plain array also for a memory map.
        target = np.asarray(target)
        # Scores that overflow are found below, and computed in double precision.
        with np.errstate(over="ignore", invalid="ignore"):
            write_block = self._block_writer(rows, logits, target.dtype)

        def write(block: slice) -> tuple[slice, bool]:
            own = target[block]
            if own.strides[1] == own.itemsize:
                return block, write_block(block, own)
            # The kernel needs rows whose entries are contiguous.
            own = np.empty(own.shape, own.dtype)
            finite = write_block(block, own)
            target[block] = own
            return block, finite

        for block, finite in map_parts(write, row_slices(rows)):
            if not finite:
                start = first_row + block.start
                _validation.check_finite_block(rows[block], start, "X")
                target[block] = self._in_double(rows, logits, block)

    def _write_on_device(
        self,
        rows: TensorRows,
        logits: FloatArray | None,
        target: Any,
        first_row: int,
    ) -> None:
        """Fill `target`, a tensor on the device of the rows or an array."""
        projection = self._projection(rows.dtype, logits is not None)
        beside = None if logits is None else rows.beside(logits, rows.precision)
        kernels = torch_backend.kernels_of(rows.tensor)
        sizes = len(projection.columns), projection.n_classes
        if kernels is not None and kernels.fits(rows.tensor, *sizes):
            kernel = _fused_kernel(kernels, projection, rows.tensor)
        else:
            kernel = _TorchKernel(projection, rows)
        has_nonfinite = torch.zeros(1, dtype=torch.int32, device=rows.tensor.device)
        for block in rows.slices():
            own_logits = None if beside is None else beside[block]
            if is_tensor(target):
                kernel(rows.tensor[block], own_logits, target[block], has_nonfinite)
            else:
                part = rows.empty((block.stop - block.start, projection.n_outputs))
                kernel(rows.tensor[block], own_logits, part, has_nonfinite)
                target[block] = part.cpu().numpy()
        # Asked once, since the answer has to wait for the device.
        if not has_nonfinite:
            return
        row = torch_backend.first_nonfinite_row(rows)
        if row is not None:
            _validation.check_finite_block(rows[row : row + 1], first_row + row, "X")
        # Overflow is rare: compute on the host, which always has double precision.
        for block in row_slices(rows):
            block_logits = None if logits is None else logits[block]
            soft_labels = self(rows[block], block_logits)
            target[block] = (
                like(soft_labels, target) if is_tensor(target) else soft_labels
            )

    def _in_double(
        self, rows: Rows, logits: FloatArray | None, block: slice
    ) -> FloatArray:
        """Return soft labels of a block whose scores overflow single precision."""
        soft_labels = np.empty((block.stop - block.start, self.offsets.size))
        write_block = self._block_writer(rows, logits, soft_labels.dtype)
        if not write_block(block, soft_labels):
            raise _validation.overflow_error(soft_labels.dtype)
        return soft_labels

    def _block_writer(
        self, rows: Rows, logits: FloatArray | None, dtype: np.dtype[Any]
    ) -> Callable[[slice, FloatArray], bool]:
        """Return a function that writes a block's soft labels, computed in `dtype`.

        It returns whether all scores are finite.
        """
        # Imported at the first call: numba would slow the import of the package.
        from lelp_sklearn._subclasses.kernels import soft_labels, tiles

        own = self._projection(dtype, logits is not None)
        projection = tiles.Projection(
            tiles.readable(own.centre[None], dtype),
            tiles.pack([own.columns], dtype)[0],
            tiles.readable(own.offsets, dtype),
            dtype.type(own.per_temperature),
            dtype.type(own.per_subclass_temperature),
        )
        no_logits = np.empty((0, len(self.coef)), dtype)

        def write(block: slice, target: FloatArray) -> bool:
            with np.errstate(over="ignore"):
                own = no_logits if logits is None else logits[block].astype(dtype)
            X, block_logits = (tiles.readable(a, dtype) for a in (rows[block], own))
            return soft_labels.soft_labels(X, block_logits, projection, target)

        return write

    def _projection(self, dtype: np.dtype[Any], with_logits: bool) -> "_Projection":
        """Return the arrays of one projection of rows less the centre in `dtype`."""
        centre = self.centre.astype(dtype)
        columns = self.components.reshape(self.offsets.size, -1)
        offsets = self.offsets.ravel() - columns @ centre
        if not with_logits:
            columns = np.vstack([columns, self.coef])
            offsets = np.append(offsets, -self.intercept - self.coef @ centre)
        beta = self.subclass_temperature
        return _Projection(
            centre,
            columns,
            offsets,
            self.offsets.size,
            len(self.coef),
            1 / self.temperature,
            1 / beta if beta else 0,
        )


def class_sums(soft_labels: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Return sums (n, C) of soft labels (n, C*S) over subclasses; `shape` is (C, S)."""
    sums: FloatArray = soft_labels.reshape(-1, *shape).sum(axis=2)
    return sums


@dataclass(frozen=True)
class _Projection:
    """What soft labels are computed with, in double precision."""

    centre: FloatArray  # (d,)
    columns: FloatArray  # (C*S, d), or (C*S + C, d) with the head's columns after them
    offsets: FloatArray  # one for each column, of rows less the centre
    n_outputs: int  # C*S
    n_classes: int
    per_temperature: float  # 1 / tau
    per_subclass_temperature: float  # 1 / beta, or 0 to assign hard

    def equals(self, other: "_Projection") -> bool:
        """Whether both are of the same numbers."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(np.array_equal(*pair) for pair in pairs)


# Kernels of the last projections, of what tensors they are for: preparing one takes
# longer than a block of few rows, and most calls are for the block after the last.
_recent: deque[tuple[object, _Projection, Any]] = deque(maxlen=4)


class _TorchKernel:
    """Soft labels of a block of rows by torch's own operations."""

    def __init__(self, projection: _Projection, rows: TensorRows) -> None:
        self._projection = projection
        self._centre, self._columns, self._offsets = (
            rows.beside(each, rows.precision)
            for each in (projection.centre, projection.columns, projection.offsets)
        )

    def __call__(
        self,
        rows: "Tensor",
        logits: "Tensor | None",
        out: "Tensor",
        has_nonfinite: "Tensor",
    ) -> None:
        projection = self._projection
        n_outputs, n_classes = projection.n_outputs, projection.n_classes
        with exact_products():
            scores = (rows - self._centre) @ self._columns.T - self._offsets
            mass = _softmax(
                scores[:, n_outputs:] if logits is None else logits,
                projection.per_temperature,
            )
            shares = scores[:, :n_outputs].view(len(rows), n_classes, -1)
            if projection.per_subclass_temperature > 0:
                shares = _softmax(shares, projection.per_subclass_temperature)
            else:
                best, chosen = shares.max(dim=-1, keepdim=True)
                has_nonfinite |= ~torch.isfinite(best).all()
                shares = torch.zeros_like(shares).scatter_(-1, chosen, 1.0)
            torch.mul(mass[:, :, None], shares, out=out.view_as(shares))
            # A finite sum means finite entries.
            has_nonfinite |= ~torch.isfinite(out.sum())


def _fused_kernel(kernels: Any, projection: _Projection, tensor: "Tensor") -> Any:
    """Return Triton's kernel of a projection, compiled unless it is a recent one."""
    # On another stream, what was sent to the device might not have arrived.
    streams = torch.cuda if tensor.device.type == "cuda" else torch.cpu
    tensors_of = tensor.dtype, tensor.device, streams.current_stream(tensor.device)
    for known_tensors, known, kernel in tuple(_recent):
        if known_tensors == tensors_of and known.equals(projection):
            return kernel
    kernel = kernels.Kernel(tensor, **vars(projection))
    # What a caller changes in the projector must not change here too.
    kept = replace(projection, columns=projection.columns.copy())
    _recent.append((tensors_of, kept, kernel))
    return kernel


def _softmax(scores: "Tensor", per_temperature: float) -> "Tensor":
    """Softmax along the last axis: differences first, which cannot overflow."""
    top = scores.amax(dim=-1, keepdim=True)
    return torch.softmax((scores - top) * per_temperature, dim=-1)
