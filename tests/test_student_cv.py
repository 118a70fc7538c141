"""The search for a student's parameters, beside scikit-learn's own searches."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn import config_context
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - enables
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    ParameterGrid,
    StratifiedKFold,
    cross_validate,
)
from torch import nn

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    LELPStudentClassifierCV,
    NoTeacherWarning,
)
from tests.student_problems import BufferNet, MyNet, TemplateNet, make_groups

N_SUBCLASSES = {"projector__n_subclasses": [1, 3]}
GRID = {**N_SUBCLASSES, "learning_rate": [0.003, 0.03]}
CV = StratifiedKFold(2, shuffle=True, random_state=0)


@pytest.fixture(scope="module")
def problem():
    return make_groups(n_rows=150, width=16)


def make_student(head, module=None, **options):
    options = {"max_epochs": 3, "batch_size": 32, "random_state": 0, **options}
    projector = LELPProjector(head=head, random_state=0)
    return LELPStudentClassifier(module, projector=projector, **options)


class DropoutNet(MyNet):
    """Draws random numbers in each step."""

    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.body.append(nn.Dropout(0.3))


class BranchNet(MyNet):
    """Decides by the values of its weights, which no call on a stack can."""

    def forward(self, X):
        return super().forward(X if self.top.bias.sum() > 0 else X + 1e-3)


def tied_net(n_features, n_outputs):
    """Layers that share a weight."""
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    layers = first, nn.ReLU(), second, nn.ReLU(), nn.Linear(8, n_outputs)
    return nn.Sequential(nn.Linear(n_features, 8), nn.ReLU(), *layers)


def two_relus(n_features, n_outputs):
    """Return a perceptron in which one ReLU follows another."""
    layers = nn.ReLU(inplace=True), nn.ReLU(), nn.Linear(8, n_outputs)
    return nn.Sequential(nn.Linear(n_features, 8, bias=False), *layers)


def probabilities_of_search(student, grid, X, y, **options):
    """Probabilities of each candidate on the held-out rows of the first split."""
    seen = []

    def remember(candidate, X, y):
        seen.append(candidate.predict_proba(X))
        return float(len(seen))

    train, test = next(CV.split(X, y))
    search = LELPStudentClassifierCV(
        student, grid, cv=[(train, test)], scoring=remember, refit=False, verbose=1
    )
    search.fit(X, y, **options)
    order = search.cv_results_["mean_test_score"].astype(int) - 1
    return [seen[i] for i in order], train, test


TOGETHER = [
    (None, {}, {"projector__temperature": [1.0, 2.0]}),
    (None, {}, {"weight_decay": [0.0, 1.0], "subclass_weight": ["anneal", 1.0]}),
    (None, {"max_grad_norm": 0.3}, {"class_weight": [None, "balanced"]}),
    (None, {"module_params": {"hidden_layer_sizes": ()}}, {"batch_size": [32, 50]}),
    (None, {"learning_rate_schedule": "constant"}, {"label_weight": [0.0, 0.5]}),
    (
        None,
        {"augment": lambda X: X + 0.1 * torch.randn_like(X)},
        {"module_params": [{"hidden_layer_sizes": n} for n in ((8,), (8, 4))]},
    ),
    ("sparse", {}, {"weight_decay": [0.0, 0.1]}),
    (nn.Linear, {}, {"projector__n_subclasses": [1, 3], "max_epochs": [3, 2]}),
    (MyNet, {}, {"module_params": [{"hidden": 4}, {"hidden": 8}]}),
    (DropoutNet, {}, {}),
    (TemplateNet(), {}, {}),
    (tied_net, {}, {}),
    (two_relus, {}, {}),
]
ONE_BY_ONE = [
    (BufferNet, {}, {}),
    (BranchNet, {}, {}),
    (None, {"optimizer": torch.optim.SGD}, {}),
    (None, {"early_stopping": True}, {"n_iter_no_change": [1, 2]}),
]


@pytest.mark.parametrize(
    ("module", "options", "searched", "together"),
    [(*case, True) for case in TOGETHER] + [(*case, False) for case in ONE_BY_ONE],
)
def test_candidates_are_those_of_separate_fits(
    module, options, searched, together, problem, capsys
):
    """In single precision, after three epochs."""
    X, y, E, head = problem
    X, weight = X.astype(np.float32), 1 + y / 2
    if module == "sparse":
        X, module = csr_array(np.where(X > 1, X, 0)), None
    student = make_student(head, module, **options)
    student.projector.set_params(n_subclasses=3)
    grid = {"learning_rate": [0.003, 0.03], **searched}
    found, train, test = probabilities_of_search(
        student, grid, X, y, teacher_embeddings=E, sample_weight=weight
    )
    for params, probabilities in zip(ParameterGrid(grid), found, strict=True):
        alone = clone(student).set_params(**params)
        alone.fit(
            X[train],
            y[train],
            teacher_embeddings=E[train],
            sample_weight=weight[train],
        )
        assert_allclose(probabilities, alone.predict_proba(X[test]), atol=2e-5)
    assert ("one after the other" in capsys.readouterr().out) != together


def test_images_are_flattened(problem):
    X, y, E, head = problem
    X = X.astype(np.float32)
    found = [
        probabilities_of_search(make_student(head), GRID, rows, y, teacher_embeddings=E)
        for rows in (X, X.reshape(len(X), 2, 3))
    ]
    assert_array_equal(found[0][0], found[1][0])


def test_results_are_those_of_a_grid_search(problem):
    X, y, E, head = problem
    student = make_student(head)
    ours = LELPStudentClassifierCV(student, GRID, cv=CV, scoring="neg_log_loss")
    theirs = GridSearchCV(student, GRID, cv=CV, scoring="neg_log_loss")
    for search in (ours, theirs):
        search.fit(X, y, teacher_embeddings=E)
    assert set(ours.cv_results_) == set(theirs.cv_results_)
    for name, column in theirs.cv_results_.items():
        if name.endswith("_test_score"):
            assert_allclose(ours.cv_results_[name], column, rtol=1e-6)
        elif "time" not in name:
            assert_array_equal(ours.cv_results_[name], column)
    for name in ("best_params_", "best_index_", "n_splits_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.best_score_ == pytest.approx(theirs.best_score_)
    assert_array_equal(ours.predict_proba(X), theirs.predict_proba(X))
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y))


def test_halving_is_that_of_scikit_learn(problem):
    X, y, E, head = problem
    grid = {"learning_rate": [0.003, 0.03], "weight_decay": [0.0, 0.1, 1.0]}
    student = make_student(head, max_epochs=1)
    student.projector.set_params(n_subclasses=1)
    ours = LELPStudentClassifierCV(student, grid, cv=CV, factor=2, random_state=0)
    theirs = HalvingGridSearchCV(student, grid, cv=CV, factor=2, random_state=0)
    for search in (ours, theirs):
        search.fit(X, y, teacher_embeddings=E)
    assert ours.n_resources_ == theirs.n_resources_
    assert ours.n_candidates_ == theirs.n_candidates_
    for name in ("iter", "n_resources"):
        assert_array_equal(ours.cv_results_[name], theirs.cv_results_[name])
    is_last = ours.cv_results_["iter"] == len(ours.n_resources_) - 1
    assert is_last[ours.best_index_]
    assert ours.best_score_ == ours.cv_results_["mean_test_score"][is_last].max()


def test_best_has_the_probabilities_of_the_teacher(problem):
    """Without any label, at one temperature; the best is trained on all rows."""
    X, _, E, (W, b) = problem
    grid = {**N_SUBCLASSES, "projector__temperature": [1.0, 2.0]}
    teacher = softmax((E @ W.T + b) / 4, axis=1)
    student = make_student((W, b))
    train, test = np.arange(100), np.arange(100, 150)
    search = LELPStudentClassifierCV(student, grid, cv=[(train, test)])
    search.fit(X, teacher_embeddings=E)
    scores = []
    for params in ParameterGrid(grid):
        alone = clone(student).set_params(**params)
        alone.fit(X[train], teacher_embeddings=E[train])
        found = softmax(alone.predict_log_proba(X[test]) / 4, axis=1)
        scores.append(1 - np.abs(found - teacher[test]).sum(axis=1).mean() / 2)
    assert_allclose(search.cv_results_["mean_test_score"], scores)
    assert search.best_index_ == np.argmax(scores)
    best = clone(student).set_params(**search.best_params_)
    best.fit(X, teacher_embeddings=E)
    assert_array_equal(search.predict_proba(X), best.predict_proba(X))


def test_few_rows_are_held_out_several_times(problem):
    X, y, E, head = problem
    student = make_student(head, max_epochs=1)
    for fraction, n_splits in ((0.6, 3), (0.02, 5)):
        search = LELPStudentClassifierCV(
            student,
            {"learning_rate": [0.01]},
            validation_fraction=fraction,
            refit=False,
        )
        search.fit(X, y, teacher_embeddings=E)
        assert search.n_splits_ == n_splits


def test_without_a_teacher_the_score_is_the_probability_of_the_label(problem):
    X, y, *_ = problem
    student = make_student(None)
    train, test = next(CV.split(X, y))
    search = LELPStudentClassifierCV(
        student, {"learning_rate": [0.01]}, cv=[(train, test)]
    )
    with pytest.warns(NoTeacherWarning):
        search.fit(X, y)
    with pytest.warns(NoTeacherWarning):
        alone = student.set_params(learning_rate=0.01).fit(X[train], y[train])
    expected = alone.predict_proba(X[test])[np.arange(len(test)), y[test]]
    assert search.best_score_ == pytest.approx(expected.mean())


def test_default_grid_contains_vanilla_distillation(problem):
    X, y, E, _ = problem
    student = LELPStudentClassifier(max_epochs=10)
    search = LELPStudentClassifierCV(student, random_state=0, validation_fraction=0.3)
    search.fit(X, y, teacher_embeddings=E)
    numbers = search.cv_results_["param_projector__n_subclasses"]
    assert numbers[0] == 1
    assert set(numbers) == {1, "auto"}
    # The student as it comes is one of the candidates.
    plain = {"learning_rate": "auto", "max_epochs": 10}
    assert {**plain, "projector__n_subclasses": "auto"} in search.cv_results_["params"]
    assert isinstance(search.best_estimator_.random_state, int)
    # Where the number of subclasses is given with the targets, the rest is searched.
    soft = LELPProjector(3, random_state=0).fit_transform(E, y)
    search.fit(X, y, soft_targets=soft)
    assert set(search.best_params_) == {"learning_rate", "max_epochs"}
    frozen = FrozenEstimator(LELPProjector(3, random_state=0).fit(E, y))
    search.set_params(student=clone(student).set_params(projector=frozen))
    search.fit(X, y, teacher_embeddings=E)
    assert set(search.best_params_) == {"learning_rate", "max_epochs"}


def test_prediction_and_export_are_those_of_the_best(problem):
    X, y, E, head = problem
    search = LELPStudentClassifierCV(make_student(head), GRID)
    with pytest.raises(NotFittedError):
        search.predict(X)
    search.fit(X, y, teacher_embeddings=E)
    for name in (
        "predict",
        "predict_proba",
        "predict_log_proba",
        "predict_subclass_proba",
        "decision_function",
    ):
        best = getattr(search.best_estimator_, name)(X)
        assert_array_equal(getattr(search, name)(X), best)
    assert search.score(X, y) == search.best_estimator_.score(X, y)
    probabilities = search.to_module()(torch.from_numpy(X)).numpy()
    assert_allclose(probabilities, search.predict_proba(X))
    assert_array_equal(search.classes_, [0, 1])
    search.set_params(refit=False).fit(X, y, teacher_embeddings=E)
    assert not hasattr(search, "best_estimator_")
    with pytest.raises(AttributeError, match="refit=False leaves no student"):
        search.predict(X)


class CountingTeacher(nn.Module):
    """Counts the rows that it sees."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.n_rows = nn.Linear(6, 12), nn.Linear(12, 2), 0

    def forward(self, x):
        self.n_rows += len(x)
        return self.head(self.body(x).relu())


