"""Checks of where a student is taken to, and their messages."""

from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from lelp_sklearn._files import check_writable

# What the format of ONNX files, protobuf, can hold in one of them.
_LARGEST_FILE = 2**31 - 1
# Characters of torch's error that a message of ours repeats.
_LONGEST_CAUSE = 200


def as_path(path: Any) -> Path:
    """Give a path as such, or raise."""
    if not isinstance(path, (str, PathLike)):
        raise TypeError(
            f"path must be the name of a file, a str or a path-like object; got "
            f"{type(path).__name__}."
        )
    return Path(path)


def check_onnx_path(path: Path, n_bytes: int) -> None:
    """Raise unless an ONNX file of so many bytes can be written."""
    check_writable(path, n_bytes, "path", ".onnx")
    if n_bytes > _LARGEST_FILE:
        raise ValueError(
            f"The student has {n_bytes:,} bytes of weights in single precision and one "
            f"ONNX file holds at most {_LARGEST_FILE:,}; use to_module instead."
        )


def check_onnx_is_installed() -> None:
    """Raise unless torch can write ONNX files."""
    for name in ("onnx", "onnxscript"):
        try:
            import_module(name)
        except ImportError as reason:
            raise ImportError(
                f"to_onnx needs {name}, which the extra 'onnx' brings: "
                "python -m pip install 'lelp-sklearn[onnx]'"
            ) from reason


def cannot_be_exported(name: str, reason: Exception) -> ValueError:
    """Torch does not know how to write the module."""
    while isinstance(reason.__cause__, Exception):
        reason = reason.__cause__
    first_line = str(reason).strip().partition("\n")[0]
    return ValueError(
        f"module ({name}) cannot be exported to ONNX with any number of rows: "
        f"{type(reason).__name__}, {first_line[:_LONGEST_CAUSE]} (torch's own error is "
        "the cause of this one). Mind operations that have no counterpart in ONNX, and "
        "Python code that depends on the number of rows or on values. to_module needs "
        "no export."
    )
