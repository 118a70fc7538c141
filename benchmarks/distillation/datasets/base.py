"""What a data set gives: rows for a teacher and a student, and rows to score them on.

Rows to score on are of a part of the data, "validation" or "test", that nothing else
reads. Searches use the first, and only the final scores the second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Task:
    """Standardised rows for a teacher and its student, and rows to score them on.

    The student has the first `n_student` training rows. `groups` are the hidden groups
    of the training rows: no teacher and no student but the oracle ever sees them.
    """

    X: Array
    y: Array
    groups: Array
    X_score: Array
    y_score: Array
    n_student: int = 0
    n_units: int = 0


@dataclass(frozen=True)
class Paths:
    """Folders of data (None without) and of what is kept, and the device.

    Teachers and students of photos are trained on `device`, all others on the CPU.
    """

    data: Path | None
    cache: Path
    device: str = "cpu"


@dataclass(frozen=True)
class Drawn:
    """What the teacher reads, and what a student of the first n rows reads instead.

    `read_as_student` takes n and returns the student's rows and those to score it on.
    """

    task: Task
    read_as_student: Callable[[int], tuple[Array, Array]] | None = None


def standardised(
    train: tuple[Array, Array],
    score: tuple[Array, Array],
    class_of_group: Array,
    n_student: int = 0,
    n_units: int = 0,
    *,
    pixels_alike: bool = False,
) -> Task:
    """Return a task of rows and their groups, scaled by the training rows.

    With `pixels_alike` all columns have one mean and one scale.
    """
    columns = (-1, 1 if pixels_alike else train[0].shape[1])
    scaler = StandardScaler().fit(train[0].reshape(columns))

    def scaled(X: Array) -> Array:
        rows = scaler.transform(X.reshape(columns))
        return rows.reshape(X.shape).astype(np.float32)

    return Task(
        X=scaled(train[0]),
        y=class_of_group[train[1]],
        groups=train[1],
        X_score=scaled(score[0]),
        y_score=class_of_group[score[1]],
        n_student=n_student,
        n_units=n_units,
    )


def held_out(n: int, n_validation: int, seed: int) -> tuple[Array, Array]:
    """Return rows to validate on, the same for all seeds, and the rest in an order."""
    order = np.random.default_rng(0).permutation(n)
    rest = np.random.default_rng(seed).permutation(order[n_validation:])
    return order[:n_validation], rest


def merged(n_groups: int, n_classes: int, kinds: Array | None = None) -> Array:
    """Return the class of each group: at random, or neighbouring `kinds` together."""
    if kinds is None:
        return np.random.default_rng(0).permutation(n_groups) % n_classes
    return kinds * n_classes // (kinds.max() + 1)


def read_arrays(path: Path) -> tuple[Array, Array]:
    """Return the rows and labels of an archive with arrays x and y."""
    with np.load(path) as arrays:
        X, y = arrays["x"], arrays["y"]
    return X.reshape(len(X), -1).astype(np.float32), y.astype(int)
