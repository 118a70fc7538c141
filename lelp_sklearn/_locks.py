"""Locks of what threads share: models, tokenizers and torch's own state."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

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
