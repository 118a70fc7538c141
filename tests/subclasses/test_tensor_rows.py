"""Tensors are fitted and transformed where they lie, with the results of arrays."""

import os

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from lelp_sklearn import LELPProjector
from lelp_sklearn._subclasses import subsample, torch_backend
from lelp_sklearn._subclasses.rows import LabelledRows, hash_rows
from tests import reference
from tests.problems import integer_weights, make_problem

SPLITTERS = ["pca", "random", "kmeans"]


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    """A device whose tensors are read where they lie; the CPU as if it were such."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    monkeypatch.setattr(torch_backend, "_VIEWABLE", ())
    monkeypatch.setattr(torch_backend, "_NEAR", ())
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks, and many parts of each."""
    monkeypatch.setattr(torch_backend, "_MANY_NUMBERS", 600)
    monkeypatch.setattr(torch_backend, "_PART_ROWS", 16)


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


def on(device, array, dtype=None):
    return torch.as_tensor(array, dtype=dtype, device=device)


def same_subspaces(found, expected, atol):
    """The directions of each class span the same, by the sines of the angles."""
    for mine, theirs in zip(found, expected, strict=True):
        a, b = (np.linalg.qr(each.T)[0] for each in (mine, theirs))
        assert np.linalg.norm(a - b @ (b.T @ a), 2) <= atol


def agrees(tensor, array, atol):
    """Two fitted projectors are the same, the array's being the reference."""
    assert_array_equal(tensor.classes_, array.classes_)
    assert_allclose(tensor.mean_, array.mean_, atol=atol)
    assert_allclose(tensor.coef_, array.coef_, atol=atol)
    assert_allclose(tensor.components_, array.components_, atol=atol)
    assert_allclose(tensor.offsets_, array.offsets_, atol=atol)
    assert_allclose(
        tensor.subclass_temperature_, array.subclass_temperature_, atol=atol
    )


