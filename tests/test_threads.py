"""Threads that share models, and children forked meanwhile."""

import copy
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from lelp_sklearn import EmbeddingExtractor, LELPProjector, LELPStudentClassifier
from tests.student_problems import make_soft_targets, weights_of

ROOT = Path(__file__).parents[1]
N_THREADS = 8


@pytest.fixture(autouse=True)
def threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*calls):
    """Begin calls at the same moment, a thread each; return their results in order."""
    barrier = threading.Barrier(len(calls))

    def begin(call):
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(begin, calls))


def rows(n_rows=120):
    return np.random.RandomState(0).normal(size=(n_rows, 6)).astype(np.float32)


def make_teacher():
    """A model of modes and buffers, partly frozen; whole and part may be teachers."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(), nn.ReLU())
    model = nn.Sequential(body, nn.Linear(9, 8), nn.Dropout(), nn.Linear(8, 2))
    model.train()
    body[1].eval()
    body[0].requires_grad_(False)
    return model


def state_of(model):
    """Everything of a model that a run of it could change."""
    return [
        (
            name,
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            [(p.requires_grad, p.device, p.tolist()) for p in module.parameters()],
            [(b.device, b.tolist()) for b in module.buffers()],
        )
        for name, module in model.named_modules()
    ]


def test_clones_in_threads_give_what_one_gives():
    model, X = make_teacher(), rows()
    first = EmbeddingExtractor(model, batch_size=7).fit(X)
    expected, logits = first.transform(X), first.predict_logits(X)
    before = state_of(model)

    def embed():
        extractor = clone(first)
        return extractor.fit(X).transform(X), extractor.predict_logits(X)

    for found, found_logits in at_once(*[embed] * N_THREADS):
        assert_array_equal(found, expected)
        assert_array_equal(found_logits, logits)
    assert state_of(model) == before


def test_models_that_share_layers_in_threads():
    """The whole and its part change the mode of the same layers."""
    model, X = make_teacher(), rows()
    extractors = [
        EmbeddingExtractor(part, layer=layer, batch_size=7).fit(X)
        for part, layer in ((model, "1"), (model[0], "1"), (model, "3"))
    ]
    expected = [extractor.transform(X) for extractor in extractors]
    before = state_of(model)
    calls = [extractor.transform for extractor in extractors] * 3
    found = at_once(*[lambda call=call: call(X) for call in calls])
    for own, right in zip(found, expected * 3, strict=True):
        assert_array_equal(own, right)
    assert state_of(model) == before


def test_extractions_in_threads(tmp_path):
    model, X = make_teacher(), rows()
    extractor = EmbeddingExtractor(model, batch_size=7)
    expected = np.array(extractor.extract(X, tmp_path / "alone.npy"))
    before = state_of(model)

    def extract(number):
        return clone(extractor).extract(X, tmp_path / f"{number}.npy")

    numbers = range(N_THREADS)
    for found in at_once(*[lambda n=n: extract(n) for n in numbers]):
        assert_array_equal(found, expected)
    assert state_of(model) == before


def test_search_in_threads_gives_what_a_serial_one_gives():
    model, X = make_teacher(), rows()
    y = np.arange(len(X)) % 2
    student = LELPStudentClassifier(
        teacher=EmbeddingExtractor(model),
        projector=LELPProjector(),
        max_epochs=2,
        random_state=0,
    )
    grid = {"projector__n_subclasses": [1, 2], "learning_rate": [0.01, 0.03]}
    search = GridSearchCV(student, grid, cv=2, scoring="neg_log_loss")
    alone = clone(search).fit(X, y)
    before, random = state_of(model), torch.get_rng_state()
    with joblib.parallel_config("threading", n_jobs=N_THREADS):
        search.fit(X, y)
    for name in ("split0_test_score", "split1_test_score"):
        assert_array_equal(search.cv_results_[name], alone.cv_results_[name])
    best = search.best_estimator_
    assert_array_equal(weights_of(best), weights_of(alone.best_estimator_))
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("make_copy", [clone, copy.deepcopy])
def test_copies_of_a_running_model_have_no_hooks(make_copy):
    """A teacher may be the template too, or give its last layer as head."""
    model, X = make_teacher(), rows(1000)
    before = state_of(model)
    extractor = EmbeddingExtractor(model, batch_size=2).fit(X)
    student = LELPStudentClassifier(
        model, projector=LELPProjector(head=model[3]), teacher=extractor
    )
    *copies, _ = at_once(
        *[lambda: make_copy(student)] * 4, lambda: extractor.transform(X)
    )
    for found in copies:
        assert state_of(found.module) == before
        assert not found.projector.head._forward_pre_hooks
        assert state_of(found.teacher.model) == before


def test_pickles_of_a_running_model_have_no_hooks():
    """Nor its mode, which is that of evaluation meanwhile."""
    model, X = make_teacher(), rows(1000)
    before = state_of(model)
    extractor = EmbeddingExtractor(model, batch_size=2).fit(X)
    *pickles, expected = at_once(
        *[lambda: pickle.dumps(extractor)] * 4, lambda: extractor.transform(X)
    )
    for each in pickles:
        loaded = pickle.loads(each)
        assert state_of(loaded.model) == before
        assert_array_equal(loaded.transform(X), expected)
    assert state_of(model) == before


@pytest.mark.parametrize("make_copy", [clone, copy.deepcopy])
def test_copies_and_runs_of_parts_of_a_model_do_not_wait_for_each_other(make_copy):
    model, X = make_teacher(), rows(2)
    extractor = EmbeddingExtractor(model).fit(rows())
    for module, head in ((model[0], model[3]), (model[1], model[0][0])):
        projector = LELPProjector(head=head)
        student = LELPStudentClassifier(
            module, projector=projector, teacher=make_pipeline(extractor)
        )

        def copies(student=student):
            return [make_copy(student) for _ in range(100)]

        def runs():
            return [extractor.transform(X) for _ in range(100)]

        threads = [
            threading.Thread(target=each, daemon=True) for each in (copies, runs) * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)


def test_a_checkpoint_is_found_while_others_run_the_teacher(tmp_path):
    X, y = rows(), np.arange(120) % 2
    extractor = EmbeddingExtractor(make_teacher(), batch_size=2).fit(X)
    student = LELPStudentClassifier(
        teacher=clone(extractor), max_epochs=1, random_state=0, checkpoint=tmp_path
    ).fit(X, y)
    files = sorted(tmp_path.iterdir())

    def fits():
        return [weights_of(clone(student).fit(X, y)) for _ in range(5)]

    def runs():
        return [extractor.transform(X) for _ in range(30)]

    for found in at_once(fits, runs, runs)[0]:
        assert_array_equal(found, weights_of(student))
    assert sorted(tmp_path.iterdir()) == files


def test_no_call_filters_warnings():
    """The filters belong to all threads, also while a context has changed them."""
    X = rows()
    X.flags.writeable = False
    student = LELPStudentClassifier(
        teacher=EmbeddingExtractor(make_teacher()), max_epochs=2, precision="bfloat16"
    )
    enter, callers = warnings.catch_warnings.__enter__.__code__, set()

    def note(frame, event, argument):
        if event == "call" and frame.f_code is enter:
            callers.add(frame.f_back.f_code.co_filename)

    sys.setprofile(note)
    try:
        student.fit(X, np.arange(len(X)) % 2).predict_proba(X)
    finally:
        sys.setprofile(None)
    assert not [name for name in callers if "lelp_sklearn" in name]


def test_threads_that_fit_and_predict_leave_the_process_as_it_was():
    """Warning filters aside: scikit-learn's check of y sets them, in each thread."""
    X, y, soft_targets = make_soft_targets()
    X = X.astype(np.float32)
    student = LELPStudentClassifier(max_epochs=2, random_state=0)
    fitted = clone(student).fit(X, y, soft_targets=soft_targets)
    expected, net = fitted.predict_proba(X), fitted.to_module()
    n_threads = torch.get_num_threads()
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()

    def work():
        twin = clone(student).fit(X, y, soft_targets=soft_targets)
        many = [fitted.predict_proba(X) for _ in range(10)]
        return [twin.predict_proba(X), *many]

    for found in at_once(*[work] * N_THREADS):
        for probabilities in found:
            assert_array_equal(probabilities, expected)
    assert state_of(fitted.to_module()) == state_of(net)
    assert torch.get_num_threads() == n_threads
    assert torch.equal(torch.get_rng_state(), random)
    assert_array_equal(np.random.get_state()[1], numpy_random)


