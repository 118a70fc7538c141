"""Threads for blocks of rows, within the caller's limits, and what threads share.

Threads share models, tokenizers and torch's own state, under locks that survive a fork.
"""

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sklearn.utils._openmp_helpers import _openmp_effective_n_threads
from sklearn.utils.parallel import _get_threadpool_controller

Part = TypeVar("Part")
Result = TypeVar("Result")

# Windows does not fork.
at_fork: Callable[..., None] = getattr(os, "register_at_fork", lambda **calls: None)


def hold_at_fork(lock: Any) -> None:
    """Fork only while no other thread holds a lock, which is never held for long."""
    at_fork(
        before=lock.acquire, after_in_child=lock.release, after_in_parent=lock.release
    )


class ForkSafeLock:
    """A reentrant lock that is free in a forked child, whose threads are gone."""

    def __init__(self) -> None:
        self._renew()
        at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = RLock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other threads from blocks under this lock."""
        with self._lock:
            yield


_layer_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_adding = ForkSafeLock()
at_fork(after_in_child=_layer_locks.clear)


@contextmanager
def exclusive(*models: Any) -> Iterator[None]:
    """Keep other threads from the layers of models while the block uses them.

    Clones share a model, and two models may share some layers, so each layer has a lock
    of its own. What has no layers, such as an array or a class, needs none. A block
    inside another may use no further layers: two threads that hold some and want others
    would wait for each other.
    """
    layers = [
        layer
        for model in models
        if hasattr(model, "modules") and not isinstance(model, type)
        for layer in model.modules()
    ]
    with _adding.held():
        locks = [_layer_locks.setdefault(layer, RLock()) for layer in layers]
    with ExitStack() as stack:
        # Threads that take locks in one order never wait for each other in a circle.
        for lock in sorted(locks, key=id):
            stack.enter_context(lock)
        yield


def copied(model: Any) -> Any:
    """Return a deep copy of a model that no other thread is using."""
    with exclusive(model):
        return copy.deepcopy(model)


def n_threads() -> int:
    """Return the number of threads within the limits of both Numba and OpenMP.

    Joblib's workers set both, threadpoolctl sets OpenMP's.
    """
    from numba import config, get_num_threads
    from numba.np.ufunc import parallel

    # `get_num_threads` starts Numba's threads, which changes OpenMP's limit: call it
    # only if they run already. Type checkers do not see Numba's configuration.
    is_running = getattr(parallel, "_is_initialized", False)
    limit = get_num_threads() if is_running else getattr(config, "NUMBA_NUM_THREADS", 1)
    return int(min(limit, _openmp_effective_n_threads()))


def map_parts(
    work: Callable[[Part], Result], parts: Iterable[Part]
) -> Iterator[Result]:
    """Call `work`, which releases the interpreter lock, on all parts; keep the order.

    The threads are Python's and end with the iteration: unlike the pools of OpenMP and
    Numba they survive no fork and serve no other caller. At most two results a thread
    wait to be taken.
    """
    parts = list(parts)
    n_workers = min(n_threads(), len(parts))
    if n_workers < 2:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(n_workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for part in parts:
                if len(waiting) == 2 * n_workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, part))
            while waiting:
                yield waiting.popleft().result()
        finally:
            # After an error no other part starts.
            for future in waiting:
                future.cancel()


def one_openmp_thread() -> Any:
    """Return a context in which the calling thread starts no threads of OpenMP."""
    return _get_threadpool_controller().limit(limits=1, user_api="openmp")


class _OneBlasThread:
    """Context in which BLAS uses only the thread that calls it.

    The other threads of BLAS spin for a while after a product, which slows the threads
    of `map_parts`, and small products are slower on several threads. The limit is
    global to the process: the first caller to enter sets it and the last to leave
    restores it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._holders = 0
        self._limits: Any = None
        hold_at_fork(self._lock)
        at_fork(after_in_child=self._let_go)

    def __enter__(self) -> None:
        with self._lock:
            if not self._holders:
                controller = _get_threadpool_controller()
                self._limits = controller.limit(limits=1, user_api="blas")
            self._holders += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._limits.restore_original_limits()

    def _let_go(self) -> None:
        """Restore the limit in a forked child, where the holders do not run."""
        if self._holders:
            self._holders = 0
            self._limits.restore_original_limits()


one_blas_thread = _OneBlasThread()
