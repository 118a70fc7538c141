"""Fitted classifiers of scikit-learn as teachers, and cross-fitted ones."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPMetaClassifier,
    LELPProjector,
    LELPStudentClassifier,
    NoLinearHeadWarning,
    OverfittedTeacherWarning,
)

X, Y = make_classification(300, 8, n_informative=6, flip_y=0.2, random_state=0)
Y3 = np.searchsorted(np.quantile(X[:, 0] + X[:, 1], [0.3, 0.6]), X[:, 0] + X[:, 1])

WITH_HEAD = [
    LogisticRegression(),
    LinearSVC(),
    MLPClassifier((12, 5), max_iter=30, random_state=0),
    MLPClassifier(4, activation="tanh", max_iter=30, random_state=0),
    MLPClassifier(4, activation="logistic", max_iter=30, random_state=0),
    HistGradientBoostingClassifier(max_iter=7),
    GradientBoostingClassifier(n_estimators=6),
    make_pipeline(StandardScaler(), LogisticRegression()),
    make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=4)),
    StackingClassifier(
        [("trees", ExtraTreesClassifier(5)), ("svm", LinearSVC())], cv=2
    ),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("model", WITH_HEAD)
def test_head_gives_the_decision_function(model, n_classes):
    y = Y if n_classes == 2 else Y3
    model = clone(model).fit(X, y)
    extractor = EmbeddingExtractor(model).fit(X[:200])
    coef, intercept = extractor.head_
    logits = extractor.transform(X) @ coef.T + intercept
    assert logits.shape == (300, 1 if n_classes == 2 else 3)
    if hasattr(model, "decision_function"):
        expected = model.decision_function(X).reshape(len(X), -1)
        assert_allclose(logits, expected, atol=1e-6)
    else:
        projector = LELPProjector(1, head=extractor.head_, temperature=1.0)
        soft = projector.fit_transform(extractor.transform(X), y)
        assert_allclose(soft, model.predict_proba(X), atol=1e-6)


def boosting_of(library, **options):
    module = pytest.importorskip(library)
    if library == "lightgbm":
        return module.LGBMClassifier(n_jobs=1, verbosity=-1, **options)
    return module.XGBClassifier(n_jobs=1, **options)


def raw_scores(model, X):
    is_lightgbm = type(model).__name__ == "LGBMClassifier"
    options = {"raw_score": True} if is_lightgbm else {"output_margin": True}
    return model.predict(X, **options).reshape(len(X), -1)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_head_gives_the_log_odds_of_boosting_libraries(library, n_classes):
    y = Y if n_classes == 2 else Y3
    holey = np.where(X > 2, np.nan, X)
    model = boosting_of(library, n_estimators=12).fit(holey, y)
    extractor = EmbeddingExtractor(model).fit(holey[:200])
    embeddings = extractor.transform(holey)
    coef, intercept = extractor.head_
    assert embeddings.shape == (300, 12 * len(coef))
    expected = raw_scores(model, holey)
    assert_allclose(embeddings @ coef.T + intercept, expected, atol=2e-6)
    logits = extractor.predict_logits(holey)
    assert_allclose(np.exp(logits), model.predict_proba(holey), atol=1e-6)


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_rounds_after_the_best_one_are_left_out(library):
    is_lightgbm = library == "lightgbm"
    name = "early_stopping_round" if is_lightgbm else "early_stopping_rounds"
    model = boosting_of(library, n_estimators=200, **{name: 3})
    model.fit(X[:150], Y[:150], eval_set=[(X[150:], Y[150:])])
    extractor = EmbeddingExtractor(model).fit(X)
    embeddings = extractor.transform(X)
    assert embeddings.shape[1] < 150
    assert_allclose(embeddings.sum(axis=1), raw_scores(model, X)[:, 0], atol=2e-6)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_boosting_libraries_are_cross_fitted(library):
    teacher = boosting_of(library, n_estimators=5)
    one = student(teacher, teacher_cv=3)
    one.set_params(projector__n_subclasses=1).fit(X, Y)
    proba = cross_val_predict(teacher, X, Y, cv=3, method="predict_proba")
    expected = student(None, projector=LELPProjector(1)).fit(X, Y, soft_targets=proba)
    assert_allclose(one.predict_proba(X), expected.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("kind", [RandomForestClassifier, ExtraTreesClassifier])
def test_forest_has_components_of_leaves_and_logits(kind):
    forest = kind(10, max_depth=4, random_state=0).fit(X, Y)
    extractor = EmbeddingExtractor(forest).fit(X[:200])
    assert extractor.head_ is None
    logits = extractor.predict_logits(X)
    assert_allclose(np.exp(logits), forest.predict_proba(X), atol=1e-6)
    # The more leaves rows share, the nearer are their embeddings.
    embeddings = extractor.transform(X)
    assert embeddings.shape == (300, 32)
    leaves = forest.apply(X)
    i, j = np.triu_indices(60, 1)
    shared = (leaves[i] == leaves[j]).mean(axis=1)
    distance = np.linalg.norm(embeddings[i] - embeddings[j], axis=1)
    assert np.corrcoef(shared, distance)[0, 1] < -0.8


def test_weights_that_do_not_give_the_probabilities():
    model = SGDClassifier(loss="modified_huber", random_state=0).fit(X, Y)
    extractor = EmbeddingExtractor(model)
    with pytest.warns(NoLinearHeadWarning, match="head_ is None, and the logarithms"):
        extractor.fit(X)
    assert extractor.head_ is None
    assert extractor.n_logits_ == 2


def test_extractor_is_cloned_and_pickled_with_its_classifier(tmp_path):
    model = HistGradientBoostingClassifier(max_iter=3).fit(X, Y)
    extractor = EmbeddingExtractor(model).fit(X)
    assert clone(extractor).model is model
    loaded = pickle.loads(pickle.dumps(extractor))
    assert_array_equal(loaded.transform(X), extractor.transform(X))
    with pytest.raises(TypeError, match="extract is for models of torch"):
        extractor.extract(X, tmp_path / "E.npy")


def test_classifier_without_known_embeddings():
    with pytest.raises(TypeError, match="GaussianNB has no embeddings"):
        EmbeddingExtractor(GaussianNB().fit(X, Y)).fit(X)


# --- as teacher -----------------------------------------------------------------------


def student(teacher, **options):
    projector = LELPProjector(3, temperature=1.0)
    options = {"teacher": teacher, "projector": projector, "random_state": 0} | options
    return LELPMetaClassifier(LogisticRegression(tol=1e-10, max_iter=5000), **options)


@pytest.mark.parametrize("wrap", [FrozenEstimator, EmbeddingExtractor])
def test_fitted_teacher_is_used_as_it_is(wrap):
    model = HistGradientBoostingClassifier(max_iter=7).fit(X, Y)
    classifier = student(wrap(model)).fit(X, Y)
    extractor = EmbeddingExtractor(model).fit(X)
    given = student(None, projector=LELPProjector(3, head=extractor.head_))
    given.set_params(projector__temperature=1.0)
    given.fit(X, Y, teacher_embeddings=extractor.transform(X))
    assert_allclose(classifier.predict_proba(X), given.predict_proba(X), atol=1e-6)


def test_bare_fitted_teacher_is_refused():
    model = RandomForestClassifier(5).fit(X, Y)
    for classifier in (student(model), LELPStudentClassifier(teacher=model)):
        with pytest.raises(ValueError, match=r"FrozenEstimator\(teacher\) or "):
            classifier.fit(X, Y)


@pytest.mark.parametrize(
    "model",
    [
        HistGradientBoostingClassifier(max_iter=2),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
)
def test_a_teacher_of_other_columns(model):
    extractor = EmbeddingExtractor(clone(model).fit(X[:, :5], Y))
    for classifier in (student(extractor), LELPStudentClassifier(teacher=extractor)):
        with pytest.raises(ValueError, match=r"8 features, but .* expecting 5 f"):
            classifier.fit(X, Y)


def test_splits_count_the_labelled_rows():
    labelled = np.flatnonzero(np.arange(len(Y)) % 3 > 0)
    marked = np.full(len(Y), -1)
    marked[labelled] = Y[labelled]
    splits = list(KFold(3).split(labelled))
    one, other = (
        student(RandomForestClassifier(5, random_state=0), unlabeled=-1, teacher_cv=cv)
        .fit(X, marked)
        .predict_proba(X)
        for cv in (splits, KFold(3))
    )
    assert_array_equal(one, other)


@pytest.mark.parametrize("teacher_cv", [3, KFold(4), None])
@pytest.mark.parametrize(
    "teacher",
    [
        RandomForestClassifier(10, random_state=0),
        HistGradientBoostingClassifier(max_iter=7),
        make_pipeline(
            StackingClassifier([("svm", LinearSVC())], LogisticRegression(), cv=2)
        ),
    ],
)
def test_class_targets_come_from_folds_that_did_not_hold_the_row(teacher, teacher_cv):
    one = student(teacher, teacher_cv=teacher_cv)
    one.set_params(projector__n_subclasses=1).fit(X, Y)
    if teacher_cv is None:
        proba = clone(teacher).fit(X, Y).predict_proba(X)
    else:
        proba = cross_val_predict(teacher, X, Y, cv=teacher_cv, method="predict_proba")
    expected = student(None, projector=LELPProjector(1))
    soft = np.maximum(proba, 1e-7)
    expected.fit(X, Y, soft_targets=soft / soft.sum(axis=1, keepdims=True))
    assert_allclose(one.predict_proba(X), expected.predict_proba(X), atol=1e-6)


def test_rows_without_a_label_are_asked_of_the_teacher_of_all():
    marked = np.where(np.arange(len(Y)) < 200, Y, -1)
    teacher = RandomForestClassifier(10, random_state=0)
    one = student(teacher, unlabeled=-1, teacher_cv=3)
    one.set_params(projector__n_subclasses=1).fit(X, marked)
    proba = np.vstack(
        [
            cross_val_predict(teacher, X[:200], Y[:200], cv=3, method="predict_proba"),
            clone(teacher).fit(X[:200], Y[:200]).predict_proba(X[200:]),
        ]
    )
    soft = np.maximum(proba, 1e-7)
    expected = student(None, projector=LELPProjector(1))
    expected.fit(X, Y, soft_targets=soft / soft.sum(axis=1, keepdims=True))
    assert_allclose(one.predict_proba(X), expected.predict_proba(X), atol=1e-6)


def test_teacher_that_has_learned_its_rows_by_heart():
    marked = np.where(np.arange(len(Y)) < 200, Y, -1)
    leaking = student(RandomForestClassifier(random_state=0), unlabeled=-1)
    leaking.set_params(teacher_cv=None)
    with pytest.warns(OverfittedTeacherWarning, match="learned the former by"):
        leaking.fit(X, marked)
    leaking.set_params(teacher_cv=5).fit(X, marked)


def test_teacher_that_is_to_be_fitted_needs_labels():
    with pytest.raises(ValueError, match="the teacher is fitted on labels"):
        student(RandomForestClassifier(5)).fit(X)


def test_a_torch_student_continues_with_the_same_targets():
    teacher = RandomForestClassifier(10, random_state=0)
    options = {"max_epochs": 3, "warm_start": True, "random_state": 0}
    crossed = LELPStudentClassifier(teacher=teacher, teacher_cv=3, **options)
    whole = EmbeddingExtractor(clone(teacher).fit(X, Y))
    given = LELPStudentClassifier(teacher=whole, **options)
    proba = cross_val_predict(teacher, X, Y, cv=3, method="predict_proba")
    logits = np.log(np.maximum(proba, 1e-7))
    for _ in range(2):
        crossed.fit(X, Y)
        given.fit(X, Y, teacher_logits=logits)
    assert_allclose(crossed.loss_curve_, given.loss_curve_)
    loaded = pickle.loads(pickle.dumps(crossed))
    assert_allclose(loaded.predict_proba(X), crossed.predict_proba(X))
    assert loaded.teacher.name == "RandomForestClassifier"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_perceptron_embeds_sparse_rows_as_dense_ones():
    model = make_pipeline(MLPClassifier((5,), max_iter=5, random_state=0)).fit(X, Y)
    extractor = EmbeddingExtractor(model).fit(csr_array(X))
    assert_allclose(
        extractor.transform(csr_array(X)),
        EmbeddingExtractor(model).fit(X).transform(X),
    )
