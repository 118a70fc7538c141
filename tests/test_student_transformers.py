"""Transformers as teachers: what makes the embeddings of which rows."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.ensemble import VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, TargetEncoder

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    subclass_report,
)
from tests.extractor_problems import Counting
from tests.student_problems import make_groups, weights_of

NEAREST = KNeighborsClassifier(3)


class OutOfFold(TransformerMixin, BaseEstimator):
    """Probabilities and inputs; the former of folds that did not hold the row."""

    seen = ()  # of each call its name and rows, by their first feature

    def fit(self, X, y=None):
        self.classifier_ = clone(NEAREST).fit(X, y)
        return self

    def fit_transform(self, X, y=None):
        self.fit(X, y)
        type(self).seen += (("fit_transform", X[:, 0]),)
        return np.hstack([out_of_fold(X, y), X])

    def transform(self, X):
        type(self).seen += (("transform", X[:, 0]),)
        return np.hstack([self.classifier_.predict_proba(X), X])


def out_of_fold(X, y):
    return cross_val_predict(NEAREST, X, y, cv=3, method="predict_proba")


def expected_embeddings(X, y):
    return np.hstack([out_of_fold(X, y), X])


@pytest.fixture(autouse=True)
def nothing_seen():
    OutOfFold.seen = ()


@pytest.fixture(scope="module")
def data():
    """Rows with labels of which nothing can be learned."""
    X, y, *_ = make_groups()
    return X, np.random.RandomState(0).permutation(y)


def make_student(**options):
    defaults = {
        "module_params": {"hidden_layer_sizes": (4,)},
        "projector": LELPProjector(2),
        "max_epochs": 3,
        "random_state": 0,
    }
    return LELPStudentClassifier(**{**defaults, **options})


def assert_same_fit(found, expected):
    assert_array_equal(weights_of(found), weights_of(expected))
    assert found.loss_curve_ == expected.loss_curve_
    assert found.validation_scores_ == expected.validation_scores_


# ----------------------------------------------------------------------------- leaks


def test_training_rows_have_the_embeddings_of_fit_transform(data):
    X, y = data
    student = make_student(teacher=OutOfFold()).fit(X, y)
    given = make_student().fit(X, y, teacher_embeddings=expected_embeddings(X, y))
    assert_same_fit(student, given)


def embeddings_as_seen(X, y):
    """Return embeddings by what `OutOfFold` was called with, once a row."""
    (first, trained), (second, others) = OutOfFold.seen
    assert (first, second) == ("fit_transform", "transform")
    is_trained = np.isin(X[:, 0], trained)
    assert_array_equal(np.sort(np.r_[trained, others]), np.sort(X[:, 0]))
    embeddings = np.empty((len(X), X.shape[1] + 2))
    embeddings[is_trained] = expected_embeddings(X[is_trained], y[is_trained])
    classifier = clone(NEAREST).fit(X[is_trained], y[is_trained])
    rest = X[~is_trained]
    embeddings[~is_trained] = np.hstack([classifier.predict_proba(rest), rest])
    return embeddings, is_trained


def test_rows_that_are_held_out_have_those_of_transform(data):
    X, y = data
    options = {"early_stopping": True, "validation_fraction": 0.3}
    student = make_student(teacher=OutOfFold(), **options).fit(X, y)
    embeddings, is_trained = embeddings_as_seen(X, y)
    assert 0 < (~is_trained).sum() < len(X) / 2
    given = make_student(**options).fit(X, y, teacher_embeddings=embeddings)
    assert_same_fit(student, given)


def test_rows_without_weight_have_those_of_transform(data):
    X, y = data
    weight = np.random.RandomState(0).randint(3, size=len(X)).astype(float)
    student = make_student(teacher=OutOfFold()).fit(X, y, sample_weight=weight)
    embeddings, is_trained = embeddings_as_seen(X, y)
    assert_array_equal(is_trained, weight > 0)
    given = {"teacher_embeddings": embeddings, "sample_weight": weight}
    assert_same_fit(student, make_student().fit(X, y, **given))


def test_validation_rows_have_those_of_transform(data):
    X, y = data
    X, y, X_val, y_val = X[::2], y[::2], X[1::2], y[1::2]
    rows = {"X_val": X_val, "y_val": y_val}
    student = make_student(teacher=OutOfFold(), early_stopping=True)
    student.fit(X, y, **rows)
    given = make_student(early_stopping=True)
    given.fit(
        X,
        y,
        **rows,
        teacher_embeddings=expected_embeddings(X, y),
        teacher_embeddings_val=OutOfFold().fit(X, y).transform(X_val),
    )
    assert_same_fit(student, given)


def test_later_blocks_have_those_of_transform_and_the_first_keeps_its_own(data):
    X, y = data
    first, second = slice(None, None, 2), slice(1, None, 2)
    teacher = OutOfFold().fit(X[first], y[first])
    embeddings = expected_embeddings(X[first], y[first]), teacher.transform(X[second])
    student, given = make_student(teacher=OutOfFold()), make_student()
    blocks = (first, embeddings[0]), (second, embeddings[1])
    for block, made in (*blocks, blocks[0]):
        student.partial_fit(X[block], y[block], [0, 1])
        given.partial_fit(X[block], y[block], [0, 1], teacher_embeddings=made)
        assert_same_fit(student, given)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_warm_start_on_the_same_rows_makes_the_same_embeddings(early_stopping, data):
    X, y = data
    options = {"warm_start": True, "early_stopping": early_stopping}
    student = make_student(teacher=OutOfFold(), **options).fit(X, y)
    embeddings = expected_embeddings(X, y)
    if early_stopping:
        embeddings, _ = embeddings_as_seen(X, y)
    given = make_student(**options).fit(X, y, teacher_embeddings=embeddings)
    given.fit(X, y, teacher_embeddings=embeddings)
    assert_same_fit(student.fit(X, y), given)


def test_a_warm_start_on_other_rows_transforms_them(data):
    X, y = data
    student = make_student(teacher=OutOfFold(), warm_start=True).fit(X[:120], y[:120])
    student.fit(X[120:], y[120:])
    assert [name for name, _ in OutOfFold.seen] == ["fit_transform", "transform"]


def test_a_report_is_of_the_embeddings_of_fit_transform(data):
    X, y = data
    student = make_student(teacher=OutOfFold())
    options = {"n_splits": 2, "max_steps": 5, "random_state": 0}
    report = subclass_report(student, X, y, **options)
    embeddings = expected_embeddings(X, y)
    given = subclass_report(
        make_student(), X, y, teacher_embeddings=embeddings, **options
    )
    assert report == given


def test_embeddings_that_are_given_are_not_made(data):
    X, y = data
    make_student(teacher=OutOfFold()).fit(X, y, teacher_embeddings=X)
    assert OutOfFold.seen == ()


# ----------------------------------------------------------- transformers of all kinds


def codes(data):
    return np.round(data[0]).clip(-2, 2), data[1]


def test_a_pipeline_makes_them_as_its_own_fit_transform_does(data):
    X, y = data
    teacher = make_pipeline(StandardScaler(), OutOfFold())
    student = make_student(teacher=teacher).fit(X, y)
    embeddings = clone(teacher).fit_transform(X, y)
    assert np.abs(embeddings - clone(teacher).fit(X, y).transform(X)).max() > 0.1
    given = make_student().fit(X, y, teacher_embeddings=embeddings)
    assert_same_fit(student, given)


def test_a_frozen_teacher_transforms(data):
    X, y = codes(data)
    teacher = TargetEncoder().fit(X, y)
    student = make_student(teacher=FrozenEstimator(teacher)).fit(X, y)
    given = make_student().fit(X, y, teacher_embeddings=teacher.transform(X))
    assert_same_fit(student, given)


@pytest.mark.parametrize("container", ["pandas", "polars", "tensor", "array"])
def test_embeddings_come_in_any_container(container, data):
    X, y = data
    weight = np.arange(len(X)) % 3

    class Teacher(OutOfFold):
        def get_feature_names_out(self, names=None):
            return [f"h{i}" for i in range(8)]

    class Array(np.ndarray):
        pass

    class ConvertingTeacher(OutOfFold):
        def fit_transform(self, X, y=None):
            return converters[container](super().fit_transform(X, y))

        def transform(self, X):
            return converters[container](super().transform(X))

    converters = {"tensor": torch.from_numpy, "array": lambda E: E.view(Array)}
    teacher = ConvertingTeacher() if container in converters else Teacher()
    if container not in converters:
        pytest.importorskip(container)
        teacher.set_output(transform=container)
    student = make_student(teacher=teacher).fit(X, y, sample_weight=weight)
    expected = make_student(teacher=OutOfFold()).fit(X, y, sample_weight=weight)
    assert_same_fit(student, expected)
    # Later rows come in the same container.
    student.partial_fit(X[::2], y[::2])
    expected.partial_fit(X[::2], y[::2])
    assert_same_fit(student, expected)


def test_inherited_fit_transform_extracts_once(data):
    X, y = data
    model = Counting()
    extractor = EmbeddingExtractor(model).fit(X)
    # The first rows, of which fit learns the width.
    in_fit, model.n_rows = model.n_rows, 0
    make_student(teacher=extractor).fit(X, y)
    assert model.n_rows == in_fit + len(X)


def test_sparse_embeddings_are_refused(data):
    X, y = codes(data)
    student = make_student(teacher=OneHotEncoder())
    with pytest.raises(TypeError, match=r"Sparse data was passed: .*TruncatedSVD"):
        student.fit(X, y)


class LosesARow(OutOfFold):
    def fit_transform(self, X, y=None):
        return super().fit_transform(X, y)[1:]


def test_embeddings_of_fewer_rows_are_refused(data):
    X, y = data
    with pytest.raises(ValueError, match=r"fit_transform\(X, y\) has 239 rows and X"):
        make_student(teacher=LosesARow()).fit(X, y)


# --------------------------------------------------------------------- several members


def make_voters():
    members = [("near", NEAREST), ("linear", LogisticRegression())]
    return VotingClassifier(members, voting="soft", flatten_transform=False)


def test_embeddings_of_several_members_are_averaged(data):
    """Scikit-learn's own have the members first."""
    X, y = data
    voters = make_voters().fit(X, y)
    assert voters.transform(X).shape == (2, len(X), 2)
    # Two probabilities that sum to one vary along the head alone.
    projector = LELPProjector(2, null_space=False)
    student = make_student(teacher=make_voters(), projector=projector).fit(X, y)
    given = make_student(projector=projector)
    given.fit(X, y, teacher_embeddings=voters.predict_proba(X))
    assert_allclose(weights_of(student), weights_of(given), atol=1e-6)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_given_embeddings_of_several_members_are_averaged(kind, data):
    X, y = data
    members = np.random.RandomState(0).normal(size=(4, len(X), 5))
    options = {"early_stopping": True}
    rows = {"X_val": X, "y_val": y}
    student = make_student(**options).fit(
        X,
        y,
        **rows,
        teacher_embeddings=kind(members),
        teacher_embeddings_val=kind(members),
    )
    mean = members.mean(axis=0)
    given = make_student(**options)
    given.fit(X, y, **rows, teacher_embeddings=mean, teacher_embeddings_val=mean)
    assert_allclose(weights_of(student), weights_of(given), atol=1e-6)


def test_members_that_cross_validation_does_not_slice_are_refused(data):
    X, y = data
    members = np.zeros((4, len(X), 5))
    params = {"teacher_embeddings": members}
    message = r"shape \(4, 240, 5\) and X has 120 rows: .*embeddings\.mean\(axis=0\)"
    with pytest.raises(ValueError, match=message):
        cross_val_score(make_student(), X, y, cv=2, params=params, error_score="raise")
    with pytest.raises(ValueError, match=r"shape \(240, 4, 5\) and X has 240 rows"):
        make_student().fit(X, y, teacher_embeddings=members.swapaxes(0, 1))


class ListsMembers(OutOfFold):
    def transform(self, X):
        return [X, np.ones_like(X)]

    fit_transform = TransformerMixin.fit_transform


def test_a_list_of_members_is_averaged(data):
    X, y = data
    student = make_student(teacher=ListsMembers()).fit(X, y)
    given = make_student().fit(X, y, teacher_embeddings=(X + 1) / 2)
    assert_same_fit(student, given)
