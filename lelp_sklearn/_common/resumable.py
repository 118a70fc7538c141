"""A memory map that is filled piece by piece, over several calls if need be."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._common import extraction_validation as validation
from lelp_sklearn._common.files import check_writable, n_missing_bytes, reserve
from lelp_sklearn._common.locking import locked

# Seconds between two notes of how far the work has come.
_BETWEEN_MARKS = 2.0


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
    says what it holds and how many pieces of work are done and on the disk. What was
    not noted is done again, and gives the same.

    Parameters
    ----------
    path : Path
        Ends in ``.npy``.
    shape : (n, d)
    dtype : numpy dtype
    identity : dict of str
        What the content hangs on: with another one the file is refused.
    n_done : int
        Pieces that are in the file.
    """

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    identity: Mapping[str, str]
    n_done: int = field(default=0, init=False)
    _marked: float = field(default_factory=time.monotonic, init=False, repr=False)

    def __post_init__(self) -> None:
        is_begun = self._part.exists() or self.path.exists()
        # A journal beside no file speaks of one that is gone.
        if is_begun and self._journal.exists():
            self.n_done = self._read_journal()
        elif self.path.exists():
            raise validation.foreign_file(self.path)
        if not self.path.exists():
            n_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
            n_bytes = n_missing_bytes(self._part, n_bytes)
            check_writable(self.path, n_bytes, "path")

    def is_finished(self, n_pieces: int) -> bool:
        """Whether the file is complete; checks that it is what was written."""
        if self.n_done < n_pieces:
            if self.path.exists():
                reason = "its journal is not complete"
                raise validation.damaged_file(self.path, self.files(), reason)
            return False
        if self._part.exists():
            # The end came between the last note and the renaming.
            os.replace(self._part, self.path)
        self.open()
        return True

    def open(self) -> NDArray[Any]:
        """Give the complete array as a read-only memory map."""
        return self._checked(self.path, "r")

    @contextmanager
    def filling(self) -> Iterator[NDArray[Any]]:
        """Give the array to fill; what is done is noted also when an error ends it.

        Where nothing is done, nothing is left.
        """
        if self.n_done and self._part.exists():
            array = self._checked(self._part, "r+")
        else:
            self.n_done = 0
            # It speaks of a file that is gone, and would vouch for the empty one.
            self._journal.unlink(missing_ok=True)
            array = np.lib.format.open_memmap(
                self._part, mode="w+", dtype=self.dtype, shape=self.shape
            )
        n_before = self.n_done
        try:
            reserve(self._part, self.path, "path")
            yield array
        finally:
            if self.n_done > n_before:
                self._mark(array)
            elif not self.n_done:
                self._discard()

    def done(self, array: NDArray[Any], n_done: int) -> None:
        """Say that so many pieces are in the array; noted every few seconds."""
        self.n_done = n_done
        if time.monotonic() - self._marked > _BETWEEN_MARKS:
            self._mark(array)

    def finish(self) -> None:
        """Rename the complete array to its path."""
        os.replace(self._part, self.path)

    def files(self) -> list[Path]:
        """Name those that hold the array, complete or not, and say how far it is."""
        return [self.path if self.path.exists() else self._part, self._journal]

    @property
    def _part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def _journal(self) -> Path:
        return self.path.with_name(self.path.name + ".journal")

    def _discard(self) -> None:
        # Windows keeps a file that is mapped; without a journal it counts for nothing.
        with suppress(PermissionError):
            self._part.unlink(missing_ok=True)

    def _mark(self, array: Any) -> None:
        array.flush()
        entry = {"done": self.n_done, "identity": dict(self.identity)}
        # Renamed into place, so that a journal is whole whenever the end comes.
        fresh = self._journal.with_name(self._journal.name + ".new")
        with fresh.open("w") as file:
            json.dump(entry, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._journal)
        self._marked = time.monotonic()

    def _read_journal(self) -> int:
        try:
            entry = json.loads(self._journal.read_text())
            found, n_done = entry["identity"], int(entry["done"])
        except (ValueError, KeyError, TypeError) as reason:
            why = "unreadable journal"
            raise validation.damaged_file(self.path, self.files(), why) from reason
        for key, wanted in self.identity.items():
            if found.get(key) != wanted:
                raise validation.other_file(
                    self.path, key, found.get(key), wanted, self.files()
                )
        return n_done

    def _checked(self, path: Path, mode: Any) -> NDArray[Any]:
        try:
            # To be written to, NumPy would lengthen a file that was cut short.
            array = np.lib.format.open_memmap(path, mode="r")
            if mode != "r":
                array = np.lib.format.open_memmap(path, mode=mode)
        except (ValueError, OSError) as reason:
            raise validation.damaged_file(path, self.files(), reason) from reason
        if array.shape != self.shape or array.dtype != self.dtype:
            found = f"{array.dtype} of shape {array.shape}"
            raise validation.damaged_file(path, self.files(), found)
        return array
