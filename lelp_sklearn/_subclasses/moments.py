"""Moments of each class, mergeable, and the class covariances that they give."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.directions import InitialSubspace
from lelp_sklearn._subclasses.rows import (
    Data,
    LabelledRows,
    added,
    class_blocks,
    row_slices,
)
from lelp_sklearn._subclasses.threads import map_parts
from lelp_sklearn._subclasses.torch_backend import dispatch_to_device
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
        """Add the moments of further rows."""
        for c in np.flatnonzero(other.weight).tolist():
            self.scatter[c] += other.scatter[c]
            self._shift(c, other.weight[c], other.mean[c])
        return self

    def _shift(self, c: int, weight: float, mean: FloatArray) -> None:
        """Join a group whose own scatter is already in: move the mean, add its part."""
        total = self.weight[c] + weight
        step = mean - self.mean[c]
        between = self.weight[c] * weight / total
        self.scatter[c] += between * np.outer(step, step)
        self.mean[c] += weight / total * step
        self.weight[c] = total

    def pooled(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the mean of all rows, scatter within classes, scatter about that mean.

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
    sums = torch_backend.moments(rows, n_classes, extra, np.dtype(np.float64))
    return ClassMoments(*sums)


def _quick_moments_of_tensors(
    rows: LabelledRows, n_classes: int, dtype: np.dtype[Any]
) -> ClassMoments:
    moments = ClassMoments(*torch_backend.moments(rows, n_classes, None, dtype))
    check_no_overflow(moments.scatter, dtype)
    return moments


@dispatch_to_device(_exact_moments_of_tensors)
def class_moments(
    rows: LabelledRows, n_classes: int, with_logits: bool = False
) -> ClassMoments:
    """Return moments of the rows that have a class, and of their logits if wanted."""
    extra = rows.logits if with_logits else None
    width = rows.shape[1] + (0 if extra is None else extra.shape[1])
    moments = ClassMoments.zeros(n_classes, width)
    for c, block, weight, index in class_blocks(rows, n_classes):
        joint = block if extra is None else np.hstack([block, extra[index]])
        moments.add(c, joint, weight)
    return moments


@dispatch_to_device(_quick_moments_of_tensors)
def scatter_moments(
    rows: LabelledRows, n_classes: int, dtype: np.dtype[Any]
) -> ClassMoments:
    """Return the moments of `class_moments` from one quick pass.

    A block is summed in `dtype`, about the mean of the first rows of each class.
    """
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
    """Return moments of the rows without a class, each in that which the head gives."""
    return class_moments(rows.only_unlabelled(head), n_classes)


def weight_ranges(data: Data, n_classes: int) -> tuple[FloatArray, FloatArray]:
    """Return the lightest and heaviest weight (C,) of each class."""
    ranges = data.map_reduce(LabelledRows.weight_ranges, np.minimum, n_classes)
    return ranges[0], -ranges[1]


def class_weights(data: Data, n_classes: int) -> FloatArray:
    """Return the sum of the weights of each class (C,)."""
    return data.map_reduce(LabelledRows.class_weights, np.add, n_classes)


@dataclass(frozen=True)
class Covariance(ABC):
    """The covariance S_c of each class, known by what it does to a few vectors.

    Parameters
    ----------
    row_space : (d, r)
        Orthonormal basis of what is taken out of the embeddings; r is 0 for nothing.
    weight, mean : (C,), (C, d)
    variance : (C,)
        The trace.
    null_variance : (C,)
        The trace without the part in the row space.
    noise : (C,)
        Variances below may be rounding error.
    """

    row_space: FloatArray
    weight: FloatArray
    mean: FloatArray
    variance: FloatArray
    null_variance: FloatArray
    noise: FloatArray

    @abstractmethod
    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        """Return S_c times the basis (d, k_c) of each class."""


@dataclass(frozen=True)
class ExplicitCovariance(Covariance):
    """Class covariances `matrices` (C, d, d) held in memory."""

    matrices: FloatArray

    @classmethod
    def from_moments(
        cls, moments: ClassMoments, row_space: FloatArray, dtype: np.dtype[Any]
    ) -> "ExplicitCovariance":
        """Return the covariances of moments that were summed in `dtype`."""
        n_features = len(row_space)
        mean = moments.mean[:, :n_features]
        scatter = moments.scatter[:, :n_features, :n_features]
        matrices = scatter / moments.weight[:, None, None]
        trace = np.trace(matrices, axis1=1, axis2=2)
        check_no_underflow(mean, trace, dtype)
        products = [S @ row_space for S in matrices]
        noise = _noise(mean, trace, dtype)
        null_variance = _null_variance(trace, row_space, products, noise)
        return cls(
            row_space=row_space,
            weight=moments.weight,
            mean=mean,
            variance=trace,
            null_variance=null_variance,
            noise=noise,
            matrices=matrices,
        )

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        return [S @ basis for S, basis in zip(self.matrices, bases, strict=True)]


@dataclass(frozen=True)
class StreamedCovariance(Covariance):
    """Class covariances that are never formed: each product is a pass over the rows.

    Holds no centred copy and no copy of a class, only blocks. A block is summed in the
    precision of `centres`; the blocks are summed in double precision.

    Parameters
    ----------
    data : Data
    centres : (C, d)
        Near the class means.
    step : (C, d)
        From the centres to the means.
    started : list of (InitialSubspace, (d, k))
        Where the search for directions begins, and the covariance times its basis.
    """

    data: Data
    centres: FloatArray
    step: FloatArray
    started: list[tuple[InitialSubspace, FloatArray]]

    @classmethod
    def measure(
        cls,
        data: Data,
        weight: FloatArray,
        *,
        centres: FloatArray,
        row_space: FloatArray,
        starts: list[InitialSubspace],
    ) -> "StreamedCovariance":
        """Return what one pass over the rows gives: means, traces, first products."""
        bases = [np.hstack([row_space, start.basis]) for start in starts]
        *products, sums, squares = data.map_reduce(_products, added, centres, bases)
        check_no_overflow(squares, centres.dtype)
        step = sums / weight[:, None]
        mean = centres + step
        trace = squares / weight - np.sum(step**2, axis=1)
        check_no_underflow(mean, trace, centres.dtype)
        products = _about_means(products, bases, weight, step)
        rank = row_space.shape[1]
        noise = _noise(mean, trace, centres.dtype)
        null_variance = _null_variance(
            trace, row_space, [product[:, :rank] for product in products], noise
        )
        pairs = zip(starts, products, strict=True)
        started = [(start, product[:, rank:]) for start, product in pairs]
        return cls(
            row_space=row_space,
            weight=weight,
            mean=mean,
            variance=trace,
            null_variance=null_variance,
            noise=noise,
            data=data,
            centres=centres,
            step=step,
            started=started,
        )

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        products = self.data.map_reduce(_products, added, self.centres, bases)[:-2]
        for product in products:
            check_no_overflow(product, self.centres.dtype)
        return _about_means(products, bases, self.weight, self.step)


def _about_means(
    products: list[FloatArray],
    bases: list[FloatArray],
    weight: FloatArray,
    step: FloatArray,
) -> list[FloatArray]:
    """Return sums about the centres as covariances about the means."""
    return [
        product / w - np.outer(s, s @ basis)
        for product, basis, w, s in zip(products, bases, weight, step, strict=True)
    ]


@dispatch_to_device(torch_backend.products)
def _products(
    data: LabelledRows, centres: FloatArray, bases: list[FloatArray]
) -> list[FloatArray]:
    """Return products (d, k_c) of each class, sums of rows (C, d) and squares (C,)."""
    # Imported at the first call: numba would slow the import of the package.
    from lelp_sklearn._subclasses.kernels import class_sums, tiles

    n_vectors = np.array([basis.shape[1] for basis in bases])
    packed = tiles.pack([basis.T for basis in bases], centres.dtype)

    def work(block: slice) -> tuple[FloatArray, FloatArray]:
        class_index, weight = data.class_index[block], data.weight[block]
        rows = tiles.class_rows(data.X[block], class_index, weight, centres)
        return class_sums.class_products(rows, packed, n_vectors)

    total: FloatArray = np.zeros((len(bases), n_vectors.max() + 1, centres.shape[1]))
    squares: FloatArray = np.zeros(len(bases))
    for block_total, block_squares in map_parts(work, row_slices(data.X)):
        total += block_total
        squares += block_squares
    products = [own[:k].T for own, k in zip(total, n_vectors, strict=True)]
    return [*products, total[np.arange(len(bases)), n_vectors], squares]


def _noise(mean: FloatArray, trace: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """Return the variance (C,) that rounding leaves along a direction.

    That of sums in `dtype`, a share of the trace (C,), and that of the mean (C, d) and
    of the embeddings themselves, whose last digits depend on its size.
    """
    eps, double = np.finfo(dtype).eps, np.finfo(np.float64).eps
    digits = max(eps, 1e3 * double) * np.abs(mean).max(axis=1)
    share = max(10 * mean.shape[1] * double, 10 * eps)
    noise: FloatArray = share * trace + digits**2
    return noise


def _null_variance(
    trace: FloatArray,
    row_space: FloatArray,
    products: list[FloatArray],
    noise: FloatArray,
) -> FloatArray:
    """Return variances (C,) without the row space, 0 where they may be rounding.

    `products` are the class covariances times the row space.
    """
    variance = trace - [np.vdot(row_space, product) for product in products]
    return np.where(variance > noise, variance, 0.0)
