"""The tasks: images or points, a class for each and a hidden group for each.

The 1 797 handwritten digits that scikit-learn bundles are split once and for all into
training, validation and test digits, so two parts never share an image. Searches score
on validation digits; only ``demo.py`` looks at the test digits.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
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
    n_student: int
    n_units: int


def _digits(part: str) -> tuple[Array, Array]:
    images, names = load_digits(return_X_y=True)
    train, rest = train_test_split(
        np.arange(len(names)), test_size=0.5, stratify=names, random_state=0
    )
    validation, test = train_test_split(
        rest, test_size=0.5, stratify=names[rest], random_state=0
    )
    rows = {"train": train, "validation": validation, "test": test}[part]
    return images[rows], names[rows]


def _draw_numbers(part: str, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw n two-digit numbers, each equally often, as two digits side by side."""
    images, names = _digits(part)
    numbers = rng.permutation(np.resize(np.arange(100), n))
    halves = []
    for wanted in (numbers // 10, numbers % 10):
        rows = np.empty(n, dtype=np.intp)
        for digit in range(10):
            places = np.flatnonzero(wanted == digit)
            rows[places] = rng.choice(np.flatnonzero(names == digit), len(places))
        halves.append(images[rows])
    return np.hstack(halves), numbers


def _prime() -> Array:
    return np.array(
        [n > 1 and all(n % k for k in range(2, n)) for n in range(100)], dtype=int
    )


def _divisible_by_three() -> Array:
    return (np.arange(100) % 3 == 0).astype(int)


def _random_halves() -> Array:
    return np.random.default_rng(0).permutation(100) % 2


def standardised(
    train: tuple[Array, Array],
    score: tuple[Array, Array],
    class_of_group: Array,
    n_student: int,
    n_units: int,
    *,
    pixels_alike: bool = False,
) -> Task:
    """Return a task of rows and their groups, scaled by the training rows.

    With `pixels_alike` all columns have one mean and one scale.
    """
    columns = (-1, 1 if pixels_alike else train[0].shape[1])
    scaler = StandardScaler().fit(train[0].reshape(columns))

    def scaled(X: Array) -> Array:
        found = scaler.transform(X.reshape(columns))
        return found.reshape(X.shape).astype(np.float32)

    return Task(
        X=scaled(train[0]),
        y=class_of_group[train[1]],
        groups=train[1],
        X_score=scaled(score[0]),
        y_score=class_of_group[score[1]],
        n_student=n_student,
        n_units=n_units,
    )


def numbers(
    seed: int,
    part: str = "validation",
    *,
    classes: Array,
    n_train: int = 30_000,
    n_student: int = 2_000,
    n_score: int = 10_000,
    pixels_alike: bool = False,
) -> Task:
    """Two-digit numbers, 128 pixels, whose class is looked up in `classes`."""
    rng = np.random.default_rng(seed)
    train = _draw_numbers("train", n_train, rng)
    score = _draw_numbers(part, n_score, rng)
    return standardised(
        train, score, classes, n_student, n_units=32, pixels_alike=pixels_alike
    )


def single_digits(seed: int, part: str = "validation") -> Task:
    """Digits, even or odd: five groups in each class, and nothing left to gain."""
    images, names = _digits("train")
    order = np.random.default_rng(seed).permutation(len(names))
    train = images[order], names[order]
    return standardised(train, _digits(part), np.arange(10) % 2, len(order), n_units=8)


def gaussian_mixture(
    seed: int,
    part: str = "validation",
    *,
    n_classes: int = 2,
    n_groups: int = 20,
    spread: float = 1.2,
) -> Task:
    """Unit Gaussians in twenty dimensions, `n_groups` in each class.

    Their centres are drawn from a Gaussian too, `spread` times as wide.
    """
    rng = np.random.default_rng((seed, part == "test"))
    n_centres = n_classes * n_groups
    centres = rng.normal(scale=spread, size=(n_centres, 20))

    def draw(n: int) -> tuple[Array, Array]:
        groups = rng.permutation(np.resize(np.arange(n_centres), n))
        return centres[groups] + rng.normal(size=(n, 20)), groups

    return standardised(
        draw(20_000),
        draw(10_000),
        np.arange(n_centres) % n_classes,
        n_student=1_000,
        n_units=32,
    )


TASKS = {
    "prime numbers": partial(numbers, classes=_prime()),
    "numbers divisible by 3": partial(numbers, classes=_divisible_by_three()),
    "numbers in random halves": partial(
        numbers, classes=_random_halves(), n_student=1_000
    ),
    "mixture of 40 Gaussians": gaussian_mixture,
    "single digits": single_digits,
}
