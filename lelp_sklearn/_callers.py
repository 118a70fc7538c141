"""Who calls the package: where a warning belongs, and who encodes labels."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

_LIBRARIES = ("joblib", "lelp_sklearn", "sklearn")
# The modules of scikit-learn that fit classifiers on an encoded y. In a process of its
# own, a classifier sees only "_base" of those that vote or are stacked.
_ENCODERS = {
    "sklearn.ensemble._bagging": "BaggingClassifier",
    "sklearn.ensemble._base": "VotingClassifier or StackingClassifier",
    "sklearn.ensemble._stacking": "StackingClassifier",
    "sklearn.ensemble._voting": "VotingClassifier",
    "sklearn.multiclass": "OneVsRestClassifier or OneVsOneClassifier",
}
# The categories that were warned of in the current block of `warned_once`.
_WARNED: ContextVar[set[type[Warning]] | None] = ContextVar("warned", default=None)


def warn_user(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Warn at the user's own line, once a category in a block of `warned_once`."""
    if isinstance(message, Warning):
        category = type(message)
    warned = _WARNED.get()
    if warned is not None:
        if category in warned:
            return
        warned.add(category)
    warnings.warn(message, category, stacklevel=_find_stacklevel())


@contextmanager
def warned_once() -> Iterator[None]:
    """Warn of each category once in the block, also in blocks within it."""
    token = _WARNED.set(set() if _WARNED.get() is None else _WARNED.get())
    try:
        yield
    finally:
        _WARNED.reset(token)


@contextmanager
def ignored_warnings() -> Iterator[None]:
    """Ignore all warnings in the block.

    `warnings.catch_warnings` of another thread may begin or end in the block. So the
    filter is added to the list of filters by hand, and removed from each list that has
    it.
    """
    ignored = "ignore", None, Warning, None, 0
    filters = cast(list[Any], warnings.filters)
    try:
        filters.insert(0, ignored)
        yield
    finally:
        for changed in (filters, cast(list[Any], warnings.filters)):
            changed[:] = [each for each in changed if each is not ignored]


def _find_stacklevel() -> int:
    """Return the `stacklevel` with which a warning points to the user's own line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
            break
        level, frame = level + 1, frame.f_back
    return level


def encoding_caller() -> str | None:
    """Name the meta-estimator that calls, if it encodes y as 0 to C - 1."""
    outermost, frame = None, sys._getframe(1).f_back
    while frame is not None:
        outermost = _ENCODERS.get(frame.f_globals.get("__name__", ""), outermost)
        frame = frame.f_back
    return outermost
