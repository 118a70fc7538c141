"""Samples of the rows of each class, and the principal subspaces of these."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import linalg

from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.moments import (
    InitialSubspace,
    orthonormal,
    to_null_space,
)
from lelp_sklearn._subclasses.rows import (
    Data,
    Digests,
    LabelledRows,
    splitmix64,
    sum_blocks,
    sum_dtype,
)
from lelp_sklearn._subclasses.torch_backend import is_on_device
from lelp_sklearn._typing import FloatArray, IntArray

# Share of the distinct rows of a class that is drawn, within bounds on the number of
# rows and of entries. A class below the lower bound is taken whole.
_SAMPLE_SHARE = 0.08
_SAMPLE_ROWS = (2048, 8192)
_SAMPLE_NUMBERS = 2**24
# Number of distinct rows beyond which the sample does not grow.
_SKETCH_ROWS = round(_SAMPLE_ROWS[1] / _SAMPLE_SHARE)
# Largest size for which the subspace of a sample is found exactly.
_MAX_EXACT = 128
# Multiplications by the covariance of the sample otherwise.
_SAMPLE_POWERS = 3
# Random vectors after the subspace of a sample that is not the whole class.
N_PROBES = 2
# Smallest relative length of a projection to the null space that is not rounding.
_LEAST_INSIDE = 1e-8


@dataclass(frozen=True)
class ClassSample:
    """Rows (m, d) of a class about their mean (d,), with weights (m,) that sum to 1.

    `is_whole` says whether these are all distinct rows of the class.
    """

    rows: FloatArray
    weight: FloatArray
    mean: FloatArray
    is_whole: bool


@dataclass(frozen=True)
class Sketch:
    """Distinct rows of a class: all of them, or the ones of largest priority.

    Sketches of parts of a class merge into the sketch of the whole class, except that
    copies of a row are lost if their weight in one part is too small to be kept there.
    """

    digests: Digests  # (m,) hashes of the rows
    places: IntArray  # (m,) index of the first copy of each row
    weight: FloatArray  # (m,) sum of the weights of all copies
    is_whole: bool  # whether no row is left out

    @classmethod
    def of(
        cls,
        digests: Digests,
        places: IntArray,
        weight: FloatArray,
        seed: np.uint64,
        *,
        is_whole: bool = True,
    ) -> "Sketch":
        """Merge copies, and keep at most `_SKETCH_ROWS` rows of largest priority."""
        first, weight = _distinct(digests, weight)
        digests, places = digests[first], places[first]
        if len(first) > _SKETCH_ROWS:
            priority = _priorities(digests ^ seed, weight)
            likeliest = np.argpartition(-priority, _SKETCH_ROWS)[:_SKETCH_ROWS]
            digests, places = digests[likeliest], places[likeliest]
            weight = weight[likeliest]
            is_whole = False
        return cls(digests, places, weight, is_whole)

    def merge(self, other: "Sketch", seed: np.uint64) -> "Sketch":
        """Return the sketch of both parts of the class together."""
        return Sketch.of(
            np.concatenate([self.digests, other.digests]),
            np.concatenate([self.places, other.places]),
            np.concatenate([self.weight, other.weight]),
            seed,
            is_whole=self.is_whole and other.is_whole,
        )

    def draw(self, seed: np.uint64, size: int) -> "Sketch":
        """Draw at most `size` rows with their weights in the sample, sorted by place.

        A smaller draw is part of a larger one.
        """
        n_rows = len(self.digests)
        drawn, weight = _draw(self.digests ^ seed, self.weight, min(size, n_rows))
        order = self.places[drawn].argsort()
        drawn = drawn[order]
        is_whole = self.is_whole and len(drawn) == n_rows
        return Sketch(self.digests[drawn], self.places[drawn], weight[order], is_whole)


def class_samples(
    data: Data, n_classes: int, random_state: np.random.RandomState
) -> Iterator[ClassSample]:
    """Yield a sample of each class in turn; the sample of a small class is all of it.

    Copies of a row count as one row with the sum of their weights. The draw depends on
    the content of the rows, not on their order.
    """
    seed = np.uint64(random_state.randint(2**31 - 1))
    return samples_of(data, class_sketches(data, n_classes, seed), seed)


def class_sketches(data: Data, n_classes: int, seed: np.uint64) -> list[Sketch]:
    """Return the sketch of each class."""
    return data.map_reduce(
        _sketch_each, partial(_merge_each, seed=seed), n_classes, seed
    )


def samples_of(
    data: Data, sketches: list[Sketch], seed: np.uint64
) -> Iterator[ClassSample]:
    """Yield the sample that each sketch draws.

    Its rows are sorted by their hashes: results do not depend on the order of the data,
    not even by rounding.
    """
    drawn = [
        sketch.draw(seed, sample_size(len(sketch.places), data.shape[1]))
        for sketch in sketches
    ]
    taken = data.take([each.places for each in drawn])
    for sample, rows in zip(drawn, taken, strict=True):
        order = sample.digests.argsort()
        weight = sample.weight[order]
        dtype = sum_dtype(rows.dtype, weight.min(), weight.max())
        rows = np.asarray(rows[order], dtype=dtype)
        weight = weight / weight.sum()
        mean = weight.astype(rows.dtype) @ rows
        rows -= mean
        yield ClassSample(rows, weight, mean.astype(np.float64), sample.is_whole)


def _sketch_each(rows: LabelledRows, n_classes: int, seed: np.uint64) -> list[Sketch]:
    # Without double precision the draws would differ from those of arrays.
    if is_on_device(rows.X) and rows.X.has_double:
        found = torch_backend.distinct_rows(rows, n_classes, seed, _SKETCH_ROWS)
        return [Sketch(*each) for each in found]
    sketches = []
    for c in range(n_classes):
        index = np.flatnonzero(rows.class_index == c)
        places = rows.first_row + index
        sketch = Sketch.of(rows.digests[index], places, rows.weight[index], seed)
        sketches.append(sketch)
    return sketches


def _merge_each(
    left: list[Sketch], right: list[Sketch], *, seed: np.uint64
) -> list[Sketch]:
    pairs = zip(left, right, strict=True)
    return [one.merge(other, seed) for one, other in pairs]


def initial_subspace_from_sample(
    sample: ClassSample,
    row_space: FloatArray,
    n_vectors: int,
    random_state: np.random.RandomState,
) -> InitialSubspace:
    """Return the principal subspace of a sample, with random vectors after it.

    The random vectors show directions along which the sample does not vary, and to
    which its principal subspace is perpendicular.
    """
    n_features, rank = row_space.shape
    is_partial = 0 < n_vectors < n_features - rank
    if sample.is_whole or not is_partial:
        basis = sampled_subspace(sample, row_space, n_vectors, random_state)
        return InitialSubspace(basis, basis[:, :0])
    principal = sampled_subspace(sample, row_space, n_vectors - N_PROBES, random_state)
    probes: FloatArray = random_state.standard_normal((n_features, N_PROBES))
    # Twice, since rounding errors of nearly dependent vectors are magnified.
    for _ in range(2):
        probes = orthonormal(
            to_null_space(probes - principal @ (principal.T @ probes), row_space)
        )
    rows = sample.rows
    factors = np.ascontiguousarray(probes.T, dtype=rows.dtype)

    def work(block: slice) -> tuple[FloatArray, float]:
        # One by one: a product with few columns takes longer.
        own, weight = rows[block], sample.weight[block].astype(rows.dtype)
        scores = [own @ factor for factor in factors]
        moved = np.stack([(weight * each) @ own for each in scores], axis=1)
        moved = moved.astype(np.float64)
        squares = sample.weight[block] * np.square(scores, dtype=np.float64).sum(axis=0)
        return moved, squares @ squares

    moved, squares = sum_blocks(work, rows)
    # For each row chance adds its squared score times its squared length outside the
    # subspace, which scores estimate: the square of the sum of q squared scores is on
    # average q (q + 2) times the square of their mean.
    n_outside = n_features - rank - principal.shape[1]
    chance = squares * n_outside / (N_PROBES + 2)
    return InitialSubspace(
        np.hstack([principal, probes]), to_null_space(moved, row_space), chance
    )


def sampled_subspace(
    sample: ClassSample,
    row_space: FloatArray,
    n_vectors: int,
    random_state: np.random.RandomState,
    n_powers: int = _SAMPLE_POWERS,
) -> FloatArray:
    """Return a basis (d, <= n_vectors) of the approximate principal subspace.

    It is orthonormal and perpendicular to `row_space` (d, r).
    """
    start = random_initial_subspace(row_space, n_vectors, random_state)
    if not start.size:
        return start
    # Scaled by the largest entry: squares may overflow single precision.
    rows, weight = sample.rows, sample.weight.astype(sample.rows.dtype)
    largest = max(rows.max(), -rows.min()) or 1
    if rows.shape[1] <= _MAX_EXACT:
        scaled = np.sqrt(weight)[:, None] / largest * rows
        half = to_null_space((scaled.T @ scaled).astype(np.float64), row_space)
        vectors = linalg.eigh(to_null_space(half.T, row_space))[1]
        return _basis(vectors[:, : -start.shape[1] - 1 : -1], row_space)
    if len(rows) <= _MAX_EXACT:
        scaled = np.sqrt(sample.weight)[:, None] * rows.astype(np.float64)
        projected = to_null_space(scaled.T, row_space)
        vectors = linalg.svd(projected, full_matrices=False)[0]
        # Random vectors fill up if there are fewer rows than vectors wanted.
        return _basis(np.hstack([vectors, start])[:, : start.shape[1]], row_space)
    basis = start
    factor = (weight / largest)[:, None]

    def work(block: slice) -> tuple[FloatArray]:
        own = rows[block]
        return ((own.T @ (factor[block] * (own @ scaled))).astype(np.float64),)

    for _ in range(n_powers):
        scaled = (basis / largest).astype(rows.dtype)
        (moved,) = sum_blocks(work, rows)
        basis = _basis(moved, row_space)
    return _basis(np.hstack([basis, start])[:, : start.shape[1]], row_space)


def random_initial_subspace(
    row_space: FloatArray, n_vectors: int, random_state: np.random.RandomState
) -> FloatArray:
    """Return a basis (d, n_vectors) of a random subspace without `row_space`."""
    n_features, rank = row_space.shape
    size = min(n_vectors, n_features - rank)
    if not size:
        return np.empty((n_features, 0))
    return _basis(random_state.standard_normal((n_features, size)), row_space)


def _distinct(digests: Digests, weight: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return the index of the first copy of each row, and the weight of all copies."""
    # The index of a row replaces the lowest bits of its hash: sorting these numbers is
    # several times as fast as sorting an index.
    number = np.uint64(2 ** len(digests).bit_length() - 1)
    keys = digests & ~number | np.arange(len(digests), dtype=np.uint64)
    keys.sort()
    index = (keys & number).astype(np.intp)
    content = keys & ~number
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = content[1:] != content[:-1]
    first = np.flatnonzero(is_first)
    return index[first], np.add.reduceat(weight[index], first)


