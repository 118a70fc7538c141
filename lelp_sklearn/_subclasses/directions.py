"""Directions of a class, and the null space of the head that they are in."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from lelp_sklearn._typing import FloatArray

# Rows of a head that sum to zero, as a softmax's often do, do so to single precision.
_RANK_TOLERANCE = 1e-6
# Components of a direction by which its sign is fixed: this share of the largest.
_TOP = 0.99


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions (d, k), the largest variance (k,) first.

    Only directions along which the class varies numerically: k may be less than what
    was asked for, and 0.
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
        What a sample of the class makes of the last q vectors, which are random: its
        covariance times each. What all rows make of them tells whether the sample
        lacks a direction. q is 0 where there is no sample, or it is the whole class.
    noise : float
        The sum of squares by which chance would make the two differ.
    """

    basis: FloatArray
    expected: FloatArray
    noise: float = 0.0


Solver = Callable[[int], list[Directions]]


def row_space_basis(coef: FloatArray) -> FloatArray:
    """Orthonormal basis (d, r) of the head's row space, r its numerical rank."""
    basis: FloatArray = linalg.orth(coef.T, rcond=_RANK_TOLERANCE)
    return basis


def to_null_space(vectors: FloatArray, row_space: FloatArray) -> FloatArray:
    """Take the row space (d, r) out of vectors (d, k): N v without forming N."""
    projected: FloatArray = vectors - row_space @ (row_space.T @ vectors)
    return projected


def orthonormal(vectors: FloatArray) -> FloatArray:
    """Orthonormal basis (d, <= k) of the span of vectors (d, k).

    From the k by k inner products, twice for full precision: far cheaper than a
    singular value decomposition. Left out is what depends on the others to about seven
    digits, and what is so short compared with them that it may be rounding.
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
    vectors: FloatArray, values: FloatArray, row_space: FloatArray, noise: float
) -> Directions:
    """Drop rounding noise; make orthonormal, in the null space, of a fixed sign."""
    varies = values > noise
    clean = to_null_space(vectors[:, varies], row_space)
    orthonormal, upper = np.linalg.qr(clean)
    orthonormal = orthonormal * np.sign(np.diag(upper))
    if orthonormal.size:
        # The first of the components that are largest but for rounding.
        lengths = np.abs(orthonormal)
        top = (lengths >= _TOP * lengths.max(axis=0)).argmax(axis=0)
        orthonormal = orthonormal * np.sign(
            orthonormal[top, np.arange(orthonormal.shape[1])]
        )
    return Directions(orthonormal, values[varies])
