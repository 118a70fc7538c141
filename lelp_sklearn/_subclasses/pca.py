"""Split along principal directions, and the solvers that find these."""

from dataclasses import replace

import numpy as np
from scipy import linalg, stats

from lelp_sklearn._subclasses.moments import (
    Directions,
    ExplicitCovariance,
    InitialSubspace,
    MultipassCovariance,
    tidy,
    to_null_space,
)
from lelp_sklearn._subclasses.rows import LabelledRows
from lelp_sklearn._subclasses.splitters import (
    AUTO_N_SUBCLASSES,
    Solver,
    Split,
    SplitProblem,
    Splitter,
)
from lelp_sklearn._subclasses.subsample import random_initial_subspace
from lelp_sklearn._typing import FloatArray

# Largest number of features for which forming the covariances takes less time than two
# passes over the rows: measured on 32 to 256 features and 5 to 20 subclasses.
_FEW_FEATURES = 192
# The randomized solver stops when a pass over the rows has added less than this share
# to the captured variance, or the next pass is expected to.
_CAPTURE_TOLERANCE = 1e-4
_MAX_PASSES = 12
# A sample misses a direction if it differs from all rows by more than this multiple of
# the difference by chance; the missed variance may be this multiple of its estimate.
_CHANCE_FACTOR = 2.0
_MISSED_FACTOR = 2.0


def principal_split(problem: SplitProblem) -> Split:
    """Split along the top principal directions, rotated to share their variance."""
    n_directions = problem.n_subclasses or AUTO_N_SUBCLASSES
    assert problem.solver is not None
    directions = problem.solver.find(problem, n_directions)
    n_subclasses = problem.resolve_n_subclasses(
        [each.variances.size for each in directions],
        "directions along which it varies",
        most=problem.n_dimensions,
    )
    if n_subclasses == 1:
        return Split.single(problem.covariance)
    spectrum = np.stack([each.variances[:n_subclasses] for each in directions])
    principal = np.stack([each.vectors[:, :n_subclasses].T for each in directions])
    random_state = problem.random_states.directions
    turns = np.stack(
        [draw_rotation(problem.rotation, v, random_state) for v in spectrum]
    )
    split = Split.about_means(turns @ principal, problem.covariance)
    variance = np.einsum("cst,ct->cs", turns**2, spectrum)
    return replace(split, spectrum=spectrum, variance=variance)


PCA = Splitter(principal_split, auto_temperature=0.3, uses_solver=True)


def draw_rotation(
    kind: str | None, spectrum: FloatArray, random_state: np.random.RandomState
) -> FloatArray:
    r"""Draw an orthonormal Q (S, S) whose rows combine principal directions.

    ``"equal"`` makes the diagonal of :math:`Q \Lambda Q^\top` constant: the columns of
    Q are the eigenvectors of a random correlation matrix with the spectrum
    :math:`\Lambda`, scaled to sum to S.
    """
    n = spectrum.size
    if kind is None or n == 1:
        return np.eye(n)
    if kind == "random":
        haar: FloatArray = stats.ortho_group.rvs(n, random_state=random_state)
        return haar
    scaled = spectrum * (n / spectrum.sum())
    # Rounding of the sum grows with the number of terms.
    correlation = stats.random_correlation.rvs(
        scaled, random_state=random_state, tol=1e-13 * n
    )
    # eigh gives ascending eigenvalues, the spectrum descends.
    turn: FloatArray = np.linalg.eigh(correlation)[1][:, ::-1]
    # The sign of an eigenvector depends on rounding.
    return turn * np.where(turn[0] < 0, -1, 1)


def eigh_directions(problem: SplitProblem, n_directions: int) -> list[Directions]:
    """Return exact directions, the eigenvectors of the class covariances."""
    covariance = problem.covariance
    assert isinstance(covariance, ExplicitCovariance)
    row_space, directions = covariance.row_space, []
    for matrix, rounding in zip(covariance.matrices, covariance.rounding, strict=True):
        half = to_null_space(matrix, row_space)
        size = matrix.shape[0]
        wanted = min(n_directions, size)
        values, vectors = linalg.eigh(
            to_null_space(half.T, row_space), subset_by_index=(size - wanted, size - 1)
        )
        directions.append(tidy(vectors[:, ::-1], values[::-1], row_space, rounding))
    return directions


