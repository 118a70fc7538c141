"""Moments of each class, mergeable, and the class covariances that they give."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lelp_sklearn._subclasses import tensor_passes
from lelp_sklearn._subclasses.directions import InitialSubspace
from lelp_sklearn._subclasses.rows import (
    Data,
    LabelledRows,
    added,
    are_unequal,
    class_blocks,
    row_slices,
    sum_dtype,
)
from lelp_sklearn._subclasses.tensors import dispatch_to_device
from lelp_sklearn._subclasses.threads import map_parts
from lelp_sklearn._typing import FloatArray
from lelp_sklearn._validation import check_no_overflow, check_no_underflow


@dataclass
class ClassMoments:
    """Weight, mean and scatter of the rows of each class, in double precision.

    Blocks are added one at a time and two objects merge into one, so a stream, a memory
    map and an array are one code; the order of rows does not matter. A block is centred
    on its own mean before it is squared: a mean far from zero loses nothing.

    Parameters
    ----------
    weight : ndarray of shape (C,)
        Sum of the row weights.
    mean : ndarray of shape (C, p)
    scatter : ndarray of shape (C, p, p)
        Weighted sums of squares and products about the mean.
    """

    weight: FloatArray
    mean: FloatArray
    scatter: FloatArray

    @classmethod
    def zeros(cls, n_classes: int, n_features: int) -> "ClassMoments":
        """Moments of no rows."""
        return cls(
            weight=np.zeros(n_classes),
            mean=np.zeros((n_classes, n_features)),
            scatter=np.zeros((n_classes, n_features, n_features)),
        )

    def add(self, code: int, rows: FloatArray, row_weight: FloatArray) -> None:
        """Add rows (m, p) of class `code` with weights (m,)."""
        weight = row_weight.sum()
        mean = row_weight @ rows / weight
        centred = rows - mean
        self.scatter[code] += centred.T @ (row_weight[:, None] * centred)
        self._shift(code, weight, mean)

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Add the moments of further rows."""
        for code in np.flatnonzero(other.weight).tolist():
            self.scatter[code] += other.scatter[code]
            self._shift(code, other.weight[code], other.mean[code])
        return self

    def _shift(self, code: int, weight: float, mean: FloatArray) -> None:
        """Join a group whose own scatter is already in: move the mean, add its part."""
        total = self.weight[code] + weight
        step = mean - self.mean[code]
        between = self.weight[code] * weight / total
        self.scatter[code] += between * np.outer(step, step)
        self.mean[code] += weight / total * step
        self.weight[code] = total

    def pooled(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean of all rows, scatter within the classes, scatter about that mean.

        Returns
        -------
        mean (p,), within (p, p), total (p, p)
        """
        mean = self.weight @ self.mean / self.weight.sum()
        steps = self.mean - mean
        within = self.scatter.sum(axis=0)
        return mean, within, within + (self.weight[:, None] * steps).T @ steps


def _exact_moments_of_tensors(
    rows: LabelledRows, n_classes: int, with_logits: bool = False
) -> ClassMoments:
    extra = rows.logits if with_logits else None
    found = tensor_passes.moments(rows, n_classes, extra, np.dtype(np.float64))
    return ClassMoments(*found)


def _quick_moments_of_tensors(
    rows: LabelledRows, n_classes: int, dtype: np.dtype[Any]
) -> ClassMoments:
    found = tensor_passes.moments(rows, n_classes, None, dtype)
    check_no_overflow(found[-1], dtype)
    return ClassMoments(*found)


@dispatch_to_device(_exact_moments_of_tensors)
def class_moments(
    rows: LabelledRows, n_classes: int, with_logits: bool = False
) -> ClassMoments:
    """Moments of the rows that have a class; of their logits beside them, if wanted."""
    extra = rows.logits if with_logits else None
    width = rows.shape[1] + (0 if extra is None else extra.shape[1])
    moments = ClassMoments.zeros(n_classes, width)
    for code, block, weight, index in class_blocks(rows, n_classes):
        joint = block if extra is None else np.hstack([block, extra[index]])
        moments.add(code, joint, weight)
    return moments


@dispatch_to_device(_quick_moments_of_tensors)
def scatter_moments(
    rows: LabelledRows, n_classes: int, dtype: np.dtype[Any]
) -> ClassMoments:
    """Moments as `class_moments` gives them, in one quick reading.

    A block is summed in `dtype`, about the mean of the first rows of each class.
    """
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._subclasses.kernels import class_sums, tiles

    def work(block: slice) -> ClassMoments:
        X = tiles.readable(rows.X[block], dtype)
        class_index, weight = rows.class_index[block], rows.weight[block]
        moments = ClassMoments(
            *class_sums.class_scatters(X, class_index, weight, n_classes, dtype)
        )
        check_no_overflow(moments.scatter, dtype)
        return moments

    moments = ClassMoments.zeros(n_classes, rows.shape[1])
    for found in map_parts(work, row_slices(rows.X)):
        moments.merge(found)
    return moments


def moments_of_unlabelled(
    rows: LabelledRows, n_classes: int, head: Callable[[FloatArray], FloatArray]
) -> ClassMoments:
    """Moments of the rows that have no class, each in that which the head gives it."""
    return class_moments(rows.only_unlabelled(head), n_classes)


def quick_dtype(data: Data, n_classes: int) -> np.dtype[Any]:
    """In which sums over some thousand rows are made, as `sum_dtype` says."""
    return sum_dtype(data.dtype, *_weight_ranges(data, n_classes))


def has_unequal_weights(data: Data, n_classes: int) -> bool:
    """Whether the weights of a class are very unequal."""
    return are_unequal(*_weight_ranges(data, n_classes))


def _weight_ranges(data: Data, n_classes: int) -> tuple[FloatArray, FloatArray]:
    """Lightest and heaviest weight (C,) of each class."""
    ranges = data.map_reduce(LabelledRows.weight_ranges, np.minimum, n_classes)
    return ranges[0], -ranges[1]


def class_weights(data: Data, n_classes: int) -> FloatArray:
    """Sum of the weights of each class (C,)."""
    return data.map_reduce(LabelledRows.class_weights, np.add, n_classes)


class Covariance(Protocol):
    """The covariance S_c of each class, known by what it does to a few vectors.

    `variance` (C,) is the trace, `null_variance` (C,) that without the part in the row
    space that was taken out of the embeddings; what is below `noise` (C,) may be
    rounding error.
    """

    mean: FloatArray
    weight: FloatArray
    variance: FloatArray
    null_variance: FloatArray
    noise: FloatArray

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        """Multiply: basis (d, k_c) of each class to S_c basis (d, k_c)."""
        ...


class ExplicitCovariance:
    """Class covariances (C, d, d) held in memory, from moments summed in `dtype`."""

    def __init__(
        self, moments: ClassMoments, row_space: FloatArray, dtype: np.dtype[Any]
    ) -> None:
        n_features = len(row_space)
        self.weight = moments.weight
        self.mean = moments.mean[:, :n_features]
        scatter = moments.scatter[:, :n_features, :n_features]
        self.matrices = scatter / self.weight[:, None, None]
        trace = np.trace(self.matrices, axis1=1, axis2=2)
        check_no_underflow(self.mean, trace, dtype)
        self.variance = trace
        inside = [_variance(row_space, S @ row_space) for S in self.matrices]
        self.noise = _noise(self.mean, trace, dtype)
        self.null_variance = _without_noise(trace - inside, self.noise)

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        return [S @ basis for S, basis in zip(self.matrices, bases, strict=True)]


class StreamedCovariance:
    """Class covariances that are never formed: each product is a pass over the rows.

    Holds no centred copy and no copy of a class, only blocks. The first pass, which
    multiplies the bases of `starts`, measures means and traces on the way. A block is
    summed in the precision of `centres` (C, d), which are near the class means; the
    blocks are summed in double precision.
    """

    def __init__(
        self,
        data: Data,
        weight: FloatArray,
        *,
        centres: FloatArray,
        row_space: FloatArray,
        starts: list[InitialSubspace],
    ) -> None:
        self._data = data
        self._dtype = centres.dtype
        self._centres = centres
        self.weight = weight
        bases = [np.hstack([row_space, start.basis]) for start in starts]
        products, sums, squares = self._pass(bases)
        check_no_overflow(squares, self._dtype)
        self._step = sums / self.weight[:, None]
        self.mean = self._centres + self._step
        trace = squares / self.weight - np.sum(self._step**2, axis=1)
        check_no_underflow(self.mean, trace, self._dtype)
        self.variance = trace
        products = self._about_means(products, bases)
        rank = row_space.shape[1]
        self.started = [
            (start, product[:, rank:])
            for start, product in zip(starts, products, strict=True)
        ]
        inside = [_variance(row_space, product[:, :rank]) for product in products]
        self.noise = _noise(self.mean, trace, self._dtype)
        self.null_variance = _without_noise(trace - inside, self.noise)

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        products = self._pass(bases)[0]
        for product in products:
            check_no_overflow(product, self._dtype)
        return self._about_means(products, bases)

    def _pass(
        self, bases: list[FloatArray]
    ) -> tuple[list[FloatArray], FloatArray, FloatArray]:
        """Sums about the centres: products (d, k_c), rows (C, d), squares (C,)."""
        totals = self._data.map_reduce(_products, added, self._centres, bases)
        *products, sums, squares = totals
        return products, sums, squares

    def _about_means(
        self, products: list[FloatArray], bases: list[FloatArray]
    ) -> list[FloatArray]:
        """Turn sums about the centres into covariances about the means."""
        return [
            product / weight - np.outer(step, step @ basis)
            for product, weight, step, basis in zip(
                products, self.weight, self._step, bases, strict=True
            )
        ]


@dispatch_to_device(tensor_passes.products)
def _products(
    data: LabelledRows, centres: FloatArray, bases: list[FloatArray]
) -> list[FloatArray]:
    """Products (d, k_c) of each class, sums of rows (C, d) and squares (C,)."""
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._subclasses.kernels import class_sums, tiles

    n_vectors = np.array([basis.shape[1] for basis in bases])
    packed = tiles.pack([basis.T for basis in bases], centres.dtype)
    centres = tiles.readable(centres, centres.dtype)

    def work(block: slice) -> tuple[FloatArray, FloatArray]:
        rows = tiles.readable(data.X[block], centres.dtype)
        class_index, weight = data.class_index[block], data.weight[block]
        return class_sums.class_products(
            rows, class_index, weight, centres, packed, n_vectors
        )

    total: FloatArray = np.zeros((len(bases), n_vectors.max() + 1, centres.shape[1]))
    squares: FloatArray = np.zeros(len(bases))
    for found, found_squares in map_parts(work, row_slices(data.X)):
        total += found
        squares += found_squares
    products = [own[:k].T for own, k in zip(total, n_vectors, strict=True)]
    return [*products, total[np.arange(len(bases)), n_vectors], squares]


def _noise(mean: FloatArray, trace: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """Variance (C,) that rounding leaves along a direction; sums are in `dtype`.

    That of the sums, a share of the trace (C,), and that of the mean (C, d) and of the
    embeddings themselves, whose last digits depend on its size.
    """
    eps, double = np.finfo(dtype).eps, np.finfo(np.float64).eps
    digits = max(eps, 1e3 * double) * np.abs(mean).max(axis=1)
    share = max(10 * mean.shape[1] * double, 10 * eps)
    noise: FloatArray = share * trace + digits**2
    return noise


def _without_noise(variance: FloatArray, noise: FloatArray) -> FloatArray:
    """Variances (C,), 0 where they may be rounding."""
    return np.where(variance > noise, variance, 0.0)


def _variance(basis: FloatArray, product: FloatArray) -> float:
    """Variance along all vectors of a basis from the covariance times it."""
    return float(np.vdot(basis, product))
