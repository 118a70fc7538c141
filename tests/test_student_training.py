"""Schedules, early stopping, streams, warm starts and interrupted training."""

import copy
import functools
import pickle
import re
from contextlib import suppress

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator

from lelp_sklearn import LELPProjector, LELPStudentClassifier, NoTeacherWarning
from lelp_sklearn._training.loop import Trainer
from tests.interrupts import interrupted_at_line
from tests.student_problems import (
    MatrixTeacher,
    MyNet,
    make_groups,
    make_soft_targets,
    weights_of,
)


def quick(**options):
    defaults = {"max_epochs": 4, "batch_size": 64, "random_state": 0}
    return LELPStudentClassifier(**{**defaults, **options})


def rates_of_steps(problem, **options):
    """The learning rate of each step of a fit that begins at 0.2."""
    X, y, targets = problem
    rates = []

    class CapturedStep(torch.optim.SGD):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    options = {"learning_rate": 0.2, **options}
    quick(optimizer=CapturedStep, **options).fit(X, y, soft_targets=targets)
    return rates


@pytest.fixture(scope="module")
def problem():
    return make_soft_targets()


# Schedules


def test_anneal_falls_from_one_to_zero_over_half_of_the_steps(problem):
    """It is what a callable of progress gives that says the same."""
    X, y, targets = problem
    seen = []

    def schedule(progress):
        seen.append(progress)
        return max(0.0, 1 - 2 * progress)

    options = {"within_class_temperature": 1.0}
    named = quick(**options).fit(X, y, soft_targets=targets)
    given = quick(subclass_weight=schedule, **options).fit(X, y, soft_targets=targets)
    assert_array_equal(weights_of(named), weights_of(given))
    # 240 rows, 64 at a time: 4 steps in each of 4 epochs.
    assert_allclose(seen[-16:], np.arange(16) / 16)


def test_constant_weight_is_constant_throughout(problem):
    X, y, targets = problem
    number = quick(subclass_weight=0.3).fit(X, y, soft_targets=targets)
    function = quick(subclass_weight=lambda progress: 0.3)
    function.fit(X, y, soft_targets=targets)
    assert_array_equal(weights_of(number), weights_of(function))


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        ("constant", lambda progress: 1.0),
        ("cosine", lambda progress: (1 + np.cos(np.pi * progress)) / 2),
        (lambda progress: 1 - progress, lambda progress: 1 - progress),
    ],
    ids=["constant", "cosine", "callable"],
)
def test_learning_rate_follows_its_schedule(schedule, factor, problem):
    rates = rates_of_steps(problem, learning_rate_schedule=schedule)
    assert_allclose(rates, [0.2 * factor(step / 16) for step in range(16)])


@pytest.mark.parametrize(
    ("temperature", "module", "expected"),
    [("auto", None, 0.015), (3.0, None, 0.045), (9.0, None, 0.06), (3.0, MyNet, 0.01)],
)
def test_learning_rate_follows_the_temperature(temperature, module, expected, problem):
    rates = rates_of_steps(
        problem,
        learning_rate="auto",
        learning_rate_schedule="constant",
        projector=LELPProjector(temperature=temperature),
        module=module,
    )
    assert_allclose(rates, expected)


def test_a_fit_that_continues_keeps_the_automatic_learning_rate(problem):
    X, y, targets = problem
    projector = LELPProjector(temperature=3.0)
    student = quick(projector=projector, learning_rate="auto", warm_start=True)
    student.fit(X, y, soft_targets=targets)
    assert student.learning_rate_ == pytest.approx(0.045)
    # The module of the first fit is trained further, whatever the parameter is now.
    student.set_params(module=MyNet).fit(X, y, soft_targets=targets)
    assert student.learning_rate_ == pytest.approx(0.045)
    student.set_params(learning_rate=0.02).partial_fit(X, y, soft_targets=targets)
    assert student.learning_rate_ == 0.02
    student.set_params(warm_start=False, learning_rate="auto")
    assert student.fit(X, y, soft_targets=targets).learning_rate_ == 0.01


@pytest.mark.parametrize("name", ["learning_rate_schedule", "subclass_weight"])
@pytest.mark.parametrize("value", [np.nan, -0.5])
def test_schedule_that_goes_wrong_within_an_epoch_is_named(name, value, problem):
    X, y, targets = problem

    def schedule(progress):
        return value if 0.6 < progress < 0.9 else 1.0

    constant = {"learning_rate_schedule": "constant", "subclass_weight": 1.0}
    student = quick(**{**constant, name: schedule}, max_epochs=2, batch_size=60)
    message = f"{name} gives {value} at progress 0.625, step 2 of epoch 2; it must"
    with pytest.raises(ValueError, match=message):
        student.fit(X, y, soft_targets=targets)
    assert (student.stop_reason_, student.n_epochs_) == ("error", 1)
    expected = quick(**constant, max_epochs=1, batch_size=60)
    expected.fit(X, y, soft_targets=targets)
    assert_array_equal(weights_of(student), weights_of(expected))


def test_optimizer_of_the_caller_is_used_with_its_arguments(problem):
    X, y, targets = problem
    calls = []

    def optimizer(parameters, lr, weight_decay):
        calls.append((lr, weight_decay))
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

    student = quick(optimizer=optimizer, learning_rate=0.02, weight_decay=0.1)
    student.fit(X, y, soft_targets=targets)
    # Once to see what it makes, before work starts.
    assert calls == [(0.02, 0.1)] * 2
    named = quick(learning_rate=0.02, weight_decay=0.1)
    named.fit(X, y, soft_targets=targets)
    assert_allclose(weights_of(student), weights_of(named), rtol=1e-6, atol=1e-9)