@pytest.mark.parametrize("splitter", [*SPLITTERS, "array"])
@pytest.mark.parametrize(
    "svd_solver", ["auto", "randomized", "covariance_eigh", "full"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.usefixtures("small_blocks")
def test_a_fit_is_that_of_an_array(device, splitter, svd_solver, dtype):
    problem = make_problem(n_classes=3)
    if splitter == "array":
        splitter = np.random.RandomState(7).normal(size=(3, 4, 12))
    params = {"splitter": splitter, "svd_solver": svd_solver}
    params["n_subclasses"] = 4
    weight = integer_weights(len(problem.X)) + 0.5
    array = build(problem, rotation=None, **params)
    array.fit(problem.X, problem.codes, sample_weight=weight)
    tensor = build(problem, rotation=None, **params)
    X = on(device, problem.X, dtype)
    tensor.fit(X, on(device, problem.codes), sample_weight=on(device, weight))
    agrees(tensor, array, 1e-9 if dtype == torch.float64 else 1e-4)
    if isinstance(splitter, str) and splitter == "pca":
        same_subspaces(tensor.components_, array.components_, 1e-4)


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("subclass_temperature", ["auto", 0.5, 0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("logits", [None, "array", "tensor"])
@pytest.mark.usefixtures("small_blocks")
def test_soft_labels_are_those_of_the_reference(
    device, splitter, subclass_temperature, dtype, logits
):
    problem = make_problem(n_classes=3)
    X = on(device, problem.X, dtype)
    known = X.double().cpu().numpy()
    own_logits = known @ problem.coef.T + problem.intercept
    given = {}
    if logits is not None:
        own_logits = own_logits[:, [1, 0, 2]]
        is_tensor = logits == "tensor"
        given = {"teacher_logits": on(device, own_logits) if is_tensor else own_logits}
    projector = build(
        problem, splitter=splitter, subclass_temperature=subclass_temperature
    )
    soft = projector.fit(X, problem.codes).transform(X, **given)
    assert soft.device == X.device
    assert soft.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = reference.soft_labels(
        known,
        projector.components_,
        projector.offsets_,
        own_logits,
        subclass_temperature=projector.subclass_temperature_,
    )
    assert_allclose(soft.cpu().numpy(), expected, atol=1e-5)
    mass = projector.inverse_transform(soft)
    assert mass.device == X.device
    assert_allclose(
        mass.cpu().numpy(), reference.class_probabilities(own_logits), atol=1e-5
    )


@pytest.mark.parametrize("head", ["discriminant", "logits", "unlabelled", "y is None"])
@pytest.mark.usefixtures("small_blocks")
def test_heads_and_labels_that_are_found(device, head):
    problem = make_problem(n_classes=3)
    X, y = problem.X, problem.codes.copy()
    params, given = {"splitter": "kmeans"}, {}
    if head in ("discriminant", "logits"):
        params["head"] = None
    if head == "logits":
        given["teacher_logits"] = problem.logits
    y[::3] = -1 if head in ("unlabelled", "discriminant") else y[::3]
    params["unlabeled"] = -1
    y = None if head == "y is None" else y
    array = build(problem, **params).fit(X, y, **given)
    tensor = build(problem, **params).fit(on(device, X), y, **given)
    agrees(tensor, array, 1e-8)


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_a_class_of_which_a_sample_is_drawn(device, splitter):
    """Enough rows that directions start from some of them: the same as of an array."""
    problem = make_problem(n_rows=9000, n_features=8, decay=0.7)
    weight = integer_weights(len(problem.X))
    params = {"splitter": splitter, "svd_solver": "randomized", "rotation": None}
    array = build(problem, **params)
    array.fit(problem.X, problem.codes, sample_weight=weight)
    tensor = build(problem, **params)
    tensor.fit(on(device, problem.X), problem.codes, sample_weight=weight)
    agrees(tensor, array, 1e-8)


@pytest.mark.parametrize("most", [200, 10_000])
@pytest.mark.parametrize("copies", [False, True])
def test_distinct_rows_are_those_of_arrays(device, most, copies, monkeypatch):
    monkeypatch.setattr(subsample, "_SKETCH_ROWS", most)
    rng = np.random.RandomState(0)
    X = rng.normal(size=(2000, 3))
    X = X[rng.randint(len(X), size=len(X))] if copies else X
    known = rng.randint(-1, 2, size=len(X)), rng.uniform(size=len(X))
    known = *known, hash_rows(X)
    tensor = torch_backend.TensorRows(on(device, X))
    pairs = zip(
        subsample.class_sketches(LabelledRows(X, *known), 2, np.uint64(5)),
        subsample.class_sketches(LabelledRows(tensor, *known), 2, np.uint64(5)),
        strict=True,
    )
    for of_array, of_tensor in pairs:
        assert of_tensor.is_whole == of_array.is_whole
        for size in (10, 200, 10_000):
            found = of_tensor.draw(np.uint64(5), size)
            expected = of_array.draw(np.uint64(5), size)
            assert_array_equal(found.places, expected.places)
            assert_array_equal(found.digests, expected.digests)
            assert_allclose(found.weight, expected.weight, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.usefixtures("small_blocks")
def test_digests_are_those_of_arrays(device, dtype):
    X = torch.as_tensor(make_problem().X, dtype=dtype)
    X[3, 4], X[5, 6] = 0.0, -0.0
    tensor = torch_backend.TensorRows(X.to(device))
    assert_array_equal(hash_rows(tensor), hash_rows(X.numpy()))


@pytest.mark.parametrize("n_features", [5, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_digests_of_the_kernel_are_those_of_arrays(
    device, n_features, dtype, monkeypatch
):
    interpreted_kernels(monkeypatch, device)
    X = torch.as_tensor(make_problem(n_features=n_features).X, dtype=dtype)
    X[3, 4], X[5, 3] = 0.0, -0.0
    tensor = torch_backend.TensorRows(X.to(device))
    expected = hash_rows(X.float().numpy())
    assert_array_equal(hash_rows(tensor), expected)
    X[17, 4] = np.inf
    with pytest.raises(ValueError, match="row 17"):
        hash_rows(torch_backend.TensorRows(X.to(device)))


def test_kernels_read_features_that_lie_two_thousand_million_numbers_apart(
    device, monkeypatch
):
    """As in the rows of a large array whose columns are contiguous."""
    interpreted_kernels(monkeypatch, device)
    problem = make_problem(n_features=18)
    step = 2**31 // 17 + 1
    X = torch.empty(18 * step, dtype=torch.float16, device=device)
    X = X.view(18, step).T[: len(problem.X)].copy_(torch.as_tensor(problem.X))
    known = X.float().cpu().numpy()
    found = hash_rows(torch_backend.TensorRows(X))
    assert_array_equal(found, hash_rows(known))
    projector = build(problem).fit(known, problem.codes)
    soft = projector.transform(X).cpu().numpy()
    assert_allclose(soft, projector.transform(known), atol=1e-5)


@pytest.mark.parametrize("flaw", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("subclass_temperature", [0.5, 0])
@pytest.mark.usefixtures("small_blocks")
def test_a_row_that_is_not_finite_is_named(
    device, flaw, dtype, subclass_temperature, tmp_path
):
    problem = make_problem()
    X = on(device, problem.X, dtype)
    projector = build(problem, subclass_temperature=subclass_temperature)
    projector.fit(X, problem.codes)
    flawed = X.clone()
    flawed[117, 3] = flaw
    with pytest.raises(ValueError, match="row 117"):
        projector.transform(flawed)
    with pytest.raises(ValueError, match="row 117"):
        projector.transform(flawed, out=tmp_path / "soft.npy")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="row 117"):
        build(problem).fit(flawed, problem.codes)


def test_scores_that_overflow_single_precision(device):
    problem = make_problem()
    projector = build(problem, splitter="random").fit(problem.X, problem.codes)
    X = torch.as_tensor(problem.X, dtype=torch.float32)
    X[7] *= 1e38
    soft = projector.transform(X.to(device))
    with np.errstate(over="ignore"):
        expected = projector.transform(X.double().numpy())
    assert_allclose(soft.cpu().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mean_ten_thousand_times_the_spread(device, splitter, dtype):
    problem = make_problem(mean=1e4, decay=1.0, n_features=8)
    X = on(device, problem.X, dtype)
    known = X.double().cpu().numpy()
    projector = build(problem, splitter=splitter)
    soft = projector.fit_transform(X, problem.codes)
    expected = reference.soft_labels(
        known,
        projector.components_,
        projector.offsets_,
        known @ problem.coef.T + problem.intercept,
        subclass_temperature=projector.subclass_temperature_,
    )
    assert_allclose(soft.cpu().numpy(), expected, atol=1e-4)
    if splitter == "pca":
        spectrum, _ = reference.principal_directions(
            known, problem.codes, problem.coef, 3
        )
        assert_allclose(projector.spectrum_, spectrum, rtol=1e-3)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_are_exact_whatever_is_allowed(device, precision):
    problem = make_problem(n_rows=600, n_features=64, decay=0.99, mean=0.1)
    X = on(device, problem.X, torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        projector = build(problem, svd_solver="randomized")
        soft = projector.fit_transform(X, problem.codes)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    known = X.double().cpu().numpy()
    exact = build(problem, svd_solver="randomized").fit(known, problem.codes)
    assert_allclose(soft.cpu().numpy(), exact.transform(known), atol=1e-4)
    assert_allclose(projector.spectrum_, exact.spectrum_, rtol=1e-5)


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("head", ["given", None])
@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_a_stream(device, splitter, head):
    problem = make_problem(n_rows=300)
    params = {"splitter": splitter} | ({"head": None} if head is None else {})
    array, tensor = build(problem, **params), build(problem, **params)
    for block in np.array_split(np.arange(300), 3):
        X, y = problem.X[block], problem.codes[block]
        array.partial_fit(X, y, classes=[0, 1])
        tensor.partial_fit(on(device, X), y, classes=[0, 1])
    agrees(tensor, array, 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("small_blocks")
def test_soft_labels_go_to_an_array_or_a_file(device, dtype, tmp_path):
    problem = make_problem()
    X = on(device, problem.X, dtype)
    projector = build(problem).fit(X, problem.codes)
    soft = projector.transform(X).cpu().numpy()
    out = np.empty_like(soft)
    assert projector.transform(X, out=out) is out
    assert_array_equal(out, soft)
    mapped = projector.transform(X, out=tmp_path / "soft.npy")
    assert_array_equal(mapped, soft)


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_tensors_are_not_changed_and_need_no_gradient(device, splitter):
    problem = make_problem()
    X = on(device, problem.X, torch.float32).requires_grad_()
    kept = X.detach().clone()
    projector = clone(build(problem, splitter=splitter))
    soft = projector.fit_transform(X, problem.codes)
    assert not soft.requires_grad
    assert X.grad is None
    assert torch.equal(X, kept)
    assert all(
        isinstance(value, np.ndarray)
        for name, value in vars(projector).items()
        if name in ("components_", "offsets_", "mean_", "coef_", "intercept_")
    )


@pytest.mark.parametrize("order", ["transposed", "every second", "reversed"])
def test_rows_may_lie_apart(device, order):
    problem = make_problem()
    X = on(device, problem.X, torch.float32)
    apart = {
        "transposed": X.T.contiguous().T,
        "every second": X.repeat_interleave(2, dim=1)[:, ::2],
        "reversed": torch.cat([X, X])[: len(X)],
    }[order]
    projector = build(problem).fit(X, problem.codes)
    assert_allclose(
        projector.transform(apart).cpu(), projector.transform(X).cpu(), atol=1e-6
    )
    other = build(problem).fit(apart, problem.codes)
    assert_allclose(other.components_, projector.components_, atol=1e-5)


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("svd_solver", ["randomized", "covariance_eigh"])
@pytest.mark.parametrize("head", ["given", None])
def test_no_embeddings_come_to_the_host(
    device, splitter, svd_solver, head, monkeypatch
):
    """The largest transfer is a sample, or what is known of each row beside X."""
    n_rows, n_features = 40_000, 32
    problem = make_problem(n_rows=n_rows, n_features=n_features, decay=0.9)
    X = on(device, problem.X, torch.float32)
    sizes, cpu = [], torch.Tensor.cpu

    def counted(tensor):
        sizes.append(tensor.numel())
        return cpu(tensor)

    def refused(tensor, *arguments, **options):
        target = [*arguments, *options.values()]
        assert "cpu" not in [str(each) for each in target], "moved by .to"
        return to(tensor, *arguments, **options)

    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    if device != "cpu":
        monkeypatch.setattr(torch.Tensor, "to", refused)
    params = {"head": None} if head is None else {}
    projector = build(problem, splitter=splitter, svd_solver=svd_solver, **params)
    soft = projector.fit_transform(X, problem.codes)
    assert soft.device.type == device
    # Of each class 2048 rows are sampled.
    assert max(sizes) <= max(2048 * n_features, n_rows)


def interpreted_kernels(monkeypatch, device):
    """Triton's kernels: on a CPU interpreted, where TRITON_INTERPRET says so."""
    pytest.importorskip("triton", reason="torch's CUDA builds bring Triton along")
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("TRITON_INTERPRET=1 runs kernels on the CPU")

    from lelp_sklearn._subclasses import triton_kernel

    monkeypatch.setattr(torch_backend, "kernels_of", lambda tensor: triton_kernel)
    return triton_kernel


@pytest.mark.parametrize(
    ("shape", "subclass_temperature", "mean", "with_logits"),
    [
        ((2, 3, 5), 0.3, 0.0, False),
        ((3, 4, 70), 0.3, 100.0, True),
        ((2, 10, 256), 0, 0.0, False),
        ((2, 1, 70), 0.3, 0.0, False),
        ((2, 10, 256), 0.3, 100.0, False),
        ((2, 30, 128), 0.3, 0.0, True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_fused_kernel(
    device, shape, subclass_temperature, mean, with_logits, dtype, monkeypatch
):
    n_classes, n_subclasses, n_features = shape
    kernels = interpreted_kernels(monkeypatch, device)
    problem = make_problem(n_classes, 300, n_features, decay=0.99, mean=mean)
    if device == "cpu" and dtype == torch.bfloat16:
        # Triton's interpreter multiplies the bits of bfloat16.
        monkeypatch.setattr(kernels, "_ROUNDING", -1.0)
    X = on(device, problem.X, dtype)
    known = X.double().cpu().numpy()
    projector = build(
        problem,
        n_subclasses=n_subclasses,
        splitter="random",
        subclass_temperature=subclass_temperature,
        null_space=False,
    ).fit(known, problem.codes)
    logits = known @ problem.coef.T + problem.intercept
    given = {"teacher_logits": on(device, logits)} if with_logits else {}
    soft = projector.transform(X, **given).cpu().numpy()
    expected = reference.soft_labels(
        known,
        projector.components_,
        projector.offsets_,
        logits,
        subclass_temperature=projector.subclass_temperature_,
    )
    # A tie within rounding may fall either way where rows are assigned hard.
    apart = np.abs(soft - expected).max(axis=1) > 2e-5
    assert np.mean(apart) <= (0.01 if subclass_temperature == 0 else 0)


# Triton's interpreter is NumPy.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_the_fused_kernel_finds_what_is_not_finite(device, monkeypatch):
    interpreted_kernels(monkeypatch, device)
    problem = make_problem()
    X = on(device, problem.X, torch.float16)
    for subclass_temperature in (0.5, 0):
        projector = build(problem, subclass_temperature=subclass_temperature)
        projector.fit(problem.X, problem.codes)
        for flaw in (np.nan, np.inf, -np.inf):
            flawed = X.clone()
            flawed[-1, -1] = flaw
            with pytest.raises(ValueError, match="row 159"):
                projector.transform(flawed)


@pytest.mark.parametrize("with_logits", [False, True])
def test_the_fused_kernel_follows_a_projector_that_changes(
    device, with_logits, monkeypatch
):
    """What it was made of is kept for the next call, not longer than it is true."""
    interpreted_kernels(monkeypatch, device)
    problem = make_problem()
    X = on(device, problem.X, torch.float32)
    logits = problem.X @ problem.coef.T + problem.intercept
    given = {"teacher_logits": logits} if with_logits else {}
    projector = build(problem).fit(problem.X, problem.codes)
    for change in (
        lambda: None,
        lambda: projector.components_.__imul__(2),
        lambda: projector.offsets_.__iadd__(1),
        lambda: projector.coef_.__imul__(-1),
        lambda: setattr(projector, "temperature_", 3.0),
    ):
        change()
        for _ in range(2):
            soft = projector.transform(X, **given).cpu().numpy()
            expected = projector.transform(problem.X, **given)
            assert_allclose(soft, expected, atol=1e-5)
