"""Checks of checkpoints, and their messages."""

import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIX = ".ckpt"


def check_resumable(checkpoint: Any, random_state: Any) -> None:
    """Raise where a fit with a checkpoint would draw anew when it goes on."""
    if checkpoint is not None and not isinstance(random_state, numbers.Integral):
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} needs an integer random_state, found "
            f"{random_state!r}: a fit can only go on if it draws the same again."
        )


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise unless a checkpoint can be written, as a file or into a folder.

    A path with the suffix is a file in a folder that exists; any other is a folder,
    which may have to be made.
    """
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
            f"checkpoint={str(target)!r}: {str(folder)!r} is no folder; name a file "
            f"that ends in {SUFFIX!r} in an existing folder, or a folder."
        )
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"checkpoint={str(target)!r}: the folder {str(folder)!r} is not writable."
        )


def check_unused(target: Path, is_ours: bool) -> None:
    """Raise where another fit that is running writes to the file."""
    if not is_ours:
        raise ValueError(
            f"checkpoint={str(target)!r} is in use by another fit: give each a file of "
            "its own, or name a folder, in which each fit has one."
        )


def damaged_checkpoint(path: Path) -> ValueError:
    """A checkpoint that is not what was written."""
    return ValueError(
        f"checkpoint={str(path)!r} is damaged or no checkpoint: delete it to begin "
        "anew."
    )


def unreadable_state(path: Path) -> ValueError:
    """A checkpoint would hold what cannot be read again."""
    return ValueError(
        f"checkpoint={str(path)!r} cannot hold the state of module or optimizer: what "
        "they add to it (get_extra_state) must be tensors, numbers, strings, and "
        "lists and dicts of these; or set checkpoint=None."
    )


def check_same_run(
    path: Path, found: Mapping[str, str], wanted: Mapping[str, str]
) -> None:
    """Raise where a checkpoint is of other data or parameters."""
    changed = [name for name in wanted if found.get(name) != wanted[name]]
    if changed:
        raise ValueError(
            f"checkpoint={str(path)!r} is of a fit with another "
            f"{', '.join(changed)}: set these as they were, delete the file to begin "
            "anew, or name a folder, in which each fit has a file of its own."
        )
