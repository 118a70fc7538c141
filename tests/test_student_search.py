"""The student in scikit-learn's pipelines and searches, with the teacher's data."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - enables
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from lelp_sklearn import EmbeddingExtractor, LELPProjector, LELPStudentClassifier
from tests.student_problems import MyNet, make_groups

routing = pytest.mark.parametrize("enable_metadata_routing", [False, True])


@pytest.fixture(scope="module")
def problem():
    return make_groups(n_rows=150, width=16)


def test_snippet_of_the_projector(problem):
    _, y, E, (W, b) = problem
    n, C = len(E), 2
    proj = LELPProjector(n_subclasses=8, head=(W, b))
    soft = proj.fit_transform(E, y)
    assert soft.shape == (n, C * 8)
    assert_allclose(proj.inverse_transform(soft).sum(axis=1), 1)


@pytest.mark.slow
@routing
def test_snippet_of_the_search(enable_metadata_routing, problem):
    X, y, E, (W, b) = problem
    with config_context(enable_metadata_routing=enable_metadata_routing):
        student = LELPStudentClassifier(
            module=MyNet, projector=LELPProjector(head=(W, b)), random_state=0
        )
        pipe = make_pipeline(StandardScaler(), student)
        grid = GridSearchCV(
            pipe, {"lelpstudentclassifier__projector__n_subclasses": [1, 2, 5, 10]}
        )
        if enable_metadata_routing:
            grid.fit(X, y, teacher_embeddings=E)
        else:
            grid.fit(X, y, lelpstudentclassifier__teacher_embeddings=E)
    assert np.isfinite(grid.cv_results_["mean_test_score"]).all()
    assert grid.best_estimator_.score(X, y) > 0.9


@routing
def test_snippet_of_soft_targets(enable_metadata_routing, problem):
    X, y, E, head = problem
    soft = LELPProjector(n_subclasses=8, head=head).fit_transform(E, y)
    with config_context(enable_metadata_routing=enable_metadata_routing):
        student = LELPStudentClassifier(module=MyNet).fit(X, y, soft_targets=soft)
        result = cross_validate(
            student.set_params(max_epochs=2), X, y, params={"soft_targets": soft}, cv=2
        )
    assert student.predict_subclass_proba(X).shape == soft.shape
    assert np.isfinite(result["test_score"]).all()


def test_search_in_two_processes_gives_what_one_gives(problem):
    X, y, E, head = problem
    student = LELPStudentClassifier(
        MyNet, projector=LELPProjector(head=head), max_epochs=2, random_state=0
    )
    parameters = {
        "projector__n_subclasses": [1, 3],
        "module_params": [{"hidden": 4}, {"hidden": 16}],
    }
    searches = [
        GridSearchCV(student, parameters, cv=2, n_jobs=n_jobs).fit(
            X, y, teacher_embeddings=E
        )
        for n_jobs in (1, 2)
    ]
    first, second = (search.cv_results_["mean_test_score"] for search in searches)
    assert_array_equal(first, second)
    assert searches[0].best_params_ == searches[1].best_params_
    assert len(set(first)) > 1


class SpyProjector(LELPProjector):
    """Remembers on which rows it was fitted."""

    fitted_on = []  # noqa: RUF012 (shared by clones on purpose)

    def fit(self, X, y=None, *, teacher_logits=None, sample_weight=None):
        self.fitted_on.append((np.array(X), np.array(y), teacher_logits))
        return super().fit(
            X, y, teacher_logits=teacher_logits, sample_weight=sample_weight
        )


@routing
def test_folds_see_their_own_rows_only(enable_metadata_routing, problem):
    X, y, E, _ = problem
    logits = np.random.RandomState(0).normal(size=(len(X), 2))
    SpyProjector.fitted_on.clear()
    cv = KFold(3, shuffle=True, random_state=0)
    student = LELPStudentClassifier(projector=SpyProjector(3), max_epochs=1)
    pipe = make_pipeline(StandardScaler(), student)
    with config_context(enable_metadata_routing=enable_metadata_routing):
        prefix = "" if enable_metadata_routing else "lelpstudentclassifier__"
        data = {f"{prefix}teacher_embeddings": E, f"{prefix}teacher_logits": logits}
        cross_validate(pipe, X, y, cv=cv, params=data)
    assert len(SpyProjector.fitted_on) == 3
    for (train, _), seen in zip(cv.split(X), SpyProjector.fitted_on, strict=True):
        assert_array_equal(seen[0], E[train])
        assert_array_equal(seen[1], y[train])
        assert_array_equal(seen[2], logits[train])


@routing
def test_weights_of_rows_are_sliced_too(enable_metadata_routing, problem):
    X, y, E, head = problem
    weight = np.random.RandomState(0).randint(3, size=len(X)).astype(float)
    student = LELPStudentClassifier(
        projector=LELPProjector(2, head=head), max_epochs=2, random_state=0
    )
    cv = StratifiedKFold(2)
    data = {"teacher_embeddings": E, "sample_weight": weight}
    with config_context(enable_metadata_routing=enable_metadata_routing):
        if enable_metadata_routing:
            student.set_score_request(sample_weight=False)
        result = cross_validate(
            student, X, y, cv=cv, params=data, return_estimator=True
        )
    for (train, _), found in zip(cv.split(X, y), result["estimator"], strict=True):
        expected = LELPStudentClassifier(**student.get_params(deep=False))
        expected.fit(
            X[train],
            y[train],
            teacher_embeddings=E[train],
            sample_weight=weight[train],
        )
        assert_array_equal(found.predict_proba(X), expected.predict_proba(X))


def test_validation_rows_are_transformed_by_the_pipeline(problem):
    X, y, E, head = problem
    X_val, y_val, E_val = X[::2] + 0.1, y[::2], E[::2]
    student = LELPStudentClassifier(
        projector=LELPProjector(2, head=head),
        early_stopping=True,
        max_epochs=3,
        random_state=0,
    )
    validation = {"X_val": X_val, "y_val": y_val, "teacher_embeddings_val": E_val}
    with config_context(enable_metadata_routing=True):
        asking = clone(student).set_fit_request(**dict.fromkeys(validation, True))
        pipe = make_pipeline(StandardScaler(), asking, transform_input=["X_val"])
        pipe.fit(X, y, teacher_embeddings=E, **validation)
    scaler = StandardScaler().fit(X)
    validation["X_val"] = scaler.transform(X_val)
    student.fit(scaler.transform(X), y, teacher_embeddings=E, **validation)
    assert pipe[-1].validation_scores_ == student.validation_scores_


SEARCHED = {
    "projector__n_subclasses": [1, 3],
    "projector__splitter": ["kmeans", "pca"],
    "projector__subclass_temperature": [0.0, 0.1],
    "projector__temperature": [1.0, 4.0],
    "label_weight": [0.0, 0.5],
    "subclass_weight": [0.0, 1.0],
    "module_params": [{"hidden_layer_sizes": (4,)}, {"hidden_layer_sizes": (8, 8)}],
}


@pytest.mark.parametrize(
    ("search", "options"),
    [
        (GridSearchCV, {"param_grid": {n: SEARCHED[n] for n in list(SEARCHED)[:2]}}),
        (
            RandomizedSearchCV,
            {"param_distributions": SEARCHED, "n_iter": 6, "random_state": 0},
        ),
        (
            HalvingGridSearchCV,
            {
                "param_grid": {n: v for n, v in SEARCHED.items() if "_weight" in n},
                "random_state": 0,
                "min_resources": 60,
            },
        ),
    ],
)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_every_search_over_every_parameter(search, options, n_jobs, problem):
    X, y, E, head = problem
    student = LELPStudentClassifier(
        projector=LELPProjector(head=head, random_state=0), max_epochs=2, random_state=0
    )
    found = search(student, cv=2, n_jobs=n_jobs, error_score="raise", **options)
    found.fit(X, y, teacher_embeddings=E)
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
    assert found.best_estimator_.predict(X).shape == y.shape


class CountingTeacher(nn.Module):
    """Counts the rows that it sees."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.n_rows = nn.Linear(6, 12), nn.Linear(12, 2), 0

    def forward(self, x):
        self.n_rows += len(x)
        return self.head(self.body(x).relu())