@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_teacher_runs_once_for_a_split(problem):
    X, y, _, _ = problem
    model = CountingTeacher()
    student = make_student(None, teacher=EmbeddingExtractor(model), max_epochs=1)
    search = LELPStudentClassifierCV(student, GRID, cv=CV).fit(X, y)
    # A fit runs the first eight rows three times.
    assert model.n_rows == (CV.get_n_splits() + 1) * (len(X) + 3 * 8)
    assert_array_equal(search.best_estimator_.projector_.coef_, model.head.weight.data)
    loaded = pickle.loads(pickle.dumps(search))
    assert_array_equal(loaded.predict_proba(X), search.predict_proba(X))
    assert search.student.teacher.model is model
    assert not isinstance(loaded.student.teacher, EmbeddingExtractor)


class SpyProjector(LELPProjector):
    """Remembers on which rows it was fitted."""

    fitted_on = []  # noqa: RUF012 (shared by clones on purpose)

    def fit(self, X, y=None, *, teacher_logits=None, sample_weight=None):
        self.fitted_on.append((self.n_subclasses, np.flatnonzero(sample_weight)))
        return super().fit(
            X, y, teacher_logits=teacher_logits, sample_weight=sample_weight
        )


def test_projector_is_fitted_once_for_each_setting(problem):
    X, y, E, _ = problem
    SpyProjector.fitted_on.clear()
    student = LELPStudentClassifier(projector=SpyProjector(), max_epochs=1)
    search = LELPStudentClassifierCV(student, GRID, cv=CV, refit=False)
    search.fit(X, y, teacher_embeddings=E)
    expected = [(S, train) for train, _ in CV.split(X, y) for S in (1, 3)]
    assert len(SpyProjector.fitted_on) == len(expected)
    for (S, train), (found, rows) in zip(expected, SpyProjector.fitted_on, strict=True):
        assert found == S
        assert_array_equal(rows, train)


