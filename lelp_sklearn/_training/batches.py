"""Rows as tensors on the training device, and the batches sliced from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor, nn

from lelp_sklearn._training.sparse import (
    csr_tensor,
    mean_entries,
    reads_entries,
    select_rows,
    split_rows,
)

# Prediction takes batches of about a million numbers, but of no more rows than so many
# batches of training have: what a module makes of a row may be larger than the row.
_PREDICTION_NUMBERS, _PREDICTION_BATCHES = 2**20, 16


@dataclass(frozen=True)
class TrainingTensors:
    """Rows with their targets, as tensors on the training device.

    They are X (n, ...), in CSR format if it is sparse, soft targets (n, n_classes *
    n_subclasses), one-hot labels (n, n_classes), zero for rows without one, and row
    weights (n,). Labels are None if the loss does not use them, and weights are None if
    all are equal.
    """

    X: Tensor
    soft_targets: Tensor
    label_targets: Tensor | None = None
    weight: Tensor | None = None

    def select(self, index: Tensor) -> "TrainingTensors":
        """Return a copy of some of the rows."""
        labels, weight = self.label_targets, self.weight
        return TrainingTensors(
            select_rows(self.X, index),
            self.soft_targets.index_select(0, index),
            None if labels is None else labels.index_select(0, index),
            None if weight is None else weight.index_select(0, index),
        )


def as_tensor(
    array: Any, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return an array as a tensor, which shares its memory if possible.

    A CSR matrix becomes a CSR tensor, whose values have the `dtype`.
    """
    if issparse(array):
        csr: Any = array
        crow, col = as_tensor(csr.indptr, device), as_tensor(csr.indices, device)
        values = as_tensor(csr.data, device, dtype)
        return csr_tensor(crow, col, values, csr.shape[1])
    if isinstance(array, Tensor):
        return array.detach().to(device=device, dtype=dtype)
    array = np.asarray(array)
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        # A single row of negative stride counts as contiguous: only a copy fixes it.
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array).to(device=device, dtype=dtype)


class _Writable:
    """The memory of a read-only array, shown as writable so that torch does not warn.

    Nothing writes to the tensor. The filters of warnings are shared by all threads, so
    the warning is not filtered.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.__array_interface__ = {
            **array.__array_interface__,
            "data": (array.ctypes.data, False),
        }


def make_training_tensors(
    X: Any,
    soft_targets: Any,
    label_targets: Any,
    weight: Any,
    device: torch.device,
    dtype: torch.dtype,
) -> TrainingTensors:
    """Return arrays as tensors on a device, X in `dtype`; None stays None."""
    number = dtype if dtype.is_floating_point else torch.float32
    return TrainingTensors(
        as_tensor(X, device, dtype),
        as_tensor(soft_targets, device, number),
        None if label_targets is None else as_tensor(label_targets, device, number),
        None if weight is None else as_tensor(weight, device, number),
    )


def shuffled_batches(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Shuffle row indices by torch's generator, and split them into batches.

    A last batch of one row, which batch normalisation cannot take, joins the one
    before.
    """
    order = torch.randperm(len(rows)).to(rows.device, non_blocking=True)
    batches = list(rows.index_select(0, order).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def batched_outputs(
    module: nn.Module, X: Tensor, batch_size: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Yield the outputs of a module in evaluation mode, batch by batch, in `dtype`.

    If `dtype` is for integers, the outputs are in single precision. X may have another
    dtype and another device than the module: batches are converted.
    """
    parameter = next(module.parameters(), X)
    number = dtype if dtype.is_floating_point else torch.float32
    is_unchanged = X.layout == torch.sparse_csr and reads_entries(module)
    n_numbers = mean_entries(X) if is_unchanged else prod(X.shape[1:])
    n_rows = max(batch_size, _PREDICTION_NUMBERS // n_numbers)
    step = min(n_rows, _PREDICTION_BATCHES * batch_size)
    module.eval()
    with torch.inference_mode():
        for batch in split_rows(X, step):
            # A module may work in place, and X may be the caller's own memory.
            copies = not is_unchanged
            inputs = batch.to(device=parameter.device, dtype=dtype, copy=copies)
            # It may also compute in a precision of its own.
            yield module(inputs).to(number)