def sample_size(n_rows: int, n_features: int) -> int:
    """Return the size of the sample of a class of `n_rows` distinct rows."""
    least, most = _SAMPLE_ROWS
    most = max(1, min(most, _SAMPLE_NUMBERS // n_features))
    return int(min(n_rows, most, max(least, _SAMPLE_SHARE * n_rows)))


def _draw(
    contents: Digests, weight: FloatArray, size: int
) -> tuple[IntArray, FloatArray]:
    """Draw rows by priority sampling (Duffield, Lund and Thorup, 2007).

    Return their index, and weights by which their sums are unbiased.
    """
    if size == len(weight):
        return np.arange(size), weight
    priority = _priorities(contents, weight)
    order = np.argpartition(-priority, size)
    drawn = order[:size]
    return drawn, np.maximum(weight[drawn], priority[order[size]])


def _priorities(contents: Digests, weight: FloatArray) -> FloatArray:
    uniform = (splitmix64(contents).astype(np.float64) + 1) / 2.0**64
    return weight / uniform


def _basis(vectors: FloatArray, row_space: FloatArray) -> FloatArray:
    inside = to_null_space(vectors, row_space)
    lengths, before = (np.linalg.norm(each, axis=0) for each in (inside, vectors))
    # The projection of a vector outside the null space is rounding.
    basis = orthonormal(inside[:, lengths > _LEAST_INSIDE * before])
    # Again, since rounding errors of nearly dependent vectors are magnified.
    return orthonormal(to_null_space(basis, row_space))
