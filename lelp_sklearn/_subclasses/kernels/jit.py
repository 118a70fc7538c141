"""How kernels are compiled: at the first call, and kept on disk for later processes.

Where they cannot be compiled, their plain twins are used.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from lelp_sklearn._locks import hold_at_fork


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector from looking through new objects that all stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled and not gc.get_freeze_count():
            # They count as old from now on: the next collection would be a long one.
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()


# Half of the time of this import goes by in collections that find nothing.
with _no_garbage_collection():
    from numba import config, njit
    from numba.core.codegen import get_host_cpu_features
    from numba.core.compiler_lock import global_compiler_lock

# A child that is forked while another thread compiles would wait for it for ever.
hold_at_fork(global_compiler_lock)

Function = TypeVar("Function", bound=Callable[..., Any])

# Read here and nowhere else. NUMBA_CACHE_DIR moves the compiled code, but Numba has no
# variable that keeps a library's code off the disk.
_KEPT = os.environ.get("LELP_SKLEARN_NUMBA_CACHE", "1") != "0"


# The kernels are written for processors that have these. Half precision needs the last
# one: without it Numba ends the process.
_NEEDED_FEATURES = {"avx2", "fma", "f16c"}


def processor_features() -> set[str]:
    """Return what the processor that Numba compiles for has, by LLVM's names."""
    # What is configured, type checkers do not see.
    configured = getattr(config, "CPU_FEATURES", None)
    features = get_host_cpu_features() if configured is None else configured
    return {each[1:] for each in features.split(",") if each.startswith("+")}


def can_compile() -> bool:
    """Return whether the kernels are compiled: Numba may, and the processor fits."""
    is_disabled = getattr(config, "DISABLE_JIT", False)
    return not is_disabled and processor_features() >= _NEEDED_FEATURES


def kernel(plain: Function) -> Callable[[Function], Function]:
    """Have a function compiled, or replaced by its plain twin where that is needed."""

    def choose(function: Function) -> Function:
        return compiled(function) if can_compile() else plain

    return choose


def compiled(function: Function) -> Function:
    """Have `function` compiled when first called; it releases the interpreter lock."""
    try:
        return cast("Function", njit(cache=_KEPT, nogil=True)(function))
    except RuntimeError:
        # Numba found no folder to write to, as in a read-only installation whose user
        # has no home: each process compiles for itself.
        return cast("Function", njit(nogil=True)(function))
