"""scikit-learn manners: cloning, persistence, randomness, routing, attributes."""

import inspect
import io
import pickle

import joblib
import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state

from lelp_sklearn import LELPProjector
from tests import reference
from tests.problems import integer_weights, make_problem

SPLITTERS = ["pca", "random", "kmeans"]


@pytest.fixture
def problem():
    return make_problem(n_classes=3)


def build(problem, **params):
    params = {
        "n_subclasses": 3,
        "splitter": "pca",
        "head": problem.head,
        "random_state": 0,
        **params,
    }
    return LELPProjector(**params)


# -------------------------------------------------------------------- parameters


def test_parameters_and_defaults_of_the_contract():
    signature = inspect.signature(LELPProjector)
    defaults = {name: p.default for name, p in signature.parameters.items()}
    expected = {
        "n_subclasses": "auto",
        "head": None,
        "null_space": True,
        "temperature": "auto",
        "subclass_temperature": "auto",
        "unlabeled": None,
        "svd_solver": "auto",
        "random_state": None,
    }
    assert expected.items() <= defaults.items()
    assert set(defaults) - set(expected) == {
        "splitter",
        "rotation",
        "n_oversamples",
        "iterated_power",
    }
    kinds = {p.kind for p in signature.parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


@pytest.mark.parametrize("splitter", [*SPLITTERS, "array"])
def test_fitting_changes_no_parameter(problem, splitter):
    if splitter == "array":
        splitter = np.ones((3, 2, 12))
    projector = build(problem, splitter=splitter, n_subclasses=2)
    before = dict(projector.get_params())
    projector.fit(problem.X, problem.codes).transform(problem.X)
    after = projector.get_params()
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


@pytest.mark.parametrize("head", ["pair", "classifier", "linear"])
def test_clone_is_unfitted_and_fits_alike(problem, head):
    heads = {
        "pair": problem.head,
        "classifier": LogisticRegression(max_iter=5000).fit(problem.X, problem.codes),
        "linear": torch.nn.Linear(12, 3),
    }
    projector = build(problem, head=heads[head]).fit(problem.X, problem.codes)
    copy = clone(projector)
    with pytest.raises(NotFittedError):
        copy.transform(problem.X)
    if head != "classifier":
        copy.fit(problem.X, problem.codes)
        assert_array_equal(copy.transform(problem.X), projector.transform(problem.X))


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("how", ["pickle", "joblib"])
@pytest.mark.parametrize("head", ["pair", "linear", None])
@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_persistence(problem, splitter, how, head):
    heads = {"pair": problem.head, "linear": torch.nn.Linear(12, 3), None: None}
    projector = build(problem, splitter=splitter, head=heads[head])
    projector.fit(problem.X, problem.codes)
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(projector))
    else:
        buffer = io.BytesIO()
        joblib.dump(projector, buffer)
        buffer.seek(0)
        loaded = joblib.load(buffer)
    assert_array_equal(loaded.transform(problem.X), projector.transform(problem.X))


def test_partial_fit_goes_on_after_persistence(problem):
    half = len(problem.X) // 2
    projector = build(problem, svd_solver="covariance_eigh")
    projector.partial_fit(problem.X[:half], problem.codes[:half], classes=[0, 1, 2])
    loaded = pickle.loads(pickle.dumps(projector))
    for each in (projector, loaded):
        each.partial_fit(problem.X[half:], problem.codes[half:])
    assert_array_equal(loaded.transform(problem.X), projector.transform(problem.X))


def test_snippet_of_the_read_me():
    problem = make_problem(n_features=16)
    E, y, (W, b) = problem.X, problem.codes, problem.head
    proj = LELPProjector(n_subclasses=8, head=(W, b))
    soft = proj.fit_transform(E, y)
    assert soft.shape == (160, 2 * 8)
    assert_allclose(
        proj.inverse_transform(soft), reference.class_probabilities(E @ W.T + b)
    )


def test_fit_reports_to_callbacks(problem):
    callback = pytest.importorskip(
        "sklearn.callback", reason="callbacks came with scikit-learn 1.9"
    )
    pytest.importorskip("rich", reason="the progress bar needs rich")
    told = Listener()
    projector = build(problem).set_callbacks(callback.ProgressBar(), told)
    plain = build(problem).fit_transform(problem.X, problem.codes)
    assert_array_equal(projector.fit_transform(problem.X, problem.codes), plain)
    assert told.events == ["setup", "begin fit", "end fit", "teardown"]


class Listener:
    """Notes what a fit tells it."""

    def __init__(self):
        self.events = []

    def setup(self, estimator, context):
        self.events.append("setup")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context):
        self.events.append(f"end {context.task_name}")

    def teardown(self, estimator, context):
        self.events.append("teardown")


# -------------------------------------------------------------------- randomness


def global_generator():
    return check_random_state(None)


def states():
    kind, keys, position, *rest = global_generator().get_state()
    return kind, keys.tolist(), position, rest, torch.get_rng_state().tolist()


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("generator", [0, np.random.RandomState])
def test_seeded_fit_leaves_the_global_generators_alone(
    problem, splitter, kind, generator
):
    X = torch.as_tensor(problem.X) if kind == "tensor" else problem.X
    random_state = generator if isinstance(generator, int) else generator(0)
    before = states()
    build(
        problem, splitter=splitter, svd_solver="randomized", random_state=random_state
    ).fit_transform(X, problem.codes)
    assert states() == before


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize(
    "svd_solver", ["auto", "full", "covariance_eigh", "randomized"]
)
def test_one_seed_gives_one_result(problem, splitter, svd_solver):
    results = [
        build(problem, splitter=splitter, svd_solver=svd_solver, random_state=3)
        .fit_transform(problem.X, problem.codes)
        .tolist()
        for _ in range(2)
    ]
    assert results[0] == results[1]
    projector = build(problem, splitter=splitter, svd_solver=svd_solver, random_state=3)
    for _ in range(2):
        projector.fit(problem.X, problem.codes)
        assert projector.transform(problem.X).tolist() == results[0]


