"""Split along principal directions, which several solvers find."""

from dataclasses import replace

import numpy as np
from scipy import linalg, stats

from lelp_sklearn._subclasses.directions import (
    Directions,
    InitialSubspace,
    tidy,
    to_null_space,
)
from lelp_sklearn._subclasses.moments import ExplicitCovariance, StreamedCovariance
from lelp_sklearn._subclasses.rows import LabelledRows, class_blocks
from lelp_sklearn._subclasses.splitters import (
    AUTO_N_SUBCLASSES,
    Solver,
    Split,
    SplitProblem,
    Splitter,
)
from lelp_sklearn._subclasses.subsample import random_initial_subspace
from lelp_sklearn._typing import FloatArray

# Features up to which forming the covariances takes less time than two passes over the
# rows: measured on 32 to 256 features and 5 to 20 subclasses.
_FEW_FEATURES = 192
# The randomized solver stops when the last pass over the rows has added less than this
# share to the variance captured, or the next one is expected to.
_CAPTURE_TOLERANCE = 1e-4
_MAX_PASSES = 12
# A sample lacks a direction where it differs from all rows by more than so many times
# what chance makes of it; the variance along it may be so many times what is seen.
_CHANCE = 2.0
_UNSEEN = 2.0


def principal_split(problem: SplitProblem) -> Split:
    """Split along the top principal directions, rotated to share their variance."""
    n_directions = problem.n_subclasses or AUTO_N_SUBCLASSES
    directions = problem.solver.find(problem, n_directions)
    n_subclasses = problem.count_subclasses(
        [each.variances.size for each in directions],
        "directions along which it varies",
    )
    if n_subclasses == 1:
        return Split.single(problem.covariance)
    spectrum = np.stack([each.variances[:n_subclasses] for each in directions])
    principal = np.stack([each.vectors[:, :n_subclasses].T for each in directions])
    turns = np.stack(
        [draw_rotation(problem.rotation, v, problem.direction_draws) for v in spectrum]
    )
    split = Split.about_means(turns @ principal, problem.covariance)
    variance = np.einsum("cst,ct->cs", turns**2, spectrum)
    return replace(split, spectrum=spectrum, variance=variance)


PCA = Splitter(principal_split, auto_temperature=0.3, uses_solver=True)


def draw_rotation(
    kind: str | None, spectrum: FloatArray, random_state: np.random.RandomState
) -> FloatArray:
    r"""Draw Q (S, S) orthonormal; its rows turn principal directions into subclasses.

    ``"equal"`` makes the diagonal of :math:`Q \Lambda Q^\top` constant: its columns are
    the eigenvectors of a random correlation matrix whose spectrum is that of Lambda,
    scaled to sum to S.
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
    # Rounding may turn the sign of an eigenvector.
    return turn * np.where(turn[0] < 0, -1, 1)


def eigh_directions(problem: SplitProblem, n_directions: int) -> list[Directions]:
    """Return exact directions: eigenvectors of the class covariances."""
    covariance = problem.covariance
    assert isinstance(covariance, ExplicitCovariance)
    row_space, directions = covariance.row_space, []
    for matrix, noise in zip(covariance.matrices, covariance.noise, strict=True):
        half = to_null_space(matrix, row_space)
        size = matrix.shape[0]
        wanted = min(n_directions, size)
        values, vectors = linalg.eigh(
            to_null_space(half.T, row_space), subset_by_index=(size - wanted, size - 1)
        )
        directions.append(tidy(vectors[:, ::-1], values[::-1], row_space, noise))
    return directions


def full_directions(problem: SplitProblem, n_directions: int) -> list[Directions]:
    """Return exact directions: a full SVD of each class's rows, which are copied."""
    covariance, directions = problem.covariance, []
    scaled = problem.data.map_reduce(_scaled_rows, _joined, covariance.mean)
    for c, rows in enumerate(scaled):
        matrix = to_null_space(rows.T, covariance.row_space).T
        _, singular, vectors = linalg.svd(matrix, full_matrices=False)
        values = singular[:n_directions] ** 2 / covariance.weight[c]
        vectors = vectors[:n_directions].T
        noise = covariance.noise[c]
        directions.append(tidy(vectors, values, covariance.row_space, noise))
    return directions


