"""LELPMetaClassifier: what an estimator is fitted on, and what is made of it."""

import pickle

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import log_softmax, softmax
from sklearn import config_context
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LogisticRegression,
    Ridge,
    RidgeCV,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.class_weight import compute_sample_weight

from lelp_sklearn import LELPMetaClassifier, LELPProjector, NoTeacherWarning
from tests.problems import integer_weights
from tests.student_problems import MatrixTeacher, make_groups

X, Y, E, _ = make_groups()
LINEAR = LogisticRegression().fit(E, Y)
HEAD = LINEAR.coef_, LINEAR.intercept_
# Soft, so that rows have mass on many subclasses.
SOFT = LELPProjector(
    6, head=HEAD, subclass_temperature=1.0, temperature=4.0, random_state=0
).fit_transform(E, Y)


def exact():
    return LogisticRegression(tol=1e-10, max_iter=10_000)


def meta(estimator, n_subclasses=3, **options):
    projector = LELPProjector(n_subclasses, head=HEAD, temperature=2.0)
    options = {"projector": projector, "random_state": 0} | options
    return LELPMetaClassifier(estimator, **options)


def test_an_automatic_temperature_is_one():
    """The probabilities are those of the teacher, not softened ones."""
    sure = 9 * HEAD[0], 9 * HEAD[1]
    found, expected = (
        LELPMetaClassifier(
            exact(), projector=LELPProjector(3, head=sure, **options), random_state=0
        ).fit(X, Y, teacher_embeddings=E)
        for options in ({}, {"temperature": 1.0})
    )
    assert_array_equal(found.predict_proba(X), expected.predict_proba(X))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_one_subclass_is_logistic_regression_on_soft_labels(n_classes):
    X, y, E, head = make_groups(n_classes=n_classes)
    projector = LELPProjector(1, head=head, temperature=3.0)
    linear = LELPMetaClassifier(exact(), projector=projector)
    linear.fit(X, y, teacher_embeddings=E)
    p = softmax((E @ head[0].T + head[1]) / 3.0, axis=1)
    # Two classes have one vector of weights, as in scikit-learn.
    n_vectors = 1 if n_classes == 2 else n_classes

    def logits(weights):
        A = X @ weights.reshape(-1, n_vectors)[:-1] + weights[-n_vectors:]
        return np.hstack([np.zeros_like(A), A]) if n_classes == 2 else A

    def objective(weights):
        loss = -(p * log_softmax(logits(weights), axis=1)).sum()
        return loss + (weights[:-n_vectors] ** 2).sum() / 2

    start = np.zeros((X.shape[1] + 1) * n_vectors)
    solution = minimize(objective, start, method="BFGS", options={"gtol": 1e-7})
    expected = softmax(logits(solution.x), axis=1)
    assert_allclose(linear.predict_proba(X), expected, atol=1e-6)


@pytest.mark.parametrize("max_subclasses", [1, 3, 5])
def test_examples_are_the_likeliest_subclasses_up_to_nearly_all_the_mass(
    max_subclasses,
):
    weights = 1 + integer_weights(len(X))
    tree = LELPMetaClassifier(
        DecisionTreeClassifier(max_depth=1), max_subclasses=max_subclasses
    )
    tree.fit(X, Y, soft_targets=SOFT, sample_weight=weights)
    falling = -np.sort(-SOFT, axis=1)
    n_needed = 1 + (falling.cumsum(axis=1) < 0.99).sum(axis=1)
    n_copies = np.minimum(n_needed, max_subclasses)
    mass = [row[:n].sum() for row, n in zip(falling, n_copies, strict=True)]
    root = tree.estimator_.tree_
    assert root.n_node_samples[0] == n_copies.sum() <= max_subclasses * len(X)
    assert_allclose(root.weighted_n_node_samples[0], weights @ mass)


def test_with_one_subclass_nothing_is_left_out():
    p = np.tile([0.995, 0.004, 0.001], (60, 1))[:, [0, 1, 2]]
    p = np.stack([np.roll(row, i) for i, row in enumerate(p)])
    tree = LELPMetaClassifier(DecisionTreeClassifier(max_depth=1), max_subclasses=1)
    tree.fit(X[:60], np.arange(60) % 3, soft_targets=p)
    assert tree.estimator_.tree_.n_node_samples[0] == 3 * 60