def test_seeds_differ(problem):
    results = [
        build(problem, random_state=seed).fit(problem.X, problem.codes).components_
        for seed in range(2)
    ]
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_without_seed_the_global_generator_decides(problem):
    projector = build(problem, random_state=None)
    saved = global_generator().get_state()
    try:
        results = []
        for seed in (0, 0, 1):
            global_generator().seed(seed)
            results.append(projector.fit(problem.X, problem.codes).components_)
    finally:
        global_generator().set_state(saved)
    assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 1e-3


# -------------------------------------------------------------------- attributes


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("n_subclasses", [1, 3])
def test_fitted_attributes_and_their_shapes(problem, splitter, n_subclasses):
    projector = build(problem, splitter=splitter, n_subclasses=n_subclasses)
    projector.fit(problem.X, problem.codes)
    S = n_subclasses
    shapes = {
        "classes_": (3,),
        "components_": (3, S, 12),
        "offsets_": (3, S),
        "mean_": (3, 12),
        "explained_variance_": (3, S),
        "explained_variance_ratio_": (3, S),
        "coef_": (3, 12),
        "intercept_": (3,),
    }
    if splitter == "pca":
        shapes["spectrum_"] = (3, S)
    assert {name: getattr(projector, name).shape for name in shapes} == shapes
    assert hasattr(projector, "spectrum_") == (splitter == "pca")
    assert projector.n_subclasses_ == S
    assert projector.n_features_in_ == 12
    assert np.ndim(projector.subclass_temperature_) == 0
    assert not hasattr(projector, "feature_names_in_")


def test_nothing_that_is_kept_grows_with_the_rows(problem):
    sizes = []
    for copies in (1, 20):
        X = np.tile(problem.X, (copies, 1))
        projector = build(problem).fit(X, np.tile(problem.codes, copies))
        sizes.append(len(pickle.dumps(projector)))
    assert sizes[1] <= 1.1 * sizes[0]


def test_explained_variance_ratio_is_at_most_one(problem):
    projector = build(problem, n_subclasses=9).fit(problem.X, problem.codes)
    assert_allclose(projector.explained_variance_ratio_.sum(axis=1), 1, rtol=1e-9)
    projector = build(problem, n_subclasses=2).fit(problem.X, problem.codes)
    assert np.all(projector.explained_variance_ratio_.sum(axis=1) < 1)


def test_second_fit_forgets_the_first(problem):
    projector = build(problem).fit(problem.X, problem.codes)
    other = make_problem(n_classes=2, n_features=7, seed=5)
    projector.set_params(head=other.head, splitter="random")
    projector.fit(other.X, other.codes)
    fresh = clone(projector).fit(other.X, other.codes)
    assert vars(projector).keys() == vars(fresh).keys()
    assert_array_equal(projector.transform(other.X), fresh.transform(other.X))


# ----------------------------------------------------------------------- routing


def class_mass(logits):
    return reference.class_probabilities(logits)


def random_logits(problem):
    return np.random.RandomState(0).normal(size=(len(problem.X), 3))


def test_logits_reach_a_pipeline_without_routing(problem):
    logits = random_logits(problem)
    pipe = make_pipeline(StandardScaler(), build(problem, head=None))
    soft = pipe.fit_transform(
        problem.X, problem.codes, lelpprojector__teacher_logits=logits
    )
    assert_allclose(pipe[-1].inverse_transform(soft), class_mass(logits), atol=1e-9)
    coef, _ = reference.least_squares_head(
        StandardScaler().fit_transform(problem.X), logits
    )
    assert_allclose(pipe[-1].coef_, coef, atol=1e-9)


def test_logits_reach_a_pipeline_with_routing(problem):
    logits = random_logits(problem)
    with sklearn.config_context(enable_metadata_routing=True):
        projector = build(problem, head=None).set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipe = make_pipeline(scaler, projector)
        weight = integer_weights(len(problem.X)) + 0.5
        metadata = {"teacher_logits": logits, "sample_weight": weight}
        soft = pipe.fit_transform(problem.X, problem.codes, **metadata)
        again = pipe.fit(problem.X, problem.codes, **metadata).transform(
            problem.X, teacher_logits=logits
        )
    assert_allclose(soft, again, atol=1e-12)
    assert_allclose(projector.inverse_transform(soft), class_mass(logits), atol=1e-9)
    coef, _ = reference.least_squares_head(
        StandardScaler().fit_transform(problem.X), logits, weight
    )
    assert_allclose(pipe[-1].coef_, coef, atol=1e-9)


@pytest.mark.parametrize("routing", [True, False])
def test_folds_see_only_their_own_logits(problem, routing):
    """A scorer compares class masses with the fold's own rows of the teacher."""
    logits = problem.logits
    with sklearn.config_context(enable_metadata_routing=routing):
        result = cross_validate(
            build(problem, head=None),
            problem.X,
            problem.codes,
            params={"teacher_logits": logits},
            scoring=head_error,
            cv=3,
            error_score="raise",
        )
    assert_allclose(result["test_score"], 0, atol=1e-8)


def head_error(projector, X, y):
    """Distance of the estimated head from the one that made the logits."""
    return np.abs(projector.coef_ - make_problem(n_classes=3).coef).max()
