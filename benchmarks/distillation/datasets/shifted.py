"""Shifted copies of rows that are pictures."""

from dataclasses import dataclass

import numpy as np

from benchmarks.distillation.datasets.base import Array


@dataclass(frozen=True)
class Pictures:
    """Rows that are pictures: some of equal size, one beside the other."""

    n_abreast: int
    height: int
    width: int
    max_shift: int

    def shifted(self, X: Array, shifts: Array, background: float) -> Array:
        """Return rows as far down and to the right as `shifts` says, (n, 2)."""
        n, height, far = len(X), self.height, self.max_shift
        apart = X.reshape(n, self.n_abreast, height, self.width)
        whole = apart.swapaxes(1, 2).reshape(n, height, -1)
        margin = ((0, 0), (far, far), (far, far))
        padded = np.pad(whole, margin, constant_values=background)
        down, right = far - shifts.T.reshape(2, n, 1, 1)
        found = padded[
            np.arange(n).reshape(n, 1, 1),
            down + np.arange(height).reshape(-1, 1),
            right + np.arange(whole.shape[2]),
        ]
        apart = found.reshape(n, height, self.n_abreast, self.width).swapaxes(1, 2)
        return apart.reshape(X.shape)


# The rows of these data sets, and how far they can be shifted.
PICTURES = {"numbers": Pictures(2, 8, 8, 1), "clothes": Pictures(1, 28, 28, 2)}


def with_copies(draw: str, X: Array, n_copies: int, seed: tuple[int, int]) -> Array:
    """Return rows and, one copy of all after the other, shifted ones.

    More copies begin as fewer do. All pixels have to be scaled alike: the least value
    is then where there is no ink.
    """
    if n_copies == 1:
        return X
    pictures = PICTURES[draw]
    far, size = pictures.max_shift, (n_copies - 1, len(X), 2)
    rng = np.random.default_rng(seed)
    shifts = rng.integers(-far, far, size=size, endpoint=True)
    copies = [pictures.shifted(X, of_copy, X.min()) for of_copy in shifts]
    return np.concatenate([X, *copies])