def test_weights_are_repetitions():
    weights = integer_weights(len(X))
    rows = np.repeat(np.arange(len(X)), weights.astype(int))
    weighted, repeated = meta(exact()), meta(exact())
    weighted.fit(X, Y, teacher_embeddings=E, sample_weight=weights)
    repeated.fit(X[rows], Y[rows], teacher_embeddings=E[rows])
    assert_allclose(
        weighted.predict_subclass_proba(X),
        repeated.predict_subclass_proba(X),
        atol=1e-6,
    )


@pytest.mark.parametrize("class_weight", [{0: 3.0}, "balanced"])
def test_class_weights_are_factors_of_sample_weights(class_weight):
    rows = np.flatnonzero((Y == 0) | (np.arange(len(Y)) % 3 == 0))
    data = {"soft_targets": SOFT[rows]}
    weighted = LELPMetaClassifier(exact(), class_weight=class_weight)
    weighted.fit(X[rows], Y[rows], **data)
    factors = {0: 3.0, 1: 1.0} if class_weight != "balanced" else class_weight
    weights = compute_sample_weight(factors, Y[rows])
    plain = LELPMetaClassifier(exact())
    plain.fit(X[rows], Y[rows], sample_weight=weights, **data)
    assert_allclose(weighted.predict_proba(X), plain.predict_proba(X), atol=1e-6)


def test_rows_without_a_label_take_the_class_of_the_teacher():
    likeliest = LINEAR.predict(E)
    expected = meta(exact()).fit(X, likeliest, teacher_embeddings=E)
    without = meta(exact()).fit(X, teacher_embeddings=E)
    marked = np.where(np.arange(len(Y)) % 3, likeliest, -1)
    partly = meta(exact(), unlabeled=-1).fit(X, marked, teacher_embeddings=E)
    for classifier in (without, partly):
        assert_array_equal(classifier.classes_, [0, 1])
        assert_allclose(
            classifier.predict_subclass_proba(X), expected.predict_subclass_proba(X)
        )


def test_names_of_classes_and_subclasses_that_are_never_seen():
    names = np.array(["ham", "spam"])[Y]
    soft = np.zeros((len(X), 6))
    soft[np.arange(len(X)), 3 * Y] = 1
    linear = LELPMetaClassifier(exact()).fit(X, names, soft_targets=soft)
    proba = linear.predict_subclass_proba(X)
    assert_array_equal(proba[:, [1, 2, 4, 5]], 0)
    assert_allclose(proba.sum(axis=1), 1)
    assert set(linear.predict(X)) == {"ham", "spam"}
    assert linear.score(X, names) > 0.8


def test_one_subclass_in_all_rows_needs_no_estimator():
    soft = np.zeros((len(X), 4))
    soft[:, 2] = 1
    linear = LELPMetaClassifier(exact()).fit(X, Y, soft_targets=soft)
    assert_array_equal(linear.predict_proba(X), np.tile([0.0, 1.0], (len(X), 1)))


@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(20, random_state=0),
        ExtraTreesClassifier(20, random_state=0),
        SGDClassifier(loss="log_loss", random_state=0),
        KNeighborsClassifier(),
        BaggingClassifier(DecisionTreeClassifier(), 5, random_state=0),
        MultiOutputRegressor(HistGradientBoostingRegressor(max_iter=5)),
        RandomForestRegressor(20, random_state=0),
    ],
)
def test_estimators(estimator):
    classifier = meta(estimator).fit(X, Y, teacher_embeddings=E)
    proba = classifier.predict_subclass_proba(X)
    assert proba.shape == (len(X), 6)
    assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    summed = proba.reshape(-1, 2, 3).sum(axis=2)
    assert_allclose(classifier.predict_proba(X), summed)
    with np.errstate(divide="ignore"):
        assert_allclose(classifier.predict_log_proba(X), np.log(summed))
    assert classifier.score(X, Y) > 0.8


@pytest.mark.parametrize(
    "library", ["lightgbm.LGBMClassifier", "xgboost.XGBClassifier"]
)
def test_boosting_libraries(library):
    module, name = library.split(".")
    boosting = getattr(pytest.importorskip(module), name)(n_estimators=5)
    assert meta(boosting).fit(X, Y, teacher_embeddings=E).score(X, Y) > 0.8


