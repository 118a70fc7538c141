"""Letters (UCI): sixteen numbers each, thirteen letters a class."""

import numpy as np

from benchmarks.distillation.datasets.base import (
    Drawn,
    Paths,
    held_out,
    read_arrays,
    standardised,
)

N_VALIDATION = 2_000


def letters(paths: Paths, seed: int, part: str, *, n_train: int = 14_000) -> Drawn:
    """Letters as sixteen numbers each, thirteen letters a class."""
    X, y = read_arrays(paths.data / "letter" / "train.npz")
    validation, rest = held_out(len(y), N_VALIDATION, seed)
    score = X[validation], y[validation]
    if part == "test":
        score = read_arrays(paths.data / "letter" / "test.npz")
    rows = rest[:n_train]
    return Drawn(standardised((X[rows], y[rows]), score, np.arange(26) % 2))
