"""Moments and covariances of each class, and directions in the null space."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy import linalg

from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.rows import (
    Data,
    LabelledRows,
    add_sums,
    class_blocks,
    row_slices,
    sum_blocks,
)
from lelp_sklearn._subclasses.torch_backend import is_on_device
from lelp_sklearn._threads import map_parts
from lelp_sklearn._typing import FloatArray
from lelp_sklearn._validation import check_no_overflow, check_no_underflow

# The rows of a softmax head often sum to zero, up to single precision.
_RANK_TOLERANCE = 1e-6
_DOUBLE = np.dtype(np.float64)
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
    """Vectors with which the search for the directions of a class begins."""

    basis: FloatArray  # (d, k) orthonormal, in the null space
    # Covariance of a sample times the last q vectors (d, q), which are random.
    expected: FloatArray
    # Squares of the difference of `expected` from all rows, expected by chance.
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


@dataclass
class ClassMoments:
    """Weight, mean and scatter of the rows of each class, in double precision.

    Blocks are added one at a time and two objects merge into one; the order of rows
    does not matter. A block is centred on its own mean before it is squared, so that a
    mean far from zero loses no precision.
    """

    weight: FloatArray  # (C,)
    mean: FloatArray  # (C, p)
    scatter: FloatArray  # (C, p, p) about the mean

    @classmethod
    def zeros(cls, n_classes: int, n_features: int) -> "ClassMoments":
        """Return the moments of no rows."""
        return cls(
            weight=np.zeros(n_classes),
            mean=np.zeros((n_classes, n_features)),
            scatter=np.zeros((n_classes, n_features, n_features)),
        )

    def add(self, c: int, rows: FloatArray, row_weight: FloatArray) -> None:
        """Add rows (m, p) of class `c` with weights (m,)."""
        weight = row_weight.sum()
        mean = row_weight @ rows / weight
        centred = rows - mean
        self.scatter[c] += centred.T @ (row_weight[:, None] * centred)
        self._shift(c, weight, mean)

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Add the moments of other rows to these, and return them."""
        for c in np.flatnonzero(other.weight).tolist():
            self.scatter[c] += other.scatter[c]
            self._shift(c, other.weight[c], other.mean[c])
        return self

    def _shift(self, c: int, weight: float, mean: FloatArray) -> None:
        """Merge a group whose scatter about its own mean is already added."""
        total = self.weight[c] + weight
        step = mean - self.mean[c]
        between = self.weight[c] * weight / total
        self.scatter[c] += between * np.outer(step, step)
        self.mean[c] += weight / total * step
        self.weight[c] = total

    def pooled(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the mean (p,) of all rows, scatters (p, p) in classes and about it."""
        mean = self.weight @ self.mean / self.weight.sum()
        steps = self.mean - mean
        within = self.scatter.sum(axis=0)
        return mean, within, within + (self.weight[:, None] * steps).T @ steps


def exact_moments(
    rows: LabelledRows, n_classes: int, with_logits: bool = False
) -> ClassMoments:
    """Return the moments of rows and, `with_logits`, of their logits beside them."""
    extra = rows.logits if with_logits else None
    if is_on_device(rows.X):
        return ClassMoments(*torch_backend.moments(rows, n_classes, extra, _DOUBLE))
    width = rows.shape[1] + (0 if extra is None else extra.shape[1])
    moments = ClassMoments.zeros(n_classes, width)
    for c, block, weight, index in class_blocks(rows, n_classes):
        joint = block if extra is None else np.hstack([block, extra[index]])
        moments.add(c, joint, weight)
    return moments


def quick_moments(
    rows: LabelledRows, n_classes: int, dtype: np.dtype[Any]
) -> ClassMoments:
    """Return moments whose blocks are summed in `dtype`, faster than `exact_moments`.

    The centre of a class is the mean of its first rows.
    """
    if is_on_device(rows.X):
        moments = ClassMoments(*torch_backend.moments(rows, n_classes, None, dtype))
        check_no_overflow(moments.scatter, dtype)
        return moments
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._subclasses.kernels import class_sums

    def work(block: slice) -> ClassMoments:
        X = rows.X[block]
        class_index, weight = rows.class_index[block], rows.weight[block]
        moments = ClassMoments(
            *class_sums.class_scatters(X, class_index, weight, n_classes, dtype)
        )
        check_no_overflow(moments.scatter, dtype)
        return moments

    moments = ClassMoments.zeros(n_classes, rows.shape[1])
    for block_moments in map_parts(work, row_slices(rows.X)):
        moments.merge(block_moments)
    return moments


def moments_of_unlabelled(
    rows: LabelledRows, n_classes: int, head: Callable[[FloatArray], FloatArray]
) -> ClassMoments:
    """Return the moments of the rows without a class, by the class the head gives."""
    return exact_moments(rows.only_unlabelled(head), n_classes)


def weight_range(data: Data) -> tuple[float, float]:
    """Return the smallest and largest weight of a row with a class."""
    least, most = data.map_reduce(LabelledRows.weight_range, np.maximum)
    return -least, most


def class_weights(data: Data, n_classes: int) -> FloatArray:
    """Return the sum of the weights of each class (C,)."""
    return data.map_reduce(LabelledRows.class_weights, np.add, n_classes)


@dataclass(frozen=True)
class Covariance(ABC):
    """The covariance S_c of each class, as a linear operator."""

    # (d, r) orthonormal basis of the directions that are projected out.
    row_space: FloatArray
    weight: FloatArray  # (C,)
    mean: FloatArray  # (C, d)
    variance: FloatArray  # (C,), the trace
    null_variance: FloatArray  # (C,), the trace without the part in the row space
    rounding: FloatArray  # (C,), a variance below it may be rounding error

    @classmethod
    def of(
        cls,
        row_space: FloatArray,
        weight: FloatArray,
        mean: FloatArray,
        variance: FloatArray,
        row_products: list[FloatArray],
        dtype: np.dtype[Any],
        **fields: Any,
    ) -> Self:
        """Return covariances, summed in `dtype`; `row_products` are of the row space.

        That precision leaves a share of the variance as rounding error. The embeddings
        and their means leave the square of their last digits.
        """
        check_no_underflow(mean, variance, dtype)
        eps, double = np.finfo(dtype).eps, np.finfo(np.float64).eps
        digits = max(eps, 1e3 * double) * np.abs(mean).max(axis=1)
        share = max(10 * mean.shape[1] * double, 10 * eps)
        rounding = share * variance + digits**2
        inside = variance - [np.vdot(row_space, product) for product in row_products]
        null_variance = np.where(inside > rounding, inside, 0.0)
        return cls(row_space, weight, mean, variance, null_variance, rounding, **fields)

    @abstractmethod
    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        """Return S_c times the basis (d, k_c) of each class."""


@dataclass(frozen=True)
class ExplicitCovariance(Covariance):
    """Class covariances `matrices` (C, d, d) held in memory."""

    matrices: FloatArray

    @classmethod
    def from_moments(
        cls,
        moments: ClassMoments,
        row_space: FloatArray,
        dtype: np.dtype[Any] = _DOUBLE,
    ) -> "ExplicitCovariance":
        """Return the covariances of moments that were summed in `dtype`."""
        n_features = len(row_space)
        mean = moments.mean[:, :n_features]
        scatter = moments.scatter[:, :n_features, :n_features]
        matrices = scatter / moments.weight[:, None, None]
        trace = np.trace(matrices, axis1=1, axis2=2)
        products = [S @ row_space for S in matrices]
        return cls.of(
            row_space, moments.weight, mean, trace, products, dtype, matrices=matrices
        )

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        return [S @ basis for S, basis in zip(self.matrices, bases, strict=True)]


@dataclass(frozen=True)
class MultipassCovariance(Covariance):
    """Class covariances that are never formed: each product is a pass over the rows.

    A block is summed in the precision of `centres`, the blocks in double precision.
    """

    data: Data
    centres: FloatArray  # (C, d) near the class means
    step: FloatArray  # (C, d) from the centres to the means
    # For each class where to begin, and the covariance times its basis.
    initial_products: list[tuple[InitialSubspace, FloatArray]]

    @classmethod
    def measure(
        cls,
        data: Data,
        weight: FloatArray,
        *,
        centres: FloatArray,
        row_space: FloatArray,
        starts: list[InitialSubspace],
    ) -> "MultipassCovariance":
        """Measure means, traces and the first products in one pass over the rows."""
        bases = [np.hstack([row_space, start.basis]) for start in starts]
        totals, squares = data.map_reduce(_product_sums, add_sums, centres, bases)
        check_no_overflow(squares, centres.dtype)
        n_vectors = [basis.shape[1] for basis in bases]
        step = totals[np.arange(len(bases)), n_vectors] / weight[:, None]
        mean = centres + step
        trace = squares / weight - np.sum(step**2, axis=1)
        products = _about_means(totals, bases, weight, step)
        rank = row_space.shape[1]
        pairs = zip(starts, products, strict=True)
        return cls.of(
            row_space,
            weight,
            mean,
            trace,
            [product[:, :rank] for product in products],
            centres.dtype,
            data=data,
            centres=centres,
            step=step,
            initial_products=[(start, product[:, rank:]) for start, product in pairs],
        )

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        totals, _ = self.data.map_reduce(_product_sums, add_sums, self.centres, bases)
        check_no_overflow(totals, self.centres.dtype)
        return _about_means(totals, bases, self.weight, self.step)


def _about_means(
    totals: FloatArray, bases: list[FloatArray], weight: FloatArray, step: FloatArray
) -> list[FloatArray]:
    """Return sums of products about the centres as covariances about the means."""
    return [
        total[: basis.shape[1]].T / w - np.outer(s, s @ basis)
        for total, basis, w, s in zip(totals, bases, weight, step, strict=True)
    ]


def _product_sums(
    data: LabelledRows, centres: FloatArray, bases: list[FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Return weighted sums (C, k + 1, d) over the rows of each class, and (C,).

    Of x (basis.T x), and after these k_c products of x; and of x.T x. x is a row less
    the centre of its class.
    """
    if is_on_device(data.X):
        return torch_backend.product_sums(data, centres, bases)
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._subclasses.kernels import class_sums, tiles

    n_vectors = np.array([basis.shape[1] for basis in bases])
    packed = tiles.pack([basis.T for basis in bases], centres.dtype)

    def work(block: slice) -> tuple[FloatArray, FloatArray]:
        class_index, weight = data.class_index[block], data.weight[block]
        rows = tiles.class_rows(data.X[block], class_index, weight, centres)
        return class_sums.class_products(rows, packed, n_vectors)

    total, squares = sum_blocks(work, data.X)
    return total, squares
