"""A ``.npy`` file that is filled piece by piece, over several calls if need be."""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._files import (
    check_writable,
    locked,
    map_new_npy,
    new_file,
    npy_size,
    remove_leftovers,
    reserve,
    sync_folder,
)
from lelp_sklearn._typing import IntArray

# Seconds between two writings of the journal.
_SECONDS_BETWEEN_ENTRIES = 2.0

# Rows that are checked at once.
_CHECKED_ROWS = 4096


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Keep other calls from writing `path`; a complete file is free to read."""
    if path.exists():
        yield
        return
    with locked(path, "path") as is_ours:
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
        with self.path.open("rb") as file:
            offset = self._check_header(file, self.path)
        return np.memmap(self.path, self.dtype, "r", offset, self.shape)

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
            with self._open_part(new=not has_begun) as file:
                if has_begun:
                    offset = self._check_header(file, self._part)
                    array = np.memmap(file, self.dtype, "r+", offset, self.shape)
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

    def _open_part(self, *, new: bool) -> BinaryIO:
        if new:
            return self._part.open("x+b")
        # A link that came after the check is not followed either.
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(self._part, flags), "r+b")

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

    def _check_header(self, file: BinaryIO, path: Path) -> int:
        """Return the offset of the rows; raise for another size or header."""
        try:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0(file)
        # A damaged header may fail in any way.
        except Exception as reason:
            raise self._damaged(path, reason) from reason
        n_bytes = os.fstat(file.fileno()).st_size
        if (version, header) != ((1, 0), (self.shape, False, self.dtype)):
            raise self._damaged(path, f"its header says {header}")
        if n_bytes != self._n_bytes:
            raise self._damaged(path, f"{n_bytes:,} of {self._n_bytes:,} bytes")
        return file.tell()

    def _damaged(self, path: Path, reason: object) -> ValueError:
        return ValueError(
            f"path: {str(path)!r} is not as it was written ({reason}): delete "
            f"{self.names()}, and extract again."
        )
