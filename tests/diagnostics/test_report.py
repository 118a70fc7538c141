"""What the report foresees, that it is repeatable, and that it leaves no trace."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lelp_sklearn
from lelp_sklearn import (
    LELPMetaClassifier,
    LELPProjector,
    LELPStudentClassifier,
    SubclassReport,
    subclass_report,
)
from lelp_sklearn._diagnostics.advice import Advice
from lelp_sklearn._diagnostics.pilot_training import PilotFit, train_pilots
from lelp_sklearn._diagnostics.pilots import PilotData, make_pilots
from lelp_sklearn._diagnostics.reasons import adjusted_r2, principal_points
from lelp_sklearn._diagnostics.report import _gain
from lelp_sklearn._subclasses.moments import row_space_basis
from tests.reference import null_space_rows
from tests.student_problems import MatrixTeacher, TemplateNet, make_groups


def student_of(head, n_subclasses=20, **options):
    return LELPStudentClassifier(
        projector=LELPProjector(n_subclasses, head=head, temperature=4.0),
        **{
            "module_params": {"hidden_layer_sizes": (12,)},
            "learning_rate": 0.02,
            "batch_size": 50,
        }
        | options,
    )


def union(n_rows=800, seed=0):
    """Forty far groups, dealt to two classes at random; the teacher knows each group.

    Returns
    -------
    X, y, E, head
    """
    rng = np.random.RandomState(seed)
    group = rng.randint(40, size=n_rows)
    of_group = rng.permutation(40) % 2
    X = 2 * rng.normal(size=(40, 8))[group] + rng.normal(size=(n_rows, 8))
    E = 2 * np.eye(40)[group] + 0.1 * rng.normal(size=(n_rows, 40))
    W = 4 * np.stack([of_group == 0, of_group == 1]).astype(float)
    return X, of_group[group], E, (W, np.zeros(2))


def plain(n_rows=800, seed=0):
    """Two far Gaussians, whose embeddings hide nothing that X shows."""
    rng = np.random.RandomState(seed)
    y = np.arange(n_rows) % 2
    X = rng.normal(size=(n_rows, 8)) + 2 * y[:, None]
    E = np.column_stack(
        [8 * y - 4 + rng.normal(size=n_rows), rng.normal(size=(n_rows, 9))]
    )
    W = np.zeros((2, 10))
    W[:, 0] = -1, 1
    return X, y, E, (W, np.zeros(2))


def quick_report(head=None, *, student=None, of=None, **options):
    X, y, E, own_head = make_groups() if of is None else of
    student = student or student_of(own_head if head is None else head, 3)
    options = {"teacher_embeddings": E, "n_splits": 2, "max_steps": 10} | options
    return subclass_report(student, X, y, random_state=0, **options)


@pytest.mark.slow
def test_subclasses_help_where_classes_are_unions():
    X, y, E, head = union()
    report = subclass_report(
        student_of(head), X, y, teacher_embeddings=E, max_steps=600, random_state=0
    )
    assert report.verdict == "helps"
    assert report.teacher_accuracy > 0.99
    assert report.headroom > report.pilot_gain > report.pilot_gain_se > 0
    assert report.subclass_accuracy - report.vanilla_accuracy == pytest.approx(
        report.pilot_gain
    )
    assert report.vanilla_accuracy - report.label_accuracy == pytest.approx(
        report.teacher_gain
    )
    assert report.learnability > 0.5
    assert report.margin_r2 < 0.3


@pytest.mark.slow
def test_they_do_not_where_classes_hide_nothing():
    X, y, E, head = plain()
    report = subclass_report(
        student_of(head), X, y, teacher_embeddings=E, max_steps=600, random_state=0
    )
    assert report.verdict == "does not help"
    assert report.headroom < 0.05
    assert report.learnability == pytest.approx(0, abs=0.05)


def test_nothing_is_learnable_from_noise_and_training_is_too_long():
    X, y, E, head = union()
    X = np.random.RandomState(1).normal(size=X.shape)
    student = student_of(head, max_epochs=20)
    report = quick_report(of=(X, y, E, head), student=student, max_steps=400)
    assert report.learnability == pytest.approx(0, abs=0.05)
    assert report.headroom == pytest.approx(0.5, abs=0.1)
    assert report.training_length == "too long"
    assert "Training is too long" in str(report)
    assert "LELPStudentClassifierCV(student).fit(X, y, " in report.recommendation


def test_a_student_that_still_learns_at_the_end_is_trained_for_too_short_a_time():
    _, _, _, head = make_groups()
    student = student_of(
        head, 3, max_epochs=10, learning_rate=3e-3, learning_rate_schedule="constant"
    )
    report = quick_report(student=student, max_steps=1000)
    assert report.training_length == "too short"
    assert "max_epochs=20" in report.recommendation


def test_clusters_that_are_levels_of_confidence_tell_the_margin():
    X, y, E, (W, b) = plain()
    # A copy of what the head reads, which the null space therefore holds too.
    E = np.column_stack([E, 3 * E[:, 0]])
    W = np.column_stack([W, np.zeros(2)])
    report = quick_report((W, b), of=(X, y, E, None), student=student_of((W, b)))
    assert report.margin_r2 > 0.9


def pilots_of(student, max_steps=30):
    X, y, E, _ = make_groups()
    random_state = np.random.RandomState(0)
    data = PilotData.read(student, X, y, E, None, 1000, random_state)
    return data, make_pilots(data, 2, max_steps, random_state)


@pytest.mark.parametrize("kind", ["subclasses", "vanilla", "labels"])
def test_a_pilot_is_the_student_trained_on_the_other_rows(kind):
    X, y, _, head = make_groups()
    data, pilots = pilots_of(student_of(head, 3))
    pilot = next(each for each in pilots if each.kind == kind)
    alone = LELPStudentClassifier(**pilot.student.get_params(deep=False))
    rows = pilot.is_train
    alone.fit(X[rows], y[rows], soft_targets=pilot.soft_targets[rows])
    fit = PilotFit.start(data, pilot, 0)
    fit.train_alone()
    pilot.student.__dict__.update(fit.state.attributes())
    assert_allclose(pilot.student.predict_proba(X), alone.predict_proba(X), atol=1e-5)


def test_pilots_that_are_trained_together_learn_nothing_of_the_rows_held_out():
    _, _, _, head = make_groups()
    predictions = []
    for replaced in (False, True):
        data, pilots = pilots_of(student_of(head, 3))
        if replaced:
            for pilot in pilots:
                held_out = pilot.soft_targets[pilot.held_out]
                pilot.soft_targets[pilot.held_out] = held_out[:, ::-1]
        train_pilots(data, pilots, 0)
        X = data.sample.X
        predictions.append([pilot.student.predict_proba(X) for pilot in pilots])
    for one, other in zip(*predictions, strict=True):
        assert_allclose(one, other, atol=1e-6)


def test_a_pilot_makes_the_steps_that_the_student_would():
    _, _, _, head = make_groups()
    # 240 rows are five batches of 50.
    for max_steps, max_epochs in ((35, 7), (1, 1), (1000, 9)):
        _, pilots = pilots_of(student_of(head, 3, max_epochs=9), max_steps)
        assert {pilot.student.max_epochs for pilot in pilots} == {max_epochs}


def test_a_pipeline_is_asked_about_what_its_steps_make_of_the_rows():
    X, y, E, head = make_groups()
    student = student_of(head, 3)
    pipe = make_pipeline(StandardScaler(), student)
    transformed = StandardScaler().fit_transform(X)
    found = quick_report(of=(X, y, E, head), student=pipe)
    assert found == quick_report(of=(transformed, y, E, head), student=student)
    assert "lelpstudentclassifier__teacher_embeddings" in found.recommendation


@pytest.mark.parametrize("kind", ["student", "pipeline", "no projector", "classifier"])
@pytest.mark.parametrize(
    ("verdict", "length"),
    [
        ("helps", None),
        ("unclear", None),
        ("does not help", None),
        ("helps", "too long"),
        ("does not help", "too short"),
    ],
)
def test_the_call_that_is_recommended_can_be_made(verdict, length, kind):
    X, y, E, head = make_groups(n_rows=80)
    projector = None if kind == "no projector" else LELPProjector(3, head=head)
    last = LELPStudentClassifier(projector=projector, max_epochs=1)
    if kind == "classifier":
        last = LELPMetaClassifier(LogisticRegression(), projector=projector)
        length = None
    is_pipeline = kind == "pipeline"
    student = make_pipeline(StandardScaler(), last) if is_pipeline else last
    step = "lelpstudentclassifier" if is_pipeline else None
    advice = Advice(last, step, ["y", "teacher_embeddings"])
    _, call = advice.recommend(verdict, length, 3).split("\n")
    names = {"student": student, "X": X, "y": y, "teacher_embeddings": E}
    names |= {name: getattr(lelp_sklearn, name) for name in lelp_sklearn.__all__}
    fitted = eval(call.strip(), {"GridSearchCV": GridSearchCV}, names)
    fitted = fitted[-1] if is_pipeline else fitted
    if length == "too long" or (verdict == "unclear" and length is None):
        searched = [each for each in fitted.best_params_ if "projector" in each]
        assert searched
        if verdict == "unclear":
            tried = fitted.cv_results_[f"param_{searched[0]}"]
            numbers = [getattr(each, "n_subclasses", each) for each in tried]
            assert numbers == [1, 3]
        return
    assert (fitted.projector_.n_subclasses_ == 1) == (verdict == "does not help")
    n_epochs = 2 if length == "too short" else 1
    assert getattr(fitted, "n_epochs_", n_epochs) == n_epochs


def test_equal_calls_give_equal_reports():
    assert quick_report() == quick_report()


def test_other_seeds_give_other_splits():
    X, y, E, head = make_groups()
    first, second = (
        subclass_report(
            student_of(head, 3),
            X,
            y,
            teacher_embeddings=E,
            n_splits=2,
            max_steps=10,
            random_state=seed,
        )
        for seed in (0, 1)
    )
    assert first != second


def test_a_report_leaves_no_trace(tmp_path):
    X, y, E, head = make_groups()
    template = TemplateNet()
    student = LELPStudentClassifier(
        template,
        projector=LELPProjector(3, head=head),
        max_epochs=2,
        checkpoint=tmp_path / "kept",
        early_stopping=True,
        random_state=3,
    ).fit(X, y, teacher_embeddings=E)
    kept = sorted(tmp_path.rglob("*"))
    arrays = [each.copy() for each in (X, y, E, *head)]
    weights = copy.deepcopy(template.state_dict())
    attributes = {name: id(value) for name, value in vars(student).items()}
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    subclass_report(
        student, X, y, teacher_embeddings=E, n_splits=2, max_steps=5, random_state=0
    )
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert {name: id(value) for name, value in vars(student).items()} == attributes
    assert not hasattr(student.projector, "components_")
    assert sorted(tmp_path.rglob("*")) == kept
    for now, then in zip((X, y, E, *head), arrays, strict=True):
        np.testing.assert_array_equal(now, then)
    for name, value in template.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize("kind", ["list", "frame", "tensor", "strings", "logits"])
def test_inputs_of_every_kind_give_the_report_of_arrays(kind):
    X, y, E, (W, b) = make_groups()
    expected = quick_report(of=(X, y, E, (W, b)), teacher_logits=E @ W.T + b)
    given, options = [X, y, E, (W, b)], {}
    if kind == "list":
        given[:3] = X.tolist(), y.tolist(), E
    elif kind == "frame":
        index = np.arange(len(X))[::-1]
        given[:2] = pd.DataFrame(X, index=index), pd.Series(y, index=index)
    elif kind == "tensor":
        given[:3] = torch.tensor(X), torch.tensor(y), torch.tensor(E)
    elif kind == "strings":
        given[1] = np.array(["no", "yes"])[y]
    else:
        options = {"teacher_logits": E @ W.T + b}
    found = quick_report(of=given, **options)
    found, expected = (replace(each, recommendation="") for each in (found, expected))
    assert vars(found) == pytest.approx(vars(expected))


def test_embeddings_of_the_students_teacher_are_as_good_as_given_ones():
    X, y, _, _ = make_groups()
    rng = np.random.RandomState(0)
    matrix, head = rng.normal(size=(6, 9)), (rng.normal(size=(2, 9)), np.zeros(2))
    student = LELPStudentClassifier(
        teacher=MatrixTeacher(matrix, head), projector=LELPProjector(3)
    )
    asked = {"n_splits": 2, "max_steps": 5, "random_state": 0}
    found = subclass_report(student, X, y, **asked)
    given = LELPStudentClassifier(projector=LELPProjector(3, head=head))
    assert found == subclass_report(given, X, y, teacher_embeddings=X @ matrix, **asked)


def test_rows_without_a_label_count_by_their_teacher():
    X, y, E, (W, b) = make_groups()
    # Logits that say the labels: who has none takes the same class.
    logits = np.where(y[:, None] == [0, 1], 5.0, -5.0)
    asked = {"teacher_logits": logits, "max_steps": 1}
    none = quick_report(of=(X, None, E, (W, b)), **asked)
    marked = student_of((W, b), 3, unlabeled=-1, label_weight=0.5)
    half = quick_report(
        of=(X, np.where(np.arange(len(y)) % 3, y, -1), E, None),
        student=marked,
        **asked,
    )
    assert none.n_samples == half.n_samples == len(X)
    assert (none.n_labelled, half.n_labelled) == (0, 160)
    assert none.margin_r2 == pytest.approx(half.margin_r2)
    assert none.label_accuracy is none.teacher_accuracy is none.teacher_gain is None
    assert "Agreement with the teacher" in str(none)
    assert "Accuracy on 160 labelled rows" in str(half)


def test_a_mark_may_be_that_of_the_projector():
    X, y, E, head = make_groups()
    marked = np.where(np.arange(len(y)) % 3, y, -1)
    student = LELPMetaClassifier(
        LogisticRegression(), projector=LELPProjector(3, head=head, unlabeled=-1)
    )
    assert quick_report(of=(X, marked, E, head), student=student).n_labelled == 160


def test_a_frozen_projector_is_used_as_it_is():
    X, y, E, head = make_groups()
    fitted = LELPProjector(3, head=head, random_state=0).fit(E, y)
    student = LELPStudentClassifier(projector=FrozenEstimator(fitted))
    report = quick_report(of=(X, y, E, head), student=student)
    assert report.n_subclasses == 3


def test_a_bounded_number_of_rows_is_drawn_from_every_class():
    X, y, E, head = union()
    y = np.where(np.arange(len(y)) < 40, 2, y)
    W = np.vstack([head[0], np.zeros(40)])
    report = quick_report(
        of=(X, y, E, None),
        student=student_of((W, np.zeros(3)), "auto"),
        max_samples=200,
    )
    assert report.n_samples == pytest.approx(200, abs=2)
    # Forty of 800 rows leave ten of 200, and two or three of these are held out.
    assert 2 <= report.n_subclasses <= 10


def test_the_error_of_a_gain_is_that_of_paired_differences():
    rng = np.random.RandomState(0)
    now, before = rng.rand(500) < 0.8, rng.rand(500) < 0.7
    gain, error = _gain(now, before)
    differences = now.astype(int) - before
    assert gain == pytest.approx(now.mean() - before.mean())
    assert error == pytest.approx(stats.sem(differences, ddof=0))


def report_with(gain, error, **changes):
    values = dict.fromkeys(SubclassReport.__dataclass_fields__, 0.5)
    values |= {"pilot_gain": gain, "pilot_gain_se": error, "training_length": None}
    values |= {"n_subclasses": 20, "n_samples": 300, "n_labelled": 300, "n_splits": 5}
    return SubclassReport(**values | changes)


@pytest.mark.parametrize(
    ("gain", "error", "verdict"),
    [
        (0.03, 0.01, "helps"),
        (0.03, 0.026, "unclear"),
        (-0.01, 0.03, "unclear"),
        (0.004, 0.003, "does not help"),
        (0.008, 0.001, "does not help"),
        (-0.03, 0.01, "does not help"),
    ],
)
def test_the_verdict_follows_from_the_gain_and_its_error(gain, error, verdict):
    report = report_with(gain, error)
    assert report.verdict == verdict
    assert report.recommended_n_subclasses == (1 if verdict == "does not help" else 20)
    text = str(report)
    assert verdict in text.splitlines()[0]
    low, high = 100 * (gain - 1.96 * error), 100 * (gain + 1.96 * error)
    assert f"{100 * gain:+.1f} [{low:+.1f}, {high:+.1f}]" in text


def test_little_room_leaves_the_verdict_open():
    assert report_with(0.03, 0.01, headroom=0.04).verdict == "unclear"


def test_the_gain_of_some_labelled_rows_says_what_it_is_of():
    assert "rows without a label" in str(report_with(0.02, 0.01, n_labelled=100))
    assert "rows without a label" not in str(report_with(0.02, 0.01))


def refused(error, match, *, of=None, student=None, **options):
    with pytest.raises(error, match=match):
        quick_report(of=of, student=student, **options)


def test_what_is_no_student_is_refused():
    _, _, _, head = make_groups()
    student = student_of(head, 3)
    pipe = make_pipeline(StandardScaler(), LogisticRegression())
    refused(TypeError, "LogisticRegression", student=pipe)
    projector = student.projector
    refused(TypeError, "has this projector", student=projector)
    refused(TypeError, "StandardScaler", student=StandardScaler())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_splits": 1}, ValueError, "n_splits=1 must be at least 2"),
        ({"n_splits": 2.5}, TypeError, "n_splits=2.5 must be an integer"),
        ({"max_samples": 0}, ValueError, "max_samples=0"),
        ({"max_steps": True}, TypeError, "max_steps=True must be an integer"),
        ({"teacher_embeddings": np.ones((3, 9))}, ValueError, "teacher_embeddings"),
    ],
)
def test_arguments_out_of_range_are_refused(options, error, match):
    refused(error, match, **options)


def test_without_a_teacher_there_is_no_one_to_agree_with():
    X, y, _, _ = make_groups()
    student = LELPStudentClassifier()
    refused(
        ValueError,
        "pass teacher_embeddings",
        of=(X, y, None, None),
        student=student,
        teacher_embeddings=None,
    )


def test_one_subclass_is_nothing_to_compare():
    _, _, _, head = make_groups()
    refused(ValueError, "n_subclasses=1", student=student_of(head, 1))


def test_more_subclasses_than_a_split_allows_say_where():
    X, y, E, head = make_groups(n_rows=60)
    with pytest.raises(ValueError, match="n_subclasses") as caught:
        quick_report(of=(X, y, E, head), student=student_of(head, 28))
    assert "max_samples" in "".join(caught.value.__notes__)
    names = np.array(["ham", "spam"])[y]
    with pytest.raises(ValueError, match=r"class '(ham|spam)' allows"):
        quick_report(of=(X, names, E, head), student=student_of(head, 28))


def test_a_clone_of_the_student_gives_the_same_report():
    _, _, _, head = make_groups()
    student = student_of(head, 3)
    assert quick_report(student=student) == quick_report(student=clone(student))


@pytest.mark.parametrize(
    ("problem", "verdict"), [(union, "helps"), (plain, "does not help")]
)
def test_a_classifier_of_scikit_learn_as_student(problem, verdict):
    X, y, E, head = problem()
    student = LELPMetaClassifier(
        LogisticRegression(max_iter=500), projector=LELPProjector(20, head=head)
    )
    table = pd.DataFrame(X, columns=list("abcdefgh"))
    report = subclass_report(
        student, table, y, teacher_embeddings=E, n_splits=2, random_state=0
    )
    assert report.verdict == verdict
    student.set_params(estimator=SGDClassifier())
    with pytest.raises(TypeError, match="whose estimator predicts probabilities"):
        subclass_report(student, table, y, teacher_embeddings=E)


@pytest.mark.parametrize("n_rows", [25, 400], ids=["wide", "tall"])
def test_points_are_the_principal_coordinates_in_the_null_space(n_rows):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(n_rows, 60)) * np.geomspace(9, 1, 60)
    coef = rng.normal(size=(1, 60))
    found = principal_points(X, row_space_basis(coef))
    inside = null_space_rows(X, np.zeros(n_rows, int), coef)
    expected = PCA(svd_solver="full").fit_transform(inside)[:, : found.shape[1]]
    assert found.shape[1] == min(n_rows, 30)
    found = found[:, np.argsort(-found.var(axis=0))]
    assert_allclose(np.abs(found), np.abs(expected), atol=1e-6)


def test_the_share_told_is_the_adjusted_r_squared_of_a_regression():
    rng = np.random.RandomState(0)
    clusters = rng.randint(5, size=200)
    values = clusters**2 + rng.normal(size=200) * 4
    indicators = (clusters[:, None] == np.arange(1, 5)).astype(float)
    r2 = LinearRegression().fit(indicators, values).score(indicators, values)
    adjusted = 1 - (1 - r2) * 199 / 195
    assert adjusted_r2(clusters, values) == pytest.approx(adjusted)


def test_clusters_at_random_tell_nothing_on_average():
    rng = np.random.RandomState(0)
    shares = [
        adjusted_r2(rng.randint(10, size=60), rng.normal(size=60)) for _ in range(400)
    ]
    assert np.mean(shares) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("clusters", "values"),
    [([0, 0, 1, 1], [2.0, 2, 2, 2]), ([0, 1, 2, 3], [1.0, 2, 3, 4])],
    ids=["constant", "a cluster a row"],
)
def test_where_there_is_nothing_to_tell_the_share_is_zero(clusters, values):
    assert adjusted_r2(np.array(clusters), np.array(values)) == 0
