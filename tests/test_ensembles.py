"""The student inside scikit-learn's ensembles, which encode y before it sees it."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from lelp_sklearn import LELPProjector, LELPStudentClassifier, NoTeacherWarning
from tests.student_problems import make_groups

X, CODES, _, _ = make_groups(n_rows=120)
NAMES = np.array(["ham", "spam"])[CODES]
MARKED = np.where(np.arange(len(X)) % 3, CODES, -1)
HEAD = LogisticRegression().fit(X, NAMES)


def voting(classifier, **options):
    others = ("linear", LogisticRegression())
    return VotingClassifier([("student", classifier), others], voting="soft", **options)


def stacking(classifier, **options):
    return StackingClassifier([("student", classifier)], cv=2, **options)


def bagging(classifier, **options):
    return BaggingClassifier(classifier, n_estimators=2, random_state=0, **options)


def one_vs_rest(classifier, **options):
    return OneVsRestClassifier(classifier, **options)


every_ensemble = pytest.mark.parametrize("ensemble", [voting, stacking, bagging])


def student(head=HEAD, **options):
    options = {"max_epochs": 5, "random_state": 0} | options
    return LELPStudentClassifier(projector=LELPProjector(2, head=head), **options)


@every_ensemble
def test_a_fitted_classifier_as_head_is_refused_by_the_name_of_the_ensemble(ensemble):
    message = rf"y has labels \[0, 1\].*{ensemble.__name__.title()}Classifier encodes y"
    with pytest.raises(ValueError, match=message):
        ensemble(student()).fit(X, NAMES)
    frozen = FrozenEstimator(LELPProjector(2, head=HEAD).fit(X, NAMES))
    with pytest.raises(ValueError, match=f"{message}.*what is frozen"):
        ensemble(LELPStudentClassifier(projector=frozen)).fit(X, NAMES)


@every_ensemble
@pytest.mark.parametrize("labels", ["strings", "integers"])
def test_the_rows_of_the_head_do_in_any_ensemble(ensemble, labels):
    y = NAMES if labels == "strings" else np.array([3, 7])[CODES]
    fitted = ensemble(student((HEAD.coef_, HEAD.intercept_))).fit(X, y)
    assert_array_equal(fitted.classes_, np.unique(y))
    assert fitted.score(X, y) > 0.9
    # As do heads whose classes are what y is encoded as.
    encoded = LogisticRegression().fit(X, CODES)
    assert ensemble(student(encoded)).fit(X, y).score(X, y) > 0.9


@pytest.mark.parametrize(
    ("ensemble", "n_jobs"),
    [
        *((each, None) for each in [voting, stacking, bagging, one_vs_rest]),
        # Workers find the name in other frames: that of all who vote, and their own.
        *(pytest.param(each, 2, marks=pytest.mark.slow) for each in [voting, bagging]),
    ],
)
def test_marked_rows_are_refused_by_the_name_of_the_ensemble(ensemble, n_jobs):
    head = HEAD.coef_, HEAD.intercept_
    name = ensemble.__name__.title().replace("_", "").replace("Vsr", "VsR")
    message = f"unlabeled=-1 cannot be used inside .*{name}.* encodes y"
    with pytest.raises(ValueError, match=message):
        ensemble(student(head, unlabeled=-1), n_jobs=n_jobs).fit(X, MARKED)
    if n_jobs is not None:
        # An error ends the workers, and new ones import everything again.
        return
    marking = LELPStudentClassifier(projector=LELPProjector(2, unlabeled=-1, head=head))
    with pytest.raises(ValueError, match=message):
        ensemble(marking, n_jobs=n_jobs).fit(X, MARKED)


def test_a_projector_before_another_classifier_too():
    pipeline = make_pipeline(LELPProjector(2, unlabeled=-1), LogisticRegression())
    with pytest.raises(ValueError, match="unlabeled=-1 cannot be used inside Bagging"):
        bagging(pipeline).fit(X, MARKED)


def test_marked_rows_elsewhere_are_what_they_were():
    marking = student((HEAD.coef_, HEAD.intercept_), unlabeled=-1)
    # A fold may have no marked row.
    predicted = cross_val_predict(marking, X, CODES, cv=2)
    plain = clone(marking).set_params(unlabeled=None)
    assert_array_equal(predicted, cross_val_predict(plain, X, CODES, cv=2))
    predicted = cross_val_predict(marking, X, MARKED, cv=2)
    assert set(predicted) == {0, 1}
    # Boosting hands labels on as they are.
    boosted = AdaBoostClassifier(marking, n_estimators=1, random_state=0)
    assert_array_equal(boosted.fit(X, MARKED).estimators_[0].classes_, [0, 1])


def test_an_ensemble_without_teacher_and_marks():
    classifier = LELPStudentClassifier(max_epochs=5, random_state=0)
    with pytest.warns(NoTeacherWarning):
        assert bagging(classifier).fit(X, NAMES).score(X, NAMES) > 0.8
