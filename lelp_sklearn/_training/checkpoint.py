"""Files from which an interrupted training continues."""

import hashlib
import io
import numbers
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from lelp_sklearn._files import (
    check_folder_writable,
    locked,
    new_file,
    remove_leftovers,
)

SUFFIX = ".ckpt"
_HEADER = b"lelp_sklearn checkpoint 1\n"
_N_SIGNED_BYTES = len(_HEADER) + hashlib.sha256().digest_size


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds the state of one fit, written every `interval` epochs."""

    path: Path
    # Hashes of all that the result depends on, by name.
    identity: Mapping[str, str]
    interval: int

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Read the state, its tensors on a device; return None without a file."""
        if not self.path.exists():
            return None
        content = self.path.read_bytes()
        body = content[_N_SIGNED_BYTES:]
        if content[:_N_SIGNED_BYTES] != _sign(body):
            raise ValueError(
                f"checkpoint={str(self.path)!r} is not a checkpoint of this package, "
                "or is damaged: name another file, or delete it if it is one."
            )
        saved = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
        found = saved["identity"]
        changed = [n for n, digest in self.identity.items() if found.get(n) != digest]
        if changed:
            raise ValueError(
                f"checkpoint={str(self.path)!r} is of a fit with another "
                f"{', '.join(changed)}: set these as they were, delete the file to "
                "start again, or name a folder, in which each fit has a file of its "
                "own."
            )
        state: dict[str, Any] = saved["state"]
        return state

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise, before work starts, unless a state can be read again."""
        buffer = io.BytesIO()
        try:
            torch.save(dict(state), buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        # What a module adds to its state may fail in any way.
        except Exception as reason:
            raise ValueError(
                f"checkpoint={str(self.path)!r} cannot hold the state of module or "
                "optimizer: what they add to it (get_extra_state) must be tensors, "
                "numbers, strings, and lists and dicts of these; or set "
                "checkpoint=None."
            ) from reason

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state in the file."""
        buffer = io.BytesIO()
        torch.save({"identity": dict(self.identity), "state": dict(state)}, buffer)
        body = buffer.getbuffer()
        with new_file(self.path, _N_SIGNED_BYTES + len(body), "checkpoint") as file:
            file.write(_sign(body))
            file.write(body)


@contextmanager
def open_checkpoint(
    path: str | os.PathLike[str], identity: Mapping[str, str], interval: int
) -> Iterator[Checkpoint]:
    """Yield the checkpoint of a fit, which no other fit uses in the block.

    A path that ends in ``.ckpt`` is the file itself. Any other path is a folder, in
    which each fit has a file named after its identity; equal fits that run at the same
    time have a file each.
    """
    target = Path(path)
    check_path(target)
    if target.suffix == SUFFIX:
        candidates = iter([target])
    else:
        target.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:20]
        candidates = (
            target / f"{key}{f'-{number}' if number else ''}{SUFFIX}"
            for number in count()
        )
    for file in candidates:
        with locked(file) as is_ours:
            if is_ours:
                remove_leftovers(file)
                yield Checkpoint(file, identity, interval)
                return
    raise ValueError(
        f"checkpoint={str(target)!r} is in use by another fit: give each a file of its "
        "own, or name a folder, in which each fit has one."
    )


def check_resumable(checkpoint: Any, random_state: Any) -> None:
    """Raise if a resumed fit would draw other random numbers."""
    if checkpoint is not None and not isinstance(random_state, numbers.Integral):
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} needs an integer random_state, found "
            f"{random_state!r}: a fit can only continue if it draws the same numbers."
        )


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise unless a checkpoint can be written to a file or into a folder."""
    target = Path(path)
    is_file = target.suffix == SUFFIX
    if is_file and target.is_dir():
        raise ValueError(
            f"checkpoint={str(target)!r} ends in {SUFFIX!r}, which names a file, and "
            f"is a folder: name a file in it, or a folder without {SUFFIX!r}."
        )
    folder = target.parent if is_file else target
    while not is_file and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(
            f"checkpoint={str(target)!r}: {str(folder)!r} is not a folder; name a file "
            f"that ends in {SUFFIX!r} in an existing folder, or a folder."
        )
    check_folder_writable(folder, target, "checkpoint")


def _sign(body: bytes | memoryview) -> bytes:
    """Return the header and the digest of a file."""
    return _HEADER + hashlib.sha256(body).digest()
