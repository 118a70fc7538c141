"""Files that are either whole or not there."""

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
        raise ValueError(
            f"{argument}={str(target)!r} needs {n_bytes:,} bytes and the disk has "
            f"{free:,} left; free some space or choose another folder."
        )
