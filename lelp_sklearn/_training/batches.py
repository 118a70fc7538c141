"""Rows as tensors on the training device, dense or CSR, and the batches of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, linear

from lelp_sklearn._callers import ignored_warnings

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
    # Any other module may make the rows dense, or work in place.
    is_unchanged = X.layout == torch.sparse_csr and any(
        isinstance(layer, SparseLinear) for layer in module.modules()
    )
    n_numbers = prod(X.shape[1:])
    if is_unchanged:
        n_numbers = max(1, len(X.values()) // len(X))
    n_rows = max(batch_size, _PREDICTION_NUMBERS // n_numbers)
    step = min(n_rows, _PREDICTION_BATCHES * batch_size)
    module.eval()
    with torch.inference_mode():
        for batch in split_rows(X, step):
            # X may be the caller's own memory.
            copies = not is_unchanged
            inputs = batch.to(device=parameter.device, dtype=dtype, copy=copies)
            # A module may compute in a precision of its own.
            yield module(inputs).to(number)


# --- sparse rows ----------------------------------------------------------------------


class SparseLinear(nn.Module):
    """A linear layer for rows in CSR format, or dense ones.

    The weight is (n_features, n_outputs), so that the weights of a feature are next to
    each other. With `sparse_gradient` the gradient of the weight is a sparse tensor,
    which holds the features of the batch only.
    """

    def __init__(self, dense: nn.Linear) -> None:
        """Take the initial weights of a linear layer."""
        super().__init__()
        self.weight = nn.Parameter(dense.weight.detach().t().contiguous())
        self.bias = dense.bias
        self.sparse_gradient = False

    def forward(self, X: Tensor) -> Tensor:
        """Return the outputs (n, n_outputs) of rows."""
        if X.layout != torch.sparse_csr:
            return linear(X, self.weight.t(), self.bias)
        product = sparse_product(X, self.weight, sparse_gradient=self.sparse_gradient)
        return product + self.bias


def sparse_product(
    X: Tensor, weight: Tensor, *, sparse_gradient: bool = False
) -> Tensor:
    """Return the product (n, n_outputs) of CSR rows and a weight."""
    product: Tensor = embedding_bag(
        X.col_indices(),
        weight,
        X.crow_indices(),
        mode="sum",
        per_sample_weights=X.values(),
        include_last_offset=True,
        sparse=sparse_gradient,
    )
    return product


def csr_tensor(crow: Tensor, col: Tensor, values: Tensor, n_columns: int) -> Tensor:
    """Return a CSR tensor of row offsets, column indices and values."""
    _warm_up()
    # The rows are checked, or parts of rows that are.
    shape = len(crow) - 1, n_columns
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


@cache
def _warm_up() -> None:
    """Make the first CSR tensor of the process, of which torch warns as of a beta."""
    with ignored_warnings():
        torch.zeros(1, 1).to_sparse_csr()


def select_rows(X: Tensor, index: Tensor) -> Tensor:
    """Return a copy of some rows of a tensor, dense or CSR, by their indices."""
    if X.layout != torch.sparse_csr:
        return X.index_select(0, index)
    crow = X.crow_indices()
    starts = crow.index_select(0, index)
    lengths = crow.index_select(0, index + 1) - starts
    ends = lengths.cumsum(0, dtype=lengths.dtype)
    new_crow = torch.cat([ends.new_zeros(1), ends])
    n_entries = int(new_crow[-1])
    shift = (starts - new_crow[:-1]).repeat_interleave(lengths, output_size=n_entries)
    entries = torch.arange(n_entries, dtype=crow.dtype, device=crow.device) + shift
    col = X.col_indices().index_select(0, entries)
    return csr_tensor(new_crow, col, X.values().index_select(0, entries), X.shape[1])


def split_rows(X: Tensor, step: int) -> Iterator[Tensor]:
    """Yield blocks of rows of a tensor, dense or CSR, that share its memory."""
    if X.layout != torch.sparse_csr:
        yield from X.split(step)
        return
    crow, col, values = X.crow_indices(), X.col_indices(), X.values()
    for start in range(0, len(X), step):
        block = crow[start : start + step + 1]
        entries = slice(int(block[0]), int(block[-1]))
        yield csr_tensor(block - block[0], col[entries], values[entries], X.shape[1])
