"""Small distillation problems that the tests share."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import ortho_group

from lelp_sklearn import LELPProjector


@dataclass(frozen=True)
class Problem:
    """Teacher embeddings with their labels and the teacher's softmax head."""

    X: np.ndarray
    codes: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    @property
    def head(self):
        return self.coef, self.intercept

    @property
    def logits(self):
        return self.X @ self.coef.T + self.intercept

    @property
    def n_classes(self):
        return len(self.coef)


def make_problem(
    n_classes=2, n_rows=160, n_features=12, *, decay=0.8, mean=2.0, seed=0
):
    """Classes with covariances of their own and clearly separated variances.

    The standard deviations fall as ``decay ** k``; labels are the teacher's argmax
    but for one row in ten, so that label and argmax can be told apart.
    """
    rng = np.random.RandomState(seed)
    coef = rng.normal(size=(n_classes, n_features)) / np.sqrt(n_features)
    intercept = rng.normal(scale=0.1, size=n_classes)
    scales = decay ** np.arange(n_features)
    groups = np.arange(n_rows) % n_classes
    X = np.empty((n_rows, n_features))
    for group in range(n_classes):
        axes = ortho_group.rvs(n_features, random_state=rng)
        shift = coef[group] / np.linalg.norm(coef[group])
        size = np.sum(groups == group)
        X[groups == group] = rng.normal(size=(size, n_features)) * scales @ axes + shift
    intercept = intercept - mean * coef.sum(axis=1)
    X += mean
    codes = np.argmax(X @ coef.T + intercept, axis=1)
    noisy = rng.permutation(n_rows)[: n_rows // 10]
    codes[noisy] = rng.randint(n_classes, size=len(noisy))
    return Problem(X, codes, coef, intercept)


def integer_weights(n_rows, seed=0):
    """Row weights 0, 1, 2 and 3, to compare with absent and repeated rows."""
    return np.random.RandomState(seed).randint(4, size=n_rows).astype(float)


def make_far_groups(n_rows=240, d=8, seed=0):
    """Two classes of three far groups each, a head, and what the groups are."""
    rng = np.random.RandomState(seed)
    group = np.arange(n_rows) % 6
    X = 8 * rng.normal(size=(6, d))[group] + rng.normal(size=(n_rows, d))
    return X, group % 2, group, (rng.normal(size=(2, d)), np.zeros(2))


def fit_to_groups(splitter="kmeans", **options):
    X, y, group, head = make_far_groups()
    projector = LELPProjector(
        3, splitter=splitter, head=head, random_state=0, **options
    ).fit(X, y)
    return projector, X, y, group
