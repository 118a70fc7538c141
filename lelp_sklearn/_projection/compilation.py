"""How kernels are compiled: at the first call, and kept on disk for later processes."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast


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