def test_optimizer_whose_step_something_has_wrapped_is_used(problem):
    """As schedulers of torch do."""
    X, y, targets = problem

    def optimizer(parameters, lr, weight_decay):
        made = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        torch.optim.lr_scheduler.ConstantLR(made, factor=1.0)
        return made

    student = quick(optimizer=optimizer).fit(X, y, soft_targets=targets)
    named = quick().fit(X, y, soft_targets=targets)
    assert_allclose(weights_of(student), weights_of(named), rtol=1e-6, atol=1e-9)


def test_gradients_are_found_where_the_caller_wants_none(problem):
    X, y, targets = problem
    expected = quick().fit(X, y, soft_targets=targets)
    with torch.no_grad():
        student = quick().fit(X, y, soft_targets=targets)
        assert not torch.is_grad_enabled()
    assert_array_equal(weights_of(student), weights_of(expected))


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_student_learns_where_the_caller_only_infers(problem, method):
    X, y, targets = problem
    options = {"classes": [0, 1]} if method == "partial_fit" else {}
    expected, student = quick(), quick()
    getattr(expected, method)(X, y, soft_targets=targets, **options)
    with torch.inference_mode():
        getattr(student, method)(X, y, soft_targets=targets, **options)
        assert torch.is_inference_mode_enabled()
    assert_array_equal(weights_of(student), weights_of(expected))


def test_max_grad_norm_bounds_the_step(problem):
    X, y, targets = problem
    options = {"module": MyNet, "optimizer": torch.optim.SGD, "weight_decay": 0.0}
    options |= {"learning_rate": 1.0, "batch_size": 1000}
    start = quick(**{**options, "learning_rate": 1e-300}, max_epochs=1)
    start.fit(X, y, soft_targets=targets)
    for norm in (1e-3, 1e-6):
        student = quick(**options, max_epochs=1, max_grad_norm=norm)
        student.fit(X, y, soft_targets=targets)
        moved = np.linalg.norm(weights_of(student) - weights_of(start))
        assert moved == pytest.approx(norm, rel=1e-2)


def test_gradients_are_shortened_by_those_that_the_optimizer_follows(problem):
    X, y, targets = problem

    def with_frozen_body(n_features, n_outputs):
        net = MyNet(n_features, n_outputs)
        net.body.requires_grad_(False)
        return net

    def of_the_top(parameters, lr, weight_decay):
        return torch.optim.SGD(parameters[-2:], lr=lr)

    options = {"max_grad_norm": 1e-2, "learning_rate": 1.0, "optimizer": of_the_top}
    found = quick(**options, module=MyNet).fit(X, y, soft_targets=targets)
    expected = quick(**options, module=with_frozen_body)
    expected.fit(X, y, soft_targets=targets)
    assert_allclose(weights_of(found), weights_of(expected), rtol=1e-10)


@pytest.mark.parametrize("small", [1e-40, 1e-60])
def test_weights_that_single_precision_cannot_hold_count_as_zero(small, problem):
    X, y, targets = problem
    X = X.astype(np.float32)
    weight = np.where(np.arange(len(X)) < 200, small, 1.0 + np.arange(len(X)) % 2)
    options = {"batch_size": 1, "max_epochs": 1}
    found = quick(**options).fit(X, y, soft_targets=targets, sample_weight=weight)
    weight[:200] = 0
    expected = quick(**options).fit(X, y, soft_targets=targets, sample_weight=weight)
    assert_array_equal(weights_of(found), weights_of(expected))


# Early stopping


def class_score(student, X, targets, temperature):
    """The negative cross-entropy to class targets from the module's logits alone."""
    with torch.no_grad():
        logits = student.module_(torch.tensor(X)).numpy()
    log_outputs = log_softmax(logits / temperature, axis=1)
    by_class = np.logaddexp.reduce(log_outputs.reshape(len(X), 2, -1), axis=2)
    return np.mean(np.sum(targets.reshape(len(X), 2, -1).sum(2) * by_class, axis=1))


def test_best_weights_are_restored_and_scored_on_given_rows():
    X, y, E, head = make_groups()
    E_val = E + np.random.RandomState(0).normal(size=E.shape)
    X_val = X + np.random.RandomState(1).normal(size=X.shape)
    student = quick(
        projector=LELPProjector(3, head=head, temperature=2.0),
        early_stopping=True,
        learning_rate=0.05,
        learning_rate_schedule="constant",
        subclass_weight=0.0,
        max_epochs=60,
    )
    student.fit(
        X, y, teacher_embeddings=E, X_val=X_val, y_val=y, teacher_embeddings_val=E_val
    )
    assert student.n_epochs_ < 60
    assert len(student.validation_scores_) == student.n_epochs_
    assert int(np.argmax(student.validation_scores_)) < student.n_epochs_ - 1
    targets = student.projector_.transform(E_val)
    found = class_score(student, X_val, targets, 2.0)
    assert found == pytest.approx(max(student.validation_scores_))


