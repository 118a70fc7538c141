"""Files that are either whole or not there, and locks on files."""

import errno
import glob
import io
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

# A full disk, a quota, a limit on the size of a file.
_NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG

_BLOCK_BYTES = 1 << 20


@contextmanager
def new_npy(
    path: str | os.PathLike[str], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Give a memory map to fill, renamed to `path` when the block ends well."""
    target = Path(path)
    n_bytes = npy_size(shape, dtype)
    check_writable(target, "out")
    with new_file(target, n_bytes, "out") as file:
        array = map_new_npy(file, shape, dtype)
        yield array
        array.flush()


def npy_size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes of a ``.npy`` file, its header included."""
    return len(_npy_header(shape, dtype)) + math.prod(shape) * dtype.itemsize


def map_new_npy(
    file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.memmap[Any, Any]:
    """Write the header of an array to a file with room for it, and map the array."""
    file.write(_npy_header(shape, dtype))
    file.flush()
    return np.memmap(file, dtype, "r+", offset=file.tell(), shape=shape)


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


@contextmanager
def new_file(target: Path, n_bytes: int, argument: str) -> Iterator[BinaryIO]:
    """Give a file with room for so many bytes, renamed to `target` at the end.

    It is on the disk before it is renamed. An error removes it, so that `target` stays
    as it was. Its name is random and new, so that no link is followed.
    """
    partial = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        with partial.open("x+b") as file:
            reserve(file, n_bytes, target, argument)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left of `new_file`, under the lock of `target`."""
    pattern = f".{glob.escape(target.name)}.{'[0-9a-f]' * 32}.part"
    for partial in target.parent.glob(pattern):
        partial.unlink()


@contextmanager
def locked(target: Path, argument: str) -> Iterator[bool]:
    """Hold a lock that ends with the process; yield whether nobody else holds it."""
    # Imported with the first lock, since this takes as long as NumPy.
    from filelock import FileLock, Timeout

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
            f"{argument}={str(target)!r}: the lock file {str(path)!r} is a symbolic "
            "link, which is not followed; delete it, or choose another path."
        ) from reason
    try:
        yield True
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(target: Path, argument: str, suffix: str = ".npy") -> None:
    """Raise unless a file can be written in an existing folder."""
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
    check_folder_writable(folder, target, argument)


def check_folder_writable(folder: Path, target: Path, argument: str) -> None:
    """Raise unless a folder, in which `target` is, can be written to."""
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"{argument}={str(target)!r}: the folder {str(folder)!r} is not writable; "
            "change its permissions, or choose another folder."
        )


def reserve(file: BinaryIO, n_bytes: int, target: Path, argument: str) -> None:
    """Give a file that becomes `target` room for so many bytes; what it holds stays."""
    # A process that writes through a memory map where the disk has no room is killed.
    free = shutil.disk_usage(target.parent).free
    try:
        _allocate(file, n_bytes)
    except OSError as reason:
        if reason.errno not in _NO_ROOM:
            raise
        left = f"the disk has {free:,} left"
        if free > n_bytes:
            left += (
                ", which the system does not give (there may be a quota, or a limit on "
                "the size of a file)"
            )
        raise ValueError(
            f"{argument}={str(target)!r} needs {n_bytes:,} bytes and {left}; free some "
            "space or choose another folder."
        ) from reason


def _allocate(file: BinaryIO, n_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
            return
        except OSError as reason:
            # Others say that this file system cannot.
            if reason.errno in _NO_ROOM:
                raise
    # Every byte is written, as it is or as zero.
    for start in range(0, n_bytes, _BLOCK_BYTES):
        size = min(_BLOCK_BYTES, n_bytes - start)
        file.seek(start)
        held = file.read(size)
        file.seek(start)
        file.write(held.ljust(size, b"\0"))
    file.flush()
    file.seek(0)
