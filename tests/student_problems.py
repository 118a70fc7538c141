"""Teachers and modules that the tests of the student share."""

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from torch import nn

from lelp_sklearn import LELPProjector


def make_groups(n_rows=240, n_classes=2, n_features=6, width=9, seed=0):
    """Inputs X, labels and teacher embeddings E with groups inside the classes.

    Returns
    -------
    X, y, E, head
        `head` is the teacher's (W, b).
    """
    rng = np.random.RandomState(seed)
    group = np.arange(n_rows) % (3 * n_classes)
    y = group % n_classes
    X = rng.normal(size=(3 * n_classes, n_features))[group] * 2
    X = X + rng.normal(size=X.shape)
    W = rng.normal(size=(n_classes, width))
    E = 2 * rng.normal(size=(3 * n_classes, width))[group] + 2 * W[y]
    E = E + 0.3 * rng.normal(size=E.shape)
    b = -W @ E.mean(axis=0)
    return X, y, E, (W, b)


def make_soft_targets(n_subclasses=3, **options):
    """X, y and the soft targets of a projector on E."""
    X, y, E, head = make_groups(**options)
    projector = LELPProjector(n_subclasses, head=head, random_state=0)
    return X, y, projector.fit_transform(E, y)


class MyNet(nn.Module):
    """A module of a user."""

    def __init__(self, n_features, n_outputs, hidden=12):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_features, hidden), nn.Tanh())
        self.top = nn.Linear(hidden, n_outputs)

    def forward(self, X):
        return self.top(self.body(X))


class TemplateNet(nn.Module):
    """A module whose number of outputs is fixed, to be taken as a template."""

    def __init__(self, n_features=6):
        super().__init__()
        self.body = nn.Linear(n_features, 8)
        self.top = nn.Linear(8, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, X):
        return self.scale * self.top(torch.relu(self.body(X)))


class BufferNet(MyNet):
    """Batch normalisation keeps its statistics, an integer among them, in buffers."""

    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.body.append(nn.BatchNorm1d(12))


class MatrixTeacher(TransformerMixin, BaseEstimator):
    """A teacher that multiplies the inputs by a matrix."""

    def __init__(self, matrix=None, head=None):
        self.matrix = matrix
        self.head = head

    def fit(self, X, y=None):
        self.head_ = self.head
        self.n_rows_ = len(X)
        return self

    def transform(self, X):
        return np.asarray(X) @ self.matrix


def weights_of(student):
    """All weights of the fitted module in one vector."""
    parameters = student.module_.parameters()
    return np.concatenate([p.detach().cpu().numpy().ravel() for p in parameters])
