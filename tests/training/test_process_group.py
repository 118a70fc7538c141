"""Several processes that torchrun starts train one student, as one process would."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.model_selection import GridSearchCV
from torch import nn

from lelp_sklearn import LELPProjector, LELPStudentClassifier
from lelp_sklearn._training.process_group import Ranks
from tests.student_problems import MatrixTeacher, MyNet, make_soft_targets
from tests.test_student_checkpoint import fit_arguments, make_student

ROOT = Path(__file__).parents[2]
TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"

# What each rank comes to is kept: a student of each kind, errors, a search in workers.
TRAIN = """
import os, pickle, sys
from tests.training.test_process_group import ERRORS, STUDENTS, error_of, fit_student
from tests.training.test_process_group import search, threads_of_groups

found = {name: fit_student(name) for name in STUDENTS}
found |= {name: error_of(name) for name in ERRORS}
# Without a last fit, which all ranks would have to join.
if os.environ["RANK"] == "1":
    found["search"] = search(n_jobs=2)
# Whatever a group started ends with it.
found["threads"] = threads_of_groups()
with open(f"{sys.argv[1]}/{os.environ['RANK']}", "wb") as file:
    pickle.dump(found, file)
"""

# One of the ranks dies in the given step of the optimizer.
DIE = """
import os, signal, sys
import torch
from tests.test_student_checkpoint import make_student, fit_arguments

folder, at = sys.argv[1:]
original, calls = torch.optim.AdamW.step, []

def counted(*arguments, **options):
    calls.append(1)
    if len(calls) == int(at) and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

torch.optim.AdamW.step = counted
X, y, metadata = fit_arguments()
student = make_student(checkpoint=f"{folder}/student.ckpt").fit(X, y, **metadata)
if student.n_epochs_:
    torch.save(student.module_.state_dict(), f"{folder}/{os.environ['RANK']}.pt")
"""

MATRIX = np.random.RandomState(3).normal(size=(6, 9))


class HasUntrainedScale(MyNet):
    """Weights that have no gradient, and a part in what is predicted."""

    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, X):
        made = super().forward(X)
        return made if self.training else self.scale * made


# Batches of 7 and 1 rows leave parts of unequal size, and one process without any.
STUDENTS = {
    "weights, early stopping": {},
    "uneven parts": {"batch_size": 7, "early_stopping": False, "max_epochs": 2},
    "empty parts": {"batch_size": 1, "early_stopping": False, "max_epochs": 1},
    "random state of each": {"random_state": None, "max_epochs": 2},
    "augmented, labels": {
        "augment": lambda rows: rows.neg(),
        "label_weight": 0.4,
        "class_weight": "balanced",
    },
    "weights without a gradient": {
        "module": HasUntrainedScale,
        "module_params": None,
        "weight_decay": 1.0,
        "batch_size": 7,
        "early_stopping": False,
        "max_epochs": 2,
    },
    "teacher, validation rows": {"teacher": MatrixTeacher(MATRIX), "max_epochs": 3},
    "sparse rows": {"batch_size": 7, "max_epochs": 2},
}


class OddError(Exception):
    """An error of two arguments, one of which its copy would lack."""

    def __init__(self, text, also):
        super().__init__(text)
        self.also = also


class OddTeacher(MatrixTeacher):
    """Fails with such an error in the first rank."""

    def __init__(self, also=None):
        super().__init__()
        self.also = also

    def fit(self, X, y=None):
        raise OddError("no teaching today", self.also())


# A lock cannot be pickled, and of one argument the other error cannot be made.
ERRORS = {
    "too many subclasses": {"projector": LELPProjector(200)},
    "not to be pickled": {"teacher": OddTeacher(threading.Lock)},
    "not to be unpickled": {"teacher": OddTeacher(str)},
}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("n_rows", range(1, 9))
def test_parts_of_a_batch_are_the_batch_and_none_is_of_one_row(size, n_rows):
    batch = torch.arange(n_rows)
    parts = [Ranks(rank, size).share(batch) for rank in range(size)]
    assert sorted(torch.cat(parts).tolist()) == batch.tolist()
    sizes = [len(part) for part in parts if len(part)]
    assert min(sizes) >= min(2, n_rows)
    assert max(sizes) - min(sizes) <= 1


def fit_student(name):
    X, y, metadata = fit_arguments()
    if name == "sparse rows":
        X = csr_array(X)
    if "teacher" in STUDENTS[name]:
        metadata = {"X_val": X[::3], "y_val": y[::3]}
    student = make_student(**STUDENTS[name]).fit(X, y, **metadata)
    return student.predict_proba(X), student.loss_curve_, student.validation_scores_


def error_of(name):
    X, y, metadata = fit_arguments()
    metadata = {} if "teacher" in ERRORS[name] else metadata
    try:
        make_student(**ERRORS[name]).fit(X, y, **metadata)
    # The errors have nothing in common.
    except Exception as error:
        return str(error)


def threads_of_groups():
    """The names of the threads of this process, those of gloo, where Linux tells."""
    tasks = Path("/proc/self/task")
    names = [path.read_text() for path in tasks.glob("*/comm")]
    return [name for name in names if "gloo" in name]


def search(n_jobs):
    X, y, targets = make_soft_targets()
    student = LELPStudentClassifier(max_epochs=2, random_state=0, device="cpu")
    grid = {"learning_rate": [0.01, 0.1]}
    grid_search = GridSearchCV(student, grid, cv=2, n_jobs=n_jobs, refit=False)
    return grid_search.fit(X, y, soft_targets=targets).cv_results_["mean_test_score"]


def torchrun(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *TORCHRUN, str(script), *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """What each of two ranks has found."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "train.py"
    script.write_text(TRAIN)
    done = torchrun(script, folder)
    assert done.returncode == 0, done.stderr
    return [np.load(folder / rank, allow_pickle=True) for rank in "01"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in STUDENTS if n != "random state of each"])
