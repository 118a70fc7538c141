"""Images of clothes (Fashion-MNIST), even classes or odd."""

import numpy as np

from benchmarks.distillation.datasets.base import (
    Drawn,
    Paths,
    held_out,
    read_arrays,
    standardised,
)

N_VALIDATION = 10_000


def clothes(
    paths: Paths,
    seed: int,
    part: str,
    *,
    n_train: int = 50_000,
    n_score: int | None = None,
    pixels_alike: bool = False,
) -> Drawn:
    """Images of clothes (Fashion-MNIST), even classes or odd."""
    X, y = read_arrays(paths.data / "fashion_mnist" / "train.npz")
    validation, rest = held_out(len(y), N_VALIDATION, seed)
    score = X[validation], y[validation]
    if part == "test":
        score = read_arrays(paths.data / "fashion_mnist" / "test.npz")
    score = score[0][:n_score], score[1][:n_score]
    rows = X[rest[:n_train]], y[rest[:n_train]]
    class_of = np.arange(10) % 2
    return Drawn(standardised(rows, score, class_of, pixels_alike=pixels_alike))
