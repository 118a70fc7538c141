"""Distances that are equal by a symmetry: the order of the rows decides nothing."""

import dask.array as da
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from lelp_sklearn import LELPProjector
from lelp_sklearn._subclasses import torch_backend


def one_hot():
    return np.eye(12)[np.random.default_rng(1).integers(0, 12, 120)]


def many_one_hot():
    return np.eye(160)[np.arange(400) % 160]


def grid():
    axis = np.arange(-3.0, 4.0)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).repeat(4, axis=0)


def large_grid():
    axis = np.arange(-9.0, 10.0)
    return np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)


def mirrored():
    X = np.random.default_rng(0).normal(size=(60, 6))
    return np.concatenate([X, -X])


def copies():
    return np.random.default_rng(0).normal(size=(30, 6))[np.arange(120) % 30]


def opposed():
    """Principal directions with two components of equal length and unlike sign."""
    t, noise = np.random.default_rng(0).normal(size=(2, 90))
    return np.column_stack([t, -t, noise / 9])


KINDS = [one_hot, many_one_hot, grid, large_grid, mirrored, copies, opposed]


def labels_of(X):
    return np.random.default_rng(2).integers(0, 2, len(X))


def fit(X, codes, weight=None, **params):
    projector = LELPProjector(**{"n_subclasses": 5, "random_state": 0, **params})
    return projector.fit(X, codes, sample_weight=weight)


def assert_order_does_not_matter(X, codes, weight, convert=np.asarray, **params):
    expected = fit(convert(X), codes, weight, **params).transform(X)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(X))
        found = fit(convert(X[order]), codes[order], weight[order], **params)
        # Single precision divides rounding by a subclass temperature below 1.
        atol = 1e-9 if X.dtype == np.float64 else 1e-3
        assert_allclose(found.transform(X), expected, atol=atol)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans(make, dtype, weighted):
    X = make().astype(dtype)
    weight = np.ones(len(X))
    if weighted:
        # Copies of a row have weights whose sum is rounded.
        weight = np.random.default_rng(3).uniform(0.1, 3, len(X))
    assert_order_does_not_matter(X, labels_of(X), weight, n_subclasses="auto")
    assert_order_does_not_matter(X, labels_of(X), weight, n_subclasses=3)


@pytest.mark.parametrize("make", [one_hot, grid, large_grid])
def test_kmeans_of_tensors(make, monkeypatch):
    monkeypatch.setattr(torch_backend, "_VIEWABLE", ())
    monkeypatch.setattr(torch_backend, "_NEAR", ())
    X = make()
    assert_order_does_not_matter(X, labels_of(X), np.ones(len(X)), torch.as_tensor)


@pytest.mark.parametrize("make", [one_hot, grid, large_grid])
def test_kmeans_of_chunks(make):
    def chunked(X):
        return da.from_array(X, chunks=(-(-len(X) // 3), X.shape[1]))

    X = make()
    assert_order_does_not_matter(X, labels_of(X), np.ones(len(X)), chunked)


def test_kmeans_with_a_head():
    X = grid()
    head = np.array([[1.0, 1.0], [-1.0, -1.0]]), [0.0, 0.0]
    assert_order_does_not_matter(X, labels_of(X), np.ones(len(X)), head=head)


@pytest.mark.parametrize("make", [mirrored, copies, opposed, grid])
@pytest.mark.parametrize("splitter", ["pca", "random"])
def test_directions_of_unlike_variance(make, splitter):
    X = make() @ np.diag(0.5 ** np.arange(make().shape[1]))
    if make is opposed:
        X = make()
    params = {"splitter": splitter, "null_space": False, "n_subclasses": 2}
    assert_order_does_not_matter(X, labels_of(X), np.ones(len(X)), **params)
