"""A student's life: any sequence of what users do to one, held to what always holds.

Two students are treated alike. One stays in memory; before each step the other, which
also keeps no checkpoints, is pickled and read again. They must predict the same bits.
"""

import copy
import io
import pickle
import sys
import tempfile
import warnings
from contextlib import contextmanager
from functools import partial

import cloudpickle
import joblib
import numpy as np
import torch
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from lelp_sklearn import (
    ClassOrderWarning,
    LELPProjector,
    LELPStudentClassifier,
    NoTeacherWarning,
)
from tests.interrupts import interrupted_at_line
from tests.student_problems import BufferNet, MyNet, TemplateNet, make_groups

N_FEATURES = 3
X, Y, E, HEAD = make_groups(n_rows=36, n_features=N_FEATURES, width=4)
LOGITS = E @ HEAD[0].T + HEAD[1]
SOFT = {
    S: LELPProjector(S, head=HEAD, random_state=0).fit_transform(E, Y) for S in (1, 2)
}
FROZEN = FrozenEstimator(LELPProjector(2, head=HEAD, random_state=1).fit(E, Y))


# What users hand in


class Alarm:
    """Goes off in the n-th call of a function of the user."""

    def __init__(self):
        self.n_left, self.error = 0, None

    @contextmanager
    def set(self, n_calls, error):
        self.n_left, self.error = n_calls, error
        try:
            yield
        finally:
            self.error = None

    def ring(self):
        """Return 0, but in that call raise the error, or return it if it is NaN."""
        if self.error is None:
            return 0.0
        self.n_left -= 1
        if self.n_left:
            return 0.0
        if isinstance(self.error, float):
            return self.error
        raise self.error("of the alarm")


ALARM = Alarm()


class Momentum(torch.optim.SGD):
    def __init__(self, parameters, lr, weight_decay):
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9)

    def step(self):
        ALARM.ring()
        return super().step()


def sgd_of_two_groups(parameters, lr, weight_decay):
    groups = [{"params": parameters[:1], "lr": lr / 2}, {"params": parameters[1:]}]
    return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay)


def halving(progress):
    ALARM.ring()
    return 0.5**progress


def noise(rows):
    return rows + 0.01 * torch.randn_like(rows) + ALARM.ring()


class Net(MyNet):
    def forward(self, X):
        made = super().forward(X)
        return made + ALARM.ring() if self.training else made


class WithDropout(MyNet):
    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.body.append(nn.Dropout(0.3))


def projectors(S):
    quick = LELPProjector(S, splitter="pca")
    return quick, clone(quick).set_params(head=HEAD)


PARAMS = {
    "module": [None, Net, BufferNet, WithDropout, TemplateNet(N_FEATURES)],
    "projector": [FROZEN, *projectors(1), *projectors(2)],
    "label_weight": [0.0, 0.3],
    "subclass_weight": ["anneal", 0.0, 1.0, halving],
    "within_class_temperature": ["auto", 2.0],
    "class_weight": [None, "balanced", {0: 2.0}, {1: 0.0}],
    "optimizer": [
        "adamw",
        "sparse_adam",
        torch.optim.SGD,
        Momentum,
        sgd_of_two_groups,
        partial(torch.optim.Adam, amsgrad=True),
    ],
    "learning_rate": ["auto", 1e-3, 0.01, 0.05],
    "learning_rate_schedule": ["constant", "cosine", "one_cycle", halving],
    "weight_decay": [0.0, 0.01, 0.5],
    "max_grad_norm": [None, 0.1],
    "max_epochs": [1, 2, 3],
    "batch_size": [7, 16, 128],
    "augment": [None, noise],
    "early_stopping": [False, True],
    "validation_fraction": [0.1, 0.3],
    "n_iter_no_change": [1, 3],
    "warm_start": [False, True],
    "checkpoint_interval": [1, 2],
    "precision": ["auto", "float32", "bfloat16", "float16"],
    "random_state": [0, 1, None],
}
INVALID = {
    "max_epochs": 0,
    "batch_size": 2.5,
    "learning_rate": -1.0,
    "optimizer": "sgd",
    "subclass_weight": "none",
    "validation_fraction": 1.0,
    "warm_start": "yes",
    "module": "mlp",
    "projector": LELPProjector,
    "precision": "double",
    "device": "none",
    "class_weight": {0: -1.0},
}

