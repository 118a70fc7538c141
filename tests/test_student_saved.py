"""A saved student comes back, by pickle, joblib and skops, and says its versions."""

import io
import pickle
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import cloudpickle
import joblib
import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_array_equal
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

import lelp_sklearn
from lelp_sklearn import LELPProjector, LELPStudentClassifier, _student
from tests.student_problems import (
    BufferNet,
    MatrixTeacher,
    MyNet,
    TemplateNet,
    make_groups,
)

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "user_guide" / "serving.rst"
X, Y, E, HEAD = make_groups(n_features=4, width=5)


def constant(progress):
    return 1.0


class RecurrentNet(nn.Module):
    """Keeps references to its own weights, as recurrent layers do."""

    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.body = nn.LSTM(1, 3, batch_first=True)
        self.top = nn.Linear(3, n_outputs)

    def forward(self, X):
        return self.top(self.body(X.unsqueeze(2))[0][:, -1])


def make(module=None, head=HEAD, random_state=0, **options):
    return LELPStudentClassifier(
        module,
        projector=LELPProjector(2, head=head),
        max_epochs=2,
        random_state=random_state,
        **options,
    )


def fit(module=None, **options):
    return make(module, **options).fit(X, Y, teacher_embeddings=E)


def by_pickle(student):
    return pickle.loads(pickle.dumps(student))


def by_cloudpickle(student):
    return cloudpickle.loads(cloudpickle.dumps(student))


def by_joblib(student):
    file = io.BytesIO()
    joblib.dump(student, file)
    file.seek(0)
    return joblib.load(file)


def by_skops(student):
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(student)
    return skops.loads(data, trusted=skops.get_untrusted_types(data=data))


WAYS = [by_pickle, by_cloudpickle, by_joblib, by_skops]
every_way = pytest.mark.parametrize("way", WAYS)


@every_way
@pytest.mark.parametrize("module", [None, MyNet, BufferNet])
def test_student_comes_back(way, module):
    student = fit(module)
    again = way(way(student))
    assert_array_equal(
        again.predict_subclass_proba(X), student.predict_subclass_proba(X)
    )
    assert_array_equal(again.projector_.transform(E), student.projector_.transform(E))
    assert repr(again.get_params()) == repr(student.get_params())
    assert vars(again).keys() == vars(student).keys()


OPTIONS = [
    {"learning_rate_schedule": constant, "subclass_weight": constant},
    {"optimizer": torch.optim.SGD, "device": torch.device("cpu")},
    {"random_state": np.random.RandomState(0), "class_weight": {0: 2.0}},
    {"module": TemplateNet(4), "unlabeled": -1},
    {"module": nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 4))},
    {"module": RecurrentNet},
    {"module": RecurrentNet(4, 2)},
    {"head": LogisticRegression().fit(E, Y)},
    {"head": nn.Linear(5, 2)},
]


@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("way", WAYS[:3])
def test_parameters_of_any_kind_come_back(way, options):
    student = fit(**options)
    again = way(way(student))
    assert_array_equal(again.predict_proba(X), student.predict_proba(X))


def test_student_with_a_teacher_comes_back_twice():
    """And says of which kind the teacher was that it left behind."""
    matrix = np.random.RandomState(0).normal(size=(4, 5))
    student = make(teacher=MatrixTeacher(matrix)).fit(X, Y)
    again = by_pickle(by_pickle(student))
    assert_array_equal(again.predict_proba(X), student.predict_proba(X))
    with pytest.raises(ValueError, match=r"teacher \(MatrixTeacher\) was left out"):
        again.fit(X, Y)


def test_stream_comes_back_with_its_optimizer():
    student = make().partial_fit(X, Y, classes=[0, 1], teacher_embeddings=E)
    again = by_skops(by_joblib(student))
    for each in (student, again):
        each.partial_fit(X, Y, teacher_embeddings=E)
    assert_array_equal(again.predict_proba(X), student.predict_proba(X))


def test_weights_may_stay_in_the_file(tmp_path):
    student = fit()
    joblib.dump(student, tmp_path / "student.joblib")
    again = joblib.load(tmp_path / "student.joblib", mmap_mode="r")
    assert_array_equal(again.predict_proba(X), student.predict_proba(X))


def test_student_that_is_not_fitted_says_no_versions():
    assert "_versions" not in make(TemplateNet(4)).__getstate__()


def run(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def saved_with(monkeypatch, versions):
    """A student that was pickled by other versions than those here."""
    current = _student.current_versions()
    student = fit()
    with monkeypatch.context() as patch:
        patch.setattr(_student, "current_versions", lambda: {**current, **versions})
        return student, pickle.dumps(student)


@pytest.mark.parametrize(
    ("library", "version"),
    [("lelp_sklearn", "0.0.9"), ("torch", "1.13.0"), ("scikit-learn", "1.5.2")],
)
def test_other_versions_warn(library, version, monkeypatch):
    student, content = saved_with(monkeypatch, {library: version})
    current = _student.current_versions()[library]
    said = f"saved with {library} {version} and is loaded with {library} {current}"
    with pytest.warns(InconsistentVersionWarning, match=re.escape(said)) as caught:
        again = pickle.loads(content)
    assert caught[0].filename == __file__
    assert_array_equal(again.predict_proba(X), student.predict_proba(X))


def test_versions_that_predict_the_same_do_not_warn(monkeypatch):
    """Another build of torch, as servers have it, and corrections of faults."""
    release = ".".join(torch.__version__.split(".")[:2])
    _, content = saved_with(monkeypatch, {"torch": f"{release}.99+cu999"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(content)


def test_versions_are_those_that_are_installed():
    assert fit().__getstate__()["_versions"] == {
        "lelp_sklearn": lelp_sklearn.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
    }


@pytest.mark.slow
def test_pickled_student_predicts_without_numba_and_teacher(tmp_path):
    matrix = np.random.RandomState(0).normal(size=(4, 5))
    student = make(teacher=MatrixTeacher(matrix)).fit(X, Y)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "expected.npy", student.predict_proba(X))
    with open(tmp_path / "student.pkl", "wb") as file:
        pickle.dump(student, file)
    code = """
    import pickle, sys
    import numpy as np
    with open(sys.argv[1] + "/student.pkl", "rb") as file:
        student = pickle.load(file)
    X, expected = (np.load(f"{sys.argv[1]}/{name}.npy") for name in ("X", "expected"))
    np.testing.assert_array_equal(student.predict_proba(X), expected)
    assert student.predict(X).shape == (len(X),)
    assert "numba" not in sys.modules
    assert "tests.student_problems" not in sys.modules
    """
    run(code, str(tmp_path))


def documented_types():
    """The names in the guide's list of what skops has to be told to trust."""
    text = GUIDE.read_text(encoding="utf-8")
    listed = text.partition("trusted = [")[2].partition("]")[0]
    return [line.strip(' ",') for line in listed.splitlines() if line.strip()]


@pytest.mark.parametrize("head", [None, HEAD], ids=["no head", "arrays"])
def test_skops_needs_the_trust_that_the_guide_lists(head):
    skops = pytest.importorskip("skops.io")
    student = fit(head=head)
    data = skops.dumps(student)
    assert skops.get_untrusted_types(data=data) == sorted(documented_types())
    again = skops.loads(data, trusted=documented_types())
    assert_array_equal(again.predict_proba(X), student.predict_proba(X))


def test_skops_needs_trust_in_a_module_of_the_user():
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(fit(MyNet))
    mine = f"{MyNet.__module__}.{MyNet.__qualname__}"
    types = skops.get_untrusted_types(data=data)
    assert types == sorted([*documented_types(), mine])
