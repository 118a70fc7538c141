"""Gaussians, a class of which is a union of several."""

import numpy as np

from benchmarks.distillation.datasets.base import (
    Array,
    Drawn,
    Paths,
    Task,
    standardised,
)


def gaussian_mixture(
    seed: int,
    part: str,
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


def mixture(paths: Paths, seed: int, part: str, **sizes: float) -> Drawn:
    """Unit Gaussians, by default twenty in each of two classes."""
    return Drawn(gaussian_mixture(seed, part, **sizes))