changes = st.lists(st.sampled_from(sorted(PARAMS)), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries(
        {name: st.sampled_from(PARAMS[name]) for name in names}
    )
)


KINDS = "labels", "embeddings", "logits", "soft1", "soft2"

row_sets = st.fixed_dictionaries(
    {
        "rows": st.sampled_from([(0, 24), (0, 36), (12, 36)]),
        "dtype": st.sampled_from([np.float32, np.float64]),
        "kind": st.sampled_from(KINDS),
        "is_weighted": st.booleans(),
    }
)


def fit_arguments(rows, dtype, kind, is_weighted):
    rows = slice(*rows)
    data = {"X": X[rows].astype(dtype), "y": Y[rows]}
    if kind.startswith("soft"):
        data["soft_targets"] = SOFT[int(kind[-1])][rows]
    elif kind != "labels":
        data["teacher_embeddings"] = E[rows]
        if kind == "logits":
            data["teacher_logits"] = LOGITS[rows]
    if is_weighted:
        data["sample_weight"] = np.linspace(0.5, 2, len(data["y"]))
    return data


# How a copy is made


def through_joblib(student):
    buffer = io.BytesIO()
    joblib.dump(student, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


COPIES = {
    "pickle": lambda student: pickle.loads(pickle.dumps(student)),
    "joblib": through_joblib,
    "cloudpickle": lambda student: pickle.loads(cloudpickle.dumps(student)),
    "deepcopy": copy.deepcopy,
}


# What ends a fit


class StopAfter:
    """A callback of scikit-learn that ends a fit after so many epochs."""

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs
        self.ended = 0

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.ended += context.task_name == "epoch"
        return self.ended == self.n_epochs

    def teardown(self, estimator, context):
        pass


def bits(student):
    """All that a fitted student is to a user, but for what ended its fit."""
    if not hasattr(student, "classes_"):
        return {"n_features": getattr(student, "n_features_in_", None)}
    return {
        "n_features": student.n_features_in_,
        "classes": student.classes_,
        "n_epochs": student.n_epochs_,
        "losses": np.array(student.loss_curve_),
        "scores": np.array(student.validation_scores_, dtype=float),
        "subclasses": student.predict_subclass_proba(X),
        "logits": student.decision_function(X),
        "weights": [tensor.numpy() for tensor in student.module_.state_dict().values()],
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name == "weights":
            assert len(found[name]) == len(value)
            for array, other in zip(found[name], value, strict=True):
                assert_array_equal(array, other)
        else:
            assert_array_equal(found[name], value, err_msg=name)


def is_frozen(student):
    return isinstance(student.projector, FrozenEstimator)


def global_state():
    return {
        "generator": torch.get_rng_state().numpy().copy(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "denormals": sys.float_info.min / 2 == 0,
        "filters": list(warnings.filters),
    }


DISTURBANCES = st.one_of(
    st.tuples(st.just("line"), st.integers(1, 4000)),
    st.tuples(
        st.sampled_from([KeyboardInterrupt, RuntimeError, np.nan]), st.integers(1, 12)
    ),
)
HAS_CALLBACKS = hasattr(LELPStudentClassifier, "set_callbacks")


@contextmanager
def disturbed(disturbance):
    """Raise an error in a line of the package or in a call of the user's functions."""
    if disturbance is None:
        yield
        return
    kind, number = disturbance
    trouble = interrupted_at_line(number) if kind == "line" else ALARM.set(number, kind)
    with trouble:
        yield


class StudentLife(RuleBasedStateMachine):
    """Both students, and what is known of them without asking them."""

    @initialize(options=changes, keeps_checkpoints=st.booleans())
    def begin(self, options, keeps_checkpoints):
        self.folder = tempfile.TemporaryDirectory()
        self.global_state = global_state()
        self.student = LELPStudentClassifier(
            projector=projectors(2)[0], max_epochs=2, batch_size=16, random_state=0
        )
        self.twin = clone(self.student)
        self.keeps_checkpoints = keeps_checkpoints
        self.set_valid_params(options)
        self.n_steps = 0
        # What the targets are made of, and which epochs were scored.
        self.source, self.scored = None, []
        self.last = bits(self.student)
        self.held = []

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    # What a user does

    @rule(options=changes)
    def set_valid_params(self, options):
        self.student.set_params(**options)
        self.twin.set_params(**options)
        is_fixed = self.student.random_state is not None
        folder = self.folder.name if self.keeps_checkpoints and is_fixed else None
        self.student.set_params(checkpoint=folder)

    @rule(rows=row_sets, has_validation_rows=st.booleans())
    def fit(self, rows, has_validation_rows):
        rest = {}
        if has_validation_rows and self.student.early_stopping:
            rest = {"X_val": X[:10], "y_val": Y[:10]}
        self.train("fit", rows, rest)

    @rule(rows=row_sets)
    def partial_fit(self, rows):
        self.train("partial_fit", rows, {"classes": [0, 1]})

    @rule(
        method=st.sampled_from(["fit", "partial_fit"]),
        rows=row_sets,
        disturbance=DISTURBANCES,
    )
    def train_disturbed(self, method, rows, disturbance):
        rest = {"classes": [0, 1]} if method == "partial_fit" else {}
        self.train(method, rows, rest, disturbance)

    @rule(
        method=st.sampled_from(["fit", "partial_fit"]),
        rows=row_sets,
        name=st.sampled_from(sorted(INVALID)),
    )
    def train_with_invalid_parameter(self, method, rows, name):
        rest = {"classes": [0, 1]} if method == "partial_fit" else {}
        for student in (self.student, self.twin):
            before = student.get_params(deep=False)[name]
            student.set_params(**{name: INVALID[name]})
            self.assert_refused(student, method, {**fit_arguments(**rows), **rest})
            student.set_params(**{name: before})

    @rule(
        method=st.sampled_from(["fit", "partial_fit"]),
        rows=row_sets,
        flaw=st.sampled_from(["NaN in X", "no rows", "label", "lengths"]),
    )
    def train_on_invalid_rows(self, method, rows, flaw):
        data = fit_arguments(**rows)
        if flaw == "NaN in X":
            data["X"] = np.full_like(data["X"], np.nan)
        elif flaw == "no rows":
            data = {name: value[:0] for name, value in data.items()}
        elif flaw == "label":
            data["y"] = np.zeros(len(data["y"]), complex)
        else:
            data["X"] = data["X"][:-1]
        rest = {"classes": [0, 1]} if method == "partial_fit" else {}
        for student in (self.student, self.twin):
            self.assert_refused(student, method, {**data, **rest})

    @rule(how=st.sampled_from(sorted(COPIES)))
    def copy(self, how):
        self.student = COPIES[how](self.student)

    @rule()
    def clone(self):
        fresh = clone(self.student)
        assert not hasattr(fresh, "classes_")

    # What then holds

    def train(self, method, rows, rest, disturbance=None):
        data, kind = {**fit_arguments(**rows), **rest}, rows["kind"]
        self.n_steps += 1
        if disturbance is not None and disturbance[0] != "line":
            self.set_valid_params({"augment": noise})
        goes_on = self.source is not None and (
            method == "partial_fit" or self.student.warm_start
        )
        before = list(self.scored) if goes_on else []
        source = self.source if goes_on else self.source_of(kind)
        if self.is_refused(method, kind, goes_on):
            event(f"{method}: refused")
            for student in (self.student, self.twin):
                self.assert_refused(student, method, data)
            return
        n_complete, reason = self.call(method, data, disturbance, len(before), goes_on)
        what = "as usual" if disturbance is None else disturbance[0]
        event(f"{method}, {what}: {reason}")
        if n_complete == 0:
            return
        if reason is None or method == "partial_fit":
            self.do(self.twin, method, data)
        elif HAS_CALLBACKS:
            self.twin.set_callbacks(StopAfter(n_complete))
            self.do(self.twin, method, data)
            self.twin.set_callbacks()
        else:
            self.twin = COPIES["pickle"](self.student).set_params(checkpoint=None)
        is_scored = method == "fit" and self.student.early_stopping
        self.source, self.scored = source, before + [is_scored] * n_complete
        self.last = bits(self.student)
        assert_same(bits(self.twin), self.last)
        if method == "fit" and not goes_on and reason is None:
            fresh = self.do(clone(self.twin), method, data)
            assert_same(bits(fresh), self.last)
        self.held.append((self.student.loss_curve_, list(self.student.loss_curve_)))

    def call(self, method, data, disturbance, n_before, goes_on):
        """Train the student; return the number of new epochs and what ended them."""
        former = getattr(self.student, "module_", None), self.stop_reason()
        try:
            with disturbed(disturbance):
                self.do(self.student, method, data)
        except (
            KeyboardInterrupt,
            RuntimeError,
            ValueError,
            FloatingPointError,
        ) as error:
            if disturbance is None:
                raise
            reason = type(error).__name__
        else:
            reason = None
        is_new = getattr(self.student, "module_", None) is not former[0]
        if not goes_on and not is_new:
            n_complete = 0
        else:
            n_complete = self.student.n_epochs_ - n_before
        if n_complete == 0:
            assert reason is not None
            assert self.stop_reason() == former[1]
        elif method == "partial_fit":
            assert n_complete == 1
            assert self.stop_reason() is None
        else:
            assert 1 <= n_complete <= self.student.max_epochs
            if reason is None:
                assert self.stop_reason() in ("max_epochs", "early_stopping")
            if self.stop_reason() == "max_epochs":
                assert n_complete == self.student.max_epochs
        return n_complete, reason

    def do(self, student, method, data):
        np.random.seed(self.n_steps)
        with warnings.catch_warnings():
            for category in (NoTeacherWarning, ClassOrderWarning):
                warnings.simplefilter("ignore", category)
            return getattr(student, method)(**data)

    def stop_reason(self):
        return getattr(self.student, "stop_reason_", "not fitted")

    def assert_refused(self, student, method, data):
        try:
            self.do(student, method, data)
        except (ValueError, TypeError):
            assert_same(bits(student), self.last)
        else:
            raise AssertionError("no error")

    def source_of(self, kind):
        """Return what the targets of a first fit are made of."""
        if not kind.startswith("soft"):
            return "inputs" if kind == "labels" else "embeddings"
        return "frozen" if is_frozen(self.student) else "given"

    def is_refused(self, method, kind, goes_on):
        """Tell whether the arguments of a call are at odds with what was before."""
        student, projector = self.student, self.student.projector
        is_stream = method == "partial_fit"
        if is_stream and (student.early_stopping or student.class_weight == "balanced"):
            return True
        n_given = int(kind[-1]) if kind.startswith("soft") else None
        if goes_on:
            n_subclasses = student.predict_subclass_proba(X).shape[1] // 2
            if n_given is not None:
                return n_given != n_subclasses
            if self.source == "given" or (
                self.source == "frozen" and n_subclasses != 2
            ):
                return True
            return (kind == "labels") != (self.source == "inputs")
        if n_given is not None:
            n_wanted = getattr(projector, "n_subclasses", "auto")
            return not is_frozen(student) and n_wanted not in ("auto", n_given)
        # The head is wider than the inputs.
        return kind == "labels" and getattr(projector, "head", None) is not None

    @invariant()
    def both_are_the_student_of_the_last_training(self):
        """Parameters alone, copies and errors change no prediction."""
        self.twin = COPIES["pickle"](self.twin)
        assert_same(bits(self.student), self.last)
        assert_same(bits(self.twin), self.last)

    @invariant()
    def curves_tell_of_every_epoch(self):
        if self.source is None:
            assert not hasattr(self.student, "loss_curve_")
            return
        losses, scores = self.student.loss_curve_, self.student.validation_scores_
        assert self.student.n_epochs_ == len(losses) == len(self.scored)
        assert np.isfinite(losses).all()
        if any(self.scored):
            assert_array_equal(np.isfinite(scores), self.scored)
        else:
            assert scores is None
        for curve, before in self.held:
            assert curve == before

    @invariant()
    def probabilities_are_those_of_classes(self):
        if self.source is None:
            return
        probability = self.student.predict_proba(X)
        assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
        by_subclass = self.student.predict_subclass_proba(X).reshape(len(X), 2, -1)
        assert_allclose(by_subclass.sum(axis=2), probability, rtol=1e-4)
        assert_array_equal(self.student.predict(X), probability.argmax(axis=1))
        assert not any(module.training for module in self.student.module_.modules())
        assert all(p.grad is None for p in self.student.module_.parameters())

    @invariant()
    def nothing_of_the_process_is_changed(self):
        state = global_state()
        assert_array_equal(state.pop("generator"), self.global_state["generator"])
        assert all(self.global_state[name] == value for name, value in state.items())


TestStudentLife = StudentLife.TestCase
