"""What a splitter is given and returns, and the splitters that need no search.

To add a splitter, write a function from a `SplitProblem` to a `Split`, wrap it in a
`Splitter`, and name it in ``_projector.SPLITTERS``: k-means and PCA, which that table
lists too, import this module.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from lelp_sklearn._subclasses.moments import (
    ClassMoments,
    Covariance,
    Directions,
    to_null_space,
)
from lelp_sklearn._subclasses.rows import Data
from lelp_sklearn._typing import FloatArray
from lelp_sklearn._validation import TooFewRowsError, check_no_overflow

# The number of subclasses that "auto" stands for. Too many cost little, too few lose
# the gain.
AUTO_N_SUBCLASSES = 20


@dataclass(frozen=True)
class Split:
    """Subclass scores z = h . components - offsets."""

    components: FloatArray  # (C, S, d)
    offsets: FloatArray  # (C, S)
    spectrum: FloatArray | None = None  # principal variances (C, S) before rotation
    # Of z over the rows of the class (C, S), if computed.
    variance: FloatArray | None = None

    @classmethod
    def about_means(cls, components: FloatArray, covariance: Covariance) -> "Split":
        """Return scores that are 0 at the mean of each class."""
        return cls(components, np.einsum("csd,cd->cs", components, covariance.mean))

    @classmethod
    def single(cls, covariance: Covariance) -> "Split":
        """Return one subclass a class, which needs no direction."""
        n_classes, n_features = covariance.mean.shape
        zeros = np.zeros((n_classes, 1))
        return cls(np.zeros((n_classes, 1, n_features)), zeros, zeros, zeros)

    def flattened(self) -> "Split":
        """Return a split of the same shape whose subclasses all have the same share."""
        zeros = np.zeros_like(self.offsets)
        return Split(np.zeros_like(self.components), zeros, self.spectrum, zeros)


@dataclass
class Stream:
    """What `partial_fit` keeps between blocks."""

    classes: NDArray[Any]  # (C,)
    moments: ClassMoments
    centroids: Any = None  # `RunningCentroids` of k-means
    margin: float | None = None
    not_fitted_reason: str | None = None  # why there are no directions yet


@dataclass(frozen=True)
class RandomStates:
    """Two generators, so that what a solver draws does not change the rotation."""

    directions: np.random.RandomState
    samples: np.random.RandomState

    @classmethod
    def start(cls, random_state: Any) -> "RandomStates":
        """Start both from the `random_state` of an estimator."""
        samples = check_random_state(random_state)
        directions = np.random.RandomState(samples.randint(2**31 - 1))
        return cls(directions, samples)


@dataclass(frozen=True)
class SplitProblem:
    """What a splitter may use."""

    data: Data  # the rows of a fit, or the newest block of a stream
    classes: NDArray[Any]  # (C,)
    covariance: Covariance  # holds the class means and the row space of the head too
    n_subclasses: int | None  # None if the splitter chooses it
    solver: "Solver | None"  # None for a splitter without `uses_solver`
    rotation: str | None
    n_oversamples: int
    iterated_power: int | None  # None for "auto"
    random_states: RandomStates
    stream: Stream | None = None  # None in `fit`

    @property
    def space(self) -> str:
        """Where the directions are, for an error."""
        has_row_space = self.covariance.row_space.shape[1] > 0
        return "the null space of the head" if has_row_space else "the space of X"

    @property
    def n_dimensions(self) -> int:
        """Dimensions of the space of the directions."""
        n_features, rank = self.covariance.row_space.shape
        return int(n_features - rank)

    def resolve_n_subclasses(
        self, available: Sequence[int], what: str, most: float
    ) -> int:
        """Return the number of subclasses that every class allows.

        More than the scarcest class has of `what` is an error: a `TooFewRowsError` if
        further rows could bring as many, of which there are at most `most`.
        """
        scarcest = int(np.argmin(available))
        allowed = max(1, available[scarcest])
        if self.n_subclasses is None:
            return min(AUTO_N_SUBCLASSES, allowed)
        if self.n_subclasses > allowed:
            error = ValueError if self.n_subclasses > most else TooFewRowsError
            raise error(
                f"n_subclasses={self.n_subclasses} is more than class "
                f"{self.classes.tolist()[scarcest]!r} allows: it has "
                f"{available[scarcest]} {what} in {self.space}. Use n_subclasses <= "
                f"{allowed}, or 'auto', or give more distinct rows of that class."
            )
        return self.n_subclasses


@dataclass(frozen=True)
class Splitter:
    """A way to split the classes, and what it needs."""

    split: Callable[[SplitProblem], Split]  # called for two or more subclasses
    # The subclass temperature "auto", in root mean squares of the scores.
    auto_temperature: float
    # Whether it takes principal directions from `problem.solver`.
    uses_solver: bool = False


@dataclass(frozen=True)
class Solver:
    """A way to find principal directions, and what it needs."""

    # Returns at most so many directions of each class.
    find: Callable[[SplitProblem, int], list[Directions]]
    needs_matrices: bool = False  # whether it reads the d by d covariance matrices
    # Whether its first pass multiplies the subspace of a sample.
    starts_from_sample: bool = False
    # The solver that replaces it for a stream and for rows of other processes, if it
    # reads all rows of a class at once.
    substitute: str | None = None


def random_split(problem: SplitProblem) -> Split:
    """Split along random orthonormal directions in the null space."""
    covariance = problem.covariance
    n_dimensions = problem.n_dimensions
    n_subclasses = problem.n_subclasses
    if n_subclasses is None:
        n_subclasses = min(AUTO_N_SUBCLASSES, max(1, n_dimensions))
    if n_subclasses > max(1, n_dimensions):
        # Unlike too few rows, no other block of a stream changes this.
        raise ValueError(
            f"n_subclasses={n_subclasses} is more than splitter='random' allows: "
            f"{problem.space} has {n_dimensions} dimensions. Use n_subclasses <= "
            f"{max(1, n_dimensions)}, 'auto' or splitter='kmeans'."
        )
    if n_subclasses == 1:
        return Split.single(covariance)
    components = []
    for _ in problem.classes:
        draw = problem.random_states.directions.standard_normal(
            (len(covariance.row_space), n_subclasses)
        )
        inside = to_null_space(draw, covariance.row_space)
        components.append(np.linalg.qr(inside)[0].T)
    split = Split.about_means(np.stack(components), covariance)
    # The scores of a class that does not vary would be rounding errors.
    variance = _variances(split.components, covariance)
    still = variance <= covariance.rounding[:, None]
    return Split(
        np.where(still[:, :, None], 0, split.components),
        np.where(still, 0, split.offsets),
        variance=np.where(still, 0, variance),
    )


RANDOM = Splitter(random_split, auto_temperature=0.3)


def given_directions(components: FloatArray) -> Splitter:
    """Return the splitter that uses directions (C, S, d) as they are."""

    def split(problem: SplitProblem) -> Split:
        if components.shape[1] == 1:
            return Split.single(problem.covariance)
        return Split.about_means(components, problem.covariance)

    return Splitter(split, auto_temperature=0.3)


def score_moments(split: Split, covariance: Covariance) -> tuple[FloatArray, float]:
    """Return the variance (C, S) and the scale of z over the rows of their class.

    The scale, one unit of ``subclass_temperature``, is the root mean square over all
    rows and subclasses; 0 if no class varies along its directions.
    """
    # Centroids have the unit of X, and the squares of z its fourth power, which may
    # overflow or underflow: divide by a power of two first.
    unit = math.ldexp(1.0, math.frexp(np.abs(split.components).max(initial=0))[1] - 1)
    components, offsets = split.components / unit, split.offsets / unit
    if split.variance is None:
        variance = _variances(components, covariance)
    else:
        variance = split.variance / unit**2
    mean = np.einsum("csd,cd->cs", components, covariance.mean) - offsets
    square = (variance + mean**2).mean(axis=1)
    scale = float(np.sqrt(np.average(square, weights=covariance.weight)))
    lengths = np.einsum("csd,csd->cs", components, components)
    if np.all(variance <= covariance.rounding[:, None] * lengths):
        return np.zeros_like(variance), 0.0
    with np.errstate(over="ignore", under="ignore"):
        variance = variance * unit**2
    check_no_overflow(variance, variance.dtype)
    return variance, unit * scale


def _variances(components: FloatArray, covariance: Covariance) -> FloatArray:
    """Return the variance (C, S) of each class along its directions (C, S, d)."""
    bases = [each.T for each in components]
    products = zip(bases, covariance.apply(bases), strict=True)
    variance: FloatArray = np.stack([np.einsum("dk,dk->k", b, p) for b, p in products])
    return np.maximum(variance, 0)
