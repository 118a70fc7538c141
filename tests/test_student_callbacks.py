"""scikit-learn's callbacks, and an older scikit-learn that has none."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lelp_sklearn import LELPProjector, LELPStudentClassifier
from tests.student_problems import make_groups

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 or newer")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def problem():
    return make_groups()


def make_student(head, **options):
    """A student whose first epochs do not depend on how many there are."""
    defaults = {
        "max_epochs": 3,
        "random_state": 0,
        "batch_size": 64,
        "learning_rate_schedule": "constant",
    }
    return LELPStudentClassifier(
        projector=LELPProjector(2, head=head), **{**defaults, **options}
    )


def epochs_of(logs):
    return [row for row in logs.data if row["task_name"] == "epoch"]


def test_scores_are_logged_by_epoch(problem):
    """The score of each epoch is that of a student trained for so many epochs."""
    X, y, E, head = problem
    monitor = callback.ScoringMonitor(scoring="neg_log_loss")
    student = make_student(head, subclass_weight=1.0).set_callbacks(monitor)
    student.fit(X, y, teacher_embeddings=E)
    logged = [row["neg_log_loss"] for row in epochs_of(monitor.get_logs())]
    for n_epochs, found in enumerate(logged, start=1):
        short = make_student(head, subclass_weight=1.0, max_epochs=n_epochs)
        probability = short.fit(X, y, teacher_embeddings=E).predict_proba(X)
        assert found == pytest.approx(np.log(probability[np.arange(len(y)), y]).mean())
    assert len(logged) == 3


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_scores_are_logged_by_epoch_inside_a_search(n_jobs, problem):
    X, y, E, head = problem
    monitor = callback.ScoringMonitor(scoring="accuracy")
    pipe = make_pipeline(StandardScaler(), make_student(head).set_callbacks(monitor))
    parameters = {"lelpstudentclassifier__projector__n_subclasses": [1, 2]}
    search = GridSearchCV(pipe, parameters, cv=2, n_jobs=n_jobs)
    search.fit(X, y, lelpstudentclassifier__teacher_embeddings=E)
    rows = epochs_of(monitor.get_logs())
    # 2 candidates in 2 folds and the refit, 3 epochs each.
    assert len(rows) == 5 * 3
    assert len({row["parent_task_id_path"] for row in rows}) == 5
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def test_progress_bar_runs_over_the_epochs(problem, capsys):
    pytest.importorskip("rich")
    X, y, E, head = problem
    student = make_student(head).set_callbacks(callback.ProgressBar())
    student.fit(X, y, teacher_embeddings=E)
    shown = capsys.readouterr().out
    assert "LELPStudentClassifier - fit" in shown
    assert "100%" in shown
    assert "LELPProjector" in shown


def test_progress_of_a_search_goes_down_to_the_epochs(problem, capsys):
    pytest.importorskip("rich")
    X, y, E, head = problem
    pipe = make_pipeline(StandardScaler(), make_student(head))
    parameters = {"lelpstudentclassifier__projector__n_subclasses": [1, 2]}
    search = GridSearchCV(pipe, parameters, cv=2)
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=None))
    search.fit(X, y, lelpstudentclassifier__teacher_embeddings=E)
    shown = capsys.readouterr().out
    for level in ("GridSearchCV", "Pipeline", "LELPStudentClassifier", "LELPProjector"):
        assert level in shown
    assert "100%" in shown


class StopAfter:
    """Asks to stop at the end of an epoch."""

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs
        self.ended = []

    def setup(self, estimator, context):
        self.ended.append("setup")

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.ended.append(context.task_name)
        return self.ended.count("epoch") == self.n_epochs

    def teardown(self, estimator, context):
        self.ended.append("teardown")


def test_callback_can_stop_training(problem):
    X, y, E, head = problem
    stop = StopAfter(2)
    student = make_student(head).set_callbacks(stop).fit(X, y, teacher_embeddings=E)
    assert student.n_epochs_ == 2
    expected = ["setup", "fit-projector", "epoch", "epoch", "fit", "teardown"]
    assert stop.ended == expected
    plain = make_student(head, max_epochs=2, subclass_weight=1.0)
    stopped = make_student(head, subclass_weight=1.0).set_callbacks(StopAfter(2))
    plain.fit(X, y, teacher_embeddings=E)
    stopped.fit(X, y, teacher_embeddings=E)
    assert plain.loss_curve_ == stopped.loss_curve_


class KeepStudents(StopAfter):
    """Keeps the student of each epoch."""

    def __init__(self):
        super().__init__(n_epochs=None)
        self.students = []

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == "epoch":
            self.students.append(fitted_estimator)


def test_students_of_earlier_epochs_stay_as_they_were(problem):
    X, y, E, head = problem
    keep = KeepStudents()
    student = make_student(head, subclass_weight=1.0).set_callbacks(keep)
    student.fit(X, y, teacher_embeddings=E)
    for n_epochs, kept in enumerate(keep.students, start=1):
        short = make_student(head, subclass_weight=1.0, max_epochs=n_epochs)
        short.fit(X, y, teacher_embeddings=E)
        np.testing.assert_array_equal(kept.predict_proba(X), short.predict_proba(X))
        assert kept.n_epochs_ == n_epochs


def test_callbacks_are_torn_down_after_an_error(problem):
    X, y, E, head = problem
    stop = StopAfter(100)
    student = make_student(head, learning_rate=1e300, optimizer=sgd).set_callbacks(stop)
    with pytest.raises(FloatingPointError):
        student.fit(X, y, teacher_embeddings=E)
    assert stop.ended[-1] == "teardown"


def sgd(parameters, lr, weight_decay):
    return torch.optim.SGD(parameters, lr=lr)


def test_rows_without_a_label_are_not_scored(problem):
    X, y, E, head = problem
    marked = np.where(np.arange(len(y)) % 3 == 0, -1, y)
    monitor = callback.ScoringMonitor(scoring="accuracy")
    student = make_student(head, unlabeled=-1, max_epochs=20).set_callbacks(monitor)
    student.fit(X, marked, teacher_embeddings=E)
    last = epochs_of(monitor.get_logs())[-1]["accuracy"]
    labelled = marked != -1
    assert last == student.score(X[labelled], y[labelled]) > 0.9


def test_callbacks_change_nothing_in_training(problem):
    X, y, E, head = problem
    monitor = callback.ScoringMonitor(scoring="accuracy")
    watched = make_student(head).set_callbacks(monitor).fit(X, y, teacher_embeddings=E)
    alone = make_student(head).fit(X, y, teacher_embeddings=E)
    assert watched.loss_curve_ == alone.loss_curve_
    np.testing.assert_array_equal(watched.predict_proba(X), alone.predict_proba(X))


@pytest.mark.slow
def test_older_scikit_learn_works_without_callbacks():
    code = """
    import sklearn.callback
    import sklearn.cluster
    import sklearn.model_selection
    import sklearn.pipeline
    del sklearn.callback.CallbackSupportMixin
    from lelp_sklearn import LELPProjector, LELPStudentClassifier
    from tests.student_problems import make_groups

    X, y, E, head = make_groups()
    student = LELPStudentClassifier(projector=LELPProjector(2, head=head), max_epochs=1)
    assert student.fit(X, y, teacher_embeddings=E).n_epochs_ == 1
    assert not hasattr(student, "set_callbacks")
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