def test_patience_starts_when_the_subclass_weight_has_its_final_value(problem):
    X, y, targets = problem
    # At this rate nothing changes, so that no epoch is better than the first.
    still = {"early_stopping": True, "learning_rate": 1e-300, "n_iter_no_change": 3}
    still |= {"max_epochs": 40, "weight_decay": 0.0}
    with pytest.warns(ConvergenceWarning, match="epoch 1 of 40, in the first tenth"):
        epochs = {
            weight: quick(subclass_weight=weight, **still)
            .fit(X, y, soft_targets=targets)
            .n_epochs_
            for weight in ("anneal", 1.0, late_step)
        }
    assert epochs == {"anneal": 20 + 3, 1.0: 1 + 3, late_step: 30 + 3}


@pytest.mark.parametrize(
    ("learning_rate", "n_epochs", "message"),
    [
        (0.2, 40, "epoch [1-4] of 40, in the first tenth of training: lower learning"),
        (1e-3, 20, "rose by [0-9]+% in the last tenth of 20 epochs: raise max_epochs"),
        (0.05, 40, None),
        (1e-3, 9, None),
    ],
)
def test_a_warning_names_the_parameter_of_a_training_that_is_too_long_or_too_short(
    learning_rate, n_epochs, message
):
    """Inputs of noise are learned by heart; the others say the teacher's classes."""
    X, y, E, head = make_groups()
    if learning_rate == 0.2:
        X = np.random.RandomState(0).normal(size=X.shape)
    student = quick(
        projector=LELPProjector(1, head=head),
        early_stopping=True,
        learning_rate=learning_rate,
        learning_rate_schedule="constant",
        max_epochs=n_epochs,
    )
    fit = functools.partial(student.fit, X, y, teacher_embeddings=E)
    if message is None:
        fit()
    else:
        with pytest.warns(ConvergenceWarning, match=message):
            fit()


def late_step(progress):
    return 1.0 if progress < 0.75 else 0.5


def test_held_out_rows_are_stratified_and_not_learned_from(problem):
    X, y, E, head = make_groups()
    weights = []

    class Watching(LELPProjector):
        def fit(self, X, y=None, *, teacher_logits=None, sample_weight=None):
            weights.append(sample_weight)
            return super().fit(X, y, sample_weight=sample_weight)

    student = quick(
        projector=Watching(3, head=head), early_stopping=True, validation_fraction=0.25
    )
    student.fit(X, y, teacher_embeddings=E)
    (weight,) = weights
    held_out = weight == 0
    assert_array_equal(np.bincount(y[held_out]), [30, 30])
    # What the held-out rows hold has no part in what is learned.
    changed = np.where(held_out[:, None], 0.0, X), np.where(held_out[:, None], 0.0, E)
    other = quick(**student.get_params(deep=False))
    other.fit(changed[0], y, teacher_embeddings=changed[1])
    assert student.loss_curve_ == other.loss_curve_
    assert student.validation_scores_ != other.validation_scores_


def test_a_class_of_few_rows_is_on_both_sides(problem):
    X, y, targets = problem
    rows = np.r_[np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:2]]
    student = quick(early_stopping=True, validation_fraction=0.01)
    student.fit(X[rows], y[rows], soft_targets=targets[rows])
    assert np.isfinite(student.validation_scores_).all()


def test_rows_without_a_label_count_in_the_score():
    X, _, E, head = make_groups()
    student = quick(projector=LELPProjector(3, head=head), early_stopping=True)
    student.fit(X, teacher_embeddings=E)
    assert np.isfinite(student.validation_scores_).all()


@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_rows_of_the_teacher_of_the_student_are_embedded_by_it():
    X, y, _, head = make_groups()
    matrix = np.random.RandomState(0).normal(size=(6, 9))
    rest = {"projector": LELPProjector(3, head=head), "early_stopping": True}
    X_val = X[::2] + 0.1
    student = quick(teacher=MatrixTeacher(matrix), **rest)
    student.fit(X, y, X_val=X_val)
    given = quick(**rest).fit(
        X,
        y,
        teacher_embeddings=X @ matrix,
        X_val=X_val,
        teacher_embeddings_val=X_val @ matrix,
    )
    assert student.validation_scores_ == given.validation_scores_


def test_soft_targets_are_scored_by_labels_or_by_a_frozen_projector():
    X, y, E, head = make_groups()
    projector = LELPProjector(3, head=head, temperature=2.0).fit(E, y)
    soft = projector.transform(E)
    X_val, y_val = X[::2] + 0.1, y[::2]
    by_labels = quick(projector=projector, early_stopping=True, max_epochs=1)
    by_labels.fit(X, y, soft_targets=soft, X_val=X_val, y_val=y_val)
    log_loss = -np.log(by_labels.predict_proba(X_val)[np.arange(len(y_val)), y_val])
    assert by_labels.validation_scores_ == pytest.approx([-log_loss.mean()])
    frozen = quick(
        projector=FrozenEstimator(projector), early_stopping=True, max_epochs=1
    )
    validation = {"X_val": X_val, "teacher_embeddings_val": E[::2]}
    frozen.fit(X, y, soft_targets=soft, **validation)
    expected = class_score(frozen, X_val, soft[::2], 2.0)
    assert frozen.validation_scores_ == pytest.approx([expected])


def test_without_early_stopping_there_are_no_scores(problem):
    X, y, targets = problem
    assert quick().fit(X, y, soft_targets=targets).validation_scores_ is None


# Streams and warm starts


