"""The student by itself: a torch module and an ONNX file of class probabilities."""

import io
import logging
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from packaging.version import Version
from scipy.special import logsumexp, softmax
from sklearn.exceptions import NotFittedError
from torch import nn

from lelp_sklearn import LELPProjector, LELPStudentClassifier
from tests.student_problems import BufferNet, MyNet, weights_of

ROOT = Path(__file__).parents[1]
N_TOKENS = 30


class ConvNet(nn.Sequential):
    def __init__(self, n_channels, n_outputs):
        super().__init__(
            nn.Conv2d(n_channels, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(20, n_outputs),
        )


class TokenNet(nn.Sequential):
    def __init__(self, n_tokens, n_outputs, **options):
        bag = nn.EmbeddingBag(N_TOKENS, 7, **options)
        super().__init__(bag, nn.Linear(7, n_outputs))


class MeanNet(nn.Module):
    """An embedding of each token, then their mean."""

    def __init__(self, n_tokens, n_outputs):
        super().__init__()
        self.table = nn.Embedding(N_TOKENS, 7)
        self.top = nn.Linear(7, n_outputs)

    def forward(self, X):
        return self.top(self.table(X).mean(dim=1))


def rows_for(module, n_rows, dtype=None):
    rng = np.random.RandomState(0)
    if module in (TokenNet, MeanNet):
        return rng.randint(N_TOKENS, size=(n_rows, 8)).astype(dtype or np.int64)
    shape = (3, 6, 5) if module is ConvNet else (6,)
    return rng.normal(size=(n_rows, *shape)).astype(dtype or np.float32)


def fitted(
    module=None, n_classes=2, n_subclasses=4, temperature=1.0, dtype=None, **options
):
    """A student of soft targets that are unequal, and the rows it was fitted on."""
    n_rows = 60
    X = rows_for(module, n_rows, dtype)
    rng = np.random.RandomState(1)
    soft = rng.dirichlet(np.full(n_classes * n_subclasses, 0.2), size=n_rows)
    student = LELPStudentClassifier(
        module,
        projector=LELPProjector(n_subclasses, temperature=temperature),
        max_epochs=5,
        learning_rate=0.05,
        random_state=0,
        **options,
    )
    return student.fit(X, np.arange(n_rows) % n_classes, soft_targets=soft), X


def sharpened(student, factor=20):
    """The student with larger logits, where the temperature matters most."""
    with torch.no_grad():
        for parameter in list(student.module_.parameters())[-2:]:
            parameter *= factor
    return student


MODULES = [None, BufferNet, ConvNet, TokenNet, MeanNet]
# Among them each kind of module, S, τ and number of classes.
FORMS = [
    (None, 2, 4, 4.0, np.float64),
    (BufferNet, 3, 1, 1.0, np.float32),
    (ConvNet, 2, 5, 1.0, np.float32),
    (ConvNet, 3, 3, 4.0, np.float64),
    (TokenNet, 2, 1, 4.0, np.int64),
    (TokenNet, 3, 4, 1.0, np.int32),
    (MeanNet, 2, 3, 4.0, np.int64),
]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("n_classes", "n_subclasses", "temperature"),
    [(2, 1, 4.0), (3, 1, 1.0), (2, 4, 1.0), (3, 4, 4.0), (2, 4, 4.0)],
)
def test_module_gives_the_class_probabilities(
    module, n_classes, n_subclasses, temperature
):
    student, X = fitted(module, n_classes, n_subclasses, temperature)
    sharpened(student)
    net = student.to_module()
    expected = student.predict_proba(X)
    for n_rows in (1, 2, 17, len(X)):
        found = net(torch.from_numpy(X[:n_rows]))
        assert_allclose(found.numpy(), expected[:n_rows], atol=2e-6, rtol=0)


