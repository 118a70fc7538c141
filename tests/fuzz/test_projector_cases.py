"""Random projectors on random rows, in every layout, against the float64 reference."""

import pickle
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import RidgeClassifier

from lelp_sklearn import ClassOrderWarning, LELPProjector, ProbabilitiesAsLogitsWarning
from tests import reference

pytestmark = [
    # Random labels may agree better with the teacher's classes in another order, and
    # random logits may happen to sum to one.
    pytest.mark.filterwarnings(f"ignore::{each.__module__}.{each.__name__}")
    for each in (ClassOrderWarning, ProbabilitiesAsLogitsWarning)
]

EPSILON = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    # Read exactly, summed in single precision.
    "float16": 2.0**-23,
    "bfloat16": 2.0**-23,
}


@dataclass(frozen=True)
class Case:
    """Arguments of a projector and of its fit, and the same rows in float64."""

    params: dict[str, Any]
    X: Any
    y: Any
    fit_params: dict[str, Any]
    rows: np.ndarray
    codes: np.ndarray
    coef: np.ndarray
    logits: np.ndarray
    weight: np.ndarray
    precision: float

    @property
    def transform_params(self):
        logits = self.fit_params.get("teacher_logits")
        return {} if logits is None else {"teacher_logits": logits}

    def fit(self):
        return LELPProjector(**self.params).fit(self.X, self.y, **self.fit_params)

    def in_double_precision(self):
        return replace(self, X=self.rows, precision=EPSILON["float64"])

    def take(self, index):
        """Return the case with some of its rows, or all in another order."""
        fit_params = {name: value[index] for name, value in self.fit_params.items()}
        arrays = {
            name: getattr(self, name)[index]
            for name in ("rows", "codes", "logits", "weight")
        }
        y = None if self.y is None else self.y[index]
        return replace(self, X=self.X[index], y=y, fit_params=fit_params, **arrays)


# ---------------------------------------------------------------------------- rows


def gaussian(rng, n, d):
    return rng.normal(size=(n, d)) * 0.7 ** np.arange(d)


def grid(rng, n, d):
    return rng.integers(-1, 2, size=(n, d)).astype(float)


def one_hot(rng, n, d):
    return np.eye(d)[rng.integers(d, size=n)]


def repeated(rng, n, d):
    few = gaussian(rng, max(2, n // 6), d)
    return few[rng.integers(len(few), size=n)]


def low_rank(rng, n, d):
    rank = max(1, d // 2)
    return gaussian(rng, n, rank) @ rng.normal(size=(rank, d))


def constant_columns(rng, n, d):
    rows = gaussian(rng, n, d)
    rows[:, rng.random(d) < 0.3] = rng.normal()
    return rows


def heavy_tails(rng, n, d):
    return np.clip(rng.standard_t(2, size=(n, d)), -50, 50)


ROWS = [gaussian, grid, one_hot, repeated, low_rank, constant_columns, heavy_tails]


# -------------------------------------------------------------------------- layouts


def strided(X):
    return np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3]


def backwards(X):
    return np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1]


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


def frame(X):
    return pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])