def test_candidate_that_diverges_is_the_worst(problem):
    X, y, E, head = problem
    grid = {"learning_rate": [1e30, 0.01], "module_params": [None]}
    student = make_student(head)
    for module in (None, BufferNet):
        search = LELPStudentClassifierCV(student.set_params(module=module), grid)
        search.fit(X.astype(np.float32), y, teacher_embeddings=E)
        assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [True, False]
        assert search.best_params_["learning_rate"] == 0.01
        assert search.cv_results_["rank_test_score"].tolist() == [2, 1]
    search.set_params(param_grid={"learning_rate": [1e30]})
    with pytest.raises(FloatingPointError, match="every candidate is NaN"):
        search.fit(X.astype(np.float32), y, teacher_embeddings=E)


def test_interrupted_search_goes_on(problem, tmp_path):
    X, y, E, head = problem
    calls = []

    def score(candidate, X, y):
        calls.append(candidate)
        if len(calls) == interrupted_at:
            raise KeyboardInterrupt
        return candidate.score(X, y)

    interrupted_at = None
    options = {"cv": CV, "scoring": score, "random_state": 0}
    whole = LELPStudentClassifierCV(make_student(head), GRID, **options)
    whole.fit(X, y, teacher_embeddings=E)
    assert len(calls) == 8
    path = tmp_path / "search.ckpt"
    search = clone(whole).set_params(checkpoint=path)
    calls.clear()
    interrupted_at = 7
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, y, teacher_embeddings=E)
    assert not hasattr(search, "cv_results_")
    search.fit(X, y, teacher_embeddings=E)
    # Two candidates are trained together; the last two had no score.
    assert len(calls) == 7 + 2
    for name in ("mean_test_score", "rank_test_score"):
        assert_array_equal(search.cv_results_[name], whole.cv_results_[name])
    assert_array_equal(search.predict_proba(X), whole.predict_proba(X))
    search.set_params(param_grid=N_SUBCLASSES)
    with pytest.raises(ValueError, match="is of a fit with another param_grid"):
        search.fit(X, y, teacher_embeddings=E)


