"""Warnings come once, at the line of the user that they are about."""

import inspect
import warnings

import numpy as np
import pytest
from sklearn.ensemble import BaggingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lelp_sklearn import (
    ClassOrderWarning,
    LELPProjector,
    LELPStudentClassifier,
    NoTeacherWarning,
    ProbabilitiesAsLogitsWarning,
    subclass_report,
)
from tests.student_problems import make_groups

X, Y, E, HEAD = make_groups()
EXPONENTIALS = np.exp(E @ HEAD[0].T + HEAD[1])
PROBABILITIES = EXPONENTIALS / EXPONENTIALS.sum(axis=1, keepdims=True)


def student(**options):
    return LELPStudentClassifier(
        **{"projector": LELPProjector(2), "max_epochs": 1, "random_state": 0} | options
    )


def warnings_of(call):
    """The warnings of a call, and the line of this file on which it is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return caught, inspect.getsourcelines(call)[1]


def fit_projector():
    LELPProjector(2).fit(E, Y, teacher_logits=PROBABILITIES)


def fit_transform():
    LELPProjector(2).fit_transform(E, Y, teacher_logits=PROBABILITIES)


def transform():
    FITTED.transform(E, teacher_logits=PROBABILITIES)


def partial_fit():
    LELPProjector(2, head=HEAD).partial_fit(E, Y, teacher_logits=PROBABILITIES)


def fit_student():
    student().fit(X, Y, teacher_embeddings=E, teacher_logits=PROBABILITIES)


def fit_on_a_frozen_projector():
    student(projector=FrozenEstimator(FITTED)).fit(
        X, Y, teacher_embeddings=E, teacher_logits=PROBABILITIES
    )


def partial_fit_student():
    student().partial_fit(
        X, Y, [0, 1], teacher_embeddings=E, teacher_logits=PROBABILITIES
    )


def fit_in_a_pipeline():
    make_pipeline(StandardScaler(), student()).fit(
        X,
        Y,
        lelpstudentclassifier__teacher_embeddings=E,
        lelpstudentclassifier__teacher_logits=PROBABILITIES,
    )


def report():
    given = {"teacher_embeddings": E, "teacher_logits": PROBABILITIES}
    subclass_report(student(), X, Y, **given, n_splits=2, max_steps=1, random_state=0)


FITTED = LELPProjector(2, head=HEAD).fit(E, Y)


@pytest.mark.parametrize(
    "call",
    [
        fit_projector,
        fit_transform,
        transform,
        partial_fit,
        fit_student,
        fit_on_a_frozen_projector,
        partial_fit_student,
        fit_in_a_pipeline,
        report,
    ],
)
def test_probabilities_as_logits_are_told_once_and_where(call):
    caught, line = warnings_of(call)
    (warning,) = caught
    assert warning.category is ProbabilitiesAsLogitsWarning
    assert warning.filename == __file__
    assert line < warning.lineno <= line + len(inspect.getsourcelines(call)[0])


def test_each_call_tells_it_again():
    for _ in range(2):
        caught, _line = warnings_of(fit_student)
        assert len(caught) == 1


def test_chunks_of_a_dask_array_tell_it_together():
    array = pytest.importorskip("dask.array")
    dask = pytest.importorskip("dask")

    def call():
        with dask.config.set(scheduler="threads"):
            LELPProjector(2).fit(
                array.from_array(E, chunks=50),
                array.from_array(Y, chunks=50),
                teacher_logits=array.from_array(PROBABILITIES, chunks=50),
            )

    caught, line = warnings_of(call)
    (warning,) = caught
    assert warning.category is ProbabilitiesAsLogitsWarning
    assert (warning.filename, warning.lineno) == (__file__, line + 2)


def test_chunks_that_are_no_probabilities_speak_for_all():
    array = pytest.importorskip("dask.array")
    logits = np.where(np.arange(len(E))[:, None] < 200, PROBABILITIES, np.log(0.5))
    rows, labels, given = (array.from_array(a, chunks=50) for a in (E, Y, logits))
    LELPProjector(2).fit(rows, labels, teacher_logits=given)
    LELPProjector(2).fit(E, Y, teacher_logits=logits)


def search():
    GridSearchCV(LELPStudentClassifier(), {"max_epochs": [1, 2]}, cv=2).fit(X, Y)


def bag():
    BaggingClassifier(LELPStudentClassifier(max_epochs=1), n_estimators=2).fit(X, Y)


@pytest.mark.parametrize("call", [search, bag])
def test_a_missing_teacher_is_told_where_the_search_is(call):
    caught, line = warnings_of(call)
    assert {warning.category for warning in caught} == {NoTeacherWarning}
    places = {(warning.filename, warning.lineno) for warning in caught}
    assert places == {(__file__, line + 1)}


def test_classes_in_another_order_are_told_where_fit_is():
    def call():
        swapped = HEAD[0][::-1], HEAD[1][::-1]
        student(projector=LELPProjector(2, head=swapped)).fit(
            X, Y, teacher_embeddings=E
        )

    caught, line = warnings_of(call)
    (warning,) = caught
    assert warning.category is ClassOrderWarning
    assert (warning.filename, warning.lineno) == (__file__, line + 2)
