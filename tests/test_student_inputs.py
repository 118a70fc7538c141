"""What the student takes: rows of any rank and kind, modules of any kind."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from torch import nn

from lelp_sklearn import LELPProjector, LELPStudentClassifier
from tests.student_problems import (
    MatrixTeacher,
    MyNet,
    TemplateNet,
    make_groups,
    make_soft_targets,
    weights_of,
)


def quick(module=None, **options):
    defaults = {"max_epochs": 3, "batch_size": 64, "random_state": 0}
    return LELPStudentClassifier(module, **{**defaults, **options})


@pytest.fixture(scope="module")
def problem():
    return make_soft_targets()


# Rows


def conv_net(n_channels, n_outputs):
    return nn.Sequential(
        nn.Conv2d(n_channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, n_outputs),
    )


@pytest.mark.parametrize("module", [conv_net, None])
def test_images(module, problem):
    _, y, targets = problem
    images = np.random.RandomState(0).rand(len(y), 3, 5, 5).astype(np.float32)
    images += y[:, None, None, None]
    student = quick(module, max_epochs=30).fit(images, y, soft_targets=targets)
    assert student.n_features_in_ == 3
    assert student.score(images, y) > 0.9
    with pytest.raises(ValueError, match=r"shape \(3, 6, 5\).*shape \(3, 5, 5\)"):
        student.predict(np.zeros((2, 3, 6, 5)))


class TokenNet(nn.Module):
    def __init__(self, n_tokens, n_outputs, vocabulary=20):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.top = nn.Linear(8, n_outputs)

    def forward(self, tokens):
        return self.top(self.embedding(tokens).mean(1))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, torch.int32])
def test_token_ids_stay_integers(dtype, problem):
    _, y, targets = problem
    tokens = np.random.RandomState(0).randint(10, size=(len(y), 5)) + 10 * y[:, None]
    if isinstance(dtype, torch.dtype):
        tokens = torch.tensor(tokens, dtype=dtype)
    else:
        tokens = tokens.astype(dtype)
    student = quick(TokenNet, max_epochs=30).fit(tokens, y, soft_targets=targets)
    assert student.score(tokens, y) > 0.9
    assert student.predict_proba(tokens).dtype == np.float32
    with pytest.raises(ValueError, match="float64 and the student was fitted on int"):
        student.predict(np.zeros((2, 5)))


@pytest.mark.parametrize("module", [None, MyNet, TemplateNet()], ids=repr)
def test_integers_are_numbers_to_a_module_that_does_not_take_them(module, problem):
    X, y, targets = problem
    X = np.round(X).astype(int)
    as_integers = quick(module).fit(X, y, soft_targets=targets)
    as_floats = quick(module).fit(X.astype(np.float32), y, soft_targets=targets)
    assert_array_equal(weights_of(as_integers), weights_of(as_floats))
    assert_array_equal(as_integers.predict_proba(X), as_floats.predict_proba(X))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (np.float64, torch.float64),
        (np.float32, torch.float32),
        (np.float16, torch.float32),
        (">f4", torch.float32),
        (bool, torch.float32),
    ],
)
def test_precision_on_the_cpu_is_that_of_the_inputs(given, used, problem):
    X, y, targets = problem
    X = X.astype(given)
    student = quick(device="cpu").fit(X, y, soft_targets=targets)
    assert {p.dtype for p in student.module_.parameters()} == {used}
    assert str(student.predict_proba(X).dtype) == str(used).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_are_taken_like_arrays(dtype, problem):
    X, y, targets = problem
    tensor = torch.tensor(X, requires_grad=True).to(dtype)
    same = tensor.detach().to(torch.promote_types(dtype, torch.float32)).numpy()
    from_tensor = quick().fit(tensor, torch.tensor(y), soft_targets=targets)
    from_array = quick().fit(same, y, soft_targets=targets)
    assert_array_equal(weights_of(from_tensor), weights_of(from_array))
    assert_array_equal(
        from_tensor.predict_proba(tensor), from_array.predict_proba(same)
    )


def test_frames_and_other_layouts_are_the_same_rows(problem, tmp_path):
    X, y, targets = problem
    np.save(tmp_path / "X.npy", X)
    frame = pd.DataFrame(X, columns=list("abcdef"))
    layouts = {
        "fortran": np.asfortranarray(X),
        "reversed": X[::-1].copy()[::-1],
        "memmap": np.load(tmp_path / "X.npy", mmap_mode="r"),
        "list": X.tolist(),
        "frame": frame,
    }
    expected = quick().fit(X, y, soft_targets=targets)
    for name, layout in layouts.items():
        student = quick().fit(layout, y, soft_targets=targets)
        assert_array_equal(weights_of(student), weights_of(expected), name)
        assert_allclose(student.predict_proba(layout), expected.predict_proba(X))
    assert_array_equal(student.feature_names_in_, list("abcdef"))
    with pytest.raises(ValueError, match="feature names should match"):
        student.predict(frame.rename(columns={"a": "z"}))


def test_rows_of_the_caller_stay_as_they_are(problem):
    X, y, targets = problem
    before = X.copy(), targets.copy()

    def in_place(n_features, n_outputs):
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(n_features, n_outputs))

    student = quick(in_place, early_stopping=True).fit(X, y, soft_targets=targets)
    student.predict(X)
    assert_array_equal(X, before[0])
    assert_array_equal(targets, before[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, torch.float32])
def test_soft_targets_of_any_precision(dtype, problem):
    X, y, targets = problem
    expected = quick().fit(X, y, soft_targets=targets).predict_proba(X)
    if isinstance(dtype, torch.dtype):
        targets = torch.tensor(targets, dtype=dtype)
    else:
        targets = targets.astype(dtype)
    student = quick().fit(X, y, soft_targets=targets)
    assert_allclose(student.predict_proba(X), expected, atol=2e-3)


# Modules


def test_default_module_takes_its_sizes_from_module_params(problem):
    X, y, targets = problem
    student = quick(module_params={"hidden_layer_sizes": (5, 4)})
    student.fit(X, y, soft_targets=targets)
    shapes = [tuple(p.shape) for p in student.module_.parameters() if p.ndim == 2]
    assert shapes == [(5, 6), (4, 5), (6, 4)]


def test_callable_gets_features_outputs_and_params(problem):
    X, y, targets = problem
    calls = []

    def build(*args, **params):
        calls.append((args, params))
        return MyNet(*args, **params)

    quick(build, module_params={"hidden": 7}).fit(X, y, soft_targets=targets)
    assert calls == [((6, 6), {"hidden": 7})]


def test_callable_that_returns_one_module_does_not_leak_training(problem):
    X, y, targets = problem
    shared = MyNet(6, 6)
    before = [p.clone() for p in shared.parameters()]
    quick(lambda n_features, n_outputs: shared).fit(X, y, soft_targets=targets)
    for old, now in zip(before, shared.parameters(), strict=True):
        assert torch.equal(old, now)


def test_template_is_copied_and_its_last_linear_widened(problem):
    X, y, targets = problem
    template = TemplateNet()
    before = {name: p.clone() for name, p in template.named_parameters()}
    student = quick(template, learning_rate=1e-300, weight_decay=0.0)
    student.fit(X, y, soft_targets=targets)
    for name, p in template.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    start = dict(student.module_.named_parameters())
    for name in ("body.weight", "body.bias", "scale"):
        assert torch.equal(start[name], before[name].double())
    assert start["top.weight"].shape == (6, 8)
    assert student.module_.top.bias is None
    again = clone(student).fit(X, y, soft_targets=targets)
    assert_array_equal(weights_of(student), weights_of(again))


def test_template_with_as_many_outputs_keeps_all_its_weights(problem):
    X, y, targets = problem
    template = MyNet(6, 6)
    student = quick(template, learning_rate=1e-300, weight_decay=0.0)
    student.fit(X, y, soft_targets=targets)
    for given, kept in zip(
        template.parameters(), student.module_.parameters(), strict=True
    ):
        assert torch.equal(given.double(), kept)


def test_template_may_be_a_linear_layer(problem):
    X, y, targets = problem
    student = quick(nn.Linear(6, 2)).fit(X, y, soft_targets=targets)
    assert student.module_.weight.shape == (6, 6)


class AnyOrder(nn.Module):
    """The head is made first, and another one last, whose output is not returned."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body, self.other = (
            nn.Linear(8, 2),
            nn.Linear(6, 8),
            nn.Linear(8, 2),
        )

    def forward(self, X):
        hidden = torch.relu(self.body(X))
        logits = self.head(hidden)
        return logits + 0 * self.other(hidden).mean()