@pytest.mark.parametrize("schedule", ["constant", lambda progress: 1 - progress])
def test_as_many_calls_of_partial_fit_as_epochs_are_a_fit(schedule):
    X, y, E, head = make_groups()
    options = {"projector": LELPProjector(3, head=head), "max_epochs": 5}
    options["learning_rate_schedule"] = schedule
    whole = quick(**options).fit(X, y, teacher_embeddings=E)
    stream = quick(**options)
    for _ in range(5):
        stream.partial_fit(X, y, classes=[0, 1], teacher_embeddings=E)
    assert_array_equal(weights_of(stream), weights_of(whole))
    assert stream.loss_curve_ == whole.loss_curve_
    assert stream.n_epochs_ == 5


@pytest.mark.parametrize("reload", [False, True])
def test_partial_fit_takes_a_new_learning_rate(reload, problem):
    X, y, targets = problem
    student = quick(learning_rate=0.05)
    student.partial_fit(X, y, classes=[0, 1], soft_targets=targets)
    if reload:
        student = pickle.loads(pickle.dumps(student))
    before = weights_of(student)
    student.set_params(learning_rate=1e-300)
    student.partial_fit(X, y, soft_targets=targets)
    assert_array_equal(weights_of(student), before)
    student.set_params(learning_rate=0.05)
    student.partial_fit(X, y, soft_targets=targets)
    assert np.abs(weights_of(student) - before).max() > 0.01


@pytest.mark.parametrize("how", ["partial_fit", "warm_start"])
def test_failure_leaves_a_fitted_student_as_it_was(how, problem):
    X, y, targets = problem
    fails = []

    def augment(rows):
        if fails:
            raise RuntimeError("no more")
        return rows

    student = quick(augment=augment, warm_start=True)
    student.partial_fit(X, y, classes=[0, 1], soft_targets=targets)
    twin = copy.deepcopy(student).set_params(augment=None)
    # Once when it is tried on the first rows, then in training.
    diverging = quick(warm_start=True).partial_fit(
        X, y, classes=[0, 1], soft_targets=targets
    )
    expected, curve = diverging.predict_proba(X), list(diverging.loss_curve_)
    diverging.set_params(learning_rate=1e300, learning_rate_schedule="constant")
    train = diverging.fit if how == "warm_start" else diverging.partial_fit
    with pytest.raises(FloatingPointError):
        train(X, y, soft_targets=targets)
    assert_array_equal(diverging.predict_proba(X), expected)
    assert diverging.loss_curve_ == curve
    assert diverging.n_epochs_ == len(curve)
    fails.append(True)
    with pytest.raises(RuntimeError, match="no more"):
        (student.fit if how == "warm_start" else student.partial_fit)(
            X, y, soft_targets=targets
        )
    assert_array_equal(student.predict_proba(X), twin.predict_proba(X))
    diverging.set_params(learning_rate=0.01)
    twin.partial_fit(X, y, soft_targets=targets)
    if how == "partial_fit":
        diverging.partial_fit(X, y, soft_targets=targets)
        assert np.isfinite(weights_of(diverging)).all()


def test_warm_start_takes_a_new_temperature_within_classes(problem):
    X, y, targets = problem
    options = {"subclass_weight": 1.0, "within_class_temperature": 1.0}
    student = quick(warm_start=True, **options)
    student.fit(X, y, soft_targets=targets)
    before = student.predict_subclass_proba(X)
    student.set_params(within_class_temperature=4.0, learning_rate=1e-300)
    student.fit(X, y, soft_targets=targets)
    found = student.predict_subclass_proba(X)
    logits = np.log(before).reshape(len(X), 2, -1)
    within = np.exp(logits / 4)
    within /= within.sum(axis=2, keepdims=True)
    expected = before.reshape(len(X), 2, -1).sum(axis=2, keepdims=True) * within
    assert_allclose(found, expected.reshape(found.shape), rtol=1e-6)