@pytest.mark.parametrize("temperature", [0.02, 0.2, 0.3, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
def test_module_is_the_softmax_of_class_logits_at_any_temperature(temperature, scale):
    """In single precision, beside the formula in double precision."""
    student, _ = fitted(None, 3, 4, temperature)
    net = student.to_module()
    net.net = nn.Identity()
    a = scale * np.random.RandomState(0).normal(size=(200, 12)).astype(np.float32)
    scaled = a.astype(np.float64).reshape(200, 3, 4) / temperature
    expected = softmax(temperature * logsumexp(scaled, axis=2), axis=1)
    found = net(torch.from_numpy(a)).numpy()
    # What single precision leaves of a logit of this size.
    rounding = 4 * np.finfo(np.float32).eps * max(np.abs(a).max(), temperature, 1)
    assert_allclose(found, expected, atol=rounding, rtol=0)


def test_module_is_an_independent_copy():
    student, X = fitted(BufferNet)
    expected, weights = student.predict_proba(X), weights_of(student)
    net = student.to_module()
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(parameter.requires_grad for parameter in student.module_.parameters())
    student.partial_fit(X, soft_targets=np.full((len(X), 8), 1 / 8))
    assert_allclose(net(torch.from_numpy(X)).numpy(), expected, atol=1e-6)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert not np.array_equal(weights_of(student), weights)
    assert weights_of(student).any()


def test_module_keeps_the_precision_of_the_student():
    student, X = fitted(None, dtype=np.float64)
    found = student.to_module()(torch.from_numpy(X))
    assert found.dtype == torch.float64
    assert_allclose(found.numpy(), student.predict_proba(X), rtol=1e-12)
    single = student.to_module().float()(torch.from_numpy(X).float())
    assert_allclose(single.numpy(), student.predict_proba(X), atol=1e-6)


def test_gradients_reach_the_rows():
    """What explains a prediction asks for them."""
    student, X = fitted(None, n_subclasses=3, temperature=4.0, dtype=np.float64)
    net, rows = student.to_module(), torch.from_numpy(X[:3]).requires_grad_()
    assert torch.autograd.gradcheck(net, rows)


@pytest.mark.slow
def test_saved_module_needs_nothing_that_training_needs(tmp_path):
    """A file of torch.save runs where neither numba nor an estimator is loaded."""
    student, X = fitted(MyNet, temperature=4.0)
    torch.save(student.to_module(), tmp_path / "module.pt")
    np.savez(tmp_path / "rows.npz", X=X, expected=student.predict_proba(X))
    run(
        f"""
        import sys, numpy as np, torch
        net = torch.load({str(tmp_path / "module.pt")!r}, weights_only=False)
        data = np.load({str(tmp_path / "rows.npz")!r})
        found = net(torch.from_numpy(data["X"])).numpy()
        np.testing.assert_allclose(found, data["expected"], atol=1e-6)
        assert "numba" not in sys.modules
        assert "lelp_sklearn._student" not in sys.modules
        """
    )


# Imports cost as much as an export, so that one file serves several tests.
@pytest.fixture(scope="module", params=FORMS, ids=str)
def exported(request, tmp_path_factory):
    student, X = fitted(*request.param)
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    assert sharpened(student, 3).to_onnx(path) is None
    return student, X, path


def session_of(path):
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def as_exported(X):
    return X.astype(np.float32 if X.dtype.kind == "f" else np.int64)


def test_file_gives_the_class_probabilities(exported):
    student, X, path = exported
    session = session_of(path)
    assert [each.name for each in session.get_inputs()] == ["X"]
    assert session.get_outputs()[0].name == "probabilities"
    for n_rows in (1, 2, 17):
        rows = as_exported(X)[:n_rows]
        found = session.run(None, {"X": rows})[0]
        assert found.shape == (n_rows, len(student.classes_))
        assert found.dtype == np.float32
        assert_allclose(found, student.predict_proba(rows), atol=1e-5, rtol=0)


def test_file_is_small_and_alone(exported):
    student, _, path = exported
    n_parameters = sum(p.numel() for p in student.module_.parameters())
    assert path.stat().st_size <= 4 * n_parameters + 12_000
    assert os.listdir(path.parent) == [path.name]


def test_file_says_nothing_of_where_it_was_made(exported):
    onnx = pytest.importorskip("onnx")
    *_, path = exported
    onnx.checker.check_model(onnx.load(path), full_check=True)
    content = path.read_bytes()
    folders = {*Path(__file__).parts, *Path(torch.__file__).parts}
    hints = {part for part in folders if len(part) > 4} | {".py", "Traceback", "line "}
    # Names that the file needs: the producer's, and of operators.
    for hint in sorted(hints - {"torch"}):
        assert hint.encode() not in content, hint


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_bags_of_tokens_leave_padding_out(mode, tmp_path):
    """A row of nothing but padding too."""
    params = {"mode": mode, "padding_idx": 0}
    student, X = fitted(TokenNet, module_params=params)
    X[:, 5:], X[1] = 0, 0
    student.to_onnx(tmp_path / "student.onnx")
    found = session_of(tmp_path / "student.onnx").run(None, {"X": X})[0]
    assert_allclose(found, student.predict_proba(X), atol=1e-5, rtol=0)


class Unexportable(MyNet):
    """Its output hangs on the values of the first row."""

    def forward(self, X):
        logits = super().forward(X)
        return logits if X[0].sum().item() > 0 else 2 * logits


class Unknown(MyNet):
    """One of its operations has no counterpart in ONNX."""

    def forward(self, X):
        return super().forward(torch.special.bessel_j0(X))


@pytest.mark.parametrize(
    ("module", "cause"),
    [(Unexportable, "data-dependent expression"), (Unknown, "bessel_j0")],
)
def test_module_that_cannot_be_exported(module, cause, tmp_path, capfd):
    student, _ = fitted(module)
    name = rf"module \({module.__name__}\) cannot be exported .*{cause}"
    with pytest.raises(ValueError, match=name) as error:
        student.to_onnx(tmp_path / "student.onnx")
    assert os.listdir(tmp_path) == []
    # Short, whatever torch says of each operation; its own error is at hand.
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)
    assert type(error.value.__cause__).__module__.startswith("torch.")
    assert capfd.readouterr().out == ""


def test_export_leaves_everything_as_it_was(tmp_path, capfd):
    """Also the file of before, until the new one is complete."""
    student, X = fitted(BufferNet)
    expected, path = student.predict_subclass_proba(X), tmp_path / "student.onnx"
    path.write_bytes(b"older")
    levels = [logging.getLogger(name).level for name in ("torch", "onnxscript")]
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()
    filters = list(warnings.filters)
    student.to_onnx(path)
    assert path.stat().st_size > 1000
    assert_array_equal(student.predict_subclass_proba(X), expected)
    assert all(p.requires_grad for p in student.module_.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert_array_equal(np.random.get_state()[1], numpy_random)
    assert warnings.filters == filters
    after = [logging.getLogger(name).level for name in ("torch", "onnxscript")]
    assert after == levels
    assert capfd.readouterr() == ("", "")


class RecurrentNet(nn.Module):
    def __init__(self, n_features, n_outputs, kind):
        super().__init__()
        self.layer = kind(3, 5, batch_first=True)
        self.top = nn.Linear(5, n_outputs)

    def forward(self, X):
        return self.top(self.layer(X.view(-1, 2, 3))[0][:, -1])


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"),
    reason="the exporter of torch 2.6 refuses recurrent layers",
)
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_student_takes_any_number_of_rows(kind, tmp_path):
    """In a process of its own, which onnxruntime may abort."""
    student, X = fitted(RecurrentNet, module_params={"kind": kind})
    student.to_onnx(tmp_path / "student.onnx")
    session_of(tmp_path / "student.onnx")
    np.savez(tmp_path / "rows.npz", X=X, expected=student.predict_proba(X))
    run(
        f"""
        import numpy as np, onnxruntime
        session = onnxruntime.InferenceSession({str(tmp_path / "student.onnx")!r})
        data = np.load({str(tmp_path / "rows.npz")!r})
        for n_rows in (0, 1, 17):
            found = session.run(None, {{"X": data["X"][:n_rows]}})[0]
            assert found.shape == (n_rows, 2)
            expected = data["expected"][:n_rows]
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        """
    )


class Untouched(nn.Module):
    """Must not be copied: errors come before work."""

    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.top = nn.Linear(n_features, n_outputs)

    def forward(self, X):
        return self.top(X)

    def __deepcopy__(self, memo):
        raise AssertionError("work has begun")


@pytest.fixture(scope="module")
def untouched():
    student, _ = fitted()
    student.module_.__class__ = type(
        "Net", (type(student.module_),), {"__deepcopy__": Untouched.__deepcopy__}
    )
    return student


def test_path_that_cannot_be_written(untouched, tmp_path):
    with pytest.raises(ValueError, match=r"ends in '\.onnx'"):
        untouched.to_onnx(tmp_path / "student.pt")
    with pytest.raises(ValueError, match="there is no folder"):
        untouched.to_onnx(tmp_path / "none" / "student.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        untouched.to_onnx(tmp_path / "folder.onnx")
    with pytest.raises(TypeError, match=r"path must be .* got BytesIO"):
        untouched.to_onnx(io.BytesIO())


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_extra_that_is_missing_is_named(name, untouched, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name}.*lelp-sklearn\[onnx\]"):
        untouched.to_onnx(tmp_path / "student.onnx")
    assert os.listdir(tmp_path) == []


def test_student_that_is_not_fitted(tmp_path):
    student = LELPStudentClassifier()
    with pytest.raises(NotFittedError):
        student.to_module()
    with pytest.raises(NotFittedError):
        student.to_onnx(tmp_path / "student.onnx")


def run(code):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
