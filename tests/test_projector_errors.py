"""Bad input: one error each, naming the argument, what was found and the mend."""

import re

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from lelp_sklearn import LELPProjector
from tests.problems import make_problem

PROBLEM = make_problem(n_classes=3)
X, CODES, HEAD, LOGITS = PROBLEM.X, PROBLEM.codes, PROBLEM.head, PROBLEM.logits


def assert_refused(call, *fragments, kind=(ValueError, TypeError)):
    """The call raises, and its message holds every fragment (a regex each)."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    missing = [f for f in fragments if not re.search(f, message, re.IGNORECASE)]
    assert not missing, f"{missing} not in {message!r}"


def projector(**params):
    return LELPProjector(
        **{"n_subclasses": 2, "splitter": "pca", "head": HEAD, **params}
    )


# ---------------------------------------------------------------------------- X


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, "tensor"])
@pytest.mark.parametrize("method", ["fit", "transform", "partial_fit"])
def test_first_row_that_is_not_finite_is_named(value, dtype, method):
    bad = X.copy()
    bad[[17, 40], 3] = value
    if dtype == "tensor":
        bad, good = torch.as_tensor(bad), torch.as_tensor(X)
    else:
        bad, good = bad.astype(dtype), X.astype(dtype)
    fitted = projector().fit(good, CODES)
    args = (bad,) if method == "transform" else (bad, CODES)
    name = "NaN" if np.isnan(value) else "infinity"
    assert_refused(
        lambda: getattr(fitted, method)(*args),
        r"\bX\b",
        name,
        r"row 17\b",
        kind=ValueError,
    )


def test_sparse_tensor():
    rows = torch.as_tensor(X).to_sparse()
    assert_refused(lambda: projector().fit(rows, CODES), "X is a tensor", "to_dense")
    assert_refused(lambda: projector().fit(X, CODES).transform(rows), "X is a")


@pytest.mark.parametrize("head", ["given", None])
@pytest.mark.parametrize("splitter", ["pca", "kmeans"])
@pytest.mark.parametrize("scale", [1e-100, 1e-60, 1e60])
def test_scales_that_double_precision_holds(scale, splitter, head):
    def soft(scale):
        given = head and (HEAD[0] / scale, HEAD[1])
        estimator = projector(splitter=splitter, head=given, random_state=0)
        return estimator.fit_transform(X * scale, CODES)

    np.testing.assert_allclose(soft(scale), soft(1.0), atol=1e-9)


@pytest.mark.parametrize(
    ("scale", "dtype", "splitter", "head", "found"),
    [
        (1e80, float, "kmeans", None, "large"),
        (1e160, float, "pca", None, "large"),
        (1e160, float, "kmeans", None, "large"),
        (1e-160, float, "pca", None, "small"),
        (1e-160, float, "kmeans", None, "small"),
        (1e-200, float, "pca", HEAD, "small"),
        (1e-25, np.float32, "kmeans", None, "small"),
        (1e-25, np.float32, "kmeans", HEAD, "small"),
        (1e-25, np.float32, "pca", HEAD, "small"),
    ],
)
def test_scales_that_are_beyond_numbers(scale, dtype, splitter, head, found):
    rows = (X * scale).astype(dtype)
    given = projector(splitter=splitter, head=head)
    mend = "divide" if found == "large" else "multiply"
    assert_refused(lambda: given.fit(rows, CODES), "X", found, mend)


@pytest.mark.parametrize("splitter", ["pca", "kmeans"])
def test_squares_beyond_single_precision(splitter):
    large = X.astype(np.float32) * np.float32(1e20)
    estimator = projector(splitter=splitter)
    assert_refused(lambda: estimator.fit(large, CODES), "X", "float32", "divide")
    estimator.fit(large.astype(np.float64), CODES)


def test_logarithms_of_zero_probabilities():
    with np.errstate(divide="ignore"):
        logits = np.log(np.eye(3)[CODES])
    assert_refused(lambda: projector().fit(X, CODES, teacher_logits=logits), "clipped")


def test_row_that_is_not_finite_is_named_in_a_late_block():
    rows = np.tile(X.astype(np.float32), (60, 1))
    rows[7000, 0] = np.nan
    fitted = projector().fit(X, CODES)
    assert_refused(lambda: fitted.transform(rows), "row 7000")


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_another_width_in_transform(kind):
    fitted = projector().fit(X, CODES)
    narrow = X[:, :7]
    if kind == "tensor":
        narrow = torch.as_tensor(narrow.copy())
    assert_refused(
        lambda: fitted.transform(narrow), "7 features", "12 features", kind=ValueError
    )
    assert_refused(
        lambda: fitted.partial_fit(narrow, CODES), "7", "12", kind=ValueError
    )


@pytest.mark.parametrize(
    "make", [sparse.csr_matrix, sparse.csr_array, sparse.coo_array]
)
def test_sparse_input(make):
    assert_refused(lambda: projector().fit(make(X), CODES), "sparse", "toarray")
    fitted = projector().fit(X, CODES)
    assert_refused(lambda: fitted.transform(make(X)), "sparse", "toarray")


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("shape", [(160,), (10, 4, 4), (0, 12), (160, 0)])
def test_shapes_that_are_no_table(shape, kind):
    bad = np.zeros(shape)
    if kind == "tensor":
        bad = torch.as_tensor(bad)
    y = np.zeros(shape[0], dtype=int)
    assert_refused(lambda: projector(head=None).fit(bad, y), "X|array", kind=ValueError)


def test_complex_and_text_features():
    assert_refused(lambda: projector().fit(X + 1j, CODES), "complex")
    assert_refused(lambda: projector().fit(torch.as_tensor(X + 1j), CODES), "complex")
    text = np.full(X.shape, "a", dtype=object)
    assert_refused(lambda: projector().fit(text, CODES), "float|numeric|convert")


# ---------------------------------------------------------------------------- y


def test_y_of_unequal_length():
    assert_refused(
        lambda: projector().fit(X, CODES[:-1]), "y|inconsistent", "160", "159"
    )


def test_one_class_only():
    assert_refused(lambda: LELPProjector().fit(X, np.zeros(len(X))), "class", "1|one")
    assert_refused(
        lambda: LELPProjector().fit(X, ["only"] * len(X)), "class", "only|one|1"
    )


@pytest.mark.parametrize("y", [np.linspace(0, 1, 160), np.eye(3)[CODES]])
def test_labels_that_are_no_classes(y):
    assert_refused(lambda: projector().fit(X, y), "y|label|class")


def test_nan_in_labels_without_marker():
    y = CODES.astype(float)
    y[5] = np.nan
    assert_refused(lambda: projector().fit(X, y), "y", "nan", "unlabeled")


def test_no_head_no_logits_no_labels():
    for y in (None, np.full(len(X), -1)):
        assert_refused(
            lambda y=y: LELPProjector(unlabeled=-1).fit(X, y),
            "head",
            "teacher_logits",
            r"\by\b",
            kind=ValueError,
        )


@pytest.mark.parametrize("y", [None, np.full(160, -1)])
def test_an_unfitted_head_without_labels(y):
    estimator = projector(head=LogisticRegression(), unlabeled=-1)
    assert_refused(
        lambda: estimator.fit(X, y, teacher_logits=LOGITS),
        "head",
        "fit",
        r"\by\b",
        kind=ValueError,
    )


def test_a_class_that_no_row_takes_is_named():
    away = X[CODES != 1]
    head = (HEAD[0], HEAD[1] + np.array([0, -1000, 0]))
    assert_refused(
        lambda: projector(head=head).fit(away), r"class\D*1", kind=ValueError
    )
    names = np.array(["ant", "bee", "cow"])
    classifier = LogisticRegression(max_iter=5000).fit(X, names[CODES])
    classifier.intercept_ = classifier.intercept_ + np.array([0, -1000, 0])
    assert_refused(lambda: projector(head=classifier).fit(X), "bee", kind=ValueError)


def test_a_class_of_the_head_that_y_lacks_is_named():
    names = np.array(["ant", "bee", "cow"])[CODES]
    classifier = LogisticRegression(max_iter=5000).fit(X, names)
    keep = names != "bee"
    assert_refused(
        lambda: projector(head=classifier).fit(X[keep], names[keep]),
        "bee",
        kind=ValueError,
    )


def test_a_class_of_zero_weight_is_named():
    names = np.array(["ant", "bee", "cow"])[CODES]
    weight = np.where(names == "bee", 0.0, 1.0)
    assert_refused(
        lambda: projector().fit(X, names, sample_weight=weight),
        "bee",
        "weight|sample",
        kind=ValueError,
    )


def test_rows_that_are_all_unlabeled_and_a_single_class_are_told_apart():
    nothing = projector(head=None, unlabeled=-1)
    unlabeled = np.full(len(X), -1)
    assert_refused(lambda: nothing.fit(X, unlabeled), "every row as unlabeled", "head=")
    assert_refused(lambda: nothing.fit(X, 0 * CODES), r"^y has one class only \(\[0\]")
    single = projector(head=None)
    assert_refused(
        lambda: single.partial_fit(X, 0 * CODES, classes=[0]),
        "first call of partial_fit has one class only",
    )


def test_unknown_label_in_partial_fit():
    fitted = projector().partial_fit(X, CODES, classes=[0, 1, 2])
    assert_refused(lambda: fitted.partial_fit(X, CODES + 1), "3", "classes")


# ---------------------------------------------------------------------- metadata


@pytest.mark.parametrize(
    ("weight", "fragment"),
    [
        (np.ones(159), "159"),
        (np.ones((160, 2)), "sample_weight|1D"),
        (np.full(160, np.nan), "NaN"),
        (np.full(160, -1.0), "negative"),
        (np.zeros(160), "zero|positive"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_transform"])
def test_weights_that_do_not_fit(weight, fragment, method):
    call = getattr(projector(), method)
    assert_refused(
        lambda: call(X, CODES, sample_weight=weight),
        "weight",
        fragment,
        kind=ValueError,
    )


@pytest.mark.parametrize(
    ("logits", "fragments"),
    [
        (LOGITS[:, :2], ["2", "3"]),
        (np.hstack([LOGITS, LOGITS]), ["6", "3"]),
        (LOGITS[:, :1], ["1", "3"]),
        (LOGITS[:-1], ["159", "160"]),
        (LOGITS[:, 0], ["1", "3"]),
        (LOGITS[None], ["shape|160"]),
        (np.where(np.arange(160)[:, None] == 9, np.nan, LOGITS), ["nan", "row 9"]),
        (np.where(LOGITS > 0, 0, -np.inf), ["inf"]),
    ],
)
@pytest.mark.parametrize("method", ["fit", "transform", "partial_fit"])
@pytest.mark.parametrize("head", [HEAD, None])
def test_logits_that_do_not_fit(logits, fragments, method, head):
    estimator = projector(head=head).fit(X, CODES)
    args = (X,) if method == "transform" else (X, CODES)
    assert_refused(
        lambda: getattr(estimator, method)(*args, teacher_logits=logits),
        "teacher_logits",
        *fragments,
        kind=ValueError,
    )


# -------------------------------------------------------------------------- head


@pytest.mark.parametrize(
    ("head", "fragments"),
    [
        ((HEAD[0][:, :5], HEAD[1]), ["5", "12"]),
        ((HEAD[0][:2], HEAD[1][:2]), ["2", "3"]),
        ((HEAD[0][:1], HEAD[1][:1]), ["1|sigmoid", "3"]),
        ((HEAD[0], HEAD[1][:2]), ["intercept", "2", "3"]),
        ((HEAD[0] * np.nan, HEAD[1]), ["nan|finite"]),
        ((HEAD[0], HEAD[1] * np.inf), ["inf|finite"]),
        ((HEAD[0],), ["coef", "intercept"]),
        ("linear", ["linear"]),
        (3, ["3|int"]),
        (HEAD[0][None], ["coef", "intercept"]),
        (torch.nn.Linear(5, 3), ["5", "12"]),
        (torch.nn.Linear(12, 4), ["4", "3"]),
        (torch.nn.ReLU(), ["ReLU"]),
        (RandomForestClassifier(), ["RandomForestClassifier"]),
        (LinearRegression(), ["LinearRegression"]),
        (LogisticRegression(max_iter=5000).fit(X[:, :5], CODES), ["5", "12"]),
        (LogisticRegression(max_iter=5000).fit(X, CODES % 2), [r"\[2\]", r"\[0, 1\]"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_head_that_does_not_fit(head, fragments):
    assert_refused(lambda: projector(head=head).fit(X, CODES), "head", *fragments)


def test_classes_of_a_fitted_head_that_are_not_those_of_y():
    head = LogisticRegression(max_iter=5000).fit(
        X, np.array(["ant", "bee", "cow"])[CODES]
    )
    y = np.array(["ant", "bee", "dog"])[CODES]
    assert_refused(
        lambda: projector(head=head).fit(X, y), "head", "dog|cow", kind=ValueError
    )


class NeverFitted(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        raise AssertionError("fitted before it was refused")


def test_heads_that_have_no_row_for_each_class():
    svc = SVC(kernel="linear")
    for head in (svc, clone(svc).fit(X, CODES)):
        assert_refused(lambda head=head: projector(head=head).fit(X, CODES), "pairs")
    pipeline = make_pipeline(StandardScaler(), NeverFitted())
    assert_refused(lambda: projector(head=pipeline).fit(X, CODES), "steps", "units")
    forest = RandomForestClassifier(n_estimators=2, random_state=0).fit(X, CODES)
    forest.set_params(n_estimators="never fitted again")
    assert_refused(lambda: projector(head=forest).fit(X, CODES), "RandomForest")


# ------------------------------------------------------------- subclasses and arrays


@pytest.mark.parametrize(
    "svd_solver", ["auto", "full", "covariance_eigh", "randomized"]
)
def test_more_subclasses_than_a_class_has_directions(svd_solver):
    names = np.array(["ant", "bee", "cow"])[CODES]
    keep = (names != "bee") | (np.cumsum(names == "bee") <= 5)
    assert_refused(
        lambda: projector(n_subclasses=6, svd_solver=svd_solver).fit(
            X[keep], names[keep]
        ),
        "n_subclasses",
        "6",
        "bee",
        r"\b4\b",
        kind=ValueError,
    )
    projector(n_subclasses=4, svd_solver=svd_solver).fit(X[keep], names[keep])


def test_directions_follow_the_rank_of_the_weighted_scatter():
    weight = np.where((CODES == 1) & (np.cumsum(CODES == 1) > 3), 0.0, 1.0)
    assert_refused(
        lambda: projector(n_subclasses=3).fit(X, CODES, sample_weight=weight),
        "n_subclasses",
        r"class\D*1",
        r"\b2\b",
    )
    projector().fit(X, CODES, sample_weight=weight)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_rank_is_numerical(dtype):
    """Columns that copy others add features but no direction."""
    rows = np.hstack([X, X]).astype(dtype)
    head = (np.hstack(HEAD[:1] * 2), HEAD[1])
    assert_refused(
        lambda: projector(n_subclasses=10, head=head).fit(rows, CODES),
        "n_subclasses",
        r"\b9\b",
    )
    projector(n_subclasses=9, head=head).fit(rows, CODES)


def test_more_random_directions_than_the_null_space_has():
    assert_refused(
        lambda: projector(n_subclasses=10, splitter="random").fit(X, CODES),
        "n_subclasses",
        "10",
        r"\b9\b",
    )
    projector(n_subclasses=9, splitter="random").fit(X, CODES)


@pytest.mark.parametrize(
    ("null_space", "fragment"),
    [(True, "null space of the head has 9 dim"), (False, "space of X has 12 dim")],
)
def test_no_further_block_makes_room_for_random_directions(null_space, fragment):
    crowded = projector(n_subclasses=13, splitter="random", null_space=null_space)
    assert_refused(lambda: crowded.partial_fit(X, CODES), fragment, kind=ValueError)


def test_more_clusters_than_distinct_rows():
    keep = (CODES != 1) | (np.cumsum(CODES == 1) <= 3)
    rows, codes = np.tile(X[keep], (3, 1)), np.tile(CODES[keep], 3)
    assert_refused(
        lambda: projector(n_subclasses=4, splitter="kmeans").fit(rows, codes),
        "n_subclasses",
        r"class\D*1",
        r"\b3\b",
    )
    projector(n_subclasses=3, splitter="kmeans").fit(rows, codes)


@pytest.mark.parametrize(
    ("splitter", "fragments"),
    [
        (np.ones((2, 4, 12)), ["3", "12"]),
        (np.ones((3, 4, 5)), ["5", "12"]),
        (np.ones((4, 12)), ["dimension|shape|3"]),
        (np.full((3, 2, 12), np.nan), ["nan|finite"]),
        (np.ones((3, 0, 12)), ["0"]),
    ],
)
def test_array_of_directions_that_does_not_fit(splitter, fragments):
    assert_refused(
        lambda: projector(n_subclasses="auto", splitter=splitter).fit(X, CODES),
        "splitter",
        *fragments,
        kind=ValueError,
    )


# -------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("splitter", "ica"),
        ("splitter", None),
        ("rotation", "equalised"),
        ("svd_solver", "arpack"),
        ("n_subclasses", "all"),
        ("n_subclasses", 0),
        ("n_subclasses", -2),
        ("n_subclasses", 2.5),
        ("subclass_temperature", "warm"),
        ("subclass_temperature", -0.1),
        ("subclass_temperature", np.nan),
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", "warm"),
        ("temperature", np.inf),
        ("null_space", "yes"),
        ("n_oversamples", -1),
        ("iterated_power", -1),
        ("iterated_power", "many"),
        ("random_state", "seed"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_parameters_out_of_range(name, value, method):
    call = getattr(projector(**{name: value}), method)
    assert_refused(lambda: call(X, CODES), name, re.escape(repr(value)))
