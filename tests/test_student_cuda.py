"""The student on a GPU: it learns, stops, resumes and is saved as on the CPU."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.sparse import csr_array
from torch import nn

from lelp_sklearn import EmbeddingExtractor, LELPProjector, LELPStudentClassifier
from lelp_sklearn._training import cuda_graphs, loop
from tests.student_problems import MyNet, make_groups, make_soft_targets, weights_of

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no CUDA device"
)


def quick(**options):
    defaults = {"max_epochs": 10, "batch_size": 64, "random_state": 0, "device": "cuda"}
    return LELPStudentClassifier(**{**defaults, **options})


@pytest.fixture(scope="module")
def problem():
    return make_soft_targets(n_rows=480)


@pytest.fixture
def captured(monkeypatch):
    """Collect the captured steps."""
    made = []

    class Counted(cuda_graphs.CapturedStep):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(cuda_graphs, "CapturedStep", Counted)
    return made


def deep(n_features, n_outputs, dropout=0.3):
    """Layers that draw, and that keep running means."""
    return nn.Sequential(
        nn.Linear(n_features, 16),
        nn.BatchNorm1d(16),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(16, n_outputs),
    )


def token_module(n_features, n_outputs):
    return nn.Sequential(nn.EmbeddingBag(50, 16), nn.ReLU(), nn.Linear(16, n_outputs))


def convolution(n_features, n_outputs):
    return nn.Sequential(
        nn.Unflatten(1, (1, n_features)),
        nn.Conv1d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, n_outputs),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"module": deep},
        {"module": convolution},
        {"learning_rate_schedule": "one_cycle", "max_grad_norm": 0.1},
        {"label_weight": 0.3, "within_class_temperature": 2.0},
        {"early_stopping": True, "n_iter_no_change": 3, "max_epochs": 20},
        {"precision": "bfloat16"},
    ],
    ids=[
        "default",
        "deep",
        "convolution",
        "clipped",
        "labels",
        "stopping",
        "bfloat16",
    ],
)
def test_replayed_steps_learn_what_plain_ones_do(
    problem, captured, monkeypatch, options
):
    X, y, targets = problem
    weight = np.linspace(0.5, 2, len(y))
    given = {"soft_targets": targets, "sample_weight": weight}
    graphed = quick(**options).fit(X, y, **given)
    assert captured
    monkeypatch.setattr(loop, "can_capture", lambda *of: False)
    plain = quick(**options).fit(X, y, **given)
    tolerance = 2e-2 if "precision" in options else 1e-3
    assert_allclose(graphed.loss_curve_, plain.loss_curve_, rtol=tolerance)
    ours, theirs = graphed.predict_proba(X), plain.predict_proba(X)
    assert_allclose(ours, theirs, atol=tolerance)


def test_steps_on_tokens_are_captured(problem, captured):
    _, y, targets = problem
    X = np.random.default_rng(0).integers(0, 50, (len(y), 7)) + y[:, None]
    X = np.minimum(X, 49)
    student = quick(module=token_module).fit(X, y, soft_targets=targets)
    assert captured
    assert student.loss_curve_[-1] < student.loss_curve_[0]


def test_each_replay_draws_other_numbers(problem, captured):
    """With all units dropped but at random, equal draws would repeat one loss."""
    X, y, targets = problem
    options = {
        "module": deep,
        "module_params": {"dropout": 0.8},
        "learning_rate": 1e-12,
        "learning_rate_schedule": "constant",
        "subclass_weight": 1.0,
    }
    student = quick(**options).fit(X, y, soft_targets=targets)
    assert captured
    assert len(np.unique(np.round(student.loss_curve_, 5))) == len(student.loss_curve_)


def test_layers_that_read_the_device_are_trained_plainly(problem, captured):
    """This layer asks the device for a number in every step."""
    X, y, targets = problem

    def asking(n_features, n_outputs):
        norm = nn.BatchNorm1d(n_features, momentum=None)
        return nn.Sequential(norm, nn.Linear(n_features, n_outputs))

    student = quick(module=asking).fit(X, y, soft_targets=targets)
    assert not captured
    assert student.loss_curve_[-1] < student.loss_curve_[0]
    quick(module=deep).fit(X, y, soft_targets=targets)
    assert captured


def test_a_module_of_a_user_is_trained_plainly(problem, captured):
    X, y, targets = problem
    student = quick(module=MyNet).fit(X, y, soft_targets=targets)
    assert not captured
    assert student.loss_curve_[-1] < student.loss_curve_[0]


def test_after_a_capture_that_failed_the_device_draws(problem, monkeypatch):
    X, y, targets = problem

    class Fails(cuda_graphs.CapturedStep):
        def __init__(self, step, *arguments):
            def waits(*of):
                made = step(*of)
                made[0].item()
                return made

            super().__init__(waits, *arguments)

    monkeypatch.setattr(cuda_graphs, "CapturedStep", Fails)
    failing = quick(module=deep).fit(X, y, soft_targets=targets)
    assert failing.loss_curve_[-1] < failing.loss_curve_[0]
    monkeypatch.undo()
    torch.rand(1, device="cuda")
    quick(module=deep).fit(X, y, soft_targets=targets)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_precision_learns(problem, precision):
    X, y, targets = problem
    student = quick(precision=precision, max_epochs=30)
    assert student.fit(X, y, soft_targets=targets).score(X, y) > 0.9


def test_learns_what_it_learns_on_the_cpu(problem):
    X, y, targets = problem
    X = X.astype(np.float32)
    on_gpu = quick().fit(X, y, soft_targets=targets)
    on_cpu = quick(device="cpu").fit(X, y, soft_targets=targets)
    assert_allclose(on_gpu.loss_curve_, on_cpu.loss_curve_, rtol=2e-2)


def test_rows_and_embeddings_on_the_gpu_stay_there(problem):
    X, y, E, head = make_groups(480)
    rows = torch.tensor(X, dtype=torch.float32, device="cuda")
    embeddings = torch.tensor(E, dtype=torch.float32, device="cuda")
    student = quick(device="auto", projector=LELPProjector(3, head=head))
    labels = torch.tensor(y, device="cuda")
    weight = torch.ones(len(y), device="cuda")
    student.fit(rows, labels, teacher_embeddings=embeddings, sample_weight=weight)
    parameter = next(student.module_.parameters())
    assert parameter.device.type == "cuda"
    assert student.score(rows, y) > 0.9


def test_resumes_from_a_checkpoint(problem, tmp_path, monkeypatch):
    X, y, targets = problem
    whole = quick(module=deep).fit(X, y, soft_targets=targets)
    original = loop.Trainer.run_epoch

    def interrupted(trainer, curve_epoch, progress_epoch):
        if curve_epoch == 6:
            raise KeyboardInterrupt
        return original(trainer, curve_epoch, progress_epoch)

    resumed = quick(module=deep, checkpoint=tmp_path / "fit.ckpt")
    monkeypatch.setattr(loop.Trainer, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resumed.fit(X, y, soft_targets=targets)
    monkeypatch.undo()
    resumed.fit(X, y, soft_targets=targets)
    assert_allclose(resumed.loss_curve_, whole.loss_curve_, rtol=1e-3)
    assert_allclose(weights_of(resumed), weights_of(whole), rtol=1e-2, atol=1e-3)


def test_a_pickle_made_on_a_gpu_loads_without_one(problem, tmp_path):
    X, y, targets = problem
    student = quick().fit(X, y, soft_targets=targets)
    student.partial_fit(X, y, soft_targets=targets)
    (tmp_path / "student.pkl").write_bytes(pickle.dumps(student))
    np.save(tmp_path / "X.npy", X)
    program = (
        "import pickle, sys, numpy as np, torch\n"
        "assert not torch.cuda.is_available()\n"
        "student = pickle.load(open(sys.argv[1] + '/student.pkl', 'rb'))\n"
        "X = np.load(sys.argv[1] + '/X.npy')\n"
        "np.save(sys.argv[1] + '/made.npy', student.predict_proba(X))\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    made = np.load(tmp_path / "made.npy")
    assert_allclose(made, student.predict_proba(X), atol=1e-5)


def test_is_exported_from_the_gpu(problem, tmp_path):
    pytest.importorskip("onnxscript")
    session = pytest.importorskip("onnxruntime").InferenceSession
    X, y, targets = problem
    X = X.astype(np.float32)
    student = quick().fit(X, y, soft_targets=targets)
    student.to_onnx(tmp_path / "student.onnx")
    run = session(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    made = run.run(None, {run.get_inputs()[0].name: X})[0]
    assert_allclose(made, student.predict_proba(X), atol=1e-5)
    module = student.to_module()
    device = next(module.parameters()).device
    with torch.inference_mode():
        probabilities = module(torch.tensor(X, device=device)).cpu()
    assert_allclose(probabilities, student.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sparse_adam"])
def test_sparse_rows_learn_what_they_learn_on_the_cpu(problem, optimizer, captured):
    X, y, targets = problem
    rows = csr_array(np.where(np.abs(X) > 1, X, 0).astype(np.float32))
    on_gpu = quick(optimizer=optimizer).fit(rows, y, soft_targets=targets)
    on_cpu = quick(optimizer=optimizer, device="cpu").fit(rows, y, soft_targets=targets)
    assert not captured
    assert_allclose(on_gpu.loss_curve_, on_cpu.loss_curve_, rtol=2e-2)
    assert_allclose(
        on_gpu.predict_proba(rows), on_gpu.predict_proba(rows.toarray()), atol=1e-5
    )


def test_stops_at_a_loss_that_is_no_number(problem):
    X, y, targets = problem
    with pytest.raises(FloatingPointError, match="step"):
        quick(learning_rate=1e38).fit(X, y, soft_targets=targets)


def test_partial_fit_goes_on_on_the_gpu(problem):
    X, y, targets = problem
    student = quick(batch_size=8)
    for _ in range(5):
        student.partial_fit(X, y, classes=[0, 1], soft_targets=targets)
    assert len(student.loss_curve_) == 5
    assert student.loss_curve_[-1] < student.loss_curve_[0]


def test_extractor_gives_the_embeddings_of_the_cpu():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    X = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    on_cpu = EmbeddingExtractor(teacher, device="cpu").fit_transform(X)
    on_gpu = EmbeddingExtractor(teacher, device="cuda").fit_transform(X)
    assert_allclose(np.asarray(on_gpu), np.asarray(on_cpu), atol=1e-5)
    assert next(teacher.parameters()).device.type == "cpu"
