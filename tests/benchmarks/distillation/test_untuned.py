"""The report of plain fits, and the parts of class logits."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from benchmarks.distillation import class_logits
from benchmarks.distillation.untuned_report import write_untuned
from lelp_sklearn import LELPProjector, LELPStudentClassifier
from tests.student_problems import make_groups

TASKS = "letters, 500 rows", "single digits"


def lines_of(task, kind, accuracies, start=0):
    """Lines of a task by recipe: accuracies of the seeds 0, 1 and so on."""
    return [
        {
            "task": task,
            "kind": kind,
            "recipe": recipe,
            "seed": str(seed),
            "start": str(start),
            "accuracy": str(accuracy),
            "chance": "0.5",
        }
        for recipe, of_seeds in accuracies.items()
        for seed, accuracy in enumerate(of_seeds)
    ]


def report_of(lines, folder):
    empty = "task,kind,method,learning_rate,temperature,max_epochs,regression_weight,"
    empty += "seed,accuracy,average_precision,teacher_accuracy\n"
    (folder / "methods.csv").write_text(empty, encoding="utf-8")
    write_untuned(lines, list(TASKS), TASKS, folder)
    return (folder / "untuned.md").read_text(encoding="utf-8")


def test_report_names_the_tasks_on_which_the_defaults_are_below(tmp_path):
    good = {
        "defaults": [0.90, 0.91, 0.92],
        "S = 1": [0.85, 0.86, 0.86],
        "earlier defaults": [0.88, 0.90, 0.89],
    }
    bad = {
        "defaults": [0.90, 0.91, 0.92],
        "S = 1": [0.95, 0.961, 0.97],
        "earlier defaults": [0.89, 0.90, 0.90],
    }
    lines = lines_of(TASKS[0], "union", good) + lines_of(TASKS[1], "plain", bad)
    report = report_of(lines, tmp_path)
    assert "| letters, 500 rows | earlier defaults | +2.00" in report
    assert "| single digits | S = 1 | -5.03" in report
    assert "More than 0.5 points below: single digits." in report
    assert "Clearly below (Holm, p < 0.05): single digits." in report
    assert "of the defaults +40.0 points" in report


def test_report_counts_single_fits_far_below_the_mean_of_their_draw(tmp_path):
    lines = lines_of(TASKS[0], "union", {"S = 1": [0.8, 0.8]})
    lines += lines_of(TASKS[0], "union", {"earlier defaults": [0.8, 0.8]})
    for start, accuracy in enumerate([0.90, 0.90, 0.90, 0.85]):
        of_both = {"defaults": [accuracy, accuracy - 0.2]}
        lines += lines_of(TASKS[0], "union", of_both, start)
    report = report_of(lines, tmp_path)
    assert "8 fits on 2 draws of rows and teachers, 2 more than 2 points" in report
    assert "the lowest by 3.8." in report


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_class_logits_are_their_mean_plus_their_spread(temperature):
    X, y, E, head = make_groups(n_classes=3)
    student = LELPStudentClassifier(
        projector=LELPProjector(4, head=head, temperature=temperature),
        max_epochs=3,
        random_state=0,
    ).fit(X, y, teacher_embeddings=E)
    teacher = E @ head[0].T + head[1]
    found = class_logits.parts(student, torch.tensor(X), teacher)
    A, own = student.decision_function(X), teacher.argmax(axis=1)
    expected = class_logits.lead(A, own)
    assert_allclose(found["mean"] + found["spread"], expected)
    assert_allclose(found["agreement"], 100 * np.mean(A.argmax(axis=1) == own))
