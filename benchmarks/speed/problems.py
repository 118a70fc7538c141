"""What is measured: sizes, embeddings drawn at random, and how long to try."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

Array = np.ndarray
GROUPS_IN_A_CLASS = 10


@dataclass(frozen=True)
class Options:
    """How much is measured, and where large files may be written."""

    full: bool
    repeats: int
    scratch: Path | None = None


class Shape(NamedTuple):
    """Size of a problem."""

    n_rows: int
    n_features: int
    n_classes: int
    n_subclasses: int

    def __str__(self) -> str:
        n, d, n_classes, n_subclasses = self
        return f"{n:_} × {d}, {n_classes} × {n_subclasses}".replace("_", "\u202f")


def shapes(options: Options) -> list[Shape]:
    """Sizes at which arrays in memory are measured; quick, an eighth of the rows."""
    divisor = 1 if options.full else 8
    return [
        Shape(100_000 // divisor, 768, 2, 10),
        Shape(100_000 // divisor, 384, 2, 5),
        Shape(30_000 // divisor, 4096, 2, 8),
        Shape(400_000 // divisor, 64, 2, 5),
        Shape(50_000 // divisor, 1024, 5, 10),
    ]


class Teacher:
    """Draws embeddings in groups, far from the origin, of slowly falling spread."""

    def __init__(self, shape: Shape) -> None:
        rng = np.random.default_rng(0)
        self.n_classes, d = shape.n_classes, shape.n_features
        self.spread = (np.arange(1, d + 1) ** -0.6).astype(np.float32)
        size = self.n_classes * GROUPS_IN_A_CLASS, d
        self.centres = rng.standard_normal(size, np.float32) * self.spread + 1
        self.coef = rng.standard_normal((self.n_classes, d)) / d**0.5
        self.intercept = np.zeros(self.n_classes)

    @property
    def head(self) -> tuple[Array, Array]:
        """The linear map to the logits."""
        return self.coef, self.intercept

    def draw(self, n_rows: int, seed: int = 0) -> tuple[Array, Array]:
        """Draw rows in single precision and their classes."""
        rng = np.random.default_rng([1, seed])
        group = rng.integers(len(self.centres), size=n_rows)
        X = rng.standard_normal((n_rows, len(self.spread)), np.float32)
        X *= self.spread
        X += self.centres[group]
        return X, group // GROUPS_IN_A_CLASS
