"""Where in a user's code a warning belongs."""

import sys

_LIBRARIES = ("joblib", "lelp_sklearn", "sklearn")


def users_level() -> int:
    """Give the `stacklevel` with which a warning points to the user's own line.

    How many calls lie between hangs on who calls whom, and on scikit-learn's wrappers.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
            break
        level, frame = level + 1, frame.f_back
    return level