def test_classifier_without_probabilities_predicts_the_class_of_its_subclass():
    hinge = meta(SGDClassifier(random_state=0)).fit(X, Y, teacher_embeddings=E)
    assert not hasattr(hinge, "predict_proba")
    assert hinge.score(X, Y) > 0.8


def test_subclasses_make_a_linear_model_better():
    X, digit = load_digits(return_X_y=True)
    X, y = X / 16, digit % 2
    options = {"projector": LELPProjector(head=LogisticRegression().fit(X, y))}
    linear = LELPMetaClassifier(LogisticRegression(max_iter=300), **options)
    rows = slice(900)
    scores = []
    for n_subclasses in (1, 10):
        linear.set_params(projector__n_subclasses=n_subclasses)
        linear.fit(X[rows], y[rows], teacher_embeddings=X[rows])
        scores.append(linear.score(X[900:], y[900:]))
    assert scores[1] > scores[0] + 0.02


# --- estimators without weights, and regressors ---------------------------------------


def test_estimator_without_weights_gets_the_likeliest_subclass():
    nearest = LELPMetaClassifier(KNeighborsClassifier()).fit(X, Y, soft_targets=SOFT)
    expected = KNeighborsClassifier().fit(X, SOFT.argmax(axis=1))
    seen = expected.classes_
    assert_allclose(
        nearest.predict_subclass_proba(X)[:, seen], expected.predict_proba(X)
    )


def test_weights_for_an_estimator_without_weights_are_refused():
    weights = 1 + integer_weights(len(X))
    nearest = LELPMetaClassifier(KNeighborsClassifier())
    with pytest.raises(ValueError, match="KNeighborsClassifier takes no sample_weight"):
        nearest.fit(X, Y, soft_targets=SOFT, sample_weight=weights)
    nearest.set_params(class_weight="balanced")
    with pytest.raises(ValueError, match="class_weight give the rows different"):
        nearest.fit(X[:121], Y[:121], soft_targets=SOFT[:121])
    # Rows of weight 0 are left out.
    nearest.set_params(class_weight=None)
    nearest.fit(X, Y, soft_targets=SOFT, sample_weight=np.arange(len(X)) % 2)
    assert nearest.estimator_.n_samples_fit_ == len(X) // 2


@pytest.mark.parametrize("regressor", [Ridge(), KNeighborsRegressor(), RidgeCV()])
def test_regressor_is_fitted_to_the_soft_targets(regressor):
    classifier = LELPMetaClassifier(regressor).fit(X, Y, soft_targets=SOFT)
    predicted = np.maximum(regressor.fit(X, SOFT).predict(X), 0)
    expected = predicted / predicted.sum(axis=1, keepdims=True)
    assert_allclose(classifier.predict_subclass_proba(X), expected, atol=1e-12)


def test_weights_of_a_regressor():
    weights = integer_weights(len(X))
    classifier = LELPMetaClassifier(Ridge())
    classifier.fit(X, Y, soft_targets=SOFT, sample_weight=weights)
    expected = Ridge().fit(X, SOFT, sample_weight=weights).predict(X)
    assert_allclose(classifier.estimator_.predict(X), expected)


def test_regressor_of_one_output_is_refused():
    with pytest.raises(ValueError, match="wrap it in MultiOutputRegressor"):
        meta(HistGradientBoostingRegressor()).fit(X, Y, teacher_embeddings=E)


def test_neither_classifier_nor_regressor():
    with pytest.raises(TypeError, match="KMeans must be a classifier, or a regressor"):
        meta(KMeans()).fit(X, Y, teacher_embeddings=E)


# --- pipelines, searches, other inputs ------------------------------------------------


