"""Principal directions of each class within the head's null space, three ways."""

import numpy as np
from scipy import linalg

from lelp_sklearn._subclasses.directions import (
    Directions,
    InitialSubspace,
    tidy,
    to_null_space,
)
from lelp_sklearn._subclasses.moments import Covariance, ExplicitCovariance
from lelp_sklearn._subclasses.rows import Data, LabelledRows, class_blocks
from lelp_sklearn._typing import FloatArray

# The randomized solver stops when the last pass over the rows has added less than this
# share to the variance captured, or the next one is expected to.
_CAPTURE_TOLERANCE = 1e-4
_MAX_PASSES = 12
# A sample lacks a direction where it differs from all rows by more than so many times
# what chance makes of it; the variance along it may be so many times what is seen.
_CHANCE = 2.0
_UNSEEN = 2.0


def eigh_directions(
    covariance: ExplicitCovariance, rows: FloatArray, n_directions: int
) -> list[Directions]:
    """Exact directions from the class covariances, by their eigenvectors."""
    found = []
    for matrix, noise in zip(covariance.matrices, covariance.noise, strict=True):
        half = to_null_space(matrix, rows)
        size = matrix.shape[0]
        wanted = min(n_directions, size)
        values, vectors = linalg.eigh(
            to_null_space(half.T, rows), subset_by_index=(size - wanted, size - 1)
        )
        found.append(tidy(vectors[:, ::-1], values[::-1], rows, noise))
    return found


def full_directions(
    data: Data,
    covariance: Covariance,
    rows: FloatArray,
    n_directions: int,
) -> list[Directions]:
    """Exact directions from a full SVD of each class's rows, which are copied."""
    found = []
    scaled = data.map_reduce(_scaled_rows, _joined, covariance.mean)
    for code, own in enumerate(scaled):
        matrix = to_null_space(own.T, rows).T
        _, singular, vectors = linalg.svd(matrix, full_matrices=False)
        values = singular[:n_directions] ** 2 / covariance.weight[code]
        noise = covariance.noise[code]
        found.append(tidy(vectors[:n_directions].T, values, rows, noise))
    return found


def _scaled_rows(data: LabelledRows, mean: FloatArray) -> list[FloatArray]:
    """Rows of each class about its mean, times the roots of their weights."""
    scaled: list[list[FloatArray]] = [[np.empty((0, mean.shape[1]))] for _ in mean]
    for code, block, weight, _ in class_blocks(data, len(mean)):
        scaled[code].append(np.sqrt(weight)[:, None] * (block - mean[code]))
    return [np.vstack(parts) for parts in scaled]


def _joined(left: list[FloatArray], right: list[FloatArray]) -> list[FloatArray]:
    return [np.vstack(parts) for parts in zip(left, right, strict=True)]


def randomized_directions(
    covariance: Covariance,
    rows: FloatArray,
    started: list[tuple[InitialSubspace, FloatArray]],
    n_directions: int,
    *,
    iterated_power: int | None,
) -> list[Directions]:
    """Directions by a block Krylov method (Musco and Musco, 2015).

    `started` holds for each class a block of vectors (d, k) and the covariance times
    it. Every further pass over the rows multiplies a block of as many
    new vectors, and the best directions in the span of all blocks are taken.
    `iterated_power` None goes on until little more can be captured.
    """
    spaces = [
        _KrylovSpace(start, n_directions, noise)
        for (start, _), noise in zip(started, covariance.noise, strict=True)
    ]
    products = [product for _, product in started]
    unseen = [
        _unseen(start, to_null_space(product, rows), rows.shape[1])
        for start, product in started
    ]
    adaptive = iterated_power is None
    n_passes = _MAX_PASSES if iterated_power is None else iterated_power + 1
    for n_left in reversed(range(n_passes)):
        for space, product, other in zip(spaces, products, unseen, strict=True):
            space.absorb(to_null_space(product, rows), other, adaptive=adaptive)
        # By now it has come in.
        unseen = [0.0] * len(spaces)
        newest = [space.newest for space in spaces]
        if not n_left or not any(block.shape[1] for block in newest):
            break
        products = covariance.apply(newest)
    return [tidy(space.vectors, space.values, rows, space.noise) for space in spaces]


def _unseen(start: InitialSubspace, product: FloatArray, rank: int) -> float:
    r"""Give about the largest variance along a direction that the sample lacks.

    With S the covariance of all rows outside the start, T that of the sample and r a
    random unit vector there, :math:`E \|(S - T) r\|^2` is the mean square of the
    eigenvalues of S - T, of which one is large where a direction is lacking.
    """
    n_probes = start.expected.shape[1]
    if not n_probes:
        return 0.0
    difference = product[:, -n_probes:] - start.expected
    difference -= start.basis @ (start.basis.T @ difference)
    n_outside = len(product) - rank - start.basis.shape[1] + n_probes
    excess = np.vdot(difference, difference) - _CHANCE * start.noise
    return float(np.sqrt(max(0.0, excess) * n_outside / n_probes))


class _KrylovSpace:
    """The span of the blocks of one class, and the best directions within it."""

    def __init__(self, start: InitialSubspace, n_directions: int, noise: float) -> None:
        self.noise = noise
        self.newest = start.basis
        self.values = np.empty(0)
        self.vectors = start.basis[:, :0]
        self._n_directions = n_directions
        self._n_start = start.basis.shape[1] - start.expected.shape[1]
        self._basis = start.basis[:, :0]
        self._image = start.basis[:, :0]

    def absorb(self, product: FloatArray, unseen: float, *, adaptive: bool) -> None:
        """Take in the covariance times the newest block, and choose the next block.

        There may be a direction of the variance `unseen` outside all blocks.
        """
        if not self.newest.shape[1]:
            return
        self._basis = np.hstack([self._basis, self.newest])
        self._image = np.hstack([self._image, product])
        before = self.values.sum()
        to_come = self._rayleigh_ritz()
        to_come += max(0.0, _UNSEEN * unseen - self.values.min(initial=np.inf))
        gain = self.values.sum() - before
        if adaptive and min(gain, to_come) <= _CAPTURE_TOLERANCE * self.values.sum():
            self.newest = self.newest[:, :0]
        else:
            self.newest = self._outside(product)

    def _rayleigh_ritz(self) -> float:
        r"""Choose the best directions; give what a further pass may add.

        A direction u of variance :math:`\theta` gains
        :math:`\|S u - \theta u\|^2 / (\theta - \theta')` to first order where what is
        missing has the variance :math:`\theta'`, taken to be that of the last direction
        that the first block could hold, its random vectors apart.
        """
        small = self._basis.T @ self._image
        values, vectors = linalg.eigh((small + small.T) / 2)
        best = slice(None, -self._n_directions - 1, -1)
        chosen = vectors[:, best]
        self.values = values[best]
        self.vectors = self._basis @ chosen
        residual = self._image @ chosen - self.vectors * self.values
        squares = np.einsum("dk,dk->k", residual, residual)
        gap = np.maximum(self.values - values[-self._n_start], self.noise)
        return float(np.sum(squares / np.maximum(gap, np.finfo(float).tiny)))

    def _outside(self, product: FloatArray) -> FloatArray:
        """Orthonormal basis of what `product` adds to the span."""
        # Twice, since the first subtraction leaves rounding errors of the size of what
        # it removed.
        for _ in range(2):
            product = product - self._basis @ (self._basis.T @ product)
        left, singular, _ = linalg.svd(product, full_matrices=False)
        new: FloatArray = left[:, singular > self.noise]
        return new
