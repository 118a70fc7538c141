"""Scores of labelled rows: as scikit-learn's, of the rows that have a label alone."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, get_scorer, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lelp_sklearn import LELPProjector, LELPStudentClassifier, labeled_scorer
from tests.student_problems import make_groups

LABELLED = np.arange(150) % 5 == 0
routing = pytest.mark.parametrize("enable_metadata_routing", [False, True])


@pytest.fixture(scope="module")
def problem():
    X, y, E, head = make_groups(n_rows=150)
    return X, np.where(LABELLED, y, -1), E, head


@pytest.fixture(scope="module")
def classifier(problem):
    X, y, _, _ = problem
    return LogisticRegression(C=0.01).fit(X[LABELLED], y[LABELLED])


class FlatClassifier(ClassifierMixin, BaseEstimator):
    """Predicts the class by the sign of the first number of a row, of any kind."""

    classes_ = np.array([0, 1])

    def fit(self, X, y):
        return self

    def predict(self, X):
        rows = X.to_numpy() if hasattr(X, "columns") else np.asarray(X)
        return (rows.reshape(len(rows), -1)[:, 0] > 0).astype(int)


class NamedClassifier(FlatClassifier):
    """Predicts names."""

    classes_ = np.array(["no", "yes"])

    def predict(self, X):
        return self.classes_[super().predict(X)]


def student_of(head, **options):
    defaults = {"unlabeled": -1, "max_epochs": 3, "random_state": 0}
    return LELPStudentClassifier(
        projector=LELPProjector(2, head=head), **{**defaults, **options}
    )


@pytest.mark.parametrize(
    "scoring",
    ["accuracy", "balanced_accuracy", "roc_auc", "neg_log_loss", "average_precision"],
)
def test_a_score_is_that_of_the_labelled_rows(scoring, problem, classifier):
    X, y, _, _ = problem
    weight = np.random.RandomState(0).rand(len(y))
    expected = get_scorer(scoring)
    ours = labeled_scorer(scoring)
    rows = X[LABELLED], y[LABELLED]
    assert ours(classifier, X, y) == expected(classifier, *rows)
    weighted = expected(classifier, *rows, sample_weight=weight[LABELLED])
    assert ours(classifier, X, y, sample_weight=weight) == weighted
    # With nothing marked it is the score itself.
    full = np.where(LABELLED, y, 0)
    assert ours(classifier, X, full) == expected(classifier, X, full)


@pytest.mark.parametrize(
    ("marker", "y"),
    [
        (-1, lambda y: np.where(LABELLED, y, -1)),
        (-1, lambda y: np.where(LABELLED, y, -1).tolist()),
        (-1, lambda y: torch.tensor(np.where(LABELLED, y, -1))),
        (np.nan, lambda y: np.where(LABELLED, y, np.nan)),
        (np.nan, lambda y: pd.Series(y, dtype="Int64").where(LABELLED)),
        (np.nan, lambda y: np.where(LABELLED, y, None)),
        (None, lambda y: y),
        ("?", lambda y: np.where(LABELLED, y.astype(object), "?")),
    ],
)
def test_any_marker_that_the_estimators_take(marker, y, problem):
    X, full, _, _ = problem
    full = np.where(LABELLED, full, 0)
    given = y(full)
    rows = slice(None) if marker is None else LABELLED
    expected = FlatClassifier().score(X[rows], full[rows])
    assert labeled_scorer(unlabeled=marker)(FlatClassifier(), X, given) == expected


@pytest.mark.parametrize("marker", ["?", None])
def test_markers_among_names(marker, problem):
    X, y, _, _ = problem
    names = np.array(["no", "yes"], dtype=object)[np.maximum(y, 0)]
    marked = np.where(LABELLED, names, marker)
    scorer = labeled_scorer(unlabeled="?" if marker else np.nan)
    expected = NamedClassifier().score(X[LABELLED], names[LABELLED])
    assert scorer(NamedClassifier(), X, marked) == expected


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        np.ndarray.tolist,
        lambda X: X.reshape(len(X), 2, 3),
        torch.tensor,
        lambda X: torch.tensor(X).reshape(len(X), 3, 2, 1),
        lambda X: pd.DataFrame(X, index=np.arange(len(X)) + 7),
        lambda X: pl.DataFrame(X),
    ],
)
def test_rows_of_any_kind(kind, problem):
    X, y, _, _ = problem
    expected = FlatClassifier().score(X[LABELLED], y[LABELLED])
    assert labeled_scorer()(FlatClassifier(), kind(X), y) == expected


def log_likelihood(estimator, X, y):
    """A scorer of a user, without sample weights."""
    probability = estimator.predict_proba(X)
    return np.log(probability[np.arange(len(y)), y]).mean()


def test_callables_are_scorers_too(problem, classifier):
    X, y, _, _ = problem
    rows = X[LABELLED], y[LABELLED]
    ours = labeled_scorer(log_likelihood)(classifier, X, y)
    assert ours == log_likelihood(classifier, *rows)
    weighted = make_scorer(accuracy_score, normalize=False)
    assert labeled_scorer(weighted)(classifier, X, y) == weighted(classifier, *rows)


def test_several_scores_at_once(problem):
    X, y, E, head = problem
    both = {"a": labeled_scorer(), "b": labeled_scorer("neg_log_loss")}
    data = {"teacher_embeddings": E}
    student = student_of(head)
    result = cross_validate(student, X, y, scoring=both, cv=2, params=data)
    for name, scorer in both.items():
        alone = cross_val_score(student, X, y, scoring=scorer, cv=2, params=data)
        assert result[f"test_{name}"].tolist() == alone.tolist()


def by_hand(student, X, y, E, folds):
    """The accuracy on the labelled rows of each fold."""
    scores = []
    for train, test in folds:
        fitted = clone(student).fit(X[train], y[train], teacher_embeddings=E[train])
        rows = test[LABELLED[test]]
        scores.append(fitted.score(X[rows], y[rows]))
    return scores


@pytest.mark.parametrize(
    ("n_jobs", "enable_metadata_routing"),
    [(1, False), (1, True), pytest.param(2, True, marks=pytest.mark.slow)],
)
def test_cross_validation(n_jobs, enable_metadata_routing, problem):
    X, y, E, head = problem
    student = student_of(head)
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    with config_context(enable_metadata_routing=enable_metadata_routing):
        found = cross_val_score(
            student,
            X,
            y,
            scoring=labeled_scorer(),
            cv=cv,
            params={"teacher_embeddings": E},
            n_jobs=n_jobs,
        )
    assert found.tolist() == by_hand(student, X, y, E, cv.split(X, y))
    assert found.min() > 0.6


@routing
def test_search_in_a_pipeline(enable_metadata_routing, problem):
    X, y, E, head = problem
    pipe = make_pipeline(StandardScaler(), student_of(head))
    name = "teacher_embeddings"
    if not enable_metadata_routing:
        name = f"lelpstudentclassifier__{name}"
    grid = {"lelpstudentclassifier__projector__n_subclasses": [1, 3]}
    with config_context(enable_metadata_routing=enable_metadata_routing):
        search = GridSearchCV(pipe, grid, scoring=labeled_scorer(), cv=3)
        search.fit(X, y, **{name: E})
    expected = labeled_scorer()(search.best_estimator_, X, y)
    with config_context(enable_metadata_routing=enable_metadata_routing):
        assert search.score(X, y) == expected
    scores = search.cv_results_["mean_test_score"]
    # Four of five rows are marked: as a class of their own they would cap it at 0.2.
    assert scores.min() > 0.6


@pytest.mark.parametrize("n_folds", [2, 5])
def test_stratifying_on_y_shares_out_both_kinds_of_rows(n_folds, problem):
    """As the guide says: with a marker that is a number or a string."""
    X, y, _, _ = problem
    for marked in (y, np.where(LABELLED, np.array(["a", "b"])[y], "?")):
        for _, test in StratifiedKFold(n_folds).split(X, marked):
            assert abs(LABELLED[test].sum() - LABELLED.sum() / n_folds) < 2


def test_weights_reach_the_score_where_they_are_requested(problem):
    X, y, E, head = problem
    weight = np.random.RandomState(0).rand(len(y))
    student, data = student_of(head), {"teacher_embeddings": E, "sample_weight": weight}
    cv = StratifiedKFold(2)
    expected = []
    for train, test in cv.split(X, y):
        fitted = clone(student).fit(
            X[train],
            y[train],
            teacher_embeddings=E[train],
            sample_weight=weight[train],
        )
        rows = test[LABELLED[test]]
        expected.append(fitted.score(X[rows], y[rows], sample_weight=weight[rows]))
    with config_context(enable_metadata_routing=True):
        of_caller = get_scorer("accuracy").set_score_request(sample_weight=True)
        for scorer in (
            labeled_scorer().set_score_request(sample_weight=True),
            labeled_scorer(of_caller),
        ):
            found = cross_val_score(student, X, y, scoring=scorer, cv=cv, params=data)
            assert found.tolist() == expected
        scorer = labeled_scorer().set_score_request(sample_weight=False)
        unweighted = cross_val_score(student, X, y, scoring=scorer, cv=cv, params=data)
    assert not np.allclose(unweighted, expected)


def test_weights_of_a_search_without_routing(problem):
    """scikit-learn hands weights to a scorer that takes them, in newer versions."""
    X, y, E, head = problem
    weight = np.linspace(0.1, 1, len(y))
    for scoring in ("accuracy", make_scorer(accuracy_score)):
        search = GridSearchCV(
            student_of(head), {"max_epochs": [1]}, scoring=labeled_scorer(scoring), cv=2
        )
        search.fit(X, y, teacher_embeddings=E, sample_weight=weight)
        assert np.isfinite(search.best_score_)


@pytest.mark.parametrize("named", [False, True])
def test_a_monitor_leaves_unlabelled_rows_out(named, problem):
    callback = pytest.importorskip("sklearn.callback")
    X, y, E, head = problem
    scoring = {"score": labeled_scorer()} if named else labeled_scorer()
    monitor = callback.ScoringMonitor(scoring=scoring)
    student = student_of(head).set_callbacks(monitor).fit(X, y, teacher_embeddings=E)
    logged = [r["score"] for r in monitor.get_logs().data if r["task_name"] == "epoch"]
    assert logged[-1] == student.score(X[LABELLED], y[LABELLED])


def test_scorers_can_be_copied_and_tell_what_they_are(problem, classifier):
    X, y, _, _ = problem
    scorer = labeled_scorer("roc_auc", unlabeled=-1)
    assert repr(scorer) == "labeled_scorer('roc_auc', unlabeled=-1)"
    expected = scorer(classifier, X, y)
    assert pickle.loads(pickle.dumps(scorer))(classifier, X, y) == expected
    search = GridSearchCV(classifier, {"C": [1]}, scoring=scorer)
    assert clone(search).scoring(classifier, X, y) == expected


def test_no_label_to_score_against(problem, classifier):
    X, y, _, _ = problem
    message = r"no label in 120 rows .unlabeled=-1.*StratifiedKFold"
    with pytest.raises(ValueError, match=message):
        labeled_scorer()(classifier, X[~LABELLED], y[~LABELLED])
    with pytest.raises(ValueError, match="no label in 150 rows"):
        labeled_scorer()(classifier, X, None)


def test_a_label_that_is_missing_and_not_marked(problem, classifier):
    X, y, _, _ = problem
    missing = np.where(y == -1, np.nan, y)
    with pytest.raises(ValueError, match=r"first in row 1 .*pass unlabeled=nan"):
        labeled_scorer()(classifier, X, missing)


def test_y_of_another_length(problem, classifier):
    X, y, _, _ = problem
    with pytest.raises(ValueError, match="y has 149 rows and X has 150"):
        labeled_scorer()(classifier, X, y[1:])


@pytest.mark.parametrize(
    ("scoring", "error", "message"),
    [
        ("accurate", ValueError, r"scoring='accurate'.*get_scorer_names"),
        (["accuracy"], TypeError, r"scoring is \['accuracy'\].*a dict"),
        (None, TypeError, "scoring is None"),
        (accuracy_score, ValueError, "make_scorer"),
    ],
)
def test_what_is_no_scorer(scoring, error, message):
    with pytest.raises(error, match=message):
        labeled_scorer(scoring)