def test_exports_while_others_fit_and_predict(tmp_path):
    """Two exports at once, and none of the process's own is changed."""
    runtime = pytest.importorskip("onnxruntime")
    X, y, soft_targets = make_soft_targets()
    X = X.astype(np.float32)
    student = LELPStudentClassifier(max_epochs=2, random_state=0)
    fitted = clone(student).fit(X, y, soft_targets=soft_targets)
    expected, done = fitted.predict_proba(X), threading.Barrier(2)
    names = [*logging.Logger.manager.loggerDict, None]
    levels = [logging.getLogger(name).level for name in names]
    filters, streams = list(warnings.filters), (sys.stdout, sys.stderr)
    is_over = threading.Event()

    def export(number):
        try:
            fitted.to_onnx(tmp_path / f"{number}.onnx")
        finally:
            done.wait()
            is_over.set()

    def fit_and_predict():
        while not is_over.is_set():
            assert (sys.stdout, sys.stderr) == streams
            twin = clone(student).fit(X, y, soft_targets=soft_targets)
            assert_array_equal(twin.predict_proba(X), expected)

    at_once(lambda: export(0), lambda: export(1), fit_and_predict)
    for number in range(2):
        session = runtime.InferenceSession(
            str(tmp_path / f"{number}.onnx"), providers=["CPUExecutionProvider"]
        )
        found = session.run(None, {"X": X})[0]
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert (sys.stdout, sys.stderr) == streams
    assert warnings.filters == filters
    assert [logging.getLogger(name).level for name in names] == levels


