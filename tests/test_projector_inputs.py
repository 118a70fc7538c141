"""Kinds of input: dtypes, memory maps, tensors, read-only and far-off arrays."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression

from lelp_sklearn import LELPProjector
from tests import reference
from tests.problems import integer_weights, make_problem

SPLITTERS = ["pca", "random", "kmeans"]


def build(problem, **params):
    params = {
        "n_subclasses": 3,
        "splitter": "pca",
        "head": problem.head,
        "subclass_temperature": 0.5,
        "random_state": 0,
        **params,
    }
    return LELPProjector(**params)


def expected_soft_labels(projector, X, problem):
    X = np.asarray(X, dtype=np.float64)
    return reference.soft_labels(
        X,
        projector.components_,
        projector.offsets_,
        X @ problem.coef.T + problem.intercept,
        temperature=projector.temperature_,
        subclass_temperature=projector.subclass_temperature_,
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_floating_dtypes(dtype, splitter, order):
    problem = make_problem(n_classes=3)
    X = np.asarray(problem.X, dtype=dtype, order=order)
    projector = build(problem, splitter=splitter)
    soft = projector.fit(X, problem.codes).transform(X)
    assert soft.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert_allclose(soft, expected_soft_labels(projector, X, problem), atol=2e-5)


def test_integer_features_become_float64():
    problem = make_problem()
    X = np.round(10 * problem.X).astype(int)
    assert build(problem).fit_transform(X, problem.codes).dtype == np.float64


def test_precision_of_the_fit_does_not_bind_transform():
    problem = make_problem()
    projector = build(problem).fit(problem.X.astype(np.float32), problem.codes)
    soft = projector.transform(problem.X)
    assert soft.dtype == np.float64
    assert_allclose(projector.transform(problem.X.astype(np.float32)), soft, atol=1e-5)


@pytest.mark.parametrize("stride", [np.s_[::2], np.s_[::-1]])
def test_strided_rows_and_columns(stride):
    problem = make_problem()
    X, codes = problem.X[stride], problem.codes[stride]
    plain = build(problem).fit_transform(np.ascontiguousarray(X), codes)
    assert_allclose(build(problem).fit_transform(X, codes), plain, atol=1e-9)
    wide = np.repeat(problem.X, 2, axis=1)[:, ::2]
    plain = build(problem).fit_transform(problem.X, problem.codes)
    assert_allclose(build(problem).fit_transform(wide, problem.codes), plain, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_memory_map(tmp_path, dtype, splitter):
    problem = make_problem()
    X = problem.X.astype(dtype)
    np.save(tmp_path / "embeddings.npy", X)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    soft = build(problem, splitter=splitter).fit_transform(mapped, problem.codes)
    plain = build(problem, splitter=splitter).fit_transform(X, problem.codes)
    assert_array_equal(soft, plain)


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize(
    ("dtype", "result", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-8),
        (torch.float32, torch.float32, 2e-5),
        (torch.float16, torch.float32, 2e-5),
        (torch.bfloat16, torch.float32, 2e-5),
    ],
)
def test_tensors_in_and_out(splitter, dtype, result, tolerance):
    problem = make_problem(n_classes=3)
    X = torch.as_tensor(problem.X).to(dtype)
    y = torch.as_tensor(problem.codes)
    projector = build(problem, splitter=splitter).fit(X, y)
    soft = projector.transform(X)
    assert isinstance(soft, torch.Tensor)
    assert soft.dtype == result
    assert soft.device == X.device
    expected = expected_soft_labels(projector, X.double().numpy(), problem)
    assert_allclose(soft.numpy(), expected, atol=tolerance)
    assert isinstance(projector.components_, np.ndarray)
    mass = projector.inverse_transform(soft)
    assert isinstance(mass, torch.Tensor)
    assert_allclose(mass.sum(dim=1), 1, atol=1e-6)


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("head", ["given", None])
def test_tensors_and_arrays_fit_alike(splitter, head):
    problem = make_problem()
    params = {"splitter": splitter, "svd_solver": "full"}
    if head is None:
        params["head"] = None
    weight = integer_weights(len(problem.X)) + 0.5
    array = build(problem, **params).fit(
        problem.X,
        problem.codes,
        sample_weight=weight,
        teacher_logits=problem.logits,
    )
    tensor = build(problem, **params).fit(
        torch.as_tensor(problem.X),
        problem.codes,
        sample_weight=torch.as_tensor(weight),
        teacher_logits=torch.as_tensor(problem.logits),
    )
    assert_allclose(tensor.coef_, array.coef_, atol=1e-9)
    assert_allclose(tensor.mean_, array.mean_, atol=1e-9)
    assert_allclose(
        np.einsum("csd,cse->cde", tensor.components_, tensor.components_),
        np.einsum("csd,cse->cde", array.components_, array.components_),
        atol=1e-7,
    )


def test_tensor_and_array_may_alternate():
    problem = make_problem()
    projector = build(problem).fit(torch.as_tensor(problem.X), problem.codes)
    assert isinstance(projector.transform(problem.X), np.ndarray)
    assert_allclose(
        projector.transform(torch.as_tensor(problem.X)).numpy(),
        projector.transform(problem.X),
        atol=1e-9,
    )


def test_tensor_with_gradient_is_read_without_one():
    problem = make_problem()
    X = torch.as_tensor(problem.X).requires_grad_()
    soft = build(problem).fit_transform(X, problem.codes)
    assert not soft.requires_grad
    assert X.grad is None


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_a_mean_ten_thousand_times_the_spread(kind, splitter):
    problem = make_problem(mean=1e4, decay=1.0, n_features=8)
    X = problem.X.astype(np.float32)
    data = torch.as_tensor(X) if kind == "tensor" else X
    projector = build(problem, splitter=splitter)
    soft = projector.fit_transform(data, problem.codes)
    expected = expected_soft_labels(projector, X, problem)
    assert_allclose(np.asarray(soft), expected, atol=1e-4)
    if splitter == "pca":
        spectrum, _ = reference.principal_directions(X, problem.codes, problem.coef, 3)
        assert_allclose(projector.spectrum_, spectrum, rtol=1e-3)


def frozen(*arrays):
    for array in arrays:
        array.setflags(write=False)
    return arrays


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("head", ["pair", "logits", "unfitted"])
def test_read_only_inputs_are_accepted_and_never_modified(splitter, dtype, head):
    problem = make_problem()
    X, codes, logits, weight, coef, intercept = frozen(
        problem.X.astype(dtype),
        problem.codes.copy(),
        problem.logits.astype(dtype),
        integer_weights(len(problem.X)),
        problem.coef.copy(),
        problem.intercept.copy(),
    )
    heads = {"pair": (coef, intercept), "unfitted": LogisticRegression()}
    projector = build(problem, head=heads.get(head), splitter=splitter)
    metadata = {"teacher_logits": logits} if head == "logits" else {}
    projector.fit(X, codes, sample_weight=weight, **metadata)
    projector.transform(X, **metadata)
    # A stream takes no classifier that it would have to fit.
    if head != "unfitted":
        projector.partial_fit(X, codes, sample_weight=weight, **metadata)


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_writeable_inputs_are_not_modified(splitter):
    problem = make_problem(n_classes=3)
    given = [
        problem.X.copy(),
        problem.codes.copy(),
        problem.logits.copy(),
        integer_weights(len(problem.X)),
    ]
    kept = [array.copy() for array in given]
    X, codes, logits, weight = given
    projector = build(problem, splitter=splitter)
    projector.fit(X, codes, teacher_logits=logits, sample_weight=weight)
    projector.inverse_transform(projector.transform(X, teacher_logits=logits))
    projector.partial_fit(X, codes, teacher_logits=logits, sample_weight=weight)
    for array, copy in zip(given, kept, strict=True):
        assert_array_equal(array, copy)


@pytest.mark.parametrize(
    "names", [["no", "yes"], [7, 3], [True, False], [0.0, 1.0], ["b", "a"]]
)
def test_labels_of_every_kind(names):
    problem = make_problem()
    y = np.array(names)[problem.codes]
    classes, first, codes = np.unique(y, return_index=True, return_inverse=True)
    order = problem.codes[first]
    head = problem.coef[order], problem.intercept[order]
    projector = build(problem, head=head).fit(problem.X, y)
    assert_array_equal(projector.classes_, classes)
    coded = build(problem, head=head).fit(problem.X, codes)
    assert_array_equal(projector.components_, coded.components_)
    as_list = build(problem, head=head).fit(problem.X, y.tolist())
    assert_array_equal(as_list.classes_, classes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_logits_as_tensors_of_a_model(dtype):
    """What a model gives: low precision, still attached to the graph."""
    problem = make_problem(n_classes=3)
    X = torch.as_tensor(problem.X, dtype=dtype)
    linear = torch.nn.Linear(12, 3, dtype=dtype)
    logits = linear(X)
    projector = build(problem, head=linear, temperature=1.0)
    soft = projector.fit_transform(X, problem.codes, teacher_logits=logits)
    expected = reference.class_probabilities(logits.detach().double().numpy())
    assert_allclose(projector.inverse_transform(soft), expected, atol=1e-6)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("dtype", ["Int64", "boolean"])
def test_nullable_labels_of_pandas_keep_their_type(dtype, missing):
    problem = make_problem()
    y = pd.Series(problem.codes, dtype=dtype)
    if missing:
        y[::2] = pd.NA
    projector = build(problem, unlabeled=pd.NA if missing else None)
    classes = projector.fit(problem.X, y).classes_
    assert classes.dtype == (int if dtype == "Int64" else bool)
    assert_array_equal(classes, [0, 1])
