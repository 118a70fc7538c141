"""The student: its loss, its targets, its reproducibility and what it predicts."""

import random

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from torch.nn.functional import cross_entropy

from lelp_sklearn import LELPProjector, LELPStudentClassifier, NoTeacherWarning
from tests.student_problems import (
    MatrixTeacher,
    MyNet,
    make_groups,
    make_soft_targets,
    weights_of,
)

SGD = torch.optim.SGD


def quick(**options):
    """A student that trains for a moment, in full batches."""
    defaults = {"max_epochs": 4, "batch_size": 1000, "random_state": 0}
    return LELPStudentClassifier(**{**defaults, **options})


def hand_written_loop(X, targets, *, label_weight=0.0, y=None, weight=None, **options):
    """Train MyNet in plain torch on the loss of the method, from the same weights."""
    student = quick(**options)
    net = initial_module(student, X, targets)
    X, targets = torch.tensor(X), torch.tensor(targets)
    weight = torch.ones(len(X)) if weight is None else torch.tensor(weight)
    weight = weight.to(X.dtype)
    optimizer = SGD(net.parameters(), lr=student.learning_rate)
    tau, curve = student.projector.temperature, []
    for _ in range(student.max_epochs):
        logits = net(X) / tau
        loss = tau**2 * cross_entropy(logits, targets, reduction="none")
        if label_weight:
            A = tau * torch.logsumexp(logits.reshape(len(X), 2, -1), 2)
            on_labels = cross_entropy(A, torch.tensor(y), reduction="none")
            loss = (1 - label_weight) * loss + label_weight * on_labels
        loss = (weight * loss).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return net, curve


def initial_module(student, X, targets):
    """The module of a student before its first step: nothing moves at this rate."""
    still = clone(student).set_params(learning_rate=1e-300, max_epochs=1)
    y = np.arange(len(X)) % 2
    return still.fit(X, y, soft_targets=targets).module_.train()