def full_directions(problem: SplitProblem, n_directions: int) -> list[Directions]:
    """Return exact directions by a full SVD of a copy of the rows of each class."""
    data, covariance, directions = problem.data, problem.covariance, []
    # Its solver is replaced if the rows are elsewhere.
    assert isinstance(data, LabelledRows)
    for c, mean in enumerate(covariance.mean):
        index = np.flatnonzero(data.class_index == c)
        rows = np.asarray(data.X[index], dtype=np.float64) - mean
        scaled = np.sqrt(data.weight[index])[:, None] * rows
        matrix = to_null_space(scaled.T, covariance.row_space).T
        _, singular, vectors = linalg.svd(matrix, full_matrices=False)
        values = singular[:n_directions] ** 2 / covariance.weight[c]
        vectors = vectors[:n_directions].T
        rounding = covariance.rounding[c]
        directions.append(tidy(vectors, values, covariance.row_space, rounding))
    return directions


def randomized_directions(problem: SplitProblem, n_directions: int) -> list[Directions]:
    """Return directions by a block Krylov method (Musco and Musco, 2015).

    Each pass over the rows multiplies a block of new vectors by the covariance; the
    result are the best directions in the span of all blocks. If `iterated_power` is
    None, passes continue until little variance is left to capture.
    """
    covariance, row_space = problem.covariance, problem.covariance.row_space
    if isinstance(covariance, MultipassCovariance):
        initial_products = covariance.initial_products
    else:
        initial_products = _random_initial_products(
            problem, n_directions + problem.n_oversamples
        )
    spaces = [
        _KrylovSpace(start, n_directions, rounding)
        for (start, _), rounding in zip(
            initial_products, covariance.rounding, strict=True
        )
    ]
    products = [product for _, product in initial_products]
    missed = [
        _missed_variance(start, to_null_space(product, row_space), row_space.shape[1])
        for start, product in initial_products
    ]
    power = problem.iterated_power
    n_passes = _MAX_PASSES if power is None else power + 1
    for n_left in reversed(range(n_passes)):
        for space, product, variance in zip(spaces, products, missed, strict=True):
            inside = to_null_space(product, row_space)
            space.absorb(inside, variance, adaptive=power is None)
        # The random vectors have brought the missed directions into the span.
        missed = [0.0] * len(spaces)
        newest = [space.newest for space in spaces]
        if not n_left or not any(block.shape[1] for block in newest):
            break
        products = covariance.apply(newest)
    return [
        tidy(each.vectors, each.values, row_space, each.rounding) for each in spaces
    ]


def _random_initial_products(
    problem: SplitProblem, n_vectors: int
) -> list[tuple[InitialSubspace, FloatArray]]:
    """Return a random subspace for each class, and the covariance times its basis."""
    bases = [
        random_initial_subspace(
            problem.covariance.row_space, n_vectors, problem.random_states.samples
        )
        for _ in problem.classes
    ]
    starts = [InitialSubspace(basis, basis[:, :0]) for basis in bases]
    return list(zip(starts, problem.covariance.apply(bases), strict=True))


SOLVERS = {
    "covariance_eigh": Solver(eigh_directions, needs_matrices=True),
    "randomized": Solver(randomized_directions, starts_from_sample=True),
    "full": Solver(full_directions, substitute="covariance_eigh"),
}