@pytest.mark.parametrize("enable_metadata_routing", [False, True])
def test_search_inside_a_cross_validation(enable_metadata_routing, problem):
    X, y, E, head = problem
    search = LELPStudentClassifierCV(make_student(head), N_SUBCLASSES, random_state=0)
    with config_context(enable_metadata_routing=enable_metadata_routing):
        result = cross_validate(
            search, X, y, cv=CV, params={"teacher_embeddings": E}, return_estimator=True
        )
    for (train, test), found in zip(CV.split(X, y), result["estimator"], strict=True):
        alone = clone(search).fit(X[train], y[train], teacher_embeddings=E[train])
        assert_array_equal(found.predict_proba(X[test]), alone.predict_proba(X[test]))


def test_rows_without_a_label_are_not_scored(problem):
    X, y, E, head = problem
    partly = np.where(np.arange(len(y)) % 3 == 0, y, -1)
    student = make_student(head, unlabeled=-1)
    seen = []

    def score(candidate, X, y):
        seen.append(y)
        return candidate.score(X, y)

    train, test = np.arange(100), np.arange(100, 150)
    search = LELPStudentClassifierCV(
        student, N_SUBCLASSES, cv=[(train, test)], scoring=score
    )
    search.fit(X, partly, teacher_embeddings=E)
    assert_array_equal(seen[0], partly[test][partly[test] != -1])


@pytest.mark.parametrize("mark", [np.nan, None, "none"])
def test_folds_are_stratified_where_rows_have_no_label(mark, problem):
    """As numbers with -1 in these rows; the mark is that of the projector alone."""
    X, y, E, head = problem
    is_labelled = np.arange(len(y)) % 3 == 0
    names = np.array(["even", "odd"], dtype=object)[y]
    partly = np.where(is_labelled, y if mark is np.nan else names, mark)
    student = make_student(head, max_epochs=1)
    student.projector.set_params(unlabeled=np.nan if mark is None else mark)
    search = LELPStudentClassifierCV(
        student, N_SUBCLASSES, cv=2, scoring="accuracy", random_state=0
    )
    search.fit(X, partly, teacher_embeddings=E)
    strata = np.where(is_labelled, y, -1)
    folds = list(StratifiedKFold(2).split(X, strata))
    given = clone(search).set_params(cv=folds).fit(X, partly, teacher_embeddings=E)
    for name in ("split0_test_score", "split1_test_score"):
        assert_array_equal(search.cv_results_[name], given.cv_results_[name])
    # A score counts labelled rows, of both kinds of `scoring`.
    expected = np.mean(search.predict(X)[is_labelled] == partly[is_labelled])
    assert search.score(X, partly) == pytest.approx(expected)
    assert search.set_params(scoring=None).score(X, partly) == pytest.approx(expected)