def test_a_stream_keeps_the_temperature_of_the_subclasses():
    """That of its first block, in which each class has all its mass on one subclass."""
    X, y, _ = make_soft_targets()
    subclasses = np.tile([0.9, 0.0, 0.1, 0.0], (len(X), 1))
    subclasses[y == 1] = [0.1, 0.0, 0.9, 0.0]
    r = np.log(9) / 5
    auto = quick(projector=LELPProjector(temperature=2.0))
    given = quick(
        projector=LELPProjector(temperature=2.0),
        within_class_temperature=r,
        subclass_weight=lambda progress: r * max(0.0, 1 - 2 * progress),
    )
    for student in (auto, given):
        student.partial_fit(X, y, [0, 1], soft_targets=subclasses)
        student.partial_fit(X, y, soft_targets=subclasses[:, [0, 0, 2, 2]] / 2)
    assert_allclose(auto.loss_curve_, given.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_integers_that_are_numbers_are_single_precision(dtype, problem):
    X, y, targets = problem
    student = quick().fit((np.abs(X) * 9).astype(dtype), y, soft_targets=targets)
    assert student.module_[0].weight.dtype == torch.float32


def test_partial_fit_keeps_the_projector_of_the_first_block():
    X, y, E, head = make_groups()
    student = quick(projector=LELPProjector(3, head=head))
    student.partial_fit(X[:120], y[:120], classes=[0, 1], teacher_embeddings=E[:120])
    first = student.projector_.components_.copy()
    # The second block has one class only.
    rows = np.flatnonzero(y == 1)
    student.partial_fit(X[rows], y[rows], teacher_embeddings=E[rows])
    assert_array_equal(student.projector_.components_, first)
    assert_array_equal(student.classes_, [0, 1])


def test_classes_name_what_the_teacher_finds_in_a_stream():
    """Labels of none or of one class, of rows that the head puts into three."""
    X, _, E, (W, b) = make_groups(n_classes=3)
    names = np.array(["a", "b", "c"])
    likeliest = names[np.argmax(E @ W.T + b, axis=1)]
    marked = np.where(likeliest == "a", likeliest, "?")
    projector = LELPProjector(2, head=(W, b), splitter="pca")
    students = [
        quick(projector=projector, unlabeled="?").partial_fit(
            X, y, classes=names, teacher_embeddings=E
        )
        for y in (likeliest, marked, None)
    ]
    for student in students:
        assert_array_equal(student.classes_, names)
        assert_array_equal(student.projector_.classes_, names)
        assert_allclose(weights_of(student), weights_of(students[0]), rtol=1e-6)
        assert_array_equal(student.predict(X), students[0].predict(X))


def test_partial_fit_takes_soft_targets_of_blocks_without_every_class(problem):
    X, y, targets = problem
    rows = y == 0
    student = quick().partial_fit(
        X[rows], y[rows], classes=[0, 1], soft_targets=targets[rows]
    )
    student.partial_fit(X[~rows], y[~rows], soft_targets=targets[~rows])
    assert_array_equal(student.classes_, [0, 1])
    assert student.n_epochs_ == 2


def test_progress_of_a_stream_ends_when_max_epochs_are_reached(problem):
    X, y, targets = problem
    seen = []

    def schedule(progress):
        seen.append(progress)
        return 0.5

    student = quick(max_epochs=2, subclass_weight=schedule)
    for call in range(4):
        seen.clear()
        student.partial_fit(X, y, classes=[0, 1], soft_targets=targets)
        assert_allclose(seen[-4:], np.minimum((call + np.arange(4) / 4) / 2, 1))


@pytest.mark.parametrize("begin", ["fit", "partial_fit"])
def test_stream_goes_on_learning_at_the_learning_rate(begin, problem):
    X, y, targets = problem
    rates = []

    class CapturedStep(torch.optim.SGD):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    student = quick(max_epochs=2, optimizer=CapturedStep, learning_rate=0.2)
    if begin == "fit":
        student.fit(X, y, soft_targets=targets)
    else:
        for _ in range(2):
            student.partial_fit(X, y, classes=[0, 1], soft_targets=targets)
    rates.clear()
    for _ in range(2):
        before = weights_of(student)
        student.partial_fit(X, y, soft_targets=targets)
        assert not np.array_equal(weights_of(student), before)
    assert rates == [0.2] * 8


def test_warm_start_goes_on_from_the_fitted_module():
    X, y, E, head = make_groups()
    student = quick(projector=LELPProjector(3, head=head), warm_start=True)
    student.fit(X, y, teacher_embeddings=E)
    first_loss, projector = student.loss_curve_[0], student.projector_
    student.fit(X, y, teacher_embeddings=E)
    assert student.n_epochs_ == 8
    assert student.loss_curve_[4] < first_loss
    assert student.projector_ is projector
    fresh = student.set_params(warm_start=False).fit(X, y, teacher_embeddings=E)
    assert fresh.n_epochs_ == 4
    assert fresh.loss_curve_[0] == first_loss


def test_fit_after_partial_fit_starts_again(problem):
    X, y, targets = problem
    student = quick().partial_fit(X, y, classes=[0, 1], soft_targets=targets)
    student.fit(X, y, soft_targets=targets)
    other = quick().fit(X, y, soft_targets=targets)
    assert_array_equal(weights_of(student), weights_of(other))


def test_curves_of_mixed_warm_starts_have_an_entry_for_each_epoch(problem):
    """NaN stands for the score of an epoch that was not scored."""
    X, y, targets = problem
    student = quick(max_epochs=2, warm_start=True)
    lengths = []
    for early_stopping in (False, True, False):
        student.set_params(early_stopping=early_stopping)
        student.fit(X, y, soft_targets=targets)
        scores = student.validation_scores_
        lengths.append((len(student.loss_curve_), scores and len(scores)))
    student.partial_fit(X, y, soft_targets=targets)
    assert lengths == [(2, None), (4, 4), (6, 6)]
    is_scored = np.isfinite(student.validation_scores_)
    assert_array_equal(is_scored, [False] * 2 + [True] * 2 + [False] * 3)
    assert student.n_epochs_ == len(student.loss_curve_) == 7


@pytest.mark.parametrize("random_state", [0, None])
def test_warm_starts_hold_the_same_rows_out(random_state, problem):
    """They would be scored on what they have learned by heart."""
    X, y, targets = problem
    held_out = []

    class Watching(Trainer):
        def score(self, rows):
            held_out.append(rows.rows.X.numpy().copy())
            return super().score(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lelp_sklearn._training.state.Trainer", Watching)
        student = quick(early_stopping=True, warm_start=True, max_epochs=1)
        student.set_params(random_state=random_state)
        for _ in range(3):
            student.fit(X, y, soft_targets=targets)
    assert_array_equal(held_out[1], held_out[0])
    assert_array_equal(held_out[2], held_out[0])


def copied(student, how):
    return pickle.loads(pickle.dumps(student)) if how == "pickle" else student


@pytest.mark.parametrize("how", ["memory", "pickle"])
def test_stream_takes_another_weight_decay(how, problem):
    """Without a gradient AdamW shrinks weights by rate times decay a step."""
    X, y, targets = problem
    student = quick(learning_rate=1e-3, weight_decay=0.5, batch_size=1000)
    student.partial_fit(X, y, classes=[0, 1], soft_targets=targets)
    plain = copy.deepcopy(student).set_params(weight_decay=0.0)
    student = copied(student, how).set_params(weight_decay=2.0)
    before = weights_of(student)
    for each in (student, plain):
        each.partial_fit(X, y, soft_targets=targets)
    difference = weights_of(plain) - weights_of(student)
    assert_allclose(difference, 1e-3 * 2.0 * before, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("how", ["memory", "pickle"])
@pytest.mark.parametrize("before", ["adamw", torch.optim.Adam])
def test_stream_starts_again_with_another_optimizer(before, how, problem):
    """A step of SGD is the rate times the gradient, whatever Adam remembers."""
    X, y, targets = problem
    student = quick(optimizer=before, batch_size=1000, subclass_weight=0.0)
    student.partial_fit(X, y, classes=[0, 1], soft_targets=targets)
    student = copied(student, how)
    weights, steps = weights_of(student), []
    student.set_params(optimizer=torch.optim.SGD, weight_decay=0.0)
    for rate in (1e-3, 2e-3):
        each = copy.deepcopy(student).set_params(learning_rate=rate)
        each.partial_fit(X, y, soft_targets=targets)
        steps.append(weights_of(each) - weights)
    assert np.abs(steps[0]).max() > 0
    assert_allclose(steps[1], 2 * steps[0], rtol=1e-6, atol=1e-12)


def test_rate_of_a_schedule_is_not_left_in_the_stream(problem):
    X, y, targets = problem
    rates = []

    class CapturedStep(torch.optim.SGD):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    student = quick(optimizer=CapturedStep, learning_rate=0.2, batch_size=1000)
    student.set_params(learning_rate_schedule=lambda progress: 0.5)
    student.partial_fit(X, y, classes=[0, 1], soft_targets=targets)
    student.set_params(learning_rate_schedule="cosine")
    student.partial_fit(X, y, soft_targets=targets)
    assert rates == [0.1, 0.2]


@pytest.mark.parametrize("how", ["memory", "pickle"])
def test_stream_in_half_precision_keeps_the_scale_of_its_loss(how, problem):
    """It is halved in blocks of one step until the gradients no longer overflow."""
    X, y, targets = problem
    student = quick(module=SteepNet, precision="float16", learning_rate=1e-6)
    student.set_params(batch_size=1000, optimizer=torch.optim.SGD)
    student.partial_fit(X, y, classes=[0, 1], soft_targets=targets)
    first = weights_of(student)
    for _ in range(20):
        student = copied(student, how)
        student.partial_fit(X, y, soft_targets=targets)
    assert not np.array_equal(weights_of(student), first)


class SteepNet(MyNet):
    def forward(self, X):
        return self.top(self.body(X) * 3e4)


def test_warm_start_without_a_teacher_leaves_rows_without_a_label_out(problem):
    """Also where the projector that it no longer needs has a head by then."""
    X, y, _, head = make_groups()
    marked = np.where(np.arange(len(y)) % 3 == 0, -1, y)
    rows = marked >= 0
    students = []
    for chosen in (slice(None), rows):
        student = quick(warm_start=True, unlabeled=-1, projector=LELPProjector(2))
        with pytest.warns(NoTeacherWarning):
            student.fit(X, marked)
        student.set_params(projector=LELPProjector(2, head=head))
        students.append(student.fit(X[chosen], marked[chosen]))
    assert_array_equal(weights_of(students[0]), weights_of(students[1]))


def test_warm_start_takes_the_teacher_s_logits():
    """Labels stood for them in the first fit."""
    X, y, E, (W, b) = make_groups()
    student = quick(warm_start=True, projector=LELPProjector(2), max_epochs=30)
    with pytest.warns(NoTeacherWarning):
        student.fit(X, y)
    student.fit(X, 1 - y, teacher_logits=E @ W.T + b)
    likeliest = np.argmax(E @ W.T + b, axis=1)
    assert np.mean(student.predict(X) == likeliest) > 0.9


# What can go wrong, and what is said


class Interrupted(torch.optim.SGD):
    """Raises KeyboardInterrupt in the middle of the tenth step."""

    n_steps = 0

    def step(self):
        super().step()
        Interrupted.n_steps += 1
        if Interrupted.n_steps == 10:
            raise KeyboardInterrupt


@pytest.fixture
def interrupting(monkeypatch):
    monkeypatch.setattr(Interrupted, "n_steps", 0)
    return Interrupted


def test_interrupted_student_has_its_complete_epochs(problem, interrupting):
    """Two epochs of four steps, but those of a longer training."""
    X, y, targets = problem
    still = {"subclass_weight": 0.0, "learning_rate_schedule": "constant"}
    student = quick(optimizer=interrupting, **still)
    with pytest.raises(KeyboardInterrupt):
        student.fit(X, y, soft_targets=targets)
    assert student.stop_reason_ == "interrupted"
    expected = quick(optimizer=torch.optim.SGD, max_epochs=2, **still)
    expected.fit(X, y, soft_targets=targets)
    assert student.n_epochs_ == 2
    assert student.loss_curve_ == expected.loss_curve_
    assert_array_equal(weights_of(student), weights_of(expected))
    assert not student.module_.training


def test_interrupt_while_training_ends_leaves_a_module_that_predicts(problem):
    """At each of the last lines: no gradient is left, and no layer that trains."""
    X, y, targets = (values[:64] for values in problem)

    def continued(number):
        student = quick(max_epochs=1, batch_size=32)
        student.partial_fit(X, y, classes=[0, 1, 2], soft_targets=targets)
        with suppress(KeyboardInterrupt), interrupted_at_line(number) as n_lines:
            student.partial_fit(X, y, soft_targets=targets)
        return student, n_lines()

    _, last = continued(0)
    for number in range(last - 60, last + 1):
        module = continued(number)[0].module_
        assert all(parameter.grad is None for parameter in module.parameters())
        assert not any(layer.training for layer in module.modules())


@pytest.mark.parametrize("how", ["fit", "warm_start", "partial_fit"])
def test_interrupt_in_the_first_epoch_leaves_the_student_as_it_was(
    how, problem, interrupting
):
    """Its number of features too, though the new rows have fewer."""
    X, y, targets = problem
    student = quick(warm_start=how == "warm_start", within_class_temperature=2.0)
    student.fit(X, y, soft_targets=targets)
    expected, weights = student.predict_subclass_proba(X), weights_of(student)
    others = X[:, :4] if how == "fit" else X
    student.set_params(optimizer=interrupting, within_class_temperature=1.0)
    interrupting.n_steps = 8
    method = student.partial_fit if how == "partial_fit" else student.fit
    with pytest.raises(KeyboardInterrupt):
        method(others, y, soft_targets=targets)
    assert student.stop_reason_ == "max_epochs"
    assert student.n_epochs_ == len(student.loss_curve_) == 4
    assert student.n_features_in_ == X.shape[1]
    assert_array_equal(weights_of(student), weights)
    assert_array_equal(student.predict_subclass_proba(X), expected)


@pytest.mark.parametrize("label_weight", [0.0, 0.5])
def test_loss_that_is_not_finite_stops_after_its_epoch(label_weight, problem):
    X, y, targets = problem
    student = quick(
        optimizer=torch.optim.SGD,
        learning_rate=1e300,
        learning_rate_schedule="constant",
        label_weight=label_weight,
    )
    message = "the loss was .* in step 2 of epoch 1, at learning rate 1e.300: lower"
    with pytest.raises(FloatingPointError, match=message):
        student.fit(X, y, soft_targets=targets)
    assert not hasattr(student, "module_")


def test_weights_of_the_last_good_epoch_are_kept(problem):
    """Two epochs are good, in the third the learning rate is far too high."""
    X, y, targets = problem
    options = {"optimizer": torch.optim.SGD, "subclass_weight": 1.0}
    options["learning_rate"] = 0.01
    good = quick(**options, learning_rate_schedule="constant", max_epochs=2)
    good.fit(X, y, soft_targets=targets)
    student = quick(
        **options,
        learning_rate_schedule=lambda progress: 1.0 + 1e300 * (progress > 0.5),
    )
    with pytest.raises(FloatingPointError, match="of epoch 3, at learning rate 1e"):
        student.fit(X, y, soft_targets=targets)
    assert student.stop_reason_ == "not_finite"
    assert student.n_epochs_ == 2
    assert_array_equal(weights_of(student), weights_of(good))
    assert_array_equal(student.predict_proba(X), good.predict_proba(X))


def test_augmented_rows_are_trained_on_and_the_caller_s_stay(problem):
    X, y, targets = problem
    seen = []

    def flip(rows):
        seen.append(rows.shape)
        return rows.neg_()

    before = X.copy()
    augmented = quick(augment=flip).fit(X, y, soft_targets=targets)
    negated = quick().fit(-X, y, soft_targets=targets)
    assert_array_equal(X, before)
    assert_array_equal(weights_of(augmented), weights_of(negated))
    assert (64, X.shape[1]) in seen
    # Not at prediction.
    n_seen = len(seen)
    assert_array_equal(augmented.predict(-X), negated.predict(-X))
    assert len(seen) == n_seen


def test_what_augmentation_draws_hangs_on_the_random_state(problem):
    X, y, targets = problem

    def jitter(rows):
        return rows + 0.1 * torch.randn_like(rows)

    before = torch.get_rng_state()
    first, second = (
        quick(augment=jitter, random_state=1).fit(X, y, soft_targets=targets)
        for _ in range(2)
    )
    assert_array_equal(weights_of(first), weights_of(second))
    assert_array_equal(torch.get_rng_state(), before)
    plain = quick(random_state=1).fit(X, y, soft_targets=targets)
    assert not np.array_equal(weights_of(first), weights_of(plain))


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (
            lambda rows: rows[:1],
            r"augment returned shape \(1, 6\) for a batch of 2",
        ),
        (
            lambda rows: rows.tolist(),
            "augment returned list for a batch of 2 rows",
        ),
        (lambda rows: rows[:, :2], "module fails"),
    ],
)
def test_augmentation_that_cannot_be_is_refused_before_training(
    augment, message, problem
):
    X, y, targets = problem
    student = quick(augment=augment)
    with pytest.raises(ValueError, match=message):
        student.fit(X, y, soft_targets=targets)
    assert not hasattr(student, "module_")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_the_same_with_weights_in_single(precision, problem):
    X, y, targets = problem
    options = {"max_epochs": 30, "max_grad_norm": 1.0}
    single = quick(**options, precision="float32").fit(X, y, soft_targets=targets)
    mixed = quick(**options, precision=precision).fit(X, y, soft_targets=targets)
    assert {p.dtype for p in mixed.module_.parameters()} == {torch.float32}
    assert not np.array_equal(weights_of(mixed), weights_of(single))
    assert_allclose(mixed.predict_proba(X), single.predict_proba(X), atol=0.05)
    assert_allclose(mixed.loss_curve_, single.loss_curve_, rtol=0.05)


class OfItsOwnPrecision(MyNet):
    def __init__(self, n_features, n_outputs, dtype):
        super().__init__(n_features, n_outputs)
        self.dtype = dtype

    def forward(self, X):
        return super().forward(X).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_module_may_compute_in_a_precision_of_its_own(dtype, problem):
    X, y, targets = problem
    X = X.astype(np.float32)
    given = {"soft_targets": targets, "sample_weight": np.linspace(1, 2, len(y))}
    options = {"module": OfItsOwnPrecision, "early_stopping": True}
    found, expected = (
        quick(**options, module_params={"dtype": each}).fit(X, y, **given)
        for each in (dtype, torch.float32)
    )
    assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=0.02)
    assert_allclose(found.predict_proba(X), expected.predict_proba(X), atol=0.02)
    assert_allclose(found.validation_scores_, expected.validation_scores_, rtol=0.02)
    served = found.to_module()(torch.from_numpy(X))
    assert served.dtype == torch.float32
    assert_allclose(served.detach(), found.predict_proba(X), atol=1e-5)


