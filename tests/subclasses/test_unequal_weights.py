"""Rows that carry nearly all the weight cost single precision nothing."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from lelp_sklearn import LELPProjector
from lelp_sklearn._subclasses import torch_backend

N_ROWS = 200


def problem(n_features, n_heavy, heavy):
    """Rows that every precision holds, classes, a head, weights with some `heavy`."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(N_ROWS, n_features)) * np.linspace(6, 1, n_features)
    codes = np.arange(N_ROWS) % 2
    weight = np.ones(N_ROWS)
    weight[: 2 * n_heavy] = heavy * np.linspace(1, 2, 2 * n_heavy)
    return (
        np.clip(np.round(4 * X), -127, 127) / 4,
        codes,
        weight,
        rng.normal(size=(2, n_features)),
    )


@pytest.fixture
def on_device(monkeypatch):
    """The CPU as if it were another device."""
    monkeypatch.setattr(torch_backend, "_VIEWABLE", ())
    monkeypatch.setattr(torch_backend, "_NEAR", ())


def assert_same_soft_labels(X, n_heavy, heavy, **params):
    exact, codes, weight, coef = problem(X.shape[1], n_heavy, heavy)
    params = {"n_subclasses": 3, "rotation": None, "random_state": 0, **params}
    fits = [
        LELPProjector(head=(coef, [0, 0]), **params).fit(
            rows, codes, sample_weight=weight
        )
        for rows in (X, exact)
    ]
    found, expected = (
        np.asarray(fit.transform(rows))
        for fit, rows in zip(fits, (X, exact), strict=True)
    )
    assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("svd_solver", ["auto", "randomized", "full"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n_heavy", [1, 2])
@pytest.mark.parametrize("heavy", [1e2, 1e5, 1e7])
def test_principal_directions(svd_solver, dtype, n_heavy, heavy):
    X = problem(10, n_heavy, heavy)[0].astype(dtype)
    params = {"splitter": "pca", "svd_solver": svd_solver}
    assert_same_soft_labels(X, n_heavy, heavy, **params)


@pytest.mark.parametrize("n_heavy", [1, 2])
def test_principal_directions_of_many_features(n_heavy):
    X = problem(210, n_heavy, 1e7)[0].astype(np.float32)
    assert_same_soft_labels(X, n_heavy, 1e7, splitter="pca")


@pytest.mark.parametrize("splitter", ["kmeans", "random"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("heavy", [1e2, 1e7])
def test_other_splitters(splitter, dtype, heavy):
    X = problem(10, 2, heavy)[0].astype(dtype)
    assert_same_soft_labels(X, 2, heavy, splitter=splitter)


@pytest.mark.parametrize("splitter", ["pca", "kmeans", "random"])
@pytest.mark.parametrize("svd_solver", ["auto", "randomized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("on_device")
def test_tensors(splitter, svd_solver, dtype):
    X = torch.as_tensor(problem(10, 2, 1e7)[0]).to(dtype)
    assert_same_soft_labels(X, 2, 1e7, splitter=splitter, svd_solver=svd_solver)
