"""A lock on a file that is being written."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(target: Path) -> Iterator[bool]:
    """Hold a lock that goes with the process; tell whether nobody else holds it.

    Raises
    ------
    ValueError
        If a symbolic link is in the place of the lock's file.
    """
    path = target.with_name(target.name + ".lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as reason:
        if reason.errno != errno.ELOOP:
            raise
        raise ValueError(
            f"{str(path)!r} is a symbolic link, and is not written to: delete it."
        ) from reason
    try:
        yield True
    finally:
        lock.release()