def test_ranks_end_with_the_student_of_one_process(name, by_rank):
    expected = fit_student(name)
    for found in by_rank:
        assert_allclose(found[name][0], expected[0], atol=1e-5)
        assert_allclose(found[name][1], expected[1], rtol=1e-5)
        if expected[2] is not None:
            assert_allclose(found[name][2], expected[2], atol=1e-5)


@pytest.mark.parametrize("name", list(STUDENTS))
def test_all_ranks_end_with_the_same_student(name, by_rank):
    first, second = by_rank
    assert_array_equal(first[name][0], second[name][0])
    assert first[name][1:] == second[name][1:]


def test_no_thread_of_a_group_outlives_it(by_rank):
    assert [found["threads"] for found in by_rank] == [[], []]


def test_workers_of_a_rank_train_alone(by_rank):
    assert_array_equal(by_rank[1]["search"], search(n_jobs=1))


@pytest.mark.slow
def test_rank_that_dies_ends_the_job_which_started_again_goes_on(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(DIE)
    failed = torchrun(script, tmp_path, 11)
    assert failed.returncode != 0
    assert not list(tmp_path.glob("*.pt"))
    assert (tmp_path / "student.ckpt").exists()
    again = torchrun(script, tmp_path, 0)
    assert again.returncode == 0, again.stderr
    X, y, metadata = fit_arguments()
    expected = make_student().fit(X, y, **metadata).module_.state_dict()
    weights = [torch.load(tmp_path / f"{rank}.pt") for rank in "01"]
    for name, tensor in expected.items():
        assert_array_equal(weights[0][name], weights[1][name])
        assert_allclose(weights[0][name], tensor, rtol=1e-5, atol=1e-5)


def test_error_of_the_first_rank_is_raised_by_all(by_rank):
    first, second = (found["too many subclasses"] for found in by_rank)
    assert first == second
    assert "n_subclasses=200" in first


@pytest.mark.parametrize("name", ["not to be pickled", "not to be unpickled"])
def test_error_that_cannot_be_sent_is_told_by_all(name, by_rank):
    for found in by_rank:
        assert "no teaching today" in found[name]
