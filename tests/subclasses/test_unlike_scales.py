"""Class targets without a given head do not depend on the units of the columns."""

import dask.array as da
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from lelp_sklearn import LELPProjector
from lelp_sklearn._subclasses import torch_backend
from tests import reference
from tests.problems import integer_weights


def class_targets(projector, X, **metadata):
    return projector.inverse_transform(projector.transform(X, **metadata))


def weak_columns():
    """Columns that each tell a little."""
    rng = np.random.default_rng(0)
    codes = np.arange(400) % 2
    return rng.normal(size=(400, 20)) + 0.7 * codes[:, None], codes


def collinear():
    X, codes = weak_columns()
    return np.hstack([X, X @ np.random.default_rng(1).normal(size=(20, 4))]), codes


def constant_columns():
    """A constant, one within each class, one within one class, a column of copies."""
    X, codes = weak_columns()
    X[:, 0] = 0.1
    X[:, 1] = codes / 3
    X[:, 2] *= codes
    X[:, 3] = X[:, 4]
    return X, codes


def more_columns_than_rows():
    rng = np.random.default_rng(0)
    codes = np.arange(40) % 3
    return rng.normal(size=(40, 90)) + rng.normal(size=(3, 90))[codes], codes


def one_row_a_class():
    return np.random.default_rng(0).normal(size=(3, 5)), np.arange(3)


def far_from_zero():
    X, codes = weak_columns()
    return X + 1000, codes


def digits():
    return load_digits(return_X_y=True)


KINDS = [
    weak_columns,
    collinear,
    constant_columns,
    more_columns_than_rows,
    one_row_a_class,
    far_from_zero,
    digits,
]


def units(n_features, seed=0):
    return 10.0 ** np.random.default_rng(seed).uniform(-6, 6, n_features)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("splitter", ["kmeans", "pca", "random"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_units_move_no_class_target(make, splitter, dtype):
    X, codes = make()
    projector = LELPProjector(splitter=splitter, random_state=0)
    expected = class_targets(projector.fit(X, codes), X)
    for seed in range(3):
        moved = (X * units(X.shape[1], seed)).astype(dtype)
        found = class_targets(projector.fit(moved, codes), moved)
        assert_allclose(found, expected, atol=1e-6 if dtype == np.float64 else 1e-3)


@pytest.mark.parametrize("make", KINDS)
def test_units_move_no_least_squares_head(make):
    X, codes = make()
    coef = np.random.default_rng(2).normal(size=(codes.max() + 1, X.shape[1]))
    logits = 3 * np.tanh(StandardScaler().fit_transform(X) @ coef.T / 5)
    projector = LELPProjector(n_subclasses=1)
    expected = class_targets(projector.fit(X, codes, teacher_logits=logits), X)
    for seed in range(3):
        moved = X * units(X.shape[1], seed)
        projector.fit(moved, codes, teacher_logits=logits)
        assert_allclose(class_targets(projector, moved), expected, atol=1e-6)


@pytest.mark.parametrize("make", [weak_columns, constant_columns, digits])
@pytest.mark.parametrize("way", ["blocks", "tensor", "dask"])
def test_every_reading_gives_the_head_of_the_reference(make, way, monkeypatch):
    X, codes = make()
    X = X * units(X.shape[1])
    n_classes = codes.max() + 1
    weight = integer_weights(len(X))
    projector = LELPProjector(n_subclasses=1)
    if way == "blocks":
        for block in np.array_split(np.arange(len(X)), 3):
            projector.partial_fit(
                X[block], codes[block], np.unique(codes), sample_weight=weight[block]
            )
    elif way == "tensor":
        monkeypatch.setattr(torch_backend, "_VIEWABLE", ())
        monkeypatch.setattr(torch_backend, "_NEAR", ())
        projector.fit(torch.as_tensor(X), codes, sample_weight=weight)
    else:
        chunks = da.from_array(X, chunks=(len(X) // 3, X.shape[1]))
        projector.fit(chunks, codes, sample_weight=weight)
    coef, intercept = reference.discriminant_head(X, codes, n_classes, weight)
    logits = X @ coef.T + intercept
    assert_allclose(
        X @ projector.coef_.T + projector.intercept_,
        logits,
        atol=1e-7 * np.abs(logits).max(),
    )


def bundled():
    """scikit-learn's data sets, as they are and made two classes."""
    for load in (load_iris, load_wine, load_breast_cancer, load_digits):
        X, y = load(return_X_y=True)
        yield load.__name__, X, y
        if y.max() > 1:
            yield f"{load.__name__} mod 2", X, y % 2
            yield f"{load.__name__} zero", X, np.where(y == 0, 1, 0)
            yield f"{load.__name__} upper", X, np.where(y > y.max() // 2, 1, 0)
    X, y = weak_columns()
    for size in (1, 100, 10_000):
        yield f"column of {size}", np.column_stack([X[:, 1:], size * X[:, 0]]), y
    for size in (1, 100, 1_000, 10_000):
        rng, y = np.random.default_rng(0), np.arange(1_000) % 2
        X = rng.normal(size=(1_000, 32)) + 0.7 * y[:, None]
        X[:, -1] = size * rng.normal(size=1_000)
        yield f"column of noise of {size}", X, y


@pytest.mark.parametrize(
    ("X", "y"), [pytest.param(X, y, id=name) for name, X, y in bundled()]
)
@pytest.mark.parametrize("scaled", [False, True])
def test_held_out_rows_as_well_as_shrunk_discriminant_of_scikit_learn(X, y, scaled):
    if scaled:
        X = StandardScaler().fit_transform(X)
    scores = []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(X, y):
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        theirs = lda.fit(X[train], y[train]).predict_proba(X[test])
        projector = LELPProjector(n_subclasses=1, temperature=1.0)
        projector.fit(X[train], y[train])
        ours = class_targets(projector, X[test])
        labels = np.unique(y)
        scores.append(
            [
                (ours.argmax(axis=1) == y[test]).mean()
                - (theirs.argmax(axis=1) == y[test]).mean(),
                log_loss(y[test], ours, labels=labels)
                - log_loss(y[test], theirs, labels=labels),
            ]
        )
    accuracy, loss = np.mean(scores, axis=0)
    assert accuracy >= -0.015
    assert loss <= 0.03