@pytest.mark.parametrize("is_nested", [False, True])
def test_first_steps_of_a_pipeline_are_fitted_on_the_rows(is_nested, tmp_path):
    last = make_pipeline(SelectKBest(k=3), exact()) if is_nested else exact()
    pipeline = make_pipeline(StandardScaler(), last, memory=str(tmp_path))
    classifier = LELPMetaClassifier(pipeline)
    weights = (np.arange(len(X)) % 3 > 0).astype(float)
    classifier.fit(X, Y, soft_targets=SOFT, sample_weight=weights)
    rows = np.flatnonzero(weights)
    scaler = StandardScaler().fit(X[rows])
    assert_allclose(classifier.estimator_[0].mean_, scaler.mean_)
    scaled = scaler.transform(X)
    if is_nested:
        selected = SelectKBest(k=3).fit(scaled[rows], Y[rows])
        scaled = selected.transform(scaled)
    alone = LELPMetaClassifier(exact())
    alone.fit(scaled[rows], Y[rows], soft_targets=SOFT[rows])
    assert_allclose(classifier.predict_proba(X), alone.predict_proba(scaled))
    assert classifier.n_features_in_ == X.shape[1]
    assert not hasattr(pipeline[0], "mean_")


@pytest.mark.parametrize("enable_metadata_routing", [False, True])
def test_search_with_the_teachers_embeddings(enable_metadata_routing):
    estimator = make_pipeline(StandardScaler(), LogisticRegression())
    grid = {
        "lelpmetaclassifier__projector__n_subclasses": [1, 3],
        "lelpmetaclassifier__estimator__logisticregression__C": [0.1, 1.0],
    }
    search = GridSearchCV(make_pipeline(StandardScaler(), meta(estimator)), grid, cv=2)
    prefix = "" if enable_metadata_routing else "lelpmetaclassifier__"
    with config_context(enable_metadata_routing=enable_metadata_routing):
        search.fit(X, Y, **{f"{prefix}teacher_embeddings": E})
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.score(X, Y) > 0.8


def test_parameters_of_a_projector_of_none():
    with pytest.raises(ValueError, match="projector is None, which has no parameters"):
        LELPMetaClassifier(exact()).set_params(projector__n_subclasses=2)


def test_sparse_rows_are_handed_on():
    rows = np.where(np.abs(X) > 1, X, 0)
    dense = meta(exact()).fit(rows, Y, teacher_embeddings=E)
    for convert in (csr_array, lambda rows: csr_array(rows).tocoo()):
        sparse = meta(exact()).fit(convert(rows), Y, teacher_embeddings=E)
        assert_allclose(
            sparse.predict_proba(csr_array(rows)), dense.predict_proba(rows), atol=1e-6
        )


def test_texts():
    words = np.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"])
    group = np.arange(len(X)) % 6
    texts = [f"{words[g]} {words[(g + 1) % 6]}" for g in group]
    classifier = meta(make_pipeline(TfidfVectorizer(), exact()))
    assert classifier.fit(texts, Y, teacher_embeddings=E).score(texts, Y) == 1
    with pytest.raises(ValueError, match="put a vectorizer before it"):
        meta(exact()).fit(texts, Y, teacher_embeddings=E)


def test_table_with_missing_values_and_categories():
    table = pd.DataFrame(X, columns=list("abcdef"))
    table.loc[::7, "a"] = np.nan
    table["kind"] = pd.Categorical(np.where(Y, "left", "right"))
    boosting = HistGradientBoostingClassifier(max_iter=5)
    boosted = meta(boosting).fit(table, Y, teacher_embeddings=E)
    assert boosted.score(table, Y) == 1
    assert_array_equal(boosted.feature_names_in_, table.columns)


def test_without_a_teacher_missing_values_count_as_zero():
    missing = np.where(np.arange(X.size).reshape(X.shape) % 11, X, np.nan)
    boosting = HistGradientBoostingClassifier(max_iter=5)
    options = {"projector": LELPProjector(3), "random_state": 0}
    with pytest.warns(NoTeacherWarning):
        boosted = LELPMetaClassifier(boosting, **options).fit(missing, Y)
    given = LELPMetaClassifier(boosting, projector=boosted.projector_, random_state=0)
    given.set_params(projector=FrozenEstimator(boosted.projector_))
    soft = boosted.projector_.transform(
        np.nan_to_num(missing), teacher_logits=1e4 * np.eye(2)[Y]
    )
    given.fit(missing, Y, soft_targets=soft)
    assert_allclose(given.predict_proba(missing), boosted.predict_proba(missing))


def test_sparse_rows_without_a_teacher():
    rows = csr_array(np.where(np.abs(X) > 1, X, 0))
    with pytest.warns(NoTeacherWarning):
        linear = LELPMetaClassifier(exact(), random_state=0).fit(rows, Y)
    assert linear.score(rows, Y) > 0.8


