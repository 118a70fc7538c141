"""What holds around every test."""

import numba
import pytest
import torch
from threadpoolctl import threadpool_info


def _thread_limits():
    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    return {"numba": numba.get_num_threads(), "torch": torch.get_num_threads()} | pools


@pytest.fixture(autouse=True)
def thread_limits_stay_as_they_are():
    """Fail a test after which numba, torch or a library loaded before has others."""
    before = _thread_limits()
    yield
    after = _thread_limits()
    assert {name: after.get(name, limit) for name, limit in before.items()} == before
