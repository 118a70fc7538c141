"""Files that are either whole or not there."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray


@contextmanager
def new_npy(
    path: str | os.PathLike[str], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Give a memory map to fill, renamed to `path` when the block ends well.

    The map is written beside `path` under a name of its own. An error removes it, so
    that `path` is never half-written and an older file there stays as it was.

    Raises
    ------
    ValueError
        If `path` does not end in ``.npy``, its folder does not exist or cannot be
        written, or the disk has less room than the array needs.
    """
    target = Path(path)
    check_writable(target, int(np.prod(shape)) * dtype.itemsize, "out")
    with renamed_into_place(target) as partial:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
        yield array
        array.flush()


@contextmanager
def renamed_into_place(target: Path) -> Iterator[Path]:
    """Give a name beside `target`, renamed to it when the block ends well.

    An error removes the file, so that `target` stays as it was.
    """
    partial = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_writable(
    target: Path, n_bytes: int, argument: str, suffix: str = ".npy"
) -> None:
    """Raise unless a file of so many bytes can be written."""
    if target.suffix != suffix:
        raise ValueError(
            f"{argument}={str(target)!r} must name a file that ends in {suffix!r}."
        )
    if target.is_dir():
        raise ValueError(f"{argument}={str(target)!r} is a folder; name a file.")
    folder = target.parent
    if not folder.is_dir():
        raise ValueError(
            f"{argument}={str(target)!r}: there is no folder {str(folder)!r}; make it "
            "first."
        )
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"{argument}={str(target)!r}: the folder {str(folder)!r} is not writable."
        )
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise _full_disk(target, n_bytes, argument)


def n_missing_bytes(path: Path, n_bytes: int) -> int:
    """How many of so many bytes a file has no room for: it may have holes."""
    if not path.exists():
        return n_bytes
    found = path.stat()
    # Where blocks are not counted, on Windows, a file of an array has no holes.
    held = 512 * found.st_blocks if hasattr(found, "st_blocks") else found.st_size
    return max(0, n_bytes - held)


def reserve(partial: Path, target: Path, argument: str) -> None:
    """Fill the holes of a file that becomes `target`, or raise.

    Who writes through a memory map into a hole for which the disk has no room is killed
    and cannot say why.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    n_bytes = partial.stat().st_size
    with partial.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except OSError as reason:
            # Others say that this file system reserves nothing.
            if reason.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full_disk(target, n_bytes, argument) from reason


def _full_disk(target: Path, n_bytes: int, argument: str) -> ValueError:
    free = shutil.disk_usage(target.parent).free
    left = f"the disk has {free:,} left"
    if free > n_bytes:
        left += ", which the system does not give (there may be a quota)"
    return ValueError(
        f"{argument}={str(target)!r} needs {n_bytes:,} bytes and {left}; free some "
        "space or choose another folder."
    )
