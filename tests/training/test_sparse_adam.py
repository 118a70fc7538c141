"""Adam of touched rows: what a row has missed is made up when it is next touched."""

import copy

import pytest
import torch
from torch import nn

from lelp_sklearn._training.sparse_adam import SparseAdamW

N_ROWS, N_COLUMNS = 12, 3


def gradients(n_steps, seed=0):
    """Draw sparse gradients of at most three rows; a row may come in parts."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        index = torch.randint(N_ROWS, (1, 3), generator=generator)
        values = torch.randn(3, N_COLUMNS, generator=generator, dtype=torch.float64)
        yield sparse_tensor(index, values)


def sparse_tensor(index, values):
    return torch.sparse_coo_tensor(
        index, values, (N_ROWS, N_COLUMNS), check_invariants=True
    )


def take_steps(optimizer, weight, steps, *, dense=False):
    for gradient in steps:
        weight.grad = gradient.to_dense() if dense else gradient
        optimizer.step()


def make_weight():
    return nn.Parameter(torch.ones(N_ROWS, N_COLUMNS, dtype=torch.float64))


def test_without_decay_it_is_adam_without_momentum():
    weight, other = make_weight(), make_weight()
    optimizer = SparseAdamW([weight], lr=0.1, weight_decay=0)
    adam = torch.optim.Adam([other], lr=0.1, betas=(0.0, 0.999))
    for rate, seed in ((0.1, 0), (0.03, 1)):
        optimizer.param_groups[0]["lr"] = adam.param_groups[0]["lr"] = rate
        take_steps(optimizer, weight, gradients(40, seed))
        take_steps(adam, other, gradients(40, seed), dense=True)
    torch.testing.assert_close(weight, other, rtol=1e-12, atol=1e-12)


def test_decay_is_made_up_when_a_row_is_touched():
    weight, other = make_weight(), make_weight()
    optimizer = SparseAdamW([weight], lr=0.1, weight_decay=0.5)
    adam = torch.optim.AdamW([other], lr=0.1, betas=(0.0, 0.999), weight_decay=0.5)
    *first, last = gradients(9)
    every_row = sparse_tensor(
        torch.arange(N_ROWS)[None], torch.ones(N_ROWS, N_COLUMNS).double()
    )
    take_steps(optimizer, weight, [*first, last, every_row])
    take_steps(adam, other, [*first, last, every_row], dense=True)
    torch.testing.assert_close(weight, other, rtol=1e-12, atol=1e-12)


def test_other_weights_and_other_rows():
    weight, dense = make_weight(), make_weight()
    twin = make_weight()
    optimizer = SparseAdamW([weight, dense], lr=0.1)
    adam = torch.optim.AdamW([twin], lr=0.1)
    (gradient,) = gradients(1)
    dense.grad = twin.grad = torch.ones_like(dense)
    take_steps(optimizer, weight, [gradient])
    adam.step()
    torch.testing.assert_close(dense, twin, rtol=0, atol=0)
    is_touched = gradient.to_dense().any(dim=1)
    assert (weight[~is_touched] == 1).all()
    assert (weight[is_touched] != 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_goes_on(dtype):
    weight = nn.Parameter(torch.ones(N_ROWS, N_COLUMNS, dtype=dtype))
    optimizer = SparseAdamW([weight], lr=0.1)
    first, second = ([g.to(dtype) for g in gradients(5, seed)] for seed in (0, 1))
    take_steps(optimizer, weight, first)
    twin = nn.Parameter(weight.detach().clone())
    loaded = SparseAdamW([twin], lr=0.1)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(optimizer, weight, second)
    take_steps(loaded, twin, second)
    torch.testing.assert_close(twin, weight, rtol=0, atol=0)
