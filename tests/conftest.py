"""What holds around every test, and what many need."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_info

# The first call compiles kernels and a busy machine is slow, so that a case has no
# deadline. The test run tries the same cases each time.
_PROFILE = {
    "deadline": None,
    "stateful_step_count": 10,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("default", max_examples=100, derandomize=True, **_PROFILE)
settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_CASES", 3000)),
    derandomize=False,
    print_blob=True,
    **_PROFILE,
)
# Hypothesis takes another one where it sees a CI server.
settings.load_profile("default")


def pytest_collection_modifyitems(items):
    """Run files with slow tests first, so that all workers end at about one time."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


def _thread_limits():
    limits = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    return limits | {"torch": torch.get_num_threads()}


@pytest.fixture(autouse=True)
def thread_limits_stay_as_they_are():
    """Fail a test after which torch, BLAS or OpenMP has other limits than before."""
    before = _thread_limits()
    yield
    after = _thread_limits()
    assert {name: after.get(name, limit) for name, limit in before.items()} == before
