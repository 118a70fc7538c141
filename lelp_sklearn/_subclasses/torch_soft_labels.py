"""Soft labels of rows that are tensors, computed on the device where these are."""

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.torch_backend import TensorRows, exact_products
from lelp_sklearn._typing import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from lelp_sklearn._subclasses.torch_backend import torch


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
    """Fill `target` (n, C*S), a tensor or an array; return whether all is finite.

    The host asks once whether all is finite.
    """
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
        if isinstance(target, torch.Tensor):
            kernel(rows.tensor[block], own_logits, target[block], has_nonfinite)
        else:
            part = rows.empty((block.stop - block.start, projection.n_outputs))
            kernel(rows.tensor[block], own_logits, part, has_nonfinite)
            target[block] = part.cpu().numpy()
    return not bool(has_nonfinite)


class _TorchKernel:
    """Soft labels of a block of rows by torch's own operations."""

    def __init__(self, projection: Projection, rows: TensorRows) -> None:
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


def _fused_kernel(kernels: Any, projection: Projection, tensor: "Tensor") -> Any:
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
