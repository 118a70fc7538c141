"""How kernels are compiled: at the first call, and kept on disk for later processes.

Where they cannot be compiled, their plain twins are used.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from numba import config, njit
from numba.core.codegen import get_host_cpu_features
from numba.core.compiler_lock import global_compiler_lock

from lelp_sklearn._locks import hold_at_fork

# A child that is forked while another thread compiles would wait for it for ever.
hold_at_fork(global_compiler_lock)

Function = TypeVar("Function", bound=Callable[..., Any])

# NUMBA_CACHE_DIR moves the compiled code, but Numba has no variable that keeps a
# library's code off the disk.
_IS_CACHED = os.environ.get("LELP_SKLEARN_NUMBA_CACHE", "1") != "0"

# The kernels are written for processors that have these. Half precision needs the last
# one: without it Numba ends the process.
_NEEDED_FEATURES = {"avx2", "fma", "f16c"}


def processor_features() -> set[str]:
    """Return what the processor that Numba compiles for has, by LLVM's names."""
    # Type checkers do not see what is configured.
    configured = getattr(config, "CPU_FEATURES", None)
    features = get_host_cpu_features() if configured is None else configured
    return {each[1:] for each in features.split(",") if each.startswith("+")}


def can_compile() -> bool:
    """Return whether the kernels are compiled: Numba may, and the processor fits."""
    is_disabled = getattr(config, "DISABLE_JIT", False)
    return not is_disabled and processor_features() >= _NEEDED_FEATURES


def with_plain_twin(plain: Function) -> Callable[[Function], Function]:
    """Replace a function of compiled loops by its plain twin where that is needed."""

    def choose(function: Function) -> Function:
        return function if can_compile() else plain

    return choose


def compiled(function: Function) -> Function:
    """Compile `function` when it is first called; it releases the interpreter lock."""
    # Division by zero gives infinity, as in NumPy: branches that raise take longer to
    # compile.
    compile_lazily = partial(njit, nogil=True, error_model="numpy")
    try:
        return cast("Function", compile_lazily(cache=_IS_CACHED)(function))
    except RuntimeError:
        # Numba found no folder to write to, as in a read-only installation whose user
        # has no home: each process compiles for itself.
        return cast("Function", compile_lazily()(function))