SGD_STUDENT = {
    "module": MyNet,
    "optimizer": SGD,
    "weight_decay": 0.0,
    "learning_rate": 0.1,
    "learning_rate_schedule": "constant",
    "subclass_weight": 1.0,
}


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("label_weight", [0.0, 0.4])
@pytest.mark.parametrize("weighted", [False, True])
def test_training_is_that_of_a_hand_written_loop(temperature, label_weight, weighted):
    X, y, targets = make_soft_targets()
    options = {
        **SGD_STUDENT,
        "projector": LELPProjector(temperature=temperature),
        "within_class_temperature": temperature,
    }
    weight = np.random.RandomState(0).rand(len(X)) if weighted else None
    net, curve = hand_written_loop(
        X, targets, label_weight=label_weight, y=y, weight=weight, **options
    )
    student = quick(label_weight=label_weight, **options)
    student.fit(X, y, soft_targets=targets, sample_weight=weight)
    assert_allclose(student.loss_curve_, curve, rtol=1e-12)
    for ours, theirs in zip(
        student.module_.parameters(), net.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_batches_are_those_of_a_hand_written_loop():
    """The same rows in the order of one permutation an epoch, 48 at a time."""
    X, y, targets = make_soft_targets(n_rows=240)
    rows_seen = []

    class Watching(MyNet):
        def forward(self, X):
            if self.training:
                rows_seen.append(X.clone())
            return super().forward(X)

    quick(module=Watching, batch_size=48, max_epochs=2).fit(X, y, soft_targets=targets)
    assert [len(batch) for batch in rows_seen] == [48] * 10
    for epoch in (rows_seen[:5], rows_seen[5:]):
        rows = torch.cat(epoch).numpy()
        assert_array_equal(rows[np.lexsort(rows.T)], X[np.lexsort(X.T)])
    assert not torch.equal(rows_seen[0], rows_seen[5])


def test_last_batch_of_one_row_joins_the_one_before():
    X, y, targets = make_soft_targets(n_rows=241)

    def with_normalisation(n_features, n_outputs):
        return torch.nn.Sequential(
            torch.nn.BatchNorm1d(n_features), torch.nn.Linear(n_features, n_outputs)
        )

    student = quick(module=with_normalisation, batch_size=48)
    assert student.fit(X, y, soft_targets=targets).n_epochs_ == 4


def test_one_subclass_is_vanilla_distillation():
    """With S = 1 no subclass option has a part, and the targets are the teacher's."""
    X, y, E, (W, b) = make_groups()
    options = {"module": MyNet, "max_epochs": 10}
    projector = LELPProjector(1, head=(W, b), temperature=2.0)
    student = quick(projector=projector, **options).fit(X, y, teacher_embeddings=E)
    teacher = softmax((E @ W.T + b) / 2.0, axis=1)
    plain = quick(projector=projector, subclass_weight=0.0, **options)
    plain.fit(X, y, soft_targets=teacher)
    assert_allclose(student.predict_proba(X), plain.predict_proba(X), rtol=1e-9)
    assert_allclose(student.loss_curve_, plain.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("n_subclasses", [1, 3])
def test_embeddings_and_their_soft_targets_give_the_same_student(n_subclasses):
    X, y, E, head = make_groups()
    projector = LELPProjector(n_subclasses, head=head, temperature=2.0, random_state=3)
    soft = clone(projector).fit_transform(E, y)
    from_embeddings = quick(projector=projector).fit(X, y, teacher_embeddings=E)
    from_targets = quick(projector=projector).fit(X, y, soft_targets=soft)
    assert_array_equal(weights_of(from_embeddings), weights_of(from_targets))
    assert from_targets.projector_ is None
    assert_array_equal(from_embeddings.projector_.transform(E), soft)


def test_frozen_projector_is_used_as_it_is():
    X, y, E, head = make_groups()
    projector = LELPProjector(3, head=head, temperature=2.0).fit(E[:120], y[:120])
    frozen = quick(projector=FrozenEstimator(projector)).fit(X, y, teacher_embeddings=E)
    given = quick(projector=projector).fit(X, y, soft_targets=projector.transform(E))
    assert_array_equal(weights_of(frozen), weights_of(given))


def test_projector_of_the_caller_is_not_fitted():
    X, y, E, head = make_groups()
    projector = LELPProjector(3, head=head)
    student = quick(projector=projector).fit(X, y, teacher_embeddings=E)
    assert not hasattr(projector, "components_")
    assert projector.random_state is None
    assert student.projector_.n_subclasses_ == 3


@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_teacher_is_asked_for_what_is_not_given():
    X, y, _, _ = make_groups()
    matrix = np.random.RandomState(0).normal(size=(6, 9))
    head = torch.nn.Linear(9, 2).double()
    teacher = MatrixTeacher(matrix, head)
    student = quick(teacher=teacher).fit(X, y)
    given = quick(projector=LELPProjector(head=head)).fit(
        X, y, teacher_embeddings=X @ matrix
    )
    assert_array_equal(weights_of(student), weights_of(given))
    assert not hasattr(teacher, "head_")


def test_frozen_teacher_is_not_fitted():
    X, y, _, _ = make_groups()
    matrix = np.random.RandomState(0).normal(size=(6, 9))
    teacher = MatrixTeacher(matrix).fit(X[:5])
    quick(teacher=FrozenEstimator(teacher)).fit(X, y)
    assert teacher.n_rows_ == 5


def test_given_embeddings_go_before_the_teacher():
    X, y, E, head = make_groups()
    projector = LELPProjector(3, head=head)
    with_teacher = quick(projector=projector, teacher=MatrixTeacher(None))
    with_teacher.fit(X, y, teacher_embeddings=E)
    without = quick(projector=projector).fit(X, y, teacher_embeddings=E)
    assert_array_equal(weights_of(with_teacher), weights_of(without))


def test_the_head_of_the_teacher_is_used_with_embeddings_too():
    X, y, E, head = make_groups()
    matrix = np.random.RandomState(0).normal(size=(6, 9))
    teacher = MatrixTeacher(matrix, head)
    student = quick(projector=LELPProjector(3), teacher=teacher, early_stopping=True)
    student.fit(X, y, teacher_embeddings=E, X_val=X[:50])
    given = quick(projector=LELPProjector(3, head=head), early_stopping=True)
    given.fit(
        X, y, teacher_embeddings=E, X_val=X[:50], teacher_embeddings_val=X[:50] @ matrix
    )
    assert_array_equal(weights_of(student), weights_of(given))
    assert student.validation_scores_ == given.validation_scores_
    # The head says the classes where there are no labels.
    unlabelled = quick(projector=LELPProjector(3), teacher=teacher)
    assert_array_equal(unlabelled.fit(X, teacher_embeddings=E).classes_, [0, 1])


def test_teacher_logits_are_the_class_targets():
    X, y, E, head = make_groups()
    logits = 3 * np.random.RandomState(1).normal(size=(len(X), 2))
    options = {"projector": LELPProjector(3, head=head, random_state=0)}
    student = quick(**options).fit(X, y, teacher_embeddings=E, teacher_logits=logits)
    soft = clone(options["projector"]).fit(E, y, teacher_logits=logits)
    soft = soft.transform(E, teacher_logits=logits)
    tau = student.projector_.temperature_
    assert_allclose(soft.reshape(len(X), 2, 3).sum(2), softmax(logits / tau, axis=1))
    frozen = FrozenEstimator(student.projector_)
    other = quick(projector=frozen).fit(X, y, soft_targets=soft)
    assert_array_equal(weights_of(student), weights_of(other))


def test_without_a_teacher_the_class_targets_are_the_labels():
    X, y, _, _ = make_groups()
    options = {"module": MyNet, "subclass_weight": 0.0}
    with pytest.warns(NoTeacherWarning, match="No teacher was given"):
        student = quick(projector=LELPProjector(3, random_state=0), **options).fit(X, y)
    soft = np.repeat(np.eye(2)[y] / 3, 3, axis=1)
    other = quick(**options).fit(X, y, soft_targets=soft)
    assert_allclose(student.predict_proba(X), other.predict_proba(X), rtol=1e-9)


def test_warning_of_no_teacher_points_at_the_call():
    X, y, _, _ = make_groups()
    with pytest.warns(NoTeacherWarning) as of_fit:
        quick().fit(X, y)
    with pytest.warns(NoTeacherWarning) as of_partial_fit:
        quick().partial_fit(X, y, classes=[0, 1])
    assert {w.filename for w in (*of_fit, *of_partial_fit)} == {__file__}


def test_without_a_teacher_rows_without_a_label_are_left_out():
    X, y, _, _ = make_groups()
    y[::3] = -1
    with pytest.warns(NoTeacherWarning):
        student = quick(unlabeled=-1, subclass_weight=0.0).fit(X, y)
    kept = y != -1
    with pytest.warns(NoTeacherWarning):
        other = quick(subclass_weight=0.0).fit(X[kept], y[kept])
    assert_allclose(student.loss_curve_, other.loss_curve_, rtol=1e-9)


def test_head_on_the_inputs_is_a_teacher():
    X, y, _, _ = make_groups()
    W, b = np.random.RandomState(0).normal(size=(2, 6)), np.zeros(2)
    projector = LELPProjector(1, head=(W, b), temperature=1.0)
    student = quick(projector=projector).fit(X, y)
    other = quick().fit(X, y, soft_targets=softmax(X @ W.T, axis=1))
    assert_allclose(student.loss_curve_, other.loss_curve_, rtol=1e-9)


def test_no_labels_are_needed_where_the_teacher_has_a_head():
    X, _, E, head = make_groups()
    student = quick(projector=LELPProjector(3, head=head))
    student.fit(X, teacher_embeddings=E)
    argmax = np.argmax(E @ head[0].T + head[1], axis=1)
    labelled = clone(student).fit(X, argmax, teacher_embeddings=E)
    assert_array_equal(student.classes_, [0, 1])
    assert_array_equal(weights_of(student), weights_of(labelled))


def test_marked_rows_take_the_class_of_the_teacher():
    X, y, E, head = make_groups()
    names = np.array(["no", "yes"])[np.argmax(E @ head[0].T + head[1], axis=1)]
    marked = np.where(np.arange(len(y)) % 3 == 0, "?", names)
    student = quick(projector=LELPProjector(3, head=head), unlabeled="?")
    student.fit(X, marked, teacher_embeddings=E)
    other = quick(projector=LELPProjector(3, head=head))
    other.fit(X, names, teacher_embeddings=E)
    assert_array_equal(student.classes_, ["no", "yes"])
    assert_array_equal(weights_of(student), weights_of(other))


@pytest.mark.parametrize("frozen", [False, True])
def test_marker_of_the_projector_is_that_of_a_student_without_one(frozen):
    X, y, E, head = make_groups()
    y[::3] = -1
    projector = LELPProjector(3, head=head, unlabeled=-1, random_state=0)
    if frozen:
        projector = FrozenEstimator(projector.fit(E, y))
    student = quick(projector=projector, label_weight=0.5)
    student.fit(X, y, teacher_embeddings=E)
    marked = clone(student).set_params(unlabeled=-1).fit(X, y, teacher_embeddings=E)
    assert_array_equal(student.classes_, [0, 1])
    assert_array_equal(weights_of(student), weights_of(marked))


def test_label_weight_concerns_labelled_rows_only():
    X, y, targets = make_soft_targets()
    y = np.where(np.arange(len(y)) % 3 == 0, y, -1)
    student = quick(module=MyNet, label_weight=1.0, unlabeled=-1, max_epochs=1)
    student.fit(X, y, soft_targets=targets)
    start = initial_module(quick(module=MyNet), X, targets)
    logits = start(torch.tensor(X)).reshape(len(X), 2, 3)
    labelled = y != -1
    expected = cross_entropy(
        torch.logsumexp(logits, 2)[labelled], torch.tensor(y[labelled])
    )
    assert student.loss_curve_[0] == pytest.approx(expected.item() * labelled.mean())


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("sureness", [0.2, 5.0])
def test_subclasses_follow_the_margin_of_the_teacher(hard, sureness):
    """Temperature and weight are r times those of a teacher that is sure."""
    X, y, E, (W, b) = make_groups()
    beta, head = 0 if hard else 1.0, (sureness * W, sureness * b)
    projector = LELPProjector(3, head=head, temperature=4.0, subclass_temperature=beta)
    logits = np.sort(E @ head[0].T + head[1])
    r = min(1.0, np.mean(logits[:, -1] - logits[:, -2]) / (5 * 4.0))
    assert (r == 1) == (sureness > 1)
    curves = [
        quick(projector=projector, within_class_temperature=within, subclass_weight=w)
        .fit(X, y, teacher_embeddings=E)
        .loss_curve_
        for within, w in (
            ("auto", "anneal"),
            (r * (1 if hard else 4.0), lambda progress: r * max(0, 1 - 2 * progress)),
        )
    ]
    assert_allclose(*curves, rtol=1e-9)


def test_subclasses_of_labels_have_the_temperature_and_the_weight_of_the_classes():
    X, y, *_ = make_groups()
    projector = LELPProjector(3, subclass_temperature=1.0)
    curves = []
    for options in ({}, {"within_class_temperature": 1.0}):
        student = quick(projector=projector, **options)
        with pytest.warns(NoTeacherWarning):
            curves.append(student.fit(X, y).loss_curve_)
        assert student.projector_.temperature_ == 1
    assert curves[0] == curves[1]


def test_the_margin_is_that_of_rows_with_weight_and_of_the_first_fit():
    X, y, E, head = make_groups()
    projector = LELPProjector(3, head=head, temperature=4.0, random_state=0)
    targets = projector.fit_transform(E, y)
    # Rows without weight, and those of a later call, are sure of their classes.
    sure = LELPProjector(3, head=(99 * head[0], 99 * head[1]), random_state=0)
    sure_targets = sure.fit_transform(E, y)
    frozen = FrozenEstimator(projector)
    alone = quick(projector=frozen).fit(X, y, soft_targets=targets)
    together = quick(projector=frozen).fit(
        np.vstack([X, X]),
        np.append(y, y),
        soft_targets=np.vstack([targets, sure_targets]),
        sample_weight=np.repeat([1, 0], len(X)),
    )
    assert_allclose(together.loss_curve_, alone.loss_curve_, rtol=1e-9)
    stream = quick(projector=frozen, max_epochs=2)
    weighted = quick(projector=frozen, max_epochs=2)
    logits = np.sort(E @ head[0].T + head[1])
    r = np.mean(logits[:, -1] - logits[:, -2]) / (5 * 4.0)
    assert r < 1
    weighted.set_params(
        within_class_temperature=r * 4.0,
        subclass_weight=lambda progress: r * max(0, 1 - 2 * progress),
    )
    for student in (stream, weighted):
        student.partial_fit(X, y, [0, 1], soft_targets=targets)
        student.partial_fit(X, y, soft_targets=sure_targets)
    assert_allclose(stream.loss_curve_, weighted.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_class_logits_are_at_the_temperature_that_the_projector_found(is_frozen):
    X, y, E, (W, b) = make_groups()
    projector = LELPProjector(3, head=(4 * W, 4 * b), random_state=0)
    if is_frozen:
        projector = FrozenEstimator(projector.fit(E, y))
    found = quick(projector=projector).fit(X, y, teacher_embeddings=E)
    tau = found.projector_.temperature_
    assert tau > 1
    options = {"head": (4 * W, 4 * b), "temperature": tau, "random_state": 0}
    given = quick(projector=LELPProjector(3, **options))
    given.fit(X, y, teacher_embeddings=E)
    assert_array_equal(found.decision_function(X), given.decision_function(X))
    logits = found.module_(torch.tensor(X)).detach().numpy().reshape(len(X), 2, 3)
    A = tau * logsumexp(logits / tau, axis=2)
    assert_allclose(found.decision_function(X), A[:, 1] - A[:, 0], atol=1e-12)


# What a fitted student says


@pytest.fixture(scope="module")
def fitted():
    X, y, E, head = make_groups(n_classes=3)
    projector = LELPProjector(4, head=head, temperature=3.0)
    student = quick(projector=projector, within_class_temperature=2.0)
    return student.fit(X, y, teacher_embeddings=E), X


def test_class_logits_fold_the_subclasses_at_the_temperature(fitted):
    student, X = fitted
    with torch.no_grad():
        logits = student.module_(torch.tensor(X)).numpy().reshape(len(X), 3, 4)
    A = 3.0 * logsumexp(logits / 3.0, axis=2)
    assert_allclose(student.decision_function(X), A)
    assert_allclose(student.predict_proba(X), softmax(A, axis=1))
    assert_array_equal(student.predict(X), A.argmax(axis=1))
    within = softmax(logits / 2.0, axis=2)
    expected = (softmax(A, axis=1)[:, :, None] * within).reshape(len(X), 12)
    assert_allclose(student.predict_subclass_proba(X), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_probabilities_are_finite_where_probabilities_are_not(dtype):
    X, y, targets = make_soft_targets(n_classes=3)
    projector = LELPProjector(temperature=2.0)
    options = {"projector": projector, "optimizer": SGD, "max_epochs": 1}
    student = quick(**options).fit(X.astype(dtype), y, soft_targets=targets)
    far = (1e5 * X).astype(dtype)
    with torch.no_grad():
        logits = student.module_(torch.tensor(far)).double().numpy()
    A = 2 * logsumexp(logits.reshape(len(X), 3, -1) / 2, axis=2)
    found = student.predict_log_proba(far)
    assert found.dtype == dtype
    assert np.isfinite(found).all()
    assert (student.predict_proba(far) == 0).any()
    error = 4 * np.finfo(dtype).eps * np.abs(A).max()
    assert_allclose(found, log_softmax(A, axis=1), atol=error)
    near = X.astype(dtype)
    assert_allclose(
        student.predict_log_proba(near),
        np.log(student.predict_proba(near)),
        rtol=1e4 * np.finfo(dtype).eps,
    )


def test_subclass_probabilities_add_up_to_those_of_classes(fitted):
    student, X = fitted
    sums = student.predict_subclass_proba(X).reshape(len(X), 3, 4).sum(axis=2)
    assert_allclose(sums, student.predict_proba(X))


def test_decision_function_of_two_classes_is_the_log_odds():
    X, y, targets = make_soft_targets()
    student = quick().fit(X, y, soft_targets=targets)
    decision, probability = student.decision_function(X), student.predict_proba(X)
    assert decision.shape == (len(X),)
    assert_allclose(1 / (1 + np.exp(-decision)), probability[:, 1])
    assert_array_equal(student.predict(X), (decision > 0).astype(int))


@pytest.mark.parametrize(
    "names",
    [np.array(["b", "a"]), np.array([7, -3]), np.array([True, False]), [1.0, 0.0]],
    ids=["string", "int", "bool", "float"],
)
def test_labels_of_any_kind(names):
    X, y, targets = make_soft_targets()
    labels = np.asarray(names)[1 - y]
    expected = quick(max_epochs=20).fit(X, y, soft_targets=targets)
    codes = np.unique(labels, return_inverse=True)[1]
    targets = targets if codes[0] == y[0] else np.roll(targets, 3, axis=1)
    student = quick(max_epochs=20).fit(X, labels, soft_targets=targets)
    assert_array_equal(student.classes_, np.unique(labels))
    assert student.predict(X).dtype == labels.dtype
    assert student.score(X, labels) == expected.score(X, y) > 0.9


def test_columns_are_those_of_the_classes_in_order():
    """Targets that say class 1 of every row make a student that predicts it."""
    X, y, targets = make_soft_targets()
    targets = np.zeros_like(targets)
    targets[:, 4] = 1.0
    student = quick(max_epochs=60).fit(X, y, soft_targets=targets)
    assert_array_equal(student.predict(X), 1)
    assert student.predict_subclass_proba(X)[:, 4].min() > 0.8


# Reproducibility


def test_refit_gives_equal_bits():
    X, y, targets = make_soft_targets()
    options = {"batch_size": 50, "module": dropout_net}
    first = quick(**options).fit(X, y, soft_targets=targets)
    again = clone(first).fit(X, y, soft_targets=targets)
    assert_array_equal(weights_of(first), weights_of(again))
    assert first.loss_curve_ == again.loss_curve_
    other = quick(
        **options,
    ).set_params(random_state=1)
    other.fit(X, y, soft_targets=targets)
    assert not np.array_equal(weights_of(first), weights_of(other))


def test_students_trained_in_threads_are_those_trained_in_turn():
    X, y, targets = make_soft_targets()
    students = [
        quick(batch_size=8, max_epochs=10, module=dropout_net, random_state=seed)
        for seed in range(2)
    ]
    curves = [
        clone(each).fit(X, y, soft_targets=targets).loss_curve_ for each in students
    ]
    before = global_states()
    fits = (delayed(each.fit)(X, y, soft_targets=targets) for each in students)
    fitted = Parallel(n_jobs=2, backend="threading")(fits)
    assert [each.loss_curve_ for each in fitted] == curves
    assert global_states() == before


def dropout_net(n_features, n_outputs):
    return torch.nn.Sequential(
        torch.nn.Dropout(0.3), torch.nn.Linear(n_features, n_outputs)
    )


def global_states():
    _, keys, position, *_ = check_random_state(None).get_state()
    of_torch = torch.get_rng_state().tolist()
    return random.getstate(), keys.tolist(), position, of_torch


@pytest.mark.parametrize("random_state", [0, np.random.RandomState(0)])
def test_global_generators_stay_as_they_were(random_state):
    X, y, E, _ = make_groups()
    before = global_states()
    student = quick(
        module=dropout_net,
        projector=LELPProjector(3, splitter="random"),
        early_stopping=True,
        random_state=random_state,
    )
    student.fit(X, y, teacher_embeddings=E).predict(X)
    assert global_states() == before


def test_no_random_state_is_the_global_generator_of_numpy():
    X, y, targets = make_soft_targets()
    generator = check_random_state(None)
    state = generator.get_state()
    try:
        generator.seed(5)
        first = quick(random_state=None).fit(X, y, soft_targets=targets)
        second = quick(random_state=None).fit(X, y, soft_targets=targets)
        generator.seed(5)
        again = quick(random_state=None).fit(X, y, soft_targets=targets)
    finally:
        generator.set_state(state)
    assert_array_equal(weights_of(first), weights_of(again))
    assert not np.array_equal(weights_of(first), weights_of(second))


# Weights


def test_weights_are_repetitions_of_rows():
    X, y, E, head = make_groups(n_rows=60)
    weight = np.random.RandomState(0).randint(4, size=len(X))
    projector = LELPProjector(2, head=head)
    weighted = quick(projector=projector)
    weighted.fit(X, y, teacher_embeddings=E, sample_weight=weight)
    repeated = quick(projector=projector).fit(
        np.repeat(X, weight, axis=0),
        np.repeat(y, weight),
        teacher_embeddings=np.repeat(E, weight, axis=0),
    )
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-7)


def test_rows_of_no_weight_are_left_out_of_batches():
    X, y, targets = make_soft_targets()
    weight = (np.arange(len(X)) % 3 > 0).astype(float)
    kept = weight > 0
    weighted = quick(batch_size=32)
    weighted.fit(X, y, soft_targets=targets, sample_weight=weight)
    left = quick(batch_size=32).fit(X[kept], y[kept], soft_targets=targets[kept])
    assert_array_equal(weights_of(weighted), weights_of(left))


def test_class_weight_multiplies_the_weights_of_rows():
    X, y, targets = make_soft_targets()
    weight = np.random.RandomState(0).rand(len(X))
    names = np.array(["a", "b"])[y]
    by_class = quick(class_weight={"b": 3.0})
    by_class.fit(X, names, soft_targets=targets, sample_weight=weight)
    by_row = quick().fit(
        X, names, soft_targets=targets, sample_weight=weight * np.where(y, 3.0, 1.0)
    )
    assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X))


def test_balanced_classes_have_equal_totals():
    X, y, targets = make_soft_targets()
    weight = np.where(y == 1, 0.2, 1.0) * np.random.RandomState(0).rand(len(X))
    balanced = quick(class_weight="balanced")
    balanced.fit(X, y, soft_targets=targets, sample_weight=weight)
    totals = np.bincount(y, weight)
    by_row = quick().fit(X, y, soft_targets=targets, sample_weight=weight / totals[y])
    assert_allclose(balanced.predict_proba(X), by_row.predict_proba(X))


@pytest.mark.parametrize(
    "class_weight",
    [{}, {0: 3}, {0: 3, 1: 2}, {0: 3, 1: 2, 7: 5}, {7: 5}, {0: 3, 7: 5}, {"0": 3}],
)
def test_class_weight_of_no_class_is_ignored_where_scikit_learn_ignores_it(
    class_weight,
):
    X, y, targets = make_soft_targets(n_rows=60)
    try:
        weight = compute_sample_weight(class_weight, y)
    except ValueError:
        with pytest.raises(ValueError, match=r"class_weight has weights for \[.*none"):
            quick(class_weight=class_weight).fit(X, y, soft_targets=targets)
        return
    by_class = quick(class_weight=class_weight).fit(X, y, soft_targets=targets)
    by_row = quick().fit(X, y, soft_targets=targets, sample_weight=weight)
    assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X))