def test_teacher_makes_the_embeddings():
    matrix = np.random.RandomState(0).normal(size=(6, 9))
    head = LogisticRegression().fit(X @ matrix, Y)
    teacher = MatrixTeacher(matrix, (head.coef_, head.intercept_))
    classifier = LELPMetaClassifier(
        exact(), projector=LELPProjector(3), teacher=teacher, random_state=0
    ).fit(X, Y)
    given = meta(exact(), projector=LELPProjector(3, head=head))
    given.fit(X, Y, teacher_embeddings=X @ matrix)
    assert_allclose(classifier.predict_proba(X), given.predict_proba(X))
    loaded = pickle.loads(pickle.dumps(classifier))
    assert loaded.teacher.name == "MatrixTeacher"
    assert_array_equal(loaded.predict_proba(X), classifier.predict_proba(X))


def test_rows_of_another_number_than_targets():
    with pytest.raises(ValueError, match="soft_targets"):
        LELPMetaClassifier(exact()).fit(X[:-1], Y[:-1], soft_targets=SOFT)


def test_a_fold_has_fewer_rows_than_subclasses():
    search = GridSearchCV(
        meta(exact()), {"projector__n_subclasses": [25]}, cv=2, error_score="raise"
    )
    rows = np.arange(40)
    with pytest.raises(
        ValueError, match=r"n_subclasses=25 is more than class .* allows"
    ):
        search.fit(X[rows], Y[rows], teacher_embeddings=E[rows])


# --- estimators that split rows -------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (CalibratedClassifierCV(), "cv"),
        (GridSearchCV(LogisticRegression(), {"C": [1]}), "cv"),
        (StackingClassifier([("linear", LogisticRegression())]), "cv"),
        (SGDClassifier(early_stopping=True), "early_stopping"),
        (GradientBoostingClassifier(n_iter_no_change=3), "n_iter_no_change"),
        (
            BaggingClassifier(HistGradientBoostingClassifier(early_stopping=True)),
            "estimator__early_stopping",
        ),
        (make_pipeline(StandardScaler(), CalibratedClassifierCV()), "cv"),
    ],
)
def test_estimator_that_splits_rows_is_refused(estimator, name):
    with pytest.raises(ValueError, match=rf"splits its rows itself \({name}="):
        LELPMetaClassifier(estimator).fit(X, Y, soft_targets=SOFT)


def test_early_stopping_that_depends_on_the_rows_is_switched_off():
    boosting = HistGradientBoostingClassifier(max_iter=2)
    classifier = LELPMetaClassifier(boosting).fit(X, Y, soft_targets=SOFT)
    assert classifier.estimator_.early_stopping is False
    assert boosting.early_stopping == "auto"


def test_first_step_may_split_rows():
    identity = FunctionTransformer()
    identity.cv = 5
    pipeline = make_pipeline(identity, exact())
    LELPMetaClassifier(pipeline).fit(X, Y, soft_targets=SOFT)


def test_a_failed_fit_leaves_the_classifier_as_it_was():
    X, y = load_digits(return_X_y=True)
    soft = np.eye(10)[y]
    meta = LELPMetaClassifier(LogisticRegression(tol=0.1)).fit(
        X / 16, y, soft_targets=soft
    )
    expected = meta.predict(X / 16)
    with pytest.raises(ValueError, match="NaN"):
        meta.fit(np.full_like(X, np.nan), y % 2, soft_targets=np.eye(2)[y % 2])
    np.testing.assert_array_equal(meta.predict(X / 16), expected)


def test_a_support_vector_machine_that_splits_rows_is_refused():
    X, y = load_digits(return_X_y=True)
    meta = LELPMetaClassifier(SVC(probability=True))
    with pytest.raises(ValueError, match="set probability=False"):
        meta.fit(X, y, soft_targets=np.eye(10)[y])


def test_a_regressor_without_weights_is_fitted_by_one_that_takes_them():
    X, y = load_digits(return_X_y=True)
    inner = KNeighborsRegressor()
    meta = LELPMetaClassifier(MultiOutputRegressor(inner))
    meta.fit(X, y, soft_targets=np.eye(10)[y])
    assert meta.score(X, y) > 0.95
