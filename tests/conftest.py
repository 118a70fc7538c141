"""What holds around every test."""

import numba
import pytest
import torch
from threadpoolctl import threadpool_info


def _thread_counts():
    pools = sorted(
        (pool["filepath"], pool["num_threads"]) for pool in threadpool_info()
    )
    return {"numba": numba.get_num_threads(), "torch": torch.get_num_threads()}, pools


@pytest.fixture(autouse=True)
def thread_counts_stay_as_they_are():
    """Fail a test after which numba, torch or a loaded BLAS has other limits."""
    own, pools = _thread_counts()
    yield
    own_after, pools_after = _thread_counts()
    assert own_after == own
    assert set(pools) <= set(pools_after)