def resolve_solver(
    svd_solver: str,
    *,
    is_used: bool,
    n_features: int,
    sums_covariance: bool,
    rows_are_here: bool,
) -> tuple[Solver | None, str]:
    """Return the solver of a fit, if it is used, and the kind of class covariances.

    These are "exact" or "quick" d by d matrices, summed in double precision or in that
    of the rows, or "multipass": never formed, with a pass over the rows for each
    product. Every fit needs them, for the scale of the scores. `sums_covariance` says
    that they are summed anyway, for the head or a stream.
    """
    solver = None
    if is_used and svd_solver != "auto":
        solver = SOLVERS[svd_solver]
    elif is_used:
        forms_matrices = sums_covariance or n_features <= _FEW_FEATURES
        solver = SOLVERS["covariance_eigh" if forms_matrices else "randomized"]
    if solver is not None and solver.substitute is not None and not rows_are_here:
        solver = SOLVERS[solver.substitute]
    if not (sums_covariance or (solver is not None and solver.needs_matrices)):
        return solver, "multipass"
    # Quick sums are enough for directions that "auto" chose to find from matrices.
    is_quick = svd_solver == "auto" and not sums_covariance
    return solver, "quick" if is_quick else "exact"


def _missed_variance(start: InitialSubspace, product: FloatArray, rank: int) -> float:
    r"""Estimate the largest variance along a direction that the sample misses.

    Outside the start, let S be the covariance of all rows, T the covariance of the
    sample, and r a random unit vector: :math:`E \|(S - T) r\|^2` is the mean square of
    the eigenvalues of S - T, one of which is large if the sample misses a direction.
    """
    n_probes = start.expected.shape[1]
    if not n_probes:
        return 0.0
    difference = product[:, -n_probes:] - start.expected
    difference -= start.basis @ (start.basis.T @ difference)
    n_outside = len(product) - rank - start.basis.shape[1] + n_probes
    excess = np.vdot(difference, difference) - _CHANCE_FACTOR * start.chance
    return float(np.sqrt(max(0.0, excess) * n_outside / n_probes))


class _KrylovSpace:
    """The span of the blocks of one class, and the best directions in it."""

    def __init__(
        self, start: InitialSubspace, n_directions: int, rounding: float
    ) -> None:
        self.rounding = rounding
        self.newest = start.basis
        self.values = np.empty(0)
        self.vectors = start.basis[:, :0]
        self._n_directions = n_directions
        self._n_start = start.basis.shape[1] - start.expected.shape[1]
        self._basis = start.basis[:, :0]
        self._image = start.basis[:, :0]

    def absorb(self, product: FloatArray, missed: float, *, adaptive: bool) -> None:
        """Add the covariance times the newest block, and choose the next block.

        `missed` is the variance of a direction that may be outside all blocks.
        """
        if not self.newest.shape[1]:
            return
        self._basis = np.hstack([self._basis, self.newest])
        self._image = np.hstack([self._image, product])
        before = self.values.sum()
        to_come = self._rayleigh_ritz()
        to_come += max(0.0, _MISSED_FACTOR * missed - self.values.min(initial=np.inf))
        gain = self.values.sum() - before
        if adaptive and min(gain, to_come) <= _CAPTURE_TOLERANCE * self.values.sum():
            self.newest = self.newest[:, :0]
        else:
            self.newest = self._outside(product)

    def _rayleigh_ritz(self) -> float:
        r"""Choose the best directions; return the variance that another pass may add.

        A direction u of variance :math:`\theta` gains
        :math:`\|S u - \theta u\|^2 / (\theta - \theta')` to first order, with
        :math:`\theta'` the variance of the missing part: taken to be the variance of
        the last direction that the first block could hold without its random vectors.
        """
        small = self._basis.T @ self._image
        values, vectors = linalg.eigh((small + small.T) / 2)
        best = slice(None, -self._n_directions - 1, -1)
        chosen = vectors[:, best]
        self.values = values[best]
        self.vectors = self._basis @ chosen
        residual = self._image @ chosen - self.vectors * self.values
        squares = np.einsum("dk,dk->k", residual, residual)
        gap = np.maximum(self.values - values[-self._n_start], self.rounding)
        return float(np.sum(squares / np.maximum(gap, np.finfo(float).tiny)))

    def _outside(self, product: FloatArray) -> FloatArray:
        """Return an orthonormal basis of what `product` adds to the span."""
        # Twice, since the first subtraction leaves rounding errors in the span.
        for _ in range(2):
            product = product - self._basis @ (self._basis.T @ product)
        left, singular, _ = linalg.svd(product, full_matrices=False)
        new: FloatArray = left[:, singular > self.rounding]
        return new
