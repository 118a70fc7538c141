"""Soft labels of rows that are tensors, computed on the device where these lie."""

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lelp_sklearn._subclasses.tensor_passes import kernels_of
from lelp_sklearn._subclasses.tensors import TensorRows, exact_products
from lelp_sklearn._typing import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """What soft labels are computed with, in double precision.

    Parameters
    ----------
    centre : (d,)
    columns : (C*S, d) or, with the head's columns after them, (C*S + C, d)
    offsets : one for each column, of rows less the centre
    n_outputs, n_classes : C*S, C
    per_temperature, per_subclass_temperature : float
        1 / tau and 1 / beta; 0 in place of the second assigns hard.
    """

    centre: FloatArray
    columns: FloatArray
    offsets: FloatArray
    n_outputs: int
    n_classes: int
    per_temperature: float
    per_subclass_temperature: float

    def equals(self, other: "Projection") -> bool:
        """Whether both are of the same numbers."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(np.array_equal(*pair) for pair in pairs)


# Kernels of the last projections, of what tensors they are for: preparing one takes
# longer than a block of few rows, and most calls are for the block after the last.
_recent: deque[tuple[object, Projection, Any]] = deque(maxlen=4)


def write(
    projection: Projection,
    rows: TensorRows,
    logits: FloatArray | None,
    target: Any,
) -> bool:
    """Fill `target` (n, C*S), a tensor or an array; say whether all is finite.

    An array is filled block by block. The host asks once whether all is finite.
    """
    import torch

    beside = None if logits is None else rows.beside(logits, rows.precision)
    writer = _writer(projection, rows.tensor, rows)
    if isinstance(target, torch.Tensor):
        writer.write(rows.tensor, beside, target)
        return not bool(writer.has_nonfinite)
    for block in rows.slices():
        own = rows.tensor[block]
        part = torch.empty(
            (len(own), projection.n_outputs),
            dtype=rows.precision,
            device=own.device,
        )
        writer.write(own, None if beside is None else beside[block], part)
        target[block] = part.cpu().numpy()
    return not bool(writer.has_nonfinite)


class _TorchWriter:
    """Soft labels by torch's own operations, a block of rows at a time."""

    def __init__(self, projection: Projection, rows: TensorRows) -> None:
        import torch

        self._projection, self._size = projection, rows.block_rows()
        self._centre, self._columns, self._offsets = (
            rows.beside(each, rows.precision)
            for each in (projection.centre, projection.columns, projection.offsets)
        )
        self.has_nonfinite = torch.zeros(
            (), dtype=torch.bool, device=rows.tensor.device
        )

    def write(self, rows: "Tensor", logits: "Tensor | None", out: "Tensor") -> None:
        with exact_products():
            for start in range(0, len(rows), self._size):
                block = slice(start, start + self._size)
                self._write_block(
                    rows[block], None if logits is None else logits[block], out[block]
                )

    def _write_block(
        self, rows: "Tensor", logits: "Tensor | None", out: "Tensor"
    ) -> None:
        import torch

        projection = self._projection
        n_outputs, n_classes = projection.n_outputs, projection.n_classes
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
            self.has_nonfinite |= ~torch.isfinite(best).all()
            shares = torch.zeros_like(shares).scatter_(-1, chosen, 1.0)
        torch.mul(mass[:, :, None], shares, out=out.view_as(shares))
        # A finite sum means finite entries.
        self.has_nonfinite |= ~torch.isfinite(out.sum())


class _TritonWriter:
    """Soft labels by one kernel over all rows."""

    def __init__(self, kernel: Any, device: "torch.device") -> None:
        import torch

        self._kernel = kernel
        self.has_nonfinite = torch.zeros(1, dtype=torch.int32, device=device)

    def write(self, rows: "Tensor", logits: "Tensor | None", out: "Tensor") -> None:
        self._kernel(rows, logits, out, self.has_nonfinite)


def _writer(projection: Projection, tensor: "Tensor", rows: TensorRows) -> Any:
    """Triton's kernel where there is one for such rows, else torch's operations."""
    kernels = kernels_of(tensor)
    sizes = len(projection.columns), projection.n_classes
    if kernels is None or not kernels.fits(tensor, *sizes):
        return _TorchWriter(projection, rows)
    return _TritonWriter(_kernel(kernels, projection, tensor), tensor.device)


def _kernel(kernels: Any, projection: Projection, tensor: "Tensor") -> Any:
    """Give the kernel of a projection, made anew unless it is a recent one."""
    import torch

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
    import torch

    top = scores.amax(dim=-1, keepdim=True)
    return torch.softmax((scores - top) * per_temperature, dim=-1)
