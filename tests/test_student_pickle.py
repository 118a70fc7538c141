"""A fitted student in another process and without its teacher."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from lelp_sklearn import LELPProjector, LELPStudentClassifier
from tests.student_problems import (
    BufferNet,
    MatrixTeacher,
    MyNet,
    TemplateNet,
    make_groups,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def problem():
    return make_groups()


def fit(problem, **options):
    X, y, E, head = problem
    student = LELPStudentClassifier(
        projector=LELPProjector(3, head=head), max_epochs=2, random_state=0, **options
    )
    return student.fit(X, y, teacher_embeddings=E)


MODULES = [None, MyNet, TemplateNet(), BufferNet]


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_pickle_predicts_the_same(module, problem):
    X = problem[0]
    student = fit(problem, module=module)
    again = pickle.loads(pickle.dumps(student))
    assert_array_equal(
        again.predict_subclass_proba(X), student.predict_subclass_proba(X)
    )
    assert again.loss_curve_ == student.loss_curve_
    assert type(again.module_) is type(student.module_)


@pytest.mark.slow
def test_another_process_predicts_the_same(problem, tmp_path):
    X, path = problem[0], str(tmp_path / "students.joblib")
    students = [fit(problem, module=module) for module in MODULES]
    joblib.dump([(each, X, each.predict_proba(X)) for each in students], path)
    code = f"""
    import joblib, torch
    from numpy.testing import assert_array_equal
    import tests.student_problems
    state = torch.get_rng_state()
    for student, X, expected in joblib.load({path!r}):
        assert_array_equal(student.predict_proba(X), expected)
    assert torch.equal(torch.get_rng_state(), state)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_weights_are_pickled_as_numpy_arrays(problem):
    """No tensor, and with it no device, is in the pickle of a student."""
    student = fit(problem, module=MyNet)
    student.partial_fit(*problem[:2], teacher_embeddings=problem[2])

    class NoTorch(pickle.Unpickler):
        def find_class(self, module, name):
            assert not module.startswith("torch"), f"{module}.{name}"
            return super().find_class(module, name)

    NoTorch(io.BytesIO(pickle.dumps(student))).load()


def test_stream_goes_on_after_a_pickle(problem):
    """The state of the optimizer is part of the stream."""
    X, y, E, head = problem
    student = LELPStudentClassifier(
        projector=LELPProjector(3, head=head), random_state=0
    )
    student.partial_fit(X, y, classes=[0, 1], teacher_embeddings=E)
    again = pickle.loads(pickle.dumps(student))
    for each in (student, again):
        for _ in range(2):
            each.partial_fit(X, y, teacher_embeddings=E)
    assert_array_equal(again.predict_proba(X), student.predict_proba(X))


def test_fitted_student_leaves_its_teacher_behind(problem):
    X, y = problem[:2]
    matrix = np.random.RandomState(0).normal(size=(6, 20_000))
    teacher = MatrixTeacher(matrix)
    student = LELPStudentClassifier(teacher=teacher, max_epochs=1)
    assert len(pickle.dumps(student)) > matrix.nbytes
    projector = LELPProjector(1, head=(matrix[:2], np.zeros(2)))
    student.set_params(projector=projector).fit(X, y)
    assert student.teacher is teacher
    pickled = pickle.dumps(student.set_params(projector=None))
    assert pickled.count(matrix[5].tobytes()) == 0
    again = pickle.loads(pickled)
    assert_array_equal(again.predict(X), student.predict(X))
    with pytest.raises(ValueError, match=r"teacher \(MatrixTeacher\) was left out"):
        again.fit(X, y)
    again.set_params(teacher=teacher, projector=projector).fit(X, y)


def test_copies_do_not_share_weights(problem):
    X = problem[0]
    student = fit(problem)
    twin = copy.deepcopy(student)
    expected = student.predict_proba(X)
    with torch.no_grad():
        for parameter in student.module_.parameters():
            parameter.zero_()
    assert_array_equal(twin.predict_proba(X), expected)


@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_copy_keeps_its_teacher(problem):
    X, y, _, head = problem
    matrix = np.random.RandomState(0).normal(size=(6, 9))
    student = LELPStudentClassifier(
        teacher=MatrixTeacher(matrix),
        projector=LELPProjector(3, head=head),
        max_epochs=2,
        random_state=0,
    )
    twin = copy.deepcopy(student.fit(X, y))
    assert_array_equal(twin.predict_proba(X), student.predict_proba(X))
    assert_array_equal(twin.teacher.matrix, matrix)
    for each in (student, twin):
        each.partial_fit(X, y)
    assert_array_equal(twin.predict_proba(X), student.predict_proba(X))
    twin.fit(X, y)
