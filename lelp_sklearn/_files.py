"""Files that are whole or not there or filled over calls, their locks, and hashes."""

import errno
import glob
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, BinaryIO, Literal
from uuid import uuid4

import numpy as np
from joblib.hashing import Hasher, NumpyHasher
from numpy.typing import NDArray
from scipy.sparse import issparse

from lelp_sklearn._typing import IntArray

# A full disk, a quota, a limit on the size of a file.
_NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG

_BLOCK_BYTES = 1 << 20

# Seconds between two writings of a journal, and rows that are checked at once.
_SECONDS_BETWEEN_ENTRIES = 2.0
_CHECKED_ROWS = 4096

# scikit-learn writes its version into the state of an estimator, and a process numbers
# the hooks of torch in the order in which it made them.
_IGNORED = re.compile(r"_sklearn_version$|_\w*hook")


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
def locked(target: Path) -> Iterator[bool]:
    """Hold a lock that ends with the process; yield whether nobody else holds it."""
    # Imported with the first lock, since this takes as long as NumPy.
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
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
        raise ValueError(
            f"{argument}={str(target)!r} needs {n_bytes:,} bytes and the disk has "
            f"{free:,} left, or less by a quota or a limit on the size of a file; free "
            "some space or choose another folder."
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


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Keep other calls from writing `path`; a complete file is free to read."""
    if path.exists():
        yield
        return
    with locked(path) as is_ours:
        if not is_ours:
            raise ValueError(
                f"path={str(path)!r} is in use by another call of extract: give each a "
                "file of its own, or wait until that one is done and call again to "
                "read it."
            )
        yield


@dataclass
class ResumableNpy:
    """An array (n, d) in a ``.npy`` file, with a journal of how far it is filled.

    It is written as ``<path>.part`` and renamed when it is complete; ``<path>.journal``
    has the identity of the array, the number of rows on the disk and their checksum.
    Rows that the journal does not count are written again, and are the same. A file of
    another identity, what the array depends on, is refused.
    """

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    identity: Mapping[str, str]
    # How many rows are in the file, and their checksum: one value, so that an interrupt
    # never comes between them.
    _done: tuple[int, int] = field(default=(0, 0), init=False, repr=False)
    _entered: float = field(default_factory=time.monotonic, init=False, repr=False)

    def __post_init__(self) -> None:
        self._part = self.path.with_name(self.path.name + ".part")
        self._journal = self.path.with_name(self.path.name + ".journal")
        self._n_bytes = npy_size(self.shape, self.dtype)
        if self._part.is_symlink():
            raise ValueError(
                f"path: {str(self._part)!r} is a symbolic link, and is not written to: "
                "delete it or choose another path."
            )
        has_begun = self._part.exists() or self.path.exists()
        # A journal without a file is left from a deleted file.
        if has_begun and self._journal.exists():
            self._read_journal()
        elif self.path.exists():
            raise ValueError(
                f"path={str(self.path)!r} exists and has no '.journal' that says how "
                "it was made: delete it or choose another path."
            )
        if not self.path.exists():
            check_writable(self.path, "path")

    @property
    def n_done(self) -> int:
        """Number of rows in the file."""
        return self._done[0]

    def names(self) -> str:
        """Name the file, complete or not, and its journal."""
        file = self.path if self.path.exists() else self._part
        return f"{str(file)!r} and {str(self._journal)!r}"

    def is_finished(self) -> bool:
        """Return whether the file is complete; raise if it is damaged."""
        if not self.path.exists():
            return False
        if self.n_done < self.shape[0]:
            raise self._damaged(self.path, "its journal is not complete")
        self.open()
        return True

    def open(self) -> NDArray[Any]:
        """Return the complete array as a read-only memory map."""
        return self._map(self.path, "r")

    def finish(self) -> None:
        """Rename the complete array to its path."""
        os.replace(self._part, self.path)
        sync_folder(self.path.parent)

    @contextmanager
    def filling(
        self, order: IntArray
    ) -> Iterator[Callable[[IntArray, NDArray[Any]], None]]:
        """Give a function that writes some rows, by their indices and values.

        They come in `order`, from `n_done` on. Rows that are written are entered in the
        journal, also after an error; if none are written, no file is left.
        """
        has_begun = self.n_done > 0
        if not has_begun:
            # The journal of a deleted file would vouch for the empty one.
            self._journal.unlink(missing_ok=True)
            self._part.unlink(missing_ok=True)
        remove_leftovers(self._journal)
        n_before = self.n_done
        try:
            with self._part.open("r+b" if has_begun else "x+b") as file:
                if has_begun:
                    array = self._map(self._part, "r+")
                    self._check_rows(array, order)
                reserve(file, self._n_bytes, self.path, "path")
                if not has_begun:
                    array = map_new_npy(file, self.shape, self.dtype)

                def write(indices: IntArray, rows: NDArray[Any]) -> None:
                    array[indices] = rows
                    n_done, checksum = self._done
                    checksum = zlib.crc32(np.ascontiguousarray(rows).data, checksum)
                    self._done = n_done + len(indices), checksum
                    if time.monotonic() - self._entered > _SECONDS_BETWEEN_ENTRIES:
                        self._write_journal(array, file)

                try:
                    yield write
                finally:
                    if self.n_done > n_before:
                        self._write_journal(array, file)
        finally:
            if not self.n_done:
                # Windows keeps a file that is mapped; it has no journal.
                with suppress(PermissionError):
                    self._part.unlink(missing_ok=True)

    def _write_journal(self, array: np.memmap[Any, Any], file: BinaryIO) -> None:
        # The rows are on the disk before the journal counts them.
        array.flush()
        os.fsync(file.fileno())
        n_done, checksum = self._done
        entry = {"done": n_done, "checksum": checksum, "identity": dict(self.identity)}
        encoded = json.dumps(entry, indent=1).encode()
        with new_file(self._journal, len(encoded), "path") as journal:
            journal.write(encoded)
        self._entered = time.monotonic()

    def _read_journal(self) -> None:
        try:
            entry = json.loads(self._journal.read_bytes())
            n_done, checksum = entry["done"], entry["checksum"]
            identity = dict(entry["identity"])
        except (ValueError, KeyError, TypeError, RecursionError) as reason:
            raise self._damaged(self.path, "unreadable journal") from reason
        for key, wanted in self.identity.items():
            if identity.get(key) != wanted:
                raise ValueError(
                    f"path={str(self.path)!r} holds embeddings with another {key} "
                    f"({identity.get(key)}, now {wanted}): delete {self.names()}, or "
                    "choose another path."
                )
        n_rows = self.shape[0]
        if type(n_done) is not int or not 0 <= n_done <= n_rows:
            counted = f"its journal counts {n_done!r} of {n_rows} rows"
            raise self._damaged(self.path, counted)
        self._done = n_done, checksum

    def _check_rows(self, array: NDArray[Any], order: IntArray) -> None:
        """Raise if the file does not hold the rows that its journal counts.

        A copy that was made during the work may have a later journal.
        """
        n_done, checksum = self._done
        read = 0
        for start in range(0, n_done, _CHECKED_ROWS):
            indices = order[start : min(start + _CHECKED_ROWS, n_done)]
            read = zlib.crc32(array[indices].data, read)
        if read != checksum:
            reason = f"the first {n_done} rows differ from those in its journal"
            raise self._damaged(self._part, reason)

    def _map(self, path: Path, mode: Literal["r", "r+"]) -> np.memmap[Any, Any]:
        """Map a file; raise for another size or header."""
        n_bytes = path.stat().st_size
        if n_bytes != self._n_bytes:
            raise self._damaged(path, f"{n_bytes:,} of {self._n_bytes:,} bytes")
        try:
            array = np.lib.format.open_memmap(path, "r")
        # A damaged header may fail in any way.
        except Exception as reason:
            raise self._damaged(path, reason) from reason
        form = array.shape, array.dtype, array.flags.c_contiguous
        if form != (self.shape, self.dtype, True):
            raise self._damaged(path, f"{array.dtype} of shape {array.shape}")
        # Mapped to be written to, a file that is too short would have become longer.
        return np.memmap(path, self.dtype, mode, array.offset, self.shape)

    def _damaged(self, path: Path, reason: object) -> ValueError:
        return ValueError(
            f"path: {str(path)!r} is not as it was written ({reason}): delete "
            f"{self.names()}, and extract again."
        )


def content_hash(value: Any) -> str:
    """Return the hash of a value by its content, 32 hexadecimal digits.

    Numbers, strings, arrays, sparse matrices, tensors and containers count by type and
    content, in any memory layout and on any device; functions and classes by module and
    qualified name; other objects by their pickled state, or a TypeError where there is
    none. Dicts and sets have no order.
    """
    return str(_ContentHasher().hash(value))


# joblib has no types.
class _ContentHasher(NumpyHasher):  # type: ignore[misc]
    """The hash of joblib, extended to tensors and independent of memory layout."""

    def save(self, obj: Any) -> None:
        """Hash a part of the value, or what stands for it."""
        if isinstance(obj, np.ndarray | np.generic) and not obj.dtype.hasobject:
            array = np.asarray(obj)
            # A pickled array may come back in the byte order of the machine.
            obj = _describe_array(array, array.dtype.newbyteorder("<"))
        elif isinstance(obj, type | FunctionType):
            obj = "name", obj.__module__, obj.__qualname__
        elif isinstance(obj, ModuleType):
            obj = "module", obj.__name__
        elif isinstance(obj, set | frozenset):
            obj = type(obj).__name__, sorted(map(content_hash, obj))
        elif _is_torch(obj, "Tensor") and not _is_torch(
            obj, "UninitializedTensorMixin"
        ):
            obj = _describe_tensor(obj)
        elif issparse(obj):
            obj = _describe_sparse(obj)
        super().save(obj)

    def _batch_setitems(self, items: Any, *args: Any) -> None:
        pairs = [(content_hash(key), key, value) for key, value in items]
        pairs.sort(key=itemgetter(0))
        counted = iter([pair[1:] for pair in pairs if not _IGNORED.match(str(pair[1]))])
        # joblib's own order of keys of several types depends on the process.
        super(Hasher, self)._batch_setitems(counted, *args)


def _describe_array(array: NDArray[Any], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return shape and content of an array as C-ordered `dtype`, read in blocks."""
    content = hashlib.blake2b(digest_size=16)
    if array.size and array.itemsize:
        rows = np.atleast_1d(array)
        step = max(1, _BLOCK_BYTES * len(rows) // rows.nbytes)
        for start in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[start : start + step], dtype)
            content.update(block.reshape(-1).view(np.uint8).data)
    return "array", repr(dtype.descr), array.shape, content.digest()


def _describe_sparse(matrix: Any) -> tuple[Any, ...]:
    rows = matrix.tocsr(copy=True)
    rows.sum_duplicates()
    # SciPy chooses the width of the indices by the size of the matrix.
    wide = np.dtype("<i8")
    indices = [_describe_array(each, wide) for each in (rows.indices, rows.indptr)]
    return type(matrix).__name__, rows.shape, rows.data, indices


def _describe_tensor(tensor: Any) -> tuple[Any, ...]:
    # There is a tensor, so torch has been imported.
    from torch import strided, uint8

    dense = tensor.detach()
    dense = dense if dense.layout == strided else dense.to_dense()
    flat = dense.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    # NumPy has no bfloat16, and needs no other name for bytes.
    content = _describe_array(flat.view(uint8).numpy(), np.dtype(np.uint8))
    return "tensor", str(tensor.dtype), tuple(tensor.shape), content


def _is_torch(value: Any, name: str) -> bool:
    """Return whether a value is of a class of torch, without its import."""
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "torch"
        for base in type(value).__mro__
    )