def test_a_fold_may_lack_a_class_that_has_a_weight():
    X, _, E, _ = make_groups(n_rows=90)
    y = np.repeat([0, 1, 2], [40, 40, 10])
    student = quick(
        projector=LELPProjector(2), class_weight={0: 1.0, 1: 2.0, 2: 3.0}, max_epochs=1
    )
    # The training rows of the first split have two classes.
    split = (np.arange(80), np.arange(80, 90)), (np.arange(90), np.arange(80))
    search = GridSearchCV(student, {"max_epochs": [1]}, cv=split, error_score="raise")
    search.fit(X, y, teacher_embeddings=E)
    assert len(search.best_estimator_.classes_) == 3


def test_class_weight_counts_a_row_without_label_as_its_likeliest_class():
    X, y, targets = make_soft_targets()
    likeliest = targets.reshape(len(X), 2, 3).sum(2).argmax(1)
    marked = np.where(np.arange(len(y)) % 3 == 0, likeliest, -1)
    options = {"class_weight": {0: 5.0}}
    student = quick(unlabeled=-1, **options).fit(X, marked, soft_targets=targets)
    other = quick(**options).fit(X, likeliest, soft_targets=targets)
    assert_array_equal(weights_of(student), weights_of(other))


def test_rows_of_a_class_of_no_weight_are_left_out_of_batches():
    X, y, E, head = make_groups(n_classes=3)
    projector = LELPProjector(2, head=head).fit(E, y)
    soft, kept = projector.transform(E), y > 0
    options = {"projector": FrozenEstimator(projector), "batch_size": 32}
    student = quick(class_weight={0: 0.0}, **options).fit(X, y, soft_targets=soft)
    other = quick(**options).fit(X[kept], y[kept], soft_targets=soft[kept])
    assert_allclose(weights_of(student), weights_of(other), rtol=1e-9, atol=1e-12)


def test_held_out_rows_of_a_class_of_no_weight_have_no_part_in_the_score():
    X, y, targets = make_soft_targets()
    student = quick(class_weight={0: 0.0}, early_stopping=True, validation_fraction=0.5)
    student.fit(X, y, soft_targets=targets)
    other_targets = np.where((y == 0)[:, None], np.eye(6)[0], targets)
    other = clone(student).fit(X, y, soft_targets=other_targets)
    assert student.validation_scores_ == other.validation_scores_


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_scale_of_weights_has_no_part_in_single_precision(scale):
    X, y, targets = make_soft_targets()
    X = X.astype(np.float32)
    weight = np.random.RandomState(0).rand(len(X))
    plain = quick().fit(X, y, soft_targets=targets, sample_weight=weight)
    scaled = quick().fit(X, y, soft_targets=targets, sample_weight=scale * weight)
    assert_allclose(scaled.loss_curve_, plain.loss_curve_, rtol=1e-5)


def test_a_teacher_that_tells_no_class_apart_leaves_probabilities():
    X = np.random.default_rng(0).normal(size=(40, 3))
    student = quick().fit(X, np.arange(40) % 2, soft_targets=np.full((40, 4), 0.25))
    probabilities = student.predict_subclass_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
