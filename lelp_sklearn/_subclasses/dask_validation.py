"""Checks of dask arrays, and their messages."""

from typing import Any

import numpy as np


def check_dask_array(array: Any, name: str) -> None:
    """Raise where a dask array does not know how many rows it has."""
    if any(np.isnan(size) for sizes in array.chunks for size in sizes):
        raise ValueError(
            f"{name} is a dask array with chunks of unknown size; call "
            f"{name}.compute_chunk_sizes() first, so that the number of rows is known."
        )


def check_dask_embeddings(X: Any) -> None:
    """Raise unless a dask array has rows and real features, in dense chunks."""
    check_dask_array(X, "X")
    if X.dtype.kind == "c":
        raise ValueError(
            "Complex data not supported: X is a dask array of dtype complex."
        )
    if X.dtype.kind not in "biuf":
        raise ValueError(f"X is a dask array of dtype {X.dtype}: pass numbers.")
    if X.ndim != 2:
        raise ValueError(
            f"Expected 2D dask array X, got shape {X.shape}: embeddings are "
            "(n_samples, n_features)."
        )
    if 0 in X.shape:
        raise ValueError(
            f"Found dask array X of shape {X.shape}: at least one sample and one "
            "feature are needed."
        )
    if not isinstance(X._meta, np.ndarray):
        raise TypeError(
            f"X is a dask array with chunks of {type(X._meta).__name__}; pass dense "
            "NumPy ones, as from X.map_blocks(lambda chunk: chunk.toarray())."
        )


def no_dask_stream() -> TypeError:
    """A dask array where blocks come one at a time."""
    return TypeError(
        "partial_fit takes blocks that are in memory, and one of its arguments is a "
        "dask array: call fit, which reads dask arrays chunk by chunk on their "
        "workers, or pass array.compute()."
    )


def no_dask_out() -> TypeError:
    """A place to write to, for a result that is lazy."""
    return TypeError(
        "out cannot be given for a dask array, whose soft labels are a lazy dask "
        "array: store that with dask.array.to_zarr, dask.array.to_npy_stack or "
        "dask.array.store."
    )
