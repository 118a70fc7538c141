"""Handwritten digits, single or two side by side: even or odd, prime or not.

The 1 797 digits that scikit-learn bundles are split once into training, validation and
test digits, so that two parts never share an image.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.distillation.datasets.base import (
    Array,
    Drawn,
    Paths,
    Task,
    standardised,
)

_ALL = np.arange(100)
# The class of each two-digit number.
LABELINGS = {
    "prime numbers": np.array(
        [n > 1 and all(n % k for k in range(2, n)) for n in _ALL], dtype=int
    ),
    "numbers divisible by 3": (_ALL % 3 == 0).astype(int),
    "numbers in random halves": np.random.default_rng(0).permutation(100) % 2,
}


def read_digits(part: str) -> tuple[Array, Array]:
    """Return images and names of a part of the digits."""
    images, names = load_digits(return_X_y=True)
    train, rest = train_test_split(
        np.arange(len(names)), test_size=0.5, stratify=names, random_state=0
    )
    validation, test = train_test_split(
        rest, test_size=0.5, stratify=names[rest], random_state=0
    )
    rows = {"train": train, "validation": validation, "test": test}[part]
    return images[rows], names[rows]


def draw_numbers(part: str, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw n two-digit numbers, each equally often, as two digits side by side."""
    images, names = read_digits(part)
    numbers = rng.permutation(np.resize(np.arange(100), n))
    halves = []
    for wanted in (numbers // 10, numbers % 10):
        rows = np.empty(n, dtype=np.intp)
        for digit in range(10):
            places = np.flatnonzero(wanted == digit)
            rows[places] = rng.choice(np.flatnonzero(names == digit), len(places))
        halves.append(images[rows])
    return np.hstack(halves), numbers


def two_digits(
    seed: int,
    part: str,
    *,
    labeling: str,
    n_train: int = 30_000,
    n_student: int = 2_000,
    n_score: int = 10_000,
    pixels_alike: bool = False,
) -> Task:
    """Two-digit numbers, 128 pixels, whose class is looked up by the `labeling`."""
    rng = np.random.default_rng(seed)
    train = draw_numbers("train", n_train, rng)
    score = draw_numbers(part, n_score, rng)
    return standardised(
        train,
        score,
        LABELINGS[labeling],
        n_student,
        n_units=32,
        pixels_alike=pixels_alike,
    )


def single_digits(seed: int, part: str) -> Task:
    """Digits, even or odd: five groups in each class, and nothing left to gain."""
    images, names = read_digits("train")
    order = np.random.default_rng(seed).permutation(len(names))
    train = images[order], names[order]
    return standardised(
        train, read_digits(part), np.arange(10) % 2, len(order), n_units=8
    )


def numbers(
    paths: Paths,
    seed: int,
    part: str,
    *,
    labeling: str,
    n_train: int = 30_000,
    n_score: int = 10_000,
    pixels_alike: bool = False,
) -> Drawn:
    """Two handwritten digits side by side; a class is a set of two-digit numbers."""
    task = two_digits(
        seed,
        part,
        labeling=labeling,
        n_train=n_train,
        n_score=n_score,
        pixels_alike=pixels_alike,
    )
    return Drawn(task)


def digits(paths: Paths, seed: int, part: str) -> Drawn:
    """Handwritten digits, even or odd."""
    return Drawn(single_digits(seed, part))