def test_half_precision_scales_gradients_that_would_vanish(problem):
    """That of the hidden layer is far below the least number of half precision."""
    X, y, targets = problem
    options = {"max_epochs": 1, "batch_size": 1000, "optimizer": torch.optim.SGD}
    options |= {"weight_decay": 0.0, "learning_rate": 1e-3}
    options["within_class_temperature"] = 1.0

    class Faint(MyNet):
        def forward(self, X):
            return self.top(1e-8 * torch.tanh(self.body(X)))

    moved = []
    for precision in ("float32", "float16"):
        start, student = (
            quick(module=Faint, precision=precision, **{**options, "learning_rate": r})
            for r in (1e-300, 1e3)
        )
        for each in (start, student):
            each.fit(X, y, soft_targets=targets)
        moved.append(
            (student.module_.body[0].weight - start.module_.body[0].weight).detach()
        )
    largest = float(moved[0].abs().max())
    assert largest > 0
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=0.05 * largest)


def test_single_precision_may_be_asked_for_where_rows_are_double(problem):
    X, y, targets = problem
    assert X.dtype == np.float64
    student = quick(precision="float32").fit(X, y, soft_targets=targets)
    assert student.module_[0].weight.dtype == torch.float32
    assert student.predict_proba(X).dtype == np.float32


