"""Bounded memory: rows are read in blocks, square matrices of features avoided."""

import tracemalloc

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose

from lelp_sklearn import LELPProjector

MEBIBYTE = 2**20


def traced_peak(call):
    """Peak of the memory that a call allocates, in MiB."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / MEBIBYTE
    finally:
        tracemalloc.stop()


def embeddings(n_rows, n_features, dtype):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(n_rows, n_features)).astype(dtype)
    head = (rng.normal(size=(2, n_features)) / n_features, np.zeros(2))
    return X, np.arange(n_rows) % 2, head


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("splitter", "svd_solver"),
    [
        ("pca", "auto"),
        ("pca", "randomized"),
        ("pca", "covariance_eigh"),
        ("random", "auto"),
    ],
)
def test_fit_and_transform_copy_neither_the_rows_nor_a_class(
    dtype, splitter, svd_solver
):
    X, y, head = embeddings(60_000, 128, dtype)
    projector = LELPProjector(
        n_subclasses=2,
        splitter=splitter,
        head=head,
        svd_solver=svd_solver,
        random_state=0,
    )
    out = np.empty((len(X), 4), dtype=np.float32)
    with sklearn.config_context(working_memory=1):
        projector.fit(X[:200], y[:200]).transform(X[:200], out=out[:200])
        fitting = traced_peak(lambda: projector.fit(X, y))
        projecting = traced_peak(lambda: projector.transform(X, out=out))
    assert fitting < X.nbytes / MEBIBYTE / 2
    assert projecting < X.nbytes / MEBIBYTE / 2


@pytest.mark.parametrize("svd_solver", ["auto", "randomized"])
def test_wide_embeddings_need_no_square_matrix(svd_solver):
    X, y, head = embeddings(400, 3000, np.float32)
    projector = LELPProjector(
        n_subclasses=4,
        splitter="pca",
        head=head,
        svd_solver=svd_solver,
        random_state=0,
    )
    square = 3000**2 * 4 / MEBIBYTE
    with sklearn.config_context(working_memory=1):
        assert traced_peak(lambda: projector.fit(X, y)) < square


def test_kmeans_keeps_a_sample_of_the_rows():
    X, y, head = embeddings(20_000, 512, np.float32)
    projector = LELPProjector(n_subclasses=2, splitter="kmeans", head=head)
    with sklearn.config_context(working_memory=1):
        assert traced_peak(lambda: projector.fit(X, y)) < X.nbytes / MEBIBYTE / 2


def test_working_memory_does_not_change_the_result():
    X, y, head = embeddings(3000, 64, np.float64)
    results = []
    for working_memory in (1, 1024):
        with sklearn.config_context(working_memory=working_memory):
            projector = LELPProjector(
                n_subclasses=3, splitter="pca", head=head, random_state=0
            )
            results.append(projector.fit_transform(X, y))
    assert_allclose(results[0], results[1], atol=1e-6)
