"""How kernels are compiled: at the first call, and kept on disk for later processes."""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

# Read here and nowhere else. NUMBA_CACHE_DIR moves the compiled code, but Numba has no
# variable that keeps a library's code off the disk.
_KEPT = os.environ.get("LELP_SKLEARN_NUMBA_CACHE", "1") != "0"


def compiled(function: Function) -> Function:
    """Have `function` compiled when first called; it releases the interpreter lock."""
    try:
        return cast("Function", njit(cache=_KEPT, nogil=True)(function))
    except RuntimeError:
        # Numba found no folder to write to, as in a read-only installation whose user
        # has no home: each process compiles for itself.
        return cast("Function", njit(nogil=True)(function))
