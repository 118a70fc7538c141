"""A splitter and a solver are an entry in a table, which says what they need."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lelp_sklearn import LELPProjector, _projector
from lelp_sklearn._subclasses import pca
from lelp_sklearn._subclasses.splitters import Split, Splitter
from tests.problems import make_problem


@pytest.fixture
def any_name(monkeypatch):
    constraints = dict(LELPProjector._parameter_constraints)
    constraints.update(splitter="no_validation", svd_solver="no_validation")
    monkeypatch.setattr(LELPProjector, "_parameter_constraints", constraints)


def first_axes(problem):
    """Split along the first columns of the embeddings."""
    n_classes, n_features = problem.covariance.mean.shape
    axes = np.eye(n_features)[: problem.n_subclasses]
    return Split.about_means(np.stack([axes] * n_classes), problem.covariance)


@pytest.mark.usefixtures("any_name")
def test_a_new_splitter(monkeypatch):
    entry = Splitter(first_axes, auto_temperature=0.5)
    monkeypatch.setitem(_projector.SPLITTERS, "axes", entry)
    problem = make_problem(n_classes=3)
    projector = LELPProjector(2, splitter="axes", head=problem.head)
    projector.fit(problem.X, problem.codes)
    given = LELPProjector(2, splitter=projector.components_, head=problem.head)
    given.fit(problem.X, problem.codes)
    assert_allclose(projector.components_[0], np.eye(problem.X.shape[1])[:2])
    assert_allclose(projector.offsets_, given.offsets_)
    scales = projector.subclass_temperature_, given.subclass_temperature_
    assert scales[0] / 0.5 == pytest.approx(scales[1] / 0.3)


@pytest.mark.usefixtures("any_name")
def test_a_new_solver(monkeypatch):
    entry = replace(pca.SOLVERS["full"], substitute=None)
    monkeypatch.setitem(pca.SOLVERS, "svd", entry)
    problem = make_problem(n_classes=3)
    projector, known = (
        LELPProjector(2, splitter="pca", svd_solver=name, random_state=0)
        for name in ("svd", "full")
    )
    for each in (projector, known):
        each.fit(problem.X, problem.codes)
    assert_allclose(projector.components_, known.components_)
