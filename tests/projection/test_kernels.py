"""The compiled leaves against their Python source and against NumPy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lelp_sklearn._projection.kernels import softmax_into, subclass_probabilities
from tests import reference

DTYPES = [(np.float32, 1e-6), (np.float64, 1e-14)]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_subclass_probabilities(compiled, dtype, tolerance, beta, tau):
    rng = np.random.RandomState(0)
    z = rng.normal(size=(20, 6)).astype(dtype)
    logits = rng.normal(scale=5, size=(20, 3)).astype(dtype)
    out = np.empty_like(z)
    kernel = subclass_probabilities if compiled else subclass_probabilities.py_func
    kernel(z, logits, tau, beta, out)
    p = reference.class_probabilities(logits, tau)
    q = reference.within_class_probabilities(
        z.reshape(20, 3, 2).astype(np.float64), beta
    )
    expected = (p[:, :, None] * q).reshape(20, 6)
    assert_allclose(out, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_softmax_does_not_overflow(compiled, dtype, tolerance):
    scores = np.array([1e4, 1e4 - 1, -1e4], dtype=dtype)
    out = np.empty_like(scores)
    (softmax_into if compiled else softmax_into.py_func)(scores, 1.0, out)
    odds = np.exp(-1.0)
    expected = [1 / (1 + odds), odds / (1 + odds), 0]
    assert_allclose(out, expected, rtol=0, atol=tolerance)
