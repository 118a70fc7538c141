"""Directions of a class in the null space of the head."""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from lelp_sklearn._typing import FloatArray

# The rows of a softmax head often sum to zero, up to single precision.
_RANK_TOLERANCE = 1e-6
# The first component of at least this share of the largest fixes a direction's sign.
_TOP = 0.99


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions (d, k), the largest variance (k,) first.

    k is less than asked for, or 0, if the class does not vary along more directions.
    """

    vectors: FloatArray
    variances: FloatArray


@dataclass(frozen=True)
class InitialSubspace:
    """Vectors with which the search for the directions of a class begins.

    Parameters
    ----------
    basis : (d, k)
        Orthonormal, in the null space.
    expected : (d, q)
        Covariance of a sample of the class times the last q vectors, which are random.
        Its difference from the product of all rows shows directions that the sample
        misses. q is 0 without a sample, and if the sample is the whole class.
    chance : float
        The sum of squares of that difference which is expected by chance.
    """

    basis: FloatArray
    expected: FloatArray
    chance: float = 0.0


def row_space_basis(coef: FloatArray) -> FloatArray:
    """Return a basis (d, r) of the head's row space, with r its numerical rank."""
    basis: FloatArray = linalg.orth(coef.T, rcond=_RANK_TOLERANCE)
    return basis


def to_null_space(vectors: FloatArray, row_space: FloatArray) -> FloatArray:
    """Project vectors (d, k) to the null space, without the row space (d, r)."""
    projected: FloatArray = vectors - row_space @ (row_space.T @ vectors)
    return projected


def orthonormal(vectors: FloatArray) -> FloatArray:
    """Return an orthonormal basis (d, <= k) of the span of vectors (d, k).

    The k by k inner products, used twice for full precision, are far cheaper than a
    singular value decomposition. Vectors that depend on the others to about seven
    digits, or are so short that they may be rounding errors, are left out.
    """
    lengths = np.linalg.norm(vectors, axis=0)
    long = lengths > len(vectors) * np.finfo(np.float64).eps * lengths.max(initial=0)
    basis: FloatArray = vectors[:, long] / lengths[long]
    for _ in range(2):
        values, turn = np.linalg.eigh(basis.T @ basis)
        large = values > len(values) * np.finfo(np.float64).eps * values.max(initial=0)
        basis = basis @ (turn[:, large] / np.sqrt(values[large]))
    return basis


def tidy(
    vectors: FloatArray, values: FloatArray, row_space: FloatArray, rounding: float
) -> Directions:
    """Return the directions above `rounding`, orthonormal and of a fixed sign."""
    varies = values > rounding
    clean = to_null_space(vectors[:, varies], row_space)
    orthonormal, upper = np.linalg.qr(clean)
    orthonormal = orthonormal * np.sign(np.diag(upper))
    if orthonormal.size:
        # The first of the largest components, up to rounding.
        lengths = np.abs(orthonormal)
        top = (lengths >= _TOP * lengths.max(axis=0)).argmax(axis=0)
        orthonormal = orthonormal * np.sign(
            orthonormal[top, np.arange(orthonormal.shape[1])]
        )
    return Directions(orthonormal, values[varies])