def test_one_cycle_is_that_of_torch(problem):
    rates = rates_of_steps(problem, learning_rate_schedule="one_cycle", max_epochs=500)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=2000, cycle_momentum=False
    )
    expected = []
    for _ in range(2000):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # Torch counts to the step before the last of each phase.
    assert_allclose(rates, expected, atol=0.2 * 0.004)


def test_weights_that_are_not_finite_after_the_last_step_are_seen(problem):
    X, y, targets = problem

    class Diverging(torch.optim.SGD):
        def step(self):
            self.param_groups[0]["params"][0].data[0] = torch.inf

    student = quick(optimizer=Diverging, max_epochs=1, batch_size=1000)
    message = "not finite after epoch 1, at learning rate 0.015: lower"
    with pytest.raises(FloatingPointError, match=message):
        student.fit(X, y, soft_targets=targets)
    assert not hasattr(student, "module_")


def test_training_never_waits_for_the_device_within_an_epoch(problem, monkeypatch):
    """Reading a tensor's value is what makes the host wait."""
    X, y, targets = problem
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self, *arguments, original=original, name=name):
            reads.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    weight = np.random.RandomState(0).rand(len(X))
    options = {"max_grad_norm": 1.0, "label_weight": 0.3, "max_epochs": 3}
    reads_by_batch_size = []
    for batch_size in (8, 120):
        reads.clear()
        student = quick(**options, batch_size=batch_size, module=MyNet)
        student.fit(X, y, soft_targets=targets, sample_weight=weight)
        reads_by_batch_size.append(len(reads))
    assert reads_by_batch_size[0] == reads_by_batch_size[1]


@pytest.mark.parametrize("early_stopping", [False, True])
def test_verbose_prints_what_an_epoch_came_to(early_stopping, capsys, tmp_path):
    X, y, targets = make_soft_targets(n_rows=60)
    options = {"max_epochs": 3, "early_stopping": early_stopping, "random_state": 0}
    student = LELPStudentClassifier(verbose=1, **options)
    student.fit(X, y, soft_targets=targets)
    lines = capsys.readouterr().out.splitlines()
    scores = student.validation_scores_ or [None] * 3
    found = zip(lines, student.loss_curve_, scores, strict=True)
    for epoch, (line, loss, score) in enumerate(found):
        held_out = "" if score is None else f", validation score {score:.6f}"
        said = f"Epoch {epoch + 1}/3: loss {loss:.6f}{held_out}, "
        times = re.fullmatch(re.escape(said) + r"(\d+\.\d\d) s, (\d+) s left", line)
        assert times
    assert times[2] == "0"
    student.set_params(verbose=0).fit(X, y, soft_targets=targets)
    assert not capsys.readouterr().out
