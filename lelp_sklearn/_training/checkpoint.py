"""Files from which an interrupted training goes on."""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from lelp_sklearn._files import locked, new_file, remove_leftovers
from lelp_sklearn._training import checkpoint_validation as validation
from lelp_sklearn._training.checkpoint_validation import SUFFIX

_HEADER = b"lelp_sklearn checkpoint 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds how far one fit has come.

    Parameters
    ----------
    path : Path
        It is replaced as a whole, so that it is complete whenever the end comes.
    identity : dict of str
        All that the result hangs on, by name: a file of another one is refused.
    interval : int
        Epochs between two writings.
    """

    path: Path
    identity: Mapping[str, str]
    interval: int

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Read the state, its tensors on a device; None where there is no file."""
        if not self.path.exists():
            return None
        content = self.path.read_bytes()
        start = len(_HEADER) + _DIGEST_BYTES
        header, digest, body = content[: len(_HEADER)], content[:start], content[start:]
        if header != _HEADER or digest != _signed(body):
            raise validation.damaged_checkpoint(self.path)
        saved = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
        validation.check_same_run(self.path, saved["identity"], self.identity)
        state: dict[str, Any] = saved["state"]
        return state

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise, before work starts, unless a state could be read again."""
        buffer = io.BytesIO()
        try:
            torch.save(dict(state), buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        # A module may add to its state whatever it likes, and that fail in any way.
        except Exception as reason:
            raise validation.unreadable_state(self.path) from reason

    def save(self, state: Mapping[str, Any]) -> None:
        """Put a state in the place of the one before."""
        buffer = io.BytesIO()
        saved = {"identity": dict(self.identity), "state": dict(state)}
        torch.save(saved, buffer)
        head, body = _signed(buffer.getbuffer()), buffer.getbuffer()
        with new_file(self.path, len(head) + len(body), "checkpoint") as file:
            file.write(head)
            file.write(body)


@contextmanager
def open_checkpoint(
    path: str | os.PathLike[str], identity: Mapping[str, str], interval: int
) -> Iterator[Checkpoint]:
    """Give the checkpoint of a fit, which no other fit uses meanwhile.

    A path that ends in ``.ckpt`` is the file itself. Any other is a folder, in which
    each fit has a file named after its identity; of equal fits that run at the same
    time each has one of its own.

    Raises
    ------
    ValueError
        If the path cannot be written to, or the file is another running fit's.
    """
    target = Path(path)
    validation.check_path(target)
    if target.suffix == SUFFIX:
        with locked(target) as is_ours:
            validation.check_unused(target, is_ours)
            remove_leftovers(target)
            yield Checkpoint(target, identity, interval)
        return
    target.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:20]
    for number in count():
        file = target / f"{name}{f'-{number}' if number else ''}{SUFFIX}"
        with locked(file) as is_ours:
            if is_ours:
                remove_leftovers(file)
                yield Checkpoint(file, identity, interval)
                return


def _signed(body: Any) -> bytes:
    return _HEADER + hashlib.sha256(body).digest()