def test_progress_and_lines(problem, capsys):
    callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9")
    pytest.importorskip("rich")
    X, y, E, head = problem
    grid = {**N_SUBCLASSES, "optimizer": ["adamw", torch.optim.SGD]}
    search = LELPStudentClassifierCV(make_student(head), grid, cv=CV, verbose=1)
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=0))
    search.fit(X, y, teacher_embeddings=E)
    shown = capsys.readouterr().out
    assert "LELPStudentClassifierCV - fit" in shown
    assert "100%" in shown
    assert shown.count("trained one after the other") == 1
    assert shown.count("Split 2 of 2: 1 candidate(s) trained") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"param_grid": {"projectors": [1]}}, "Invalid parameter 'projectors'"),
        ({"param_grid": {"learning_rate": [-1.0]}}, "'learning_rate' parameter"),
        ({"param_grid": {"teacher__layer": ["a"]}}, "teacher is None"),
        ({"cv": [([0, 1, 2], [])]}, r"cv=.* holds out none of the 150 rows"),
        ({"checkpoint": "search.ckpt"}, "needs an integer random_state"),
        ({"factor": 1.0}, "'factor' parameter"),
        ({"scoring": "nothing"}, "'scoring' parameter"),
    ],
)
def test_errors_before_work_starts(options, message, problem):
    X, y, E, head = problem
    search = LELPStudentClassifierCV(make_student(head), GRID).set_params(**options)
    with pytest.raises(ValueError, match=message):
        search.fit(X, y, teacher_embeddings=E)


def test_metric_that_needs_labels(problem):
    X, _, E, head = problem
    search = LELPStudentClassifierCV(make_student(head), GRID, scoring="accuracy")
    with pytest.raises(ValueError, match="scoring='accuracy' needs labels"):
        search.fit(X, teacher_embeddings=E)


def test_score_that_is_not_a_number(problem):
    X, y, E, head = problem
    search = LELPStudentClassifierCV(
        make_student(head), GRID, scoring=lambda student, X, y: np.nan
    )
    with pytest.raises(ValueError, match=r"scoring=.* gives NaN for every candidate"):
        search.fit(X, y, teacher_embeddings=E)


def test_too_few_rows_to_hold_one_out():
    search = LELPStudentClassifierCV(param_grid=GRID)
    with pytest.raises(ValueError, match="holds out none of the 2 rows"):
        search.fit(np.eye(2), [0, 1], soft_targets=np.eye(2))


def dense_rows(X):
    """Make a batch dense, as `augment` may."""
    return X.to_dense()


@pytest.mark.parametrize(
    "student",
    [
        make_student(None, nn.Linear),
        make_student(None, augment=dense_rows),
        make_student(None),
    ],
    ids=["own module", "dense batches", "default"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.filterwarnings("ignore::lelp_sklearn.NoTeacherWarning")
def test_candidates_on_sparse_rows_equal_separate_fits(student, problem):
    X, y = csr_array(problem[0]), problem[1]
    made, train, test = probabilities_of_search(student, N_SUBCLASSES, X, y)
    for probabilities, n_subclasses in zip(made, (1, 3), strict=True):
        alone = clone(student).set_params(projector__n_subclasses=n_subclasses)
        alone.fit(X[train], y[train])
        assert_allclose(probabilities, alone.predict_proba(X[test]), atol=2e-5)


def test_a_classifier_as_teacher_is_fitted_once_for_all_candidates(problem):
    X, y = problem[:2]
    teacher = RandomForestClassifier(10, random_state=0)
    student = make_student(None).set_params(teacher=teacher)
    made, train, test = probabilities_of_search(student, N_SUBCLASSES, X, y)
    for probabilities, n_subclasses in zip(made, (1, 3), strict=True):
        alone = clone(student).set_params(projector__n_subclasses=n_subclasses)
        alone.fit(X[train], y[train])
        assert_allclose(probabilities, alone.predict_proba(X[test]), atol=2e-5)
