"""Kernels of rows, compiled and plain, against NumPy in double precision."""

import numpy as np
import pytest
from numba import njit
from numpy.testing import assert_allclose

from lelp_sklearn._subclasses.kernels import fallback, jit, tiles
from lelp_sklearn._subclasses.kernels import soft_labels as kernels
from tests import reference

DTYPES = [(np.float32, 2e-6), (np.float64, 1e-13)]

compiled_and_plain = pytest.mark.parametrize(
    "module", [kernels, fallback], ids=["compiled", "plain"]
)


def soft_labels(module, X, directions, offsets, logits, tau, beta, dtype, head=None):
    """Run the kernel of a module on X (n, d) and directions (C, S, d)."""
    n_classes, n_subclasses, n_features = directions.shape
    columns = directions.reshape(-1, n_features)
    offsets = offsets.ravel()
    if head is not None:
        columns, offsets = np.vstack([columns, head]), np.append(offsets, head[:, 0])
        logits = np.empty((0, n_classes))
    centre = np.full(n_features, 0.5)
    offsets = offsets - columns @ centre
    out = np.full((len(X), n_classes * n_subclasses), np.nan, dtype)
    finite = module.soft_labels(
        tiles.readable(X, out.dtype),
        tiles.readable(logits, out.dtype),
        tiles.Projection(
            tiles.readable(centre[None], out.dtype),
            tiles.pack([columns], out.dtype)[0],
            tiles.readable(offsets, out.dtype),
            dtype(1 / tau),
            dtype(1 / beta if beta else 0),
        ),
        out,
    )
    return out, finite


def expected(X, directions, offsets, logits, tau, beta):
    z = np.einsum("nd,csd->ncs", X, directions) - offsets
    p = reference.class_probabilities(logits, tau)
    q = reference.within_class_probabilities(z, beta)
    return (p[:, :, None] * q).reshape(len(X), -1)


@compiled_and_plain
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("given", [True, False])
# Rows and columns up to tiles and past them; one to seven vectors of columns.
@pytest.mark.parametrize(
    ("n", "d", "n_classes", "n_subclasses"),
    [(1, 1, 2, 1), (64, 7, 2, 3), (65, 1024, 2, 9), (130, 1030, 3, 5), (3, 40, 5, 10)],
)
def test_soft_labels(
    n, d, n_classes, n_subclasses, given, beta, dtype, tolerance, module
):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(n, d)).astype(dtype)
    directions = rng.normal(size=(n_classes, n_subclasses, d)) / np.sqrt(d)
    offsets = rng.normal(size=(n_classes, n_subclasses))
    head = rng.normal(size=(n_classes, d)) / np.sqrt(d)
    logits = X @ head.T - head[:, 0] if not given else rng.normal(size=(n, n_classes))
    head = None if given else head
    found, finite = soft_labels(
        module, X, directions, offsets, logits, 4.0, beta, dtype, head
    )
    assert finite
    correct = expected(X, directions, offsets, logits, 4.0, beta)
    assert_allclose(found, correct, rtol=0, atol=tolerance)


@compiled_and_plain
def test_halves_are_read_as_the_numbers_they_are(module):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(70, 33)).astype(np.float16)
    X[0, :4] = [65504, 6e-8, -0.0, 6.1e-5]
    directions = rng.normal(size=(2, 3, 33))
    arguments = directions, np.zeros((2, 3)), np.zeros((70, 2)), 1.0, 1.0, np.float32
    from_halves, _ = soft_labels(module, X, *arguments)
    from_singles, _ = soft_labels(module, X.astype(np.float32), *arguments)
    assert np.array_equal(from_halves, from_singles)


@compiled_and_plain
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_noticed(beta, bad, module):
    X = np.zeros((200, 5))
    X[150, 2] = bad
    # A zero in a direction does not hide it.
    directions = np.zeros((2, 2, 5))
    for rows, noticed in ((X, True), (X[:150], False)):
        _, finite = soft_labels(
            module,
            rows,
            directions,
            np.zeros((2, 2)),
            np.zeros((len(rows), 2)),
            1.0,
            beta,
            np.float64,
        )
        assert finite != noticed


@compiled_and_plain
def test_softmax_does_not_overflow(module):
    X = np.array([[1e4], [-1e4]])
    directions = np.array([[[1.0], [-1.0]], [[0.0], [0.0]]])
    logits = 1e8 * np.array([[1.0, -1.0], [-1.0, 1.0]])
    found, _ = soft_labels(
        module, X, directions, np.zeros((2, 2)), logits, 1.0, 1.0, np.float64
    )
    assert_allclose(found, [[1, 0, 0, 0], [0, 0, 0.5, 0.5]], rtol=0, atol=1e-30)


@compiled_and_plain
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_hashes_are_the_exact_sums_modulo_two_to_the_64(dtype, module):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(70, 33)).astype(dtype)
    X[0, :3] = [0.0, -0.0, 6e-8]
    precision = np.result_type(dtype, np.float32)
    unsigned = np.dtype(f"u{precision.itemsize}")
    infinity, sign = np.array([np.inf, -0.0], precision).view(unsigned).astype("u8")
    factors = rng.randint(2**63, size=33, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    found = np.empty(len(X), np.uint64)
    rows = tiles.readable(X, precision)
    assert module.hash_rows(rows, factors, infinity, sign, found)
    bits = np.where(X == 0, 0, X).astype(precision).view(unsigned).tolist()
    expected = [
        sum((b ^ b >> 32) * f for b, f in zip(row, factors.tolist(), strict=True))
        for row in bits
    ]
    assert found.tolist() == [total % 2**64 for total in expected]
    for bad in (np.nan, np.inf, -np.inf):
        X[50, 7] = bad
        rows = tiles.readable(X, precision)
        assert not module.hash_rows(rows, factors, infinity, sign, found)


@njit
def exponentials(x, out):
    for i in range(len(x)):
        out[i] = jit.exp(x[i])


@pytest.mark.skipif(not jit.can_compile(), reason="only in compiled code")
def test_exp_keeps_its_bound():
    x = np.linspace(-80, 0, 1_000_001).astype(np.float32)
    found = np.empty_like(x)
    exponentials(x, found)
    assert_allclose(found, np.exp(x.astype(np.float64)), rtol=2e-7)
    assert found[-1] == 1
    beyond = np.array([-1e4, -np.inf, np.nan], np.float32)
    exponentials(beyond, found[:3])
    assert_allclose(found[:2], np.exp(-80), rtol=2e-7)
    assert np.isnan(found[2])