FORKED = """
import os, threading, faulthandler, warnings
import numpy as np, torch
from threadpoolctl import threadpool_info
from torch import nn
from lelp_sklearn import EmbeddingExtractor, LELPStudentClassifier
from lelp_sklearn._threads import one_blas_thread

inside, may_go_on = threading.Event(), threading.Event()
parent = os.getpid()
X = np.random.RandomState(0).normal(size=(60, 6)).astype(np.float32)
y = np.arange(60) % 2

class Net(nn.Sequential):
    def __init__(self, n_features, n_outputs):
        super().__init__(nn.Linear(n_features, 8), nn.Linear(8, n_outputs))

    def forward(self, X):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            may_go_on.wait()
        return super().forward(X)

def fit():
    student = LELPStudentClassifier(Net, max_epochs=2, random_state=0)
    return student.fit(X, y, soft_targets=np.eye(2)[y]).predict_proba(X)

teacher = EmbeddingExtractor(Net(6, 2))

def embed():
    return teacher.fit(X).transform(X)

def limit():
    with one_blas_thread:
        inside.set()
        may_go_on.wait()

def limits():
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]

def forks_while(busy, compute):
    # Products large enough for several threads start those of the main thread.
    torch.randn(2, 500, 500).matmul(torch.randn(500, 500)).exp().sum()
    expected = compute()
    inside.clear(), may_go_on.clear()
    thread = threading.Thread(target=busy)
    thread.start()
    inside.wait()
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(60, exit=True)
        torch.randn(2, 500, 500).matmul(torch.randn(500, 500)).exp().sum()
        os._exit(0 if np.array_equal(compute(), expected) else 2)
    status = os.waitpid(child, 0)[1]
    may_go_on.set()
    thread.join()
    assert status == 0, status
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_meanwhile_does_the_same():
    """Imports cost more than the three forks, which one process makes."""
    run_in_new_process(
        f"""{FORKED}
forks_while(fit, fit)
forks_while(embed, embed)
forks_while(limit, limits)
"""
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_while_a_thread_compiles_compiles_too():
    run_in_new_process(
        """
        import faulthandler, os, threading
        import lelp_sklearn._subclasses.kernels.soft_labels
        from numba import njit
        from numba.core.compiler_lock import global_compiler_lock

        def increased(number):
            return number + 1

        def compile_one():
            with global_compiler_lock:
                inside.set()
                assert njit(increased)(1) == 2

        inside = threading.Event()
        thread = threading.Thread(target=compile_one)
        thread.start()
        inside.wait()
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(60, exit=True)
            os._exit(0 if njit(increased)(2) == 3 else 2)
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        """
    )


def run_in_new_process(code):
    """Run code with warnings as errors and two threads."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