def test_the_layer_whose_output_a_template_returns_is_widened(problem):
    X, y, targets = problem
    student = quick(AnyOrder()).fit(X, y, soft_targets=targets)
    found = {name: p.shape for name, p in student.module_.named_parameters()}
    expected = {name: p.shape for name, p in AnyOrder().named_parameters()}
    assert found == {**expected, "head.weight": (6, 8), "head.bias": (6,)}
    loaded = pickle.loads(pickle.dumps(student))
    assert_array_equal(loaded.predict_proba(X), student.predict_proba(X))


class Distances(nn.Module):
    """No linear layer, and as many outputs as needed."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.eye(6))

    def forward(self, X):
        return -torch.cdist(X, self.rows)


def test_template_with_as_many_outputs_needs_no_linear_layer(problem):
    X, y, targets = problem
    student = quick(Distances()).fit(X, y, soft_targets=targets)
    assert student.module_.rows.shape == (6, 6)


def test_frozen_layers_of_a_template_stay_frozen(problem):
    X, y, targets = problem
    template = TemplateNet()
    template.body.requires_grad_(False)
    student = quick(template).fit(X, y, soft_targets=targets)
    assert torch.equal(student.module_.body.weight, template.body.weight.double())
    assert not torch.equal(student.module_.scale, template.scale.double())


def test_clone_of_a_fitted_student_starts_again(problem):
    X, y, targets = problem
    student = quick(TemplateNet()).fit(X, y, soft_targets=targets)
    fresh = clone(student)
    assert not hasattr(fresh, "module_")
    for given, cloned in zip(
        student.module.parameters(), fresh.module.parameters(), strict=True
    ):
        assert torch.equal(given, cloned)
    fresh.fit(X, y, soft_targets=targets)
    assert fresh.loss_curve_ == student.loss_curve_


def test_lazy_layers_learn_their_width_before_training(problem):
    X, y, targets = problem

    def lazy(n_features, n_outputs):
        return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(n_outputs))

    student = quick(lazy).fit(X, y, soft_targets=targets)
    assert student.module_[0].weight.shape == (8, 6)


def test_prediction_does_not_depend_on_the_mode_of_the_module(problem):
    X, y, targets = problem

    def dropout_net(n_features, n_outputs):
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(n_features, n_outputs))

    student = quick(dropout_net).fit(X, y, soft_targets=targets)
    expected = student.predict_proba(X)
    student.module_.train()
    assert_array_equal(student.predict_proba(X), expected)


# Labels


@pytest.mark.parametrize("kind", ["objects", "Int64", "boolean"])
def test_rows_without_a_label_beside_integers_are_no_class(kind):
    X, y, E, _ = make_groups()
    hidden = np.random.RandomState(0).rand(len(y)) < 0.8
    if kind == "objects":
        marked = np.array([int(label) for label in y], dtype=object)
        marked[hidden] = None
    else:
        marked = pd.Series(y == 1 if kind == "boolean" else y, dtype=kind)
        marked[hidden] = pd.NA
    as_float = np.where(hidden, np.nan, y)
    projector = LELPProjector(2, random_state=0)
    options = {"projector": projector, "unlabeled": np.nan, "label_weight": 0.5}
    fitted = quick(**options).fit(X, marked, teacher_embeddings=E)
    expected = quick(**options).fit(X, as_float, teacher_embeddings=E)
    assert fitted.classes_.dtype == (bool if kind == "boolean" else int)
    assert_array_equal(fitted.classes_, [0, 1])
    assert_array_equal(fitted.projector_.mean_, expected.projector_.mean_)
    assert_array_equal(fitted.predict_proba(X), expected.predict_proba(X))


def test_labels_without_zero_gain_no_class_from_rows_without_a_label():
    X, y, E, head = make_groups()
    marked = np.array([int(label) + 1 for label in y], dtype=object)
    marked[: len(y) // 2] = None
    for given in (None, head):
        student = quick(projector=LELPProjector(2, head=given), unlabeled=np.nan)
        student.fit(X, marked, teacher_embeddings=E)
        assert_array_equal(student.classes_, [1, 2])


class LabelledRowsTeacher(MatrixTeacher):
    """Looks at the labels that have a value."""

    def fit(self, X, y=None):
        self.n_labels_ = sum(label is not None for label in y)
        return super().fit(X, y)


def test_the_teacher_sees_which_rows_have_no_label():
    X, y, _, _ = make_groups()
    marked = np.array([int(label) for label in y], dtype=object)
    marked[: len(y) // 2] = None
    teacher = LabelledRowsTeacher(np.eye(6))
    student = quick(teacher=teacher, projector=LELPProjector(2), unlabeled=np.nan)
    student.fit(X, marked)
    assert student._state.source.teacher.n_labels_ == len(y) // 2


def test_longer_numbers_than_torch_has(problem):
    X, y, targets = problem
    fitted = quick().fit(X.astype(np.longdouble), y, soft_targets=targets)
    expected = quick().fit(X, y, soft_targets=targets)
    assert_array_equal(
        fitted.predict_proba(X.astype(np.longdouble)), expected.predict_proba(X)
    )
