"""Where nothing varies in a class, its subclasses share its mass alike."""

import dask.array as da
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from lelp_sklearn import LELPProjector
from lelp_sklearn._subclasses import torch_backend

# The head knows nothing of the labels.
pytestmark = pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")

N_FEATURES = 8
COEF = np.random.default_rng(5).normal(size=(2, N_FEATURES))
HEAD = COEF, np.zeros(2)
NEW = 3 * np.random.default_rng(6).normal(size=(50, N_FEATURES))


def constant():
    """Rows of one value a class, none of them a sum of few powers of two."""
    return np.random.default_rng(0).normal(size=(2, N_FEATURES))[np.arange(60) % 2] / 3


def nearly_constant():
    """The same, but for the last digit."""
    X = constant()
    return X * (
        1 + np.finfo(float).eps * np.random.default_rng(1).integers(0, 2, X.shape)
    )


def constant_in_the_null_space():
    return constant() + np.random.default_rng(1).normal(size=(60, 2)) @ COEF


def shares(projector, X):
    soft = np.asarray(projector.transform(X), dtype=float).reshape(len(X), 2, -1)
    return soft / soft.sum(axis=2, keepdims=True)


@pytest.mark.parametrize(
    "make", [constant, nearly_constant, constant_in_the_null_space]
)
@pytest.mark.parametrize("svd_solver", ["randomized", "covariance_eigh"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, "device", "dask"])
def test_random_directions(make, svd_solver, dtype, kind, monkeypatch):
    X, y = make().astype(dtype), np.arange(60) % 2
    given = X
    if kind == "device":
        monkeypatch.setattr(torch_backend, "_VIEWABLE", ())
        monkeypatch.setattr(torch_backend, "_NEAR", ())
        given = torch.as_tensor(X)
    elif kind == "dask":
        given = da.from_array(X, chunks=(20, N_FEATURES))
    else:
        given = kind(X)
    projector = LELPProjector(
        3, splitter="random", head=HEAD, svd_solver=svd_solver, random_state=0
    ).fit(given, y)
    for rows in (X, NEW.astype(dtype)):
        assert_allclose(shares(projector, rows), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("beta", ["auto", 0, 0.5])
def test_every_subclass_temperature(beta):
    X, y = constant(), np.arange(60) % 2
    projector = LELPProjector(
        3, splitter="random", head=HEAD, subclass_temperature=beta, random_state=0
    ).fit(X, y)
    assert_allclose(shares(projector, X), 1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_random_directions_with_unequal_weights(seed):
    X, y = constant(), np.arange(60) % 2
    X[y == 1] += np.random.default_rng(2).normal(size=(30, N_FEATURES))
    order = np.random.default_rng(seed).permutation(60)
    weight = np.random.default_rng(seed).lognormal(0, 3, 60)
    projector = LELPProjector(3, splitter="random", head=HEAD, random_state=0)
    projector.fit(X[order], y[order], sample_weight=weight)
    assert_allclose(shares(projector, NEW)[:, 0], 1 / 3)


@pytest.mark.parametrize("make", [constant, nearly_constant])
def test_an_array_of_directions(make):
    directions = np.random.default_rng(0).normal(size=(2, 3, N_FEATURES))
    projector = LELPProjector(splitter=directions, head=HEAD).fit(
        make(), np.arange(60) % 2
    )
    for rows in (make(), NEW):
        assert_allclose(shares(projector, rows), 1 / 3)
    assert_allclose(projector.explained_variance_, 0)


@pytest.mark.parametrize("make", [constant, constant_in_the_null_space])
@pytest.mark.parametrize("splitter", ["pca", "kmeans", "random"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_beside_a_class_that_varies(make, splitter, dtype):
    X, y = make(), np.arange(60) % 2
    X[y == 1] += np.random.default_rng(2).normal(size=(30, N_FEATURES))
    params = {"splitter": splitter, "head": HEAD, "random_state": 0}
    if splitter == "random":
        projector = LELPProjector(3, **params).fit(X.astype(dtype), y)
        for rows in (X, NEW):
            assert_allclose(shares(projector, rows.astype(dtype))[:, 0], 1 / 3)
            assert np.ptp(shares(projector, rows)[:, 1]) > 0.1
        return
    assert LELPProjector(**params).fit(X.astype(dtype), y).n_subclasses_ == 1
    with pytest.raises(ValueError, match="class 0"):
        LELPProjector(2, **params).fit(X.astype(dtype), y)


@pytest.mark.parametrize("splitter", ["pca", "kmeans", "random"])
def test_blocks_of_a_single_distinct_row(splitter):
    X, y = constant(), np.arange(60) % 2
    projector = LELPProjector(splitter=splitter, head=HEAD, random_state=0)
    if splitter == "random":
        projector.set_params(n_subclasses=3)
    for block in np.array_split(np.arange(60), 4):
        projector.partial_fit(X[block], y[block], np.arange(2))
    for rows in (X, NEW):
        assert_allclose(shares(projector, rows), 1 / projector.n_subclasses_)


def test_rows_that_differ_along_the_head_alone_are_one():
    X = np.array([[-0.625, -0.1], [-0.625, 0.1], [-0.625, 0.7], [-0.625, -0.9]])
    codes = np.array([0, 0, 1, 1])
    head = np.array([[0.0, 0.1], [0.0, -0.1]]), np.zeros(2)
    assert LELPProjector(head=head).fit(X, codes).n_subclasses_ == 1
    with pytest.raises(ValueError, match="it has 1 distinct rows"):
        LELPProjector(2, head=head).fit(X, codes)
