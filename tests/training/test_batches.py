"""Arrays as tensors, and the order of rows."""

import numpy as np
import pytest
import torch

from lelp_sklearn._training.batches import as_tensor, shuffled_batches


def test_read_only_array_is_shared():
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    assert as_tensor(array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.arange(6.0).reshape(2, 3)[::-1, ::-1],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)
def test_array_of_any_layout_keeps_its_values(array):
    assert as_tensor(array, dtype=torch.float64).tolist() == array.tolist()


@pytest.mark.parametrize("n_rows", [1, 7, 8, 9, 10, 12])
def test_batches_hold_each_row_once_and_none_is_single(n_rows):
    rows = 3 * torch.arange(n_rows)
    batches = shuffled_batches(rows, batch_size=4)
    assert sorted(torch.cat(batches).tolist()) == rows.tolist()
    sizes = [len(batch) for batch in batches]
    assert n_rows == 1 or min(sizes) > 1
    assert max(sizes) <= 5
