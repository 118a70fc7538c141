"""A memory map that is filled piece by piece, over several calls if need be."""

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

from lelp_sklearn import _extraction_validation as validation
from lelp_sklearn._files import (
    check_writable,
    locked,
    map_new_npy,
    n_missing_bytes,
    new_file,
    npy_size,
    remove_leftovers,
    reserve,
    sync_folder,
)
from lelp_sklearn._typing import IntArray

# Seconds between two notes of how far the work has come.
_BETWEEN_MARKS = 2.0

# Rows that are checked at once.
_CHECKED_ROWS = 4096


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Let nobody else write what becomes `path`; once it is complete all may read it.

    Raises
    ------
    ValueError
        If somebody else writes it.
    """
    if path.exists():
        yield
        return
    with locked(path) as is_ours:
        validation.check_unused(path, is_ours)
        yield


@dataclass
class ResumableNpy:
    """An array (n, d) in a ``.npy`` file, with a journal of how far it is filled.

    It is written as ``<path>.part`` and renamed when it is complete; ``<path>.journal``
    says what it holds, how many rows are on the disk and their checksum. Rows that the
    journal does not count are written again, and are the same.

    Parameters
    ----------
    path : Path
        Ends in ``.npy``.
    shape : (n, d)
    dtype : numpy dtype
    identity : dict of str
        What the content depends on: with another one the file is refused.
    """

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    identity: Mapping[str, str]
    # How many rows are in the file, and their checksum: one value, so that an interrupt
    # never comes between them.
    _done: tuple[int, int] = field(default=(0, 0), init=False, repr=False)
    _marked: float = field(default_factory=time.monotonic, init=False, repr=False)

    def __post_init__(self) -> None:
        validation.check_no_link(self._part)
        is_begun = self._part.exists() or self.path.exists()
        # A journal beside no file speaks of one that is gone.
        if is_begun and self._journal.exists():
            self._read_journal()
        elif self.path.exists():
            raise validation.foreign_file(self.path)
        if not self.path.exists():
            n_bytes = n_missing_bytes(self._part, self._n_bytes)
            check_writable(self.path, n_bytes, "path")

    @property
    def n_done(self) -> int:
        """How many rows are in the file."""
        return self._done[0]

    def is_finished(self) -> bool:
        """Whether the file is complete; checks that it is what was written."""
        if not self.path.exists():
            return False
        if self.n_done < self.shape[0]:
            raise self._damaged(self.path, "its journal is not complete")
        self.open()
        return True

    def open(self) -> NDArray[Any]:
        """Give the complete array as a read-only memory map."""
        with self.path.open("rb") as file:
            offset = self._check_header(file, self.path)
        return np.memmap(self.path, self.dtype, "r", offset, self.shape)

    @contextmanager
    def filling(
        self, order: IntArray
    ) -> Iterator[Callable[[IntArray, NDArray[Any]], None]]:
        """Give a function that writes some rows, by their places and values.

        They come in `order`, from `n_done` on. What is written is noted also when an
        error ends it; where nothing is written, nothing is left.
        """
        is_begun = self.n_done > 0
        if not is_begun:
            # It speaks of a file that is gone, and would vouch for the empty one.
            self._journal.unlink(missing_ok=True)
            self._part.unlink(missing_ok=True)
        remove_leftovers(self._journal)
        n_before = self.n_done
        try:
            with self._open_part(new=not is_begun) as file:
                if is_begun:
                    offset = self._check_header(file, self._part)
                    array = np.memmap(file, self.dtype, "r+", offset, self.shape)
                    self._check_rows(array, order)
                reserve(file, self._n_bytes, self.path, "path")
                if not is_begun:
                    array = map_new_npy(file, self.shape, self.dtype)

                def write(places: IntArray, rows: NDArray[Any]) -> None:
                    array[places] = rows
                    n_done, checksum = self._done
                    checksum = zlib.crc32(np.ascontiguousarray(rows).data, checksum)
                    self._done = n_done + len(places), checksum
                    if time.monotonic() - self._marked > _BETWEEN_MARKS:
                        self._mark(array, file)

                try:
                    yield write
                finally:
                    if self.n_done > n_before:
                        self._mark(array, file)
        finally:
            if not self.n_done:
                self._discard()

    def finish(self) -> None:
        """Rename the complete array to its path."""
        os.replace(self._part, self.path)
        sync_folder(self.path.parent)

    def files(self) -> list[Path]:
        """Name those that hold the array, complete or not, and say how far it is."""
        return [self.path if self.path.exists() else self._part, self._journal]

    @property
    def _part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def _journal(self) -> Path:
        return self.path.with_name(self.path.name + ".journal")

    @property
    def _n_bytes(self) -> int:
        return npy_size(self.shape, self.dtype)

    def _open_part(self, *, new: bool) -> BinaryIO:
        if new:
            return self._part.open("x+b")
        # A link that came after the check is not followed either.
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(self._part, flags), "r+b")

    def _discard(self) -> None:
        # Windows keeps a file that is mapped; without a journal it counts for nothing.
        with suppress(PermissionError):
            self._part.unlink(missing_ok=True)

    def _mark(self, array: Any, file: BinaryIO) -> None:
        # The rows are on the disk before the journal counts them.
        array.flush()
        os.fsync(file.fileno())
        n_done, checksum = self._done
        entry = {
            "done": n_done,
            "checksum": checksum,
            "identity": dict(self.identity),
        }
        content = json.dumps(entry, indent=1).encode()
        with new_file(self._journal, len(content), "path") as journal:
            journal.write(content)
        self._marked = time.monotonic()

    def _read_journal(self) -> None:
        try:
            entry = json.loads(self._journal.read_bytes())
            n_done, checksum = entry["done"], entry["checksum"]
            found = dict(entry["identity"])
        except (ValueError, KeyError, TypeError, RecursionError) as reason:
            raise self._damaged(self.path, "unreadable journal") from reason
        for key, wanted in self.identity.items():
            if found.get(key) != wanted:
                raise validation.other_file(
                    self.path, key, found.get(key), wanted, self.files()
                )
        n_rows = self.shape[0]
        if type(n_done) is not int or not 0 <= n_done <= n_rows:
            counted = f"its journal counts {n_done!r} of {n_rows} rows"
            raise self._damaged(self.path, counted)
        self._done = n_done, checksum

    def _check_rows(self, array: NDArray[Any], order: IntArray) -> None:
        """Raise where the file does not hold the rows that its journal counts.

        A copy that was made during the work may have a later journal.
        """
        n_done, checksum = self._done
        found = 0
        for start in range(0, n_done, _CHECKED_ROWS):
            places = order[start : min(start + _CHECKED_ROWS, n_done)]
            found = zlib.crc32(array[places].data, found)
        if found != checksum:
            reason = f"the {n_done} rows that its journal counts are others"
            raise self._damaged(self._part, reason)

    def _check_header(self, file: BinaryIO, path: Path) -> int:
        """Return where the rows begin in a file of the right size and header."""
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
        return validation.damaged_file(path, self.files(), reason)
