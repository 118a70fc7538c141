"""Kernels of classes, compiled and plain, against NumPy in double precision."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lelp_sklearn._subclasses.kernels import class_sums, fallback, tiles

# Precision of X, that of the sums, relative tolerance.
PRECISIONS = [
    (np.float16, np.float32, 1e-5),
    (np.float32, np.float32, 1e-5),
    (np.float64, np.float64, 1e-13),
]
# Rows and columns up to tiles and batches, and past them.
SHAPES = [(1, 1), (70, 7), (1100, 40), (4500, 3), (300, 600)]
N_CLASSES = 3

compiled_and_plain = pytest.mark.parametrize(
    "module", [class_sums, fallback], ids=["compiled", "plain"]
)
every_precision = pytest.mark.parametrize(("dtype", "precision", "rtol"), PRECISIONS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


class Rows:
    """Rows of which some have no class, and what the kernels get of them."""

    def __init__(self, shape, dtype, precision):
        rng = np.random.RandomState(0)
        X = (rng.normal(size=shape) + 3).astype(dtype)
        self.codes = rng.randint(-1, N_CLASSES, size=len(X))
        weight = rng.uniform(0.1, 2, size=len(X)).astype(precision)
        centres = rng.normal(3, 0.1, size=(N_CLASSES, shape[1])).astype(precision)
        self.given = tiles.class_rows(X, self.codes, weight, centres)
        self.X, self.weight, self.centres = (
            each.astype(np.float64) for each in (X, weight, centres)
        )

    def of_class(self, c):
        """Rows less the centre of their class, weights, in double precision."""
        own = self.codes == c
        return self.X[own] - self.centres[c], self.weight[own]


@compiled_and_plain
@every_precision
@every_shape
def test_products(shape, dtype, precision, rtol, module):
    rows = Rows(shape, dtype, precision)
    rng = np.random.RandomState(1)
    sizes = [2, 0, 5]
    vectors = [rng.normal(size=(k, shape[1])).astype(precision) for k in sizes]
    packed = tiles.pack(vectors, np.dtype(precision))
    total, squares = module.class_products(rows.given, packed, np.array(sizes))
    for c, (own, k) in enumerate(zip(vectors, sizes, strict=True)):
        E, w = rows.of_class(c)
        scatter = (w[:, None] * E).T @ E
        atol = rtol * (1 + np.trace(scatter)) * np.sqrt(shape[1])
        assert_allclose(total[c, :k], own @ scatter, rtol=0, atol=atol)
        assert_allclose(total[c, k], w @ E, rtol=0, atol=rtol * (1 + w.sum()))
        assert_allclose(squares[c], np.trace(scatter), rtol=rtol)


@compiled_and_plain
@every_precision
@every_shape
def test_scatters(shape, dtype, precision, rtol, module):
    rows = Rows(shape, dtype, precision)
    total, sums, weights = (
        each * rows.given.unit for each in module.scatters(rows.given)
    )
    for c in range(N_CLASSES):
        E, w = rows.of_class(c)
        atol = rtol * (1 + w.sum())
        scatter = np.triu((w[:, None] * E).T @ E)
        assert_allclose(np.triu(total[c]), scatter, rtol=0, atol=3 * atol)
        assert_allclose(sums[c], w @ E, rtol=0, atol=atol)
        assert_allclose(weights[c], w.sum(), rtol=rtol)


@compiled_and_plain
@every_precision
@every_shape
def test_sums_of_the_nearest(shape, dtype, precision, rtol, module):
    rows = Rows(shape, dtype, precision)
    rng = np.random.RandomState(1)
    sizes = [4, 1, 7]
    centroids = [rng.normal(size=(k, shape[1])).astype(precision) for k in sizes]
    half_squares = np.full((N_CLASSES, max(sizes)), np.inf, precision)
    for own, each in zip(half_squares, centroids, strict=True):
        own[: len(each)] = np.einsum("kd,kd->k", each, each) / 2
    packed = tiles.Centroids(
        tiles.pack(centroids, np.dtype(precision)),
        half_squares,
        ties=np.zeros_like(half_squares),
    )
    sums, weights = module.cluster_sums(rows.given, packed)
    for c, own in enumerate(centroids):
        E, w = rows.of_class(c)
        apart = np.sum((E[:, None] - own.astype(np.float64)) ** 2, axis=2)
        nearest = apart.argmin(axis=1)
        for k in range(max(sizes)):
            mine = nearest == k
            atol = rtol * (1 + w[mine].sum())
            assert_allclose(sums[c, k], w[mine] @ E[mine], rtol=0, atol=atol)
            assert_allclose(weights[c, k], w[mine].sum(), rtol=rtol)
