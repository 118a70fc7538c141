"""Fair timing: contestants take turns in one process, and the machine is described."""

import os
import platform
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numba
import numpy as np
import scipy
import sklearn
import threadpoolctl
import torch

import lelp_sklearn

# They pin an older BLAS kernel than the processor deserves.
PINS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
# Idle threads of BLAS and OpenMP spin for some milliseconds before they sleep, and
# would take the cores from whoever comes next.
PAUSE = 0.05

Name = TypeVar("Name", bound=Hashable)


def without_pinned_blas() -> None:
    """Start this program again without the variables that pin a BLAS kernel."""
    if any(name in os.environ for name in PINS):
        environment = {k: v for k, v in os.environ.items() if k not in PINS}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def take_turns(
    contestants: dict[Name, Callable[[], object]],
    repeats: int,
    *,
    warm: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, np.ndarray]:
    """Return the seconds of each contestant in each round, after one to warm up.

    That one is left out where the contestants are `warm` already. Every other round is
    in reverse order: memory that was given back before is slower or faster.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + (not warm)):
        for name, run in list(contestants.items())[:: -1 if turn % 2 else 1]:
            time.sleep(PAUSE)
            start = clock()
            run()
            if turn or warm:
                seconds[name].append(clock() - start)
    return {name: np.array(values) for name, values in seconds.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch and BLAS to one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpoolctl.threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def ratio(ours: np.ndarray, peer: np.ndarray) -> tuple[float, float, float]:
    """Return the median of the ratios peer / ours and their quartiles."""
    low, middle, high = np.quantile(peer / ours, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def geometric_mean(values: list[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def read_bandwidth() -> float:
    """Bytes a second that one thread a core reads from memory together."""
    array = np.ones(2**26, np.float32)
    n = len(os.sched_getaffinity(0))
    parts = np.array_split(array, n)
    with ThreadPoolExecutor(n) as pool:
        seconds = take_turns({"sum": lambda: list(pool.map(np.sum, parts))}, 5)
    return array.nbytes / seconds["sum"].min()


def peak_flops() -> float:
    """Multiply-adds, counted as two, a second of a large single precision product."""
    square = np.random.default_rng(0).standard_normal((2048, 2048), dtype=np.float32)
    seconds = take_turns({"product": lambda: square @ square}, 5)
    return 2 * len(square) ** 3 / seconds["product"].min()


def machine() -> dict[str, object]:
    """Describe processor, kernels and versions."""
    blas = sorted(
        {
            f"{pool['internal_api']} {pool.get('architecture', '')}".strip()
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        }
    )
    packages = (lelp_sklearn, sklearn, np, scipy, numba, torch)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "BLAS kernel": ", ".join(blas),
        "torch kernel": torch.backends.cpu.get_cpu_capability(),
        "versions": {p.__name__: p.__version__ for p in packages}
        | {"python": platform.python_version()},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
