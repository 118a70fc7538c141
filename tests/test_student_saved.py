"""A saved student comes back whole, or not at all; by pickle, joblib and skops."""

import copy
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
from sklearn.base import clone
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

import lelp_sklearn
from lelp_sklearn import LELPProjector, LELPStudentClassifier, _sealing
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


def test_copies_and_students_that_are_not_fitted_have_no_seal(monkeypatch):
    """Digests are for files: a search over large templates makes none."""
    student = fit(TemplateNet(4))
    monkeypatch.setattr(_sealing, "content_hash", None)
    twin = copy.deepcopy(student)
    assert_array_equal(twin.predict_proba(X), student.predict_proba(X))
    by_pickle(clone(student)).fit(X, Y, teacher_embeddings=E)


# Some damage makes a file ask for more memory than there is: it may not have it.
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
"""

DAMAGE = """
import io, pickle, sys, warnings
import joblib, numpy as np
warnings.simplefilter("ignore")
load = {"joblib": joblib.load, "pickle": pickle.load}[sys.argv[1]]
content = open(sys.argv[2], "rb").read()
X, expected = (np.load(path) for path in sys.argv[3:])
assert (load(io.BytesIO(content)).predict_proba(X) == expected).all()
rng = np.random.RandomState(0)

def flipped(position):
    damaged = bytearray(content)
    damaged[position] ^= rng.randint(1, 256)
    return bytes(damaged)

copies = [flipped(p) for p in rng.randint(len(content), size=500)]
# NumPy itself crashes on a dtype that has become one of durations or dates.
copies = [c for c in copies if b"\\x02m8" not in c and b"\\x02M8" not in c]
copies += [content[:p] for p in rng.randint(len(content), size=150)]
n_refused, n_equal = 0, 0
for damaged in copies:
    try:
        found = load(io.BytesIO(damaged)).predict_proba(X)
    except Exception:
        n_refused += 1
    else:
        assert (found == expected).all()
        n_equal += 1
print(n_refused, n_equal)
assert n_refused > 10 * n_equal
"""


@pytest.mark.parametrize("library", ["pickle", "joblib"])
def test_damaged_file_is_refused_or_harmless(library, tmp_path):
    student = fit(MyNet, module_params={"hidden": 4})
    file = tmp_path / "student"
    with file.open("wb") as stream:
        {"pickle": pickle, "joblib": joblib}[library].dump(student, stream)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "expected.npy", student.predict_proba(X))
    limited = LIMITED if sys.platform == "linux" else ""
    files = [file, tmp_path / "X.npy", tmp_path / "expected.npy"]
    run(limited + DAMAGE, library, *map(str, files))


def run(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _other_weight(state):
    state["_fit"].student.net.top.weight.data[0, 0] += 1e-6


def _other_temperature(state):
    objective = state["_fit"].objective
    object.__setattr__(objective, "temperature", 1.5)


def _other_classes(state):
    state["_fit"].source.classes = np.array([1, 0])


def _other_parameter(state):
    state["batch_size"] += 1


def _lost_attribute(state):
    del state["n_features_in_"]


def _other_recipe(state):
    student = state["_fit"].student
    module, _, *rest = student.init_args
    student.init_args = module, {"hidden": 13}, *rest


def _lost_seal(state):
    del state["_seal"]


def _other_version(state):
    state["_seal"]["versions"]["torch"] = "1.0"


CHANGES = [
    _other_weight,
    _other_temperature,
    _other_classes,
    _other_parameter,
    _other_recipe,
    _lost_attribute,
    _lost_seal,
    _other_version,
]


@pytest.mark.parametrize("change", CHANGES)
def test_state_that_is_not_what_was_saved_is_refused(change):
    state = copy.deepcopy(fit(MyNet).__getstate__())
    LELPStudentClassifier.__new__(LELPStudentClassifier).__setstate__(state)
    change(state)
    with pytest.raises(ValueError, match="This LELPStudentClassifier is damaged"):
        LELPStudentClassifier.__new__(LELPStudentClassifier).__setstate__(state)


def saved_with(monkeypatch, versions):
    """A student that was pickled by other versions than those here."""
    current = _sealing.current_versions()
    student = fit()
    with monkeypatch.context() as patch:
        patch.setattr(_sealing, "current_versions", lambda: {**current, **versions})
        return student, pickle.dumps(student)


@pytest.mark.parametrize(
    ("library", "version"),
    [("lelp_sklearn", "0.0.9"), ("torch", "1.13.0"), ("scikit-learn", "1.5.2")],
)
def test_other_versions_warn(library, version, monkeypatch):
    student, content = saved_with(monkeypatch, {library: version})
    current = _sealing.current_versions()[library]
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
    assert fit().__getstate__()["_seal"]["versions"] == {
        "lelp_sklearn": lelp_sklearn.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
    }


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
