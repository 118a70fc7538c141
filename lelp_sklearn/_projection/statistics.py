"""Moments of each class, mergeable, and the class covariances that they give."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lelp_sklearn._common.typing import FloatArray, IntArray
from lelp_sklearn._projection.blocks import Rows, class_blocks


@dataclass
class ClassMoments:
    """Weight, mean and scatter of the rows of each class.

    Blocks are added one at a time and two objects merge into one, so a stream, a memory
    map and an array are one code; the order of rows does not matter. A block is centred
    on its own mean before it is squared: a mean far from zero loses nothing.

    Parameters
    ----------
    weight : ndarray of shape (C,)
        Sum of the row weights.
    mean : ndarray of shape (C, p)
    trace : ndarray of shape (C,)
        Sum of the weighted squared distances to the mean.
    scatter : ndarray of shape (C, p, p) or None
        Weighted sums of squares and products about the mean; None where the trace is
        enough.
    """

    weight: FloatArray
    mean: FloatArray
    trace: FloatArray
    scatter: FloatArray | None

    @classmethod
    def zeros(
        cls, n_classes: int, n_features: int, *, with_scatter: bool
    ) -> "ClassMoments":
        """Moments of no rows."""
        shape = (n_classes, n_features, n_features)
        return cls(
            weight=np.zeros(n_classes),
            mean=np.zeros((n_classes, n_features)),
            trace=np.zeros(n_classes),
            scatter=np.zeros(shape) if with_scatter else None,
        )

    def add(self, code: int, rows: FloatArray, row_weight: FloatArray) -> None:
        """Add rows (m, p) of class `code` with weights (m,)."""
        weight = row_weight.sum()
        mean = row_weight @ rows / weight
        centred = rows - mean
        weighted = row_weight[:, None] * centred
        if self.scatter is not None:
            self.scatter[code] += centred.T @ weighted
        self.trace[code] += np.vdot(centred, weighted)
        self._shift(code, weight, mean)

    def _shift(self, code: int, weight: float, mean: FloatArray) -> None:
        """Join a group whose own scatter is already in: move the mean, add its part."""
        total = self.weight[code] + weight
        step = mean - self.mean[code]
        between = self.weight[code] * weight / total
        if self.scatter is not None:
            self.scatter[code] += between * np.outer(step, step)
        self.trace[code] += between * (step @ step)
        self.mean[code] += weight / total * step
        self.weight[code] = total

    def pooled(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean of all rows, scatter within the classes, scatter about that mean.

        Returns
        -------
        mean (p,), within (p, p), total (p, p)
        """
        assert self.scatter is not None
        mean = self.weight @ self.mean / self.weight.sum()
        steps = self.mean - mean
        within = self.scatter.sum(axis=0)
        return mean, within, within + (self.weight[:, None] * steps).T @ steps


def gather_moments(
    X: Rows,
    codes: IntArray,
    sample_weight: FloatArray,
    *,
    moments: ClassMoments,
    extra: FloatArray | None = None,
) -> None:
    """Add the rows of X to `moments`; `extra` columns, the logits, ride along.

    Rows with code -1 or without weight are left out.
    """
    n_classes = moments.weight.size
    for code, rows, weight, index in class_blocks(X, codes, sample_weight, n_classes):
        joint = rows if extra is None else np.hstack([rows, extra[index]])
        moments.add(code, joint, weight)


class Covariance(Protocol):
    """The covariance S_c of each class, known by what it does to a few vectors."""

    mean: FloatArray
    weight: FloatArray
    trace: FloatArray

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        """Multiply: basis (d, k_c) of each class to S_c basis (d, k_c)."""
        ...


class ExplicitCovariance:
    """Class covariances (C, d, d) held in memory."""

    def __init__(self, moments: ClassMoments, n_features: int) -> None:
        assert moments.scatter is not None
        self.weight = moments.weight
        self.mean = moments.mean[:, :n_features]
        scatter = moments.scatter[:, :n_features, :n_features]
        self.matrices = scatter / self.weight[:, None, None]
        self.trace = np.trace(self.matrices, axis1=1, axis2=2)

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        return [S @ basis for S, basis in zip(self.matrices, bases, strict=True)]


class StreamedCovariance:
    """Class covariances that are never formed: each product is a pass over the rows.

    Holds no centred copy and no copy of a class, only blocks.
    """

    def __init__(
        self,
        X: Rows,
        codes: IntArray,
        sample_weight: FloatArray,
        moments: ClassMoments,
    ) -> None:
        self._rows = X, codes, sample_weight
        self.weight = moments.weight
        self.mean = moments.mean
        self.trace = moments.trace / moments.weight

    def apply(self, bases: list[FloatArray]) -> list[FloatArray]:
        products = [np.zeros_like(basis) for basis in bases]
        for code, rows, weight, _ in class_blocks(*self._rows, len(bases)):
            if bases[code].shape[1]:
                centred = rows - self.mean[code]
                scores = centred @ bases[code]
                products[code] += centred.T @ (weight[:, None] * scores)
        return [
            product / weight
            for product, weight in zip(products, self.weight, strict=True)
        ]