def chunked(X):
    return da.from_array(X, chunks=(max(1, len(X) // 3), X.shape[1]))


def tensor_of_columns(X):
    return torch.tensor(np.ascontiguousarray(X.T)).T


LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "strided": strided,
    "backwards": backwards,
    "read-only": read_only,
    "frame": frame,
    "dask": chunked,
    "tensor": torch.tensor,
    "tensor of columns": tensor_of_columns,
}


def as_numpy(values):
    """Return an array, a frame, a tensor or a dask array as a float64 array."""
    if isinstance(values, torch.Tensor):
        return values.double().numpy()
    return np.asarray(values, dtype=np.float64)


# ------------------------------------------------------------------------ strategies


@st.composite
def labels(draw, rng, codes):
    """Draw y, the value that marks rows without a label, and which rows have one."""
    n_classes = codes.max() + 1
    kind = draw(st.sampled_from(["integers", "strings", "floats", "some", "none"]))
    labelled = np.ones(len(codes), dtype=bool)
    if kind == "strings":
        return np.array([f"class {c}" for c in range(n_classes)])[codes], None, labelled
    if kind == "floats":
        return codes * 2.0 - 1, None, labelled
    if kind == "some":
        labelled = rng.random(len(codes)) < 0.7
        # Each class keeps a label.
        labelled[[np.flatnonzero(codes == c)[0] for c in range(n_classes)]] = True
        return np.where(labelled, codes, -1), -1, labelled
    if kind == "none":
        return None, None, ~labelled
    return codes, None, labelled


@st.composite
def weights(draw, rng, codes):
    kind = draw(st.sampled_from(["none", "random", "counts", "heavy"]))
    weight = np.ones(len(codes))
    if kind == "random":
        weight = rng.uniform(0.1, 3, size=len(codes))
    elif kind == "counts":
        weight = rng.integers(0, 4, size=len(codes)).astype(float)
        weight[[np.flatnonzero(codes == c)[0] for c in range(codes.max() + 1)]] = 1
    elif kind == "heavy":
        weight[rng.integers(len(codes))] = 10.0 ** rng.integers(2, 7)
    return None if kind == "none" else weight, weight


@st.composite
def params(draw, rng, n_classes, d):
    n_subclasses = draw(st.sampled_from([1, 2, 2, 3, 3, 4, 6, "auto"]))
    splitters = ["kmeans", "kmeans", "pca", "pca", "random", "array"]
    splitter = draw(st.sampled_from(splitters))
    if splitter == "array":
        n_directions = 3 if n_subclasses == "auto" else n_subclasses
        splitter = rng.normal(size=(n_classes, n_directions, d))
    return {
        "n_subclasses": n_subclasses,
        "splitter": splitter,
        "null_space": draw(st.booleans()),
        "rotation": draw(st.sampled_from(["equal", "random", None])),
        "temperature": draw(st.sampled_from(["auto", 0.5, 1.0, 4.0])),
        "subclass_temperature": draw(st.sampled_from(["auto", 0, 0.2, 1.0])),
        "svd_solver": draw(
            st.sampled_from(["auto", "randomized", "covariance_eigh", "full"])
        ),
        "n_oversamples": draw(st.sampled_from([0, 2, 10])),
        "iterated_power": draw(st.sampled_from(["auto", 0, 4])),
        "random_state": draw(st.integers(0, 5)),
    }


def estimated_head(rows, codes, weight, logits=None):
    """Return the head that a projector finds; other tests hold it to its formula."""
    projector = LELPProjector(1)
    projector.fit(rows, codes, teacher_logits=logits, sample_weight=weight)
    return projector.coef_, projector.intercept_


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_classes = draw(st.integers(2, 4))
    n = draw(st.integers(n_classes, 60))
    d = draw(st.sampled_from([1, 2, 3, 5, 8, 13, 33]))
    rows = draw(st.sampled_from(ROWS))(rng, n, d)
    rows = rows * draw(st.sampled_from([1, 1, 1e-3, 30]))
    rows = rows + draw(st.sampled_from([0, 0, 1, 10])) * rows.std()
    dtype = draw(st.sampled_from(sorted(EPSILON)))
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    if dtype == "bfloat16":
        X = torch.tensor(rows).to(torch.bfloat16)
    else:
        X = LAYOUTS[layout](rows.astype(dtype))
    rows = as_numpy(X)
    scale = max(1e-6, np.abs(rows).max())
    coef = rng.normal(size=(n_classes, d)) * draw(st.sampled_from([0.5, 4])) / scale
    if draw(st.booleans()):
        coef -= coef.mean(axis=0)
    intercept = rng.normal(size=n_classes)

    codes = rng.permutation(np.arange(n) % n_classes)
    y, unlabeled, labelled = draw(labels(rng, codes))
    sample_weight, weight = draw(weights(rng, codes))
    arguments = draw(params(rng, n_classes, d)) | {"unlabeled": unlabeled}
    teacher = draw(st.sampled_from(["pair", "layer", "classifier", "logits", "none"]))
    fit_params = {} if sample_weight is None else {"sample_weight": sample_weight}
    logits = rows @ coef.T + intercept
    if teacher == "pair":
        arguments["head"] = coef, intercept
    elif teacher == "layer":
        layer = torch.nn.Linear(d, n_classes, dtype=torch.float64)
        layer.load_state_dict(
            {"weight": torch.tensor(coef), "bias": torch.tensor(intercept)}
        )
        arguments["head"] = layer
    elif teacher == "logits":
        logits = logits + rng.normal(size=logits.shape)
        fit_params["teacher_logits"] = logits
        coef, _ = estimated_head(rows, codes, weight, logits)
    else:
        assume(y is not None)
        known = labelled & (weight > 0)
        if teacher == "classifier":
            head = RidgeClassifier().fit(rows[known], y[known])
            arguments["head"] = head
            coef, intercept = reference.two_rows(head.coef_, head.intercept_)
        else:
            coef, intercept = estimated_head(rows[known], codes[known], weight[known])
        logits = rows @ coef.T + intercept
    second, first = np.sort(logits[~labelled], axis=1)[:, -2:].T
    # Rounding decides between classes that the teacher finds equally likely.
    assume(np.all(first - second > 1e-6))
    codes = np.where(labelled, codes, logits.argmax(axis=1))
    return Case(
        arguments, X, y, fit_params, rows, codes, coef, logits, weight, EPSILON[dtype]
    )


# ------------------------------------------------------------------- what must hold


def n_available(case, share):
    """Count the subclasses that every class allows, up to differences of a share."""
    splitter, n_classes = case.params["splitter"], len(case.coef)
    if not isinstance(splitter, str):
        return splitter.shape[1]
    null_space = reference.null_space_projector(case.coef, case.params["null_space"])
    if splitter == "random":
        return round(np.trace(null_space))
    found = []
    for c in range(n_classes):
        members = case.rows[(case.codes == c) & (case.weight > 0)]
        if not len(members):
            return 0
        scale = max(np.abs(members - members.mean(axis=0)).max(), 1e-300)
        members = (members - members.mean(axis=0)) @ null_space / scale
        if splitter == "pca":
            found.append(np.sum(np.linalg.svd(members)[1] > share))
        else:
            apart = np.linalg.norm(members[:, None] - members, axis=2) > share
            found.append(len(np.unique(apart, axis=0)))
    return min(found)


def fitted(case):
    """Return a fitted projector, or None where it has to refuse the rows."""
    wanted = case.params["n_subclasses"]
    used = np.bincount(case.codes[case.weight > 0], minlength=len(case.coef))
    # Between the two, rounding decides.
    surely, perhaps = n_available(case, 1e-2), n_available(case, 1e-13)
    refusal = None
    try:
        projector = case.fit()
    except ValueError as error:
        refusal = str(error)
    if refusal is not None and used.min() == 0:
        assert "has no samples" in refusal
        return None
    if refusal is not None:
        assert f"n_subclasses={wanted}" in refusal
        assert wanted != "auto"
        assert wanted > max(1, surely)
        return None
    assert used.min() > 0
    if wanted == "auto":
        least, most = (max(1, min(20, each)) for each in (surely, perhaps))
        assert least <= projector.n_subclasses_ <= most
    else:
        assert projector.n_subclasses_ == wanted <= max(1, perhaps)
    return projector


def check_moments(case, projector):
    n_classes = len(case.coef)
    _, means = reference.class_weights_and_means(
        case.rows, case.codes, n_classes, case.weight
    )
    scale = np.abs(case.rows).max()
    assert_allclose(projector.mean_, means, atol=64 * case.precision * scale)
    assert_allclose(
        projector.explained_variance_,
        reference.direction_variances(
            case.rows, case.codes, projector.components_, case.weight
        ),
        rtol=1e-3,
        atol=1e3 * case.precision * (scale * np.abs(projector.components_).max()) ** 2,
    )


def check_directions(case, projector):
    components = projector.components_
    size = np.linalg.norm(components, axis=2).max()
    if isinstance(projector.splitter, np.ndarray):
        # Those of a class that does not vary along them are zeros.
        varies = components.any(axis=2)
        assert_array_equal(components[varies], projector.splitter[varies])
        return
    null_space = reference.null_space_projector(case.coef, projector.null_space)
    assert_allclose(components @ null_space, components, atol=1e-5 * size)
    if projector.n_subclasses_ == 1:
        assert not components.any()
    elif projector.splitter != "kmeans":
        products = np.einsum("csd,ctd->cst", components, components)
        # A direction along which the class does not vary is zeros.
        identity = components.any(axis=2)[:, :, None] * np.eye(projector.n_subclasses_)
        assert_allclose(products, identity, atol=1e-9)


def check_variances(case, projector):
    """Principal directions capture what the exact ones do, and share it as asked."""
    if not hasattr(projector, "spectrum_") or projector.n_subclasses_ == 1:
        return
    exact, _ = reference.class_spectrum(
        case.rows, case.codes, case.coef, case.weight, projector.null_space
    )
    captured = projector.explained_variance_
    least = 1 - 1e-3
    if projector.svd_solver in ("auto", "randomized"):
        # Without further passes what is captured depends on the start.
        least = 0.98 if projector.iterated_power != 0 else 0
    for c, variances in enumerate(exact):
        most = variances[: projector.n_subclasses_].sum()
        assert least * most <= captured[c].sum() <= (1 + 1e-3) * most
    if projector.rotation == "equal":
        mean = captured.mean(axis=1, keepdims=True)
        assert_allclose(captured, np.broadcast_to(mean, captured.shape), rtol=1e-3)


def check_clusters(case, projector):
    """Each centroid is the mean of the rows nearest to it."""
    is_given = isinstance(projector.splitter, np.ndarray)
    if is_given or projector.splitter != "kmeans" or projector.n_subclasses_ == 1:
        return
    rows = reference.null_space_rows(
        case.rows, case.codes, case.coef, case.weight, projector.null_space
    )
    scale = np.abs(rows).max()
    for c, centroids in enumerate(projector.components_):
        own = (case.codes == c) & (case.weight > 0)
        members, weight = rows[own], case.weight[own]
        distances = np.sum((members[:, None] - centroids) ** 2, axis=2)
        inertia = weight @ distances.min(axis=1)
        nearest = distances.argmin(axis=1)
        means = [
            np.average(members[nearest == s], axis=0, weights=weight[nearest == s])
            if np.any(nearest == s)
            else centroids[s]
            for s in range(len(centroids))
        ]
        improved = weight @ np.sum((members - np.array(means)[nearest]) ** 2, axis=1)
        rounding = 1e3 * case.precision * scale**2 * weight.sum()
        assert improved >= (1 - 1e-2) * inertia - rounding


def check_soft_labels(case, projector):
    """Soft labels follow their formula from the fitted directions and offsets."""
    made = projector.transform(case.X, **case.transform_params)
    soft_labels, sums = as_numpy(made), as_numpy(projector.inverse_transform(made))
    assert soft_labels.shape == (len(case.rows), projector.offsets_.size)
    z = reference.projections(case.rows, projector.components_, projector.offsets_)
    beta = projector.subclass_temperature_
    asked = projector.subclass_temperature
    if projector.components_.any() and asked != "auto":
        used = case.weight > 0
        deviation = reference.pooled_deviation(
            z[used], case.codes[used], case.weight[used]
        )
        size = np.linalg.norm(projector.components_, axis=2).max()
        rounding = 1e2 * case.precision * size * np.abs(case.rows).max()
        assert_allclose(beta, asked * deviation, rtol=1e-2, atol=rounding)
    expected = reference.soft_labels(
        case.rows,
        projector.components_,
        projector.offsets_,
        case.logits,
        temperature=projector.temperature_,
        subclass_temperature=beta,
    )
    classes = reference.class_probabilities(case.logits, projector.temperature_)
    largest = np.abs(case.logits).max() / projector.temperature_
    rounding = 64 * case.precision * max(1.0, largest)
    by_class = soft_labels.reshape(len(sums), *projector.offsets_.shape)
    assert_allclose(by_class.sum(axis=2), classes, atol=rounding)
    assert_allclose(sums, classes, atol=rounding)
    # What rounding may do to a score, against what tells the scores of a row apart.
    size = np.linalg.norm(projector.components_, axis=2).max()
    blur = 64 * case.precision * size * np.abs(case.rows).max() * len(case.coef[0])
    if beta == 0:
        apart = np.diff(np.sort(z, axis=2)[:, :, -2:], axis=2)
        clear = np.all(apart > blur, axis=(1, 2))
        assert_allclose(soft_labels[clear], expected[clear], atol=rounding)
    elif blur < 0.05 * beta:
        assert_allclose(soft_labels, expected, atol=rounding + blur / beta)


def check_copies(case, projector):
    """A second fit, a pickle and an output array give the same bits."""
    before = as_numpy(projector.transform(case.X, **case.transform_params))
    loaded = pickle.loads(pickle.dumps(projector))
    again = case.fit()
    for each in (loaded, again):
        after = as_numpy(each.transform(case.X, **case.transform_params))
        assert_array_equal(after, before)
    assert_array_equal(as_numpy(case.X), case.rows)


@pytest.mark.slow
@given(cases())
def test_a_projector_follows_the_reference(case):
    projector = fitted(case)
    if projector is None:
        return
    check_moments(case, projector)
    check_directions(case, projector)
    check_variances(case, projector)
    check_clusters(case, projector)
    check_soft_labels(case, projector)
    check_copies(case, projector)


def assert_alike(case, projector, other):
    """Class targets, captured variances and what is drawn from neither are equal."""
    assert projector.n_subclasses_ == other.n_subclasses_
    scale = np.abs(case.rows).max()
    assert_allclose(other.mean_, projector.mean_, atol=1e-9 * scale)
    size = scale * np.linalg.norm(projector.components_, axis=2).max()
    assert_allclose(
        other.explained_variance_.sum(axis=1),
        projector.explained_variance_.sum(axis=1),
        rtol=1e-3,
        atol=1e-12 * size**2,
    )
    sums = [
        each.inverse_transform(each.transform(case.rows, **case.transform_params))
        for each in (projector, other)
    ]
    assert_allclose(sums[1], sums[0], atol=1e-5)


@pytest.mark.slow
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(case, random):
    order = np.array(random.sample(range(len(case.rows)), len(case.rows)))
    case = case.in_double_precision()
    projector = fitted(case)
    if projector is None:
        return
    other = case.take(order).fit()
    assert_alike(case, projector, other)
    is_given = isinstance(projector.splitter, np.ndarray)
    if is_given or projector.splitter != "pca":
        # The clusters are the same ones in the same order.
        size = np.abs(projector.components_).max()
        assert_allclose(other.components_, projector.components_, atol=1e-6 * size)


@given(cases(), st.integers(1, 4))
def test_blocks_are_one_fit(case, n_blocks):
    is_given = not isinstance(case.params["splitter"], str)
    # Clusters move block by block; unlabelled rows need a teacher at once.
    assume(is_given or case.params["splitter"] != "kmeans")
    assume(case.y is not None)
    assume("head" in case.params or case.params["unlabeled"] is None)
    case = case.in_double_precision()
    # A stream keeps the covariances, which "full" decomposes exactly.
    case = replace(case, params={**case.params, "svd_solver": "full"})
    projector = fitted(case)
    if projector is None:
        return
    # "auto" takes it from the first block.
    temperature = projector.temperature_
    other = LELPProjector(**{**case.params, "temperature": temperature})
    classes = np.unique(case.y[case.y != case.params["unlabeled"]])
    for rows in np.array_split(np.arange(len(case.rows)), n_blocks):
        if np.any(case.weight[rows] > 0):
            block = case.take(rows)
            other.partial_fit(block.X, block.y, classes, **block.fit_params)
    assert_alike(case, projector, other)
