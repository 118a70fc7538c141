"""Sparse rows as torch CSR tensors, and the layer that reads them."""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, linear

from lelp_sklearn._callers import ignored_warnings


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
    return _csr_tensor(crow, col, values, n_columns)


def select_rows(X: Tensor, index: Tensor) -> Tensor:
    """Return a copy of some rows of a tensor, dense or CSR, by their indices."""
    if X.layout != torch.sparse_csr:
        return X.index_select(0, index)
    crow = X.crow_indices()
    starts = crow.index_select(0, index)
    lengths = crow.index_select(0, index + 1) - starts
    new_crow = _offsets(lengths)
    n_entries = int(new_crow[-1])
    shift = (starts - new_crow[:-1]).repeat_interleave(lengths, output_size=n_entries)
    entries = torch.arange(n_entries, dtype=crow.dtype, device=crow.device) + shift
    col, values = (part.index_select(0, entries) for part in _entries(X))
    return csr_tensor(new_crow, col, values, X.shape[1])


def split_rows(X: Tensor, step: int) -> Iterator[Tensor]:
    """Yield blocks of rows of a tensor, dense or CSR, that share its memory."""
    if X.layout != torch.sparse_csr:
        yield from X.split(step)
        return
    crow, (col, values) = X.crow_indices(), _entries(X)
    for start in range(0, len(X), step):
        block = crow[start : start + step + 1]
        entries = slice(int(block[0]), int(block[-1]))
        yield csr_tensor(block - block[0], col[entries], values[entries], X.shape[1])


def reads_entries(module: nn.Module) -> bool:
    """Return whether the first layer reads the stored entries of sparse rows only.

    Any other module may make the rows dense, or work on them in place.
    """
    return any(isinstance(layer, SparseLinear) for layer in module.modules())


def mean_entries(X: Tensor) -> int:
    """Return the mean number of stored entries of CSR rows, at least 1."""
    return max(1, len(X.values()) // len(X))


def _entries(X: Tensor) -> tuple[Tensor, Tensor]:
    return X.col_indices(), X.values()


def _offsets(lengths: Tensor) -> Tensor:
    ends = lengths.cumsum(0, dtype=lengths.dtype)
    return torch.cat([ends.new_zeros(1), ends])


def _csr_tensor(crow: Tensor, col: Tensor, values: Tensor, n_columns: int) -> Tensor:
    # The rows are checked, or parts of rows that are.
    return torch.sparse_csr_tensor(
        crow, col, values, (len(crow) - 1, n_columns), check_invariants=False
    )


@cache
def _warm_up() -> None:
    """Make the first CSR tensor of the process, of which torch warns as of a beta."""
    with ignored_warnings():
        _csr_tensor(torch.tensor([0, 0]), torch.tensor([0])[:0], torch.zeros(0), 1)
