"""An interrupted fit goes on from its checkpoint, and ends as if nothing had been."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from lelp_sklearn import LELPProjector, LELPStudentClassifier
from lelp_sklearn._training.checkpoint import Checkpoint, open_checkpoint
from lelp_sklearn._training.loop import Trainer
from tests.student_problems import MatrixTeacher, MyNet, make_groups

ROOT = Path(__file__).parents[1]

# The process kills itself in the given call of a function, however it got there.
KILLED = """
import os, signal, sys
import torch
from tests.test_student_checkpoint import make_student, fit_arguments

owner, name, at = sys.argv[2:]
owner = {"os": os, "AdamW": torch.optim.AdamW}[owner]
original, calls = getattr(owner, name), []

def counted(*arguments, **options):
    calls.append(name)
    if len(calls) == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(owner, name, counted)
X, y, metadata = fit_arguments()
make_student(checkpoint=sys.argv[1]).fit(X, y, **metadata)
"""


def fit_arguments():
    X, y, E, _ = make_groups()
    weight = np.random.RandomState(1).uniform(0.5, 2, size=len(X))
    return X, y, {"teacher_embeddings": E, "sample_weight": weight}


def make_student(**options):
    """Return a student with all that a checkpoint has to keep."""
    defaults = {
        "module_params": {"hidden_layer_sizes": (8,)},
        "projector": LELPProjector(3, head=make_groups()[3]),
        "max_epochs": 7,
        "batch_size": 64,
        "early_stopping": True,
        "device": "cpu",
        "random_state": 0,
    }
    return LELPStudentClassifier(**{**defaults, **options})


@pytest.fixture(scope="module")
def arguments():
    return fit_arguments()


@pytest.fixture(scope="module")
def undisturbed(arguments):
    X, y, metadata = arguments
    return make_student().fit(X, y, **metadata)


def assert_same_student(found, expected):
    weights = expected.module_.state_dict()
    for name, tensor in found.module_.state_dict().items():
        assert_array_equal(tensor, weights[name])
    assert found.loss_curve_ == expected.loss_curve_
    assert found.validation_scores_ == expected.validation_scores_
    assert found.stop_reason_ == expected.stop_reason_
    assert found.n_epochs_ == expected.n_epochs_


def run_until_killed(checkpoint, owner, name, at):
    command = [sys.executable, "-c", KILLED, str(checkpoint), owner, name, str(at)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_weights_of_an_undisturbed_fit(
    tmp_path, arguments, undisturbed
):
    """In the midst of an epoch, and while the checkpoint is being replaced."""
    X, y, metadata = arguments
    path = tmp_path / "student.ckpt"
    run_until_killed(path, "AdamW", "step", 9)
    assert path.exists()
    run_until_killed(path, "os", "replace", 2)
    resumed = make_student(checkpoint=path).fit(X, y, **metadata)
    assert_same_student(resumed, undisturbed)
    names = ["student.ckpt", "student.ckpt.lock"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


@pytest.mark.parametrize("n_epochs", [1, 3, 6])
@pytest.mark.parametrize("interval", [1, 2])
def test_interrupted_after_any_epoch(
    n_epochs, interval, tmp_path, arguments, undisturbed, monkeypatch
):
    X, y, metadata = arguments
    original = Trainer.run_epoch

    def interrupted(self, curve_epoch, progress_epoch):
        if progress_epoch == n_epochs:
            raise KeyboardInterrupt
        return original(self, curve_epoch, progress_epoch)

    options = {"checkpoint": tmp_path / "here", "checkpoint_interval": interval}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_student(**options).fit(X, y, **metadata)
    resumed = make_student(**options).fit(X, y, **metadata)
    assert_same_student(resumed, undisturbed)


@pytest.fixture
def trained(tmp_path, arguments):
    """A student with its complete checkpoint."""
    X, y, metadata = arguments
    student = make_student(checkpoint=tmp_path / "student.ckpt")
    return student.fit(X, y, **metadata)


def test_complete_fit_is_read_and_not_repeated(trained, arguments, monkeypatch):
    X, y, metadata = arguments
    monkeypatch.setattr(Trainer, "run_epoch", None)
    again = clone(trained).set_params(verbose=1, checkpoint_interval=5)
    assert_same_student(again.fit(X, y, **metadata), trained)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"learning_rate": 0.02}, "learning_rate"),
        ({"projector": LELPProjector(2)}, "projector"),
        ({"subclass_weight": lambda progress: 0.5}, "subclass_weight"),
        ({"module_params": {"hidden_layer_sizes": (9,)}}, "module"),
    ],
)
def test_checkpoint_of_other_parameters_is_refused(changed, named, trained, arguments):
    X, y, metadata = arguments
    other = clone(trained).set_params(**changed)
    message = f"of a fit with another .*{named}.*start again"
    with pytest.raises(ValueError, match=message):
        other.fit(X, y, **metadata)


@pytest.mark.parametrize(
    "name", ["X", "y", "sample_weight", "teacher_embeddings", "X_val", "y_val"]
)
def test_checkpoint_of_other_data_is_refused(name, tmp_path, arguments):
    """The error names what differs, and nothing else."""
    X, y, metadata = arguments
    data = {"X": X, "y": y, "X_val": X[::3], "y_val": y[::3], **metadata}
    student = make_student(checkpoint=tmp_path / "student.ckpt", max_epochs=1)
    student.fit(**data)
    other = data[name].copy()
    other[0] = abs(other[0] - 1)
    with pytest.raises(ValueError, match=f"of a fit with another {name}: set"):
        clone(student).fit(**{**data, name: other})


def test_checkpoint_of_fewer_data_is_refused(tmp_path, arguments):
    X, y, metadata = arguments
    data = {"X_val": X[::3], "y_val": y[::3], **metadata}
    student = make_student(checkpoint=tmp_path / "student.ckpt", max_epochs=1)
    student.fit(X, y, **data)
    del data["X_val"], data["y_val"]
    with pytest.raises(ValueError, match="of a fit with another X_val, y_val: set"):
        clone(student).fit(X, y, **data)
    del data["sample_weight"]
    message = "of a fit with another sample_weight, X_val, y_val: set"
    with pytest.raises(ValueError, match=message):
        clone(student).fit(X, y, **data)


@pytest.mark.parametrize("place", [3, 40, 200, -1])
def test_damaged_checkpoint_is_refused(place, trained, arguments):
    X, y, metadata = arguments
    content = bytearray(trained.checkpoint.read_bytes())
    content[place] ^= 4
    trained.checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint of this package"):
        clone(trained).fit(X, y, **metadata)
    trained.checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a checkpoint of this package"):
        clone(trained).fit(X, y, **metadata)


def test_a_folder_has_a_file_for_each_fit_of_a_search(tmp_path, arguments):
    X, y, metadata = arguments
    grid = {"learning_rate": [0.01, 0.03], "projector__n_subclasses": [1, 3]}
    options = {"cv": 2, "n_jobs": 2}
    plain = GridSearchCV(make_student(max_epochs=2), grid, **options)
    plain.fit(X, y, **metadata)
    folder = tmp_path / "not" / "there yet"
    kept = GridSearchCV(make_student(max_epochs=2, checkpoint=folder), grid, **options)
    kept.fit(X, y, **metadata)
    assert len(list(folder.glob("*.ckpt"))) == 4 * 2 + 1
    scores = kept.cv_results_["mean_test_score"]
    assert_array_equal(scores, plain.cv_results_["mean_test_score"])
    again = clone(kept).fit(X, y, **metadata)
    assert len(list(folder.glob("*.ckpt"))) == 4 * 2 + 1
    assert_array_equal(again.cv_results_["mean_test_score"], scores)


def test_equal_fits_at_the_same_time_have_files_of_their_own(tmp_path):
    identity = {"rows": "these"}
    with (
        open_checkpoint(tmp_path, identity, 1) as first,
        open_checkpoint(tmp_path, identity, 1) as second,
    ):
        assert first.path != second.path
    with open_checkpoint(tmp_path, identity, 1) as later:
        assert later.path == first.path


def test_file_of_a_running_fit_is_refused(tmp_path, arguments):
    X, y, metadata = arguments
    path = tmp_path / "one.ckpt"
    student = make_student(checkpoint=path)
    with (
        open_checkpoint(path, {}, 1),
        pytest.raises(ValueError, match="in use by another fit: give each a file"),
    ):
        student.fit(X, y, **metadata)


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_checkpoint_needs_a_fixed_random_state(random_state, tmp_path, arguments):
    X, y, metadata = arguments
    student = make_student(checkpoint=tmp_path, random_state=random_state)
    with pytest.raises(ValueError, match="needs an integer random_state"):
        student.fit(X, y, **metadata)


def test_checkpoint_that_cannot_be_written_is_refused(tmp_path, arguments):
    X, y, metadata = arguments
    (tmp_path / "file").touch()
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(ValueError, match="names a file, and is a folder: name a file"):
        make_student(checkpoint=tmp_path / "folder.ckpt").fit(X, y, **metadata)
    for path in (tmp_path / "none" / "one.ckpt", tmp_path / "file" / "inside"):
        with pytest.raises(ValueError, match="is not a folder"):
            make_student(checkpoint=path).fit(X, y, **metadata)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(ValueError, match="is not writable"):
            make_student(checkpoint=tmp_path / "here").fit(X, y, **metadata)
        tmp_path.chmod(0o700)


def test_checkpoint_that_cannot_be_written_is_refused_before_the_teacher_works(
    tmp_path, arguments
):
    X, y, _ = arguments

    class Teacher(MatrixTeacher):
        def fit(self, X, y=None):
            raise AssertionError("the teacher began before the arguments were checked")

    student = make_student(checkpoint=tmp_path / "none" / "one.ckpt", teacher=Teacher())
    with pytest.raises(ValueError, match="is not a folder"):
        student.fit(X, y)


class HasMoreState(MyNet):
    more = "a string"

    def get_extra_state(self):
        return {"more": self.more}

    def set_extra_state(self, state):
        assert state == {"more": self.more}


class HasAnObject(HasMoreState):
    more = Path("a file")


def test_state_that_a_module_adds_is_kept_or_refused(tmp_path, arguments):
    X, y, metadata = arguments
    options = {"module_params": None, "max_epochs": 1}
    path = tmp_path / "one.ckpt"
    for _ in range(2):
        student = make_student(module=HasMoreState, checkpoint=path, **options)
        student.fit(X, y, **metadata)
    path = tmp_path / "other.ckpt"
    student = make_student(module=HasAnObject, checkpoint=path, **options)
    with pytest.raises(ValueError, match="cannot hold the state of module"):
        student.fit(X, y, **metadata)
    assert not hasattr(student, "module_")
    assert not path.exists()


def test_a_writing_that_fails_leaves_nothing_half_written(trained, monkeypatch):
    before = trained.checkpoint.read_bytes()

    def fail(*of):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    checkpoint = Checkpoint(trained.checkpoint, {}, 1)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save({})
    assert trained.checkpoint.read_bytes() == before
    assert not list(trained.checkpoint.parent.glob("*.part"))


def test_half_precision_goes_on_with_its_scale(tmp_path, arguments, monkeypatch):
    X, y, metadata = arguments
    options = {"precision": "float16", "max_epochs": 4, "early_stopping": False}
    expected = make_student(**options).fit(X, y, **metadata)
    original = Trainer.run_epoch

    def interrupted(self, curve_epoch, progress_epoch):
        if progress_epoch == 2:
            raise KeyboardInterrupt
        return original(self, curve_epoch, progress_epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_student(checkpoint=tmp_path, **options).fit(X, y, **metadata)
    resumed = make_student(checkpoint=tmp_path, **options).fit(X, y, **metadata)
    assert_same_student(resumed, expected)
