"""Principal directions of each class within the head's null space, three ways."""

import numpy as np
from scipy import linalg

from lelp_sklearn._common.typing import FloatArray, IntArray
from lelp_sklearn._projection.blocks import Rows, class_blocks
from lelp_sklearn._projection.directions import Directions, to_null_space
from lelp_sklearn._projection.statistics import Covariance, ExplicitCovariance

# The randomized solver stops when a further pass over the rows would add less than
# this share to the variance that it has captured.
_CAPTURE_TOLERANCE = 1e-4
_MAX_PASSES = 12


def eigh_directions(
    covariance: ExplicitCovariance, rows: FloatArray, n_directions: int
) -> list[Directions]:
    """Exact directions from the class covariances, by their eigenvectors."""
    found = []
    for matrix, trace in zip(covariance.matrices, covariance.trace, strict=True):
        half = to_null_space(matrix, rows)
        size = matrix.shape[0]
        wanted = min(n_directions, size)
        values, vectors = linalg.eigh(
            to_null_space(half.T, rows), subset_by_index=(size - wanted, size - 1)
        )
        found.append(_tidy(vectors[:, ::-1], values[::-1], rows, trace))
    return found


def full_directions(
    X: Rows,
    codes: IntArray,
    sample_weight: FloatArray,
    covariance: Covariance,
    rows: FloatArray,
    n_directions: int,
) -> list[Directions]:
    """Exact directions from a full SVD of each class's rows, which are copied."""
    n_classes = covariance.weight.size
    scaled: list[list[FloatArray]] = [[] for _ in range(n_classes)]
    for code, block, weight, _ in class_blocks(X, codes, sample_weight, n_classes):
        centred = block - covariance.mean[code]
        scaled[code].append(np.sqrt(weight)[:, None] * centred)
    found = []
    for code, parts in enumerate(scaled):
        matrix = to_null_space(np.vstack(parts).T, rows).T
        _, singular, vectors = linalg.svd(matrix, full_matrices=False)
        values = singular[:n_directions] ** 2 / covariance.weight[code]
        trace = covariance.trace[code]
        found.append(_tidy(vectors[:n_directions].T, values, rows, trace))
    return found


def randomized_directions(
    covariance: Covariance,
    rows: FloatArray,
    n_directions: int,
    *,
    n_oversamples: int,
    iterated_power: int | None,
    random_state: np.random.RandomState,
) -> list[Directions]:
    """Directions by a randomized block Krylov method (Musco and Musco, 2015).

    Every power multiplies a block of `n_directions` + `n_oversamples` vectors by the
    covariance, one pass over the rows, and takes the best directions in the span of all
    blocks so far. `iterated_power` None goes on until a pass adds little.
    """
    n_features, rank = rows.shape
    size = min(n_directions + n_oversamples, n_features - rank)
    spaces = []
    for trace in covariance.trace:
        start = random_state.standard_normal((n_features, size))
        spaces.append(_KrylovSpace(to_null_space(start, rows), trace, n_directions))
    adaptive = iterated_power is None
    for _ in range(_MAX_PASSES if iterated_power is None else iterated_power + 1):
        products = covariance.apply([space.newest for space in spaces])
        for space, product in zip(spaces, products, strict=True):
            space.absorb(to_null_space(product, rows), adaptive=adaptive)
        if not any(space.newest.shape[1] for space in spaces):
            break
    return [_tidy(space.vectors, space.values, rows, space.trace) for space in spaces]


class _KrylovSpace:
    """The span of the blocks of one class, and the best directions within it."""

    def __init__(self, start: FloatArray, trace: float, n_directions: int) -> None:
        self.trace = trace
        self._n_directions = n_directions
        self._basis = np.empty((start.shape[0], 0))
        self._image = np.empty((start.shape[0], 0))
        self.values = np.empty(0)
        self.vectors = self._basis
        self.newest = linalg.orth(start) if start.size else start

    def absorb(self, product: FloatArray, *, adaptive: bool) -> None:
        """Take in the covariance times the newest block, and choose the next block."""
        if not self.newest.shape[1]:
            return
        self._basis = np.hstack([self._basis, self.newest])
        self._image = np.hstack([self._image, product])
        captured = self.values.sum()
        self._rayleigh_ritz()
        gain = self.values.sum() - captured
        if adaptive and gain <= _CAPTURE_TOLERANCE * self.values.sum():
            self.newest = self.newest[:, :0]
        else:
            self.newest = self._outside(product)

    def _rayleigh_ritz(self) -> None:
        small = self._basis.T @ self._image
        values, vectors = linalg.eigh((small + small.T) / 2)
        best = slice(None, -self._n_directions - 1, -1)
        self.values = values[best]
        self.vectors = self._basis @ vectors[:, best]

    def _outside(self, product: FloatArray) -> FloatArray:
        """Orthonormal basis of what `product` adds to the span."""
        # Twice, since the first subtraction leaves rounding errors of the size of what
        # it removed.
        for _ in range(2):
            product = product - self._basis @ (self._basis.T @ product)
        left, singular, _ = linalg.svd(product, full_matrices=False)
        new: FloatArray = left[:, singular > _noise(self.trace, len(product))]
        return new


def _noise(trace: float, n_features: int) -> float:
    """Variance below which a direction is rounding error of the covariance."""
    return float(10 * n_features * np.finfo(np.float64).eps * trace)


def _tidy(
    vectors: FloatArray, values: FloatArray, rows: FloatArray, trace: float
) -> Directions:
    """Drop rounding noise; make orthonormal, in the null space, of a fixed sign."""
    kept = values > _noise(trace, len(vectors))
    clean = to_null_space(vectors[:, kept], rows)
    orthonormal, upper = np.linalg.qr(clean)
    orthonormal = orthonormal * np.sign(np.diag(upper))
    if orthonormal.size:
        top = np.abs(orthonormal).argmax(axis=0)
        orthonormal = orthonormal * np.sign(
            orthonormal[top, np.arange(orthonormal.shape[1])]
        )
    return Directions(orthonormal, values[kept])