@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_what_a_search_costs_the_teacher(problem):
    X, y, _, _ = problem
    model = CountingTeacher()
    extractor = EmbeddingExtractor(model)
    student = LELPStudentClassifier(
        projector=LELPProjector(head=model.head), max_epochs=1, random_state=0
    )
    grid = {"projector__n_subclasses": [1, 2, 3]}
    # A fit runs the first eight rows three times.
    n, n_in_fit = len(X), 3 * 8
    embeddings = extractor.fit_transform(X)
    GridSearchCV(student, grid, cv=3).fit(X, y, teacher_embeddings=embeddings)
    assert model.n_rows == n_in_fit + n
    # With the model inside each fit runs it: 3 candidates on 3 folds, and the best.
    model.n_rows = 0
    student.set_params(teacher=extractor)
    GridSearchCV(student, grid, cv=3).fit(X, y)
    assert model.n_rows == 3 * 2 * n + n + 10 * n_in_fit


def test_a_fitted_classifier_as_head_stays_fitted_in_a_search(problem):
    X, y, E, _ = problem
    head = LogisticRegression(C=1e-4).fit(E, y)
    student = LELPStudentClassifier(
        projector=LELPProjector(2, head=head), max_epochs=1, random_state=0
    )
    grid = GridSearchCV(student, {"projector__n_subclasses": [1, 2]}, cv=2)
    grid.fit(X, y, teacher_embeddings=E)
    some = slice(0, 60)
    student.fit(X[some], y[some], teacher_embeddings=E[some])
    for fitted in (student, grid.best_estimator_):
        coef = fitted.projector_.coef_
        assert_allclose(coef[1] - coef[0], head.coef_[0])
    # It says the classes where there are no labels.
    student.fit(X, teacher_embeddings=E)
    assert_array_equal(student.classes_, head.classes_)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("projector__n_subclasses", r"projector=LELPProjector\(\)"),
        ("teacher__layer", "teacher=EmbeddingExtractor"),
    ],
)
def test_parameters_of_what_is_none(name, needed, problem):
    X, y, E, _ = problem
    message = f"{name} cannot be set: {name.partition('__')[0]} is None.*{needed}"
    search = GridSearchCV(LELPStudentClassifier(max_epochs=1), {name: [1, 2]}, cv=2)
    with pytest.raises(ValueError, match=message):
        search.fit(X, y, teacher_embeddings=E)
    student = LELPStudentClassifier()
    with pytest.raises(ValueError, match=message):
        student.set_params(**{name: 1})
    with pytest.raises(ValueError, match=message):
        LELPStudentClassifier(
            projector=LELPProjector(), teacher=EmbeddingExtractor(nn.Identity())
        ).set_params(**{name: 1, name.partition("__")[0]: None})
    # Set in the same call, they are there.
    given = {"projector": LELPProjector(), "teacher": EmbeddingExtractor(nn.Identity())}
    student.set_params(**given, **{name: 1})
    assert student.get_params()[name] == 1


def test_parameters_that_do_not_exist():
    with pytest.raises(ValueError, match="Invalid parameter 'projectors'"):
        LELPStudentClassifier().set_params(projectors__n_subclasses=1)
