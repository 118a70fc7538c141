"""Imports and first calls, each in a fresh process."""

import tempfile

import numpy as np

from benchmarks.speed.comparison import table_of
from benchmarks.speed.problems import Options
from benchmarks.speed.processes import run_alone

# What the first call of fit and then transform takes in all.
FIRST_CALL = ("import Numba and the kernels", "fit", "transform")


def measure(options: Options) -> dict:
    """Start with Numba's cache empty, then with what the start before left there."""
    cold, cached = [], []
    for _ in range(3 if options.full else 1):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(_start(folder))
            cached += [_start(folder) for _ in range(options.repeats)]
    return {"cold": _medians(cold), "cached": _medians(cached)}


def _start(cache: str) -> dict[str, float]:
    seconds, _ = run_alone("first_call", {}, NUMBA_CACHE_DIR=cache)
    return seconds | {"first call": sum(seconds[name] for name in FIRST_CALL)}


def _medians(starts: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: float(np.median([seconds[name] for seconds in starts]))
        for name in starts[0]
    }


def table(entry: dict) -> str:
    """One line a step, in the order in which a process takes them."""
    rows = [
        {
            "start-up, s": name,
            "cold": f"{seconds:.3f}",
            "cached": f"{entry['cached'][name]:.3f}",
        }
        for name, seconds in entry["cold"].items()
    ]
    return (
        f"{table_of(rows)}\n\nThe first call is {', '.join(FIRST_CALL)}. Cold: Numba's "
        "cache is empty; cached: an earlier process filled it."
    )
