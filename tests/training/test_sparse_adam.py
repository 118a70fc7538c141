"""AdamW of touched rows: what a row misses is made up as AdamW would have done it."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lelp_sklearn._training.optimizer import SparseAdamW

N_ROWS, N_COLUMNS = 12, 3


def gradients(n_steps, seed=0, n_rows=N_ROWS):
    """Draw sparse gradients of at most two rows; a row may come in parts."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        index = torch.randint(n_rows, (1, 2), generator=generator)
        values = torch.randn(2, N_COLUMNS, generator=generator, dtype=torch.float64)
        yield torch.sparse_coo_tensor(
            index, values, (N_ROWS, N_COLUMNS), check_invariants=True
        )


def make_weight(dtype=torch.float64):
    start = torch.arange(N_ROWS * N_COLUMNS, dtype=dtype).reshape(N_ROWS, N_COLUMNS)
    return nn.Parameter(start / 10)


def take_steps(optimizer, weight, steps, *, dense=False):
    """Take steps at falling learning rates."""
    for number, gradient in enumerate(steps):
        gradient = gradient.to(weight.dtype)
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
        weight.grad = gradient.to_dense() if dense else gradient
        optimizer.step()


@pytest.mark.parametrize("n_rows", [N_ROWS, N_ROWS // 2])
@pytest.mark.parametrize(
    ("dtype", "eps", "atol"),
    [
        (torch.float64, 1e-100, 1e-12),
        (torch.float64, 1e-8, 1e-5),
        (torch.float32, 1e-8, 1e-5),
    ],
)
def test_after_an_epoch_weights_and_state_are_those_of_adamw(dtype, eps, atol, n_rows):
    weight, other = make_weight(dtype), make_weight(dtype)
    options = {"weight_decay": 0.5, "eps": eps}
    optimizer = SparseAdamW([weight], **options)
    adamw = torch.optim.AdamW([other], **options)
    for seed in range(2):
        take_steps(optimizer, weight, gradients(60, seed, n_rows))
        take_steps(adamw, other, gradients(60, seed, n_rows), dense=True)
        optimizer.complete_rows()
        assert_close(weight, other, rtol=0, atol=atol)
        assert_close(optimizer.state[weight], adamw.state[other], rtol=0, atol=atol)


def test_rows_that_are_not_touched_wait_for_the_end_of_the_epoch():
    weight = make_weight()
    optimizer = SparseAdamW([weight], weight_decay=0.5)
    first, second = gradients(2)
    take_steps(optimizer, weight, [first, second])
    is_touched = (first + second).to_dense().any(dim=1)
    is_equal = (weight == make_weight()).all(dim=1)
    assert is_equal.tolist() == (~is_touched).tolist()
    optimizer.complete_rows()
    kept = (1 - 0.1 * 0.5) * (1 - 0.05 * 0.5)
    assert_close(weight[~is_touched], kept * make_weight()[~is_touched])


@pytest.mark.parametrize("is_dense", [(True, False), (False, True), (False, False)])
def test_gradients_may_become_dense_or_sparse_between_epochs(is_dense):
    weight, other = make_weight(), make_weight()
    optimizer = SparseAdamW([weight], eps=1e-100)
    adamw = torch.optim.AdamW([other], eps=1e-100)
    for seed, dense in enumerate(is_dense):
        take_steps(optimizer, weight, gradients(9, seed), dense=dense)
        optimizer.complete_rows()
        take_steps(adamw, other, gradients(9, seed), dense=True)
    assert_close(weight, other, rtol=0, atol=1e-12)


def test_gradients_may_become_dense_or_sparse_between_steps():
    weight, other = make_weight(), make_weight()
    optimizer = SparseAdamW([weight], eps=1e-100)
    adamw = torch.optim.AdamW([other], eps=1e-100)
    for number, gradient in enumerate(gradients(20)):
        weight.grad = gradient.to_dense() if number % 7 == 6 else gradient
        other.grad = gradient.to_dense()
        optimizer.step()
        adamw.step()
    optimizer.complete_rows()
    assert_close(weight, other, rtol=0, atol=1e-12)


def test_other_weights_are_updated_by_adamw():
    weight, dense, twin = make_weight(), make_weight(), make_weight()
    optimizer = SparseAdamW([weight, dense])
    adamw = torch.optim.AdamW([twin], lr=0.1)
    dense.grad, twin.grad = torch.ones_like(dense), torch.ones_like(twin)
    take_steps(optimizer, weight, gradients(1))
    adamw.step()
    assert_close(dense, twin, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_goes_on(dtype):
    weight = make_weight(dtype)
    optimizer = SparseAdamW([weight])
    take_steps(optimizer, weight, gradients(5, 0))
    optimizer.complete_rows()
    twin = nn.Parameter(weight.detach().clone())
    loaded = SparseAdamW([twin])
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(optimizer, weight, gradients(5, 1))
    take_steps(loaded, twin, gradients(5, 1))
    assert_close(twin, weight, rtol=0, atol=0)