def _scaled_rows(data: LabelledRows, mean: FloatArray) -> list[FloatArray]:
    """Rows of each class about its mean, times the roots of their weights."""
    scaled: list[list[FloatArray]] = [[np.empty((0, mean.shape[1]))] for _ in mean]
    for c, block, weight, _ in class_blocks(data, len(mean)):
        scaled[c].append(np.sqrt(weight)[:, None] * (block - mean[c]))
    return [np.vstack(parts) for parts in scaled]


def _joined(left: list[FloatArray], right: list[FloatArray]) -> list[FloatArray]:
    return [np.vstack(parts) for parts in zip(left, right, strict=True)]


def randomized_directions(problem: SplitProblem, n_directions: int) -> list[Directions]:
    """Return directions by a block Krylov method (Musco and Musco, 2015).

    Every further pass over the rows multiplies a block of as many new vectors, and the
    best directions in the span of all blocks are taken. An `iterated_power` of None
    goes on until little more can be captured.
    """
    covariance, row_space = problem.covariance, problem.covariance.row_space
    if isinstance(covariance, StreamedCovariance):
        started = covariance.started
    else:
        started = _start_at_random(problem, n_directions + problem.n_oversamples)
    spaces = [
        _KrylovSpace(start, n_directions, noise)
        for (start, _), noise in zip(started, covariance.noise, strict=True)
    ]
    products = [product for _, product in started]
    unseen = [
        _unseen(start, to_null_space(product, row_space), row_space.shape[1])
        for start, product in started
    ]
    power = problem.iterated_power
    n_passes = _MAX_PASSES if power is None else power + 1
    for n_left in reversed(range(n_passes)):
        for space, product, other in zip(spaces, products, unseen, strict=True):
            inside = to_null_space(product, row_space)
            space.absorb(inside, other, adaptive=power is None)
        # By now it has come in.
        unseen = [0.0] * len(spaces)
        newest = [space.newest for space in spaces]
        if not n_left or not any(block.shape[1] for block in newest):
            break
        products = covariance.apply(newest)
    return [tidy(each.vectors, each.values, row_space, each.noise) for each in spaces]


def _start_at_random(
    problem: SplitProblem, n_vectors: int
) -> list[tuple[InitialSubspace, FloatArray]]:
    """Return random vectors of each class, and the covariance times them."""
    bases = [
        random_initial_subspace(
            problem.covariance.row_space, n_vectors, problem.sample_draws
        )
        for _ in problem.classes
    ]
    starts = [InitialSubspace(basis, basis[:, :0]) for basis in bases]
    return list(zip(starts, problem.covariance.apply(bases), strict=True))


SOLVERS = {
    "covariance_eigh": Solver(eigh_directions, covariance="exact"),
    "randomized": Solver(
        randomized_directions, covariance="streamed", starts_from_sample=True
    ),
    "full": Solver(
        full_directions,
        covariance="streamed",
        reads_whole_classes=True,
        substitute="covariance_eigh",
    ),
}
_NO_SOLVER = Solver(lambda problem, n_directions: [], covariance="streamed")


def resolve_solver(
    svd_solver: str,
    *,
    is_used: bool,
    n_features: int,
    sums_covariance: bool,
    rows_are_here: bool,
) -> Solver:
    """Return the solver that a fit takes, and how it knows the class covariances.

    Parameters
    ----------
    svd_solver : str
        "auto", or a name in `SOLVERS`.
    is_used : bool
        Whether principal directions are looked for.
    n_features : int
    sums_covariance : bool
        Whether exact covariances are summed in any case: for the head, or of a stream.
    rows_are_here : bool
        Whether all rows are in this process.

    Raises
    ------
    ValueError
        If the solver reads rows that are elsewhere, and names no substitute.
    """
    if not is_used:
        solver = _NO_SOLVER
    elif svd_solver != "auto":
        solver = SOLVERS[svd_solver]
    elif sums_covariance:
        solver = SOLVERS["covariance_eigh"]
    elif n_features <= _FEW_FEATURES:
        solver = replace(SOLVERS["covariance_eigh"], covariance="quick")
    else:
        solver = SOLVERS["randomized"]
    if solver.reads_whole_classes and not rows_are_here:
        if solver.substitute is None:
            raise ValueError(
                f"svd_solver={svd_solver!r} reads all rows of a class at once, and "
                "these are a stream or a dask array: use svd_solver='auto', or pass "
                "the rows as one array to fit."
            )
        solver = SOLVERS[solver.substitute]
    return replace(solver, covariance="exact") if sums_covariance else solver


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
