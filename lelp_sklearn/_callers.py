"""Who calls the library: where a warning belongs, and who encodes labels."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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


def find_stacklevel() -> int:
    """Give the `stacklevel` with which a warning points to the user's own line.

    How many calls lie between hangs on who calls whom, and on scikit-learn's wrappers.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
            break
        level, frame = level + 1, frame.f_back
    return level


# The categories that were warned of in the current block of `warned_once`.
_WARNED: ContextVar[set[type[Warning]] | None] = ContextVar("warned", default=None)


@contextmanager
def warned_once() -> Iterator[None]:
    """Let `warn_user` warn of each category once in a block, whatever lies in it."""
    token = _WARNED.set(set() if _WARNED.get() is None else _WARNED.get())
    try:
        yield
    finally:
        _WARNED.reset(token)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the user's own line."""
    warned = _WARNED.get()
    if warned is not None:
        if category in warned:
            return
        warned.add(category)
    warnings.warn(message, category, stacklevel=find_stacklevel())


def encoding_caller() -> str | None:
    """Name the meta-estimator whose call this is, if it encodes y as 0 to C - 1.

    From encoded labels that cannot be told: 0, 1 and 2 are labels too.
    """
    outermost, frame = None, sys._getframe(1).f_back
    while frame is not None:
        outermost = _ENCODERS.get(frame.f_globals.get("__name__", ""), outermost)
        frame = frame.f_back
    return outermost
