"""The table of students: what a run leaves, and that it goes on after a stop."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.distillation.config import HARD, SHUFFLED, TaskConfig
from benchmarks.distillation.datasets.base import Paths
from benchmarks.distillation.tables import students, students_report
from benchmarks.distillation.tables.students import STUDENTS, StudentsTable

TASK = TaskConfig("single digits", "plain", "digits", n_student=100, teacher_steps=10)
FEW = replace(
    STUDENTS["LogisticRegression"],
    grid={"C": (1.0,), "temperature": (1.0, 4.0)},
    n_subclasses=(5,),
    controls=(HARD, SHUFFLED),
)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setitem(STUDENTS, "LogisticRegression", FEW)
    monkeypatch.setattr(students, "SEARCH_SEEDS", (100,))
    monkeypatch.setattr(students, "ROUNDS", ((0, 1),))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_run_goes_on_and_is_reported(few, tmp_path, capsys):
    paths = Paths(None, tmp_path)
    table = StudentsTable(tmp_path, paths)
    table.run([TASK], ["LogisticRegression"])
    lines = table.lines["test"]
    methods = {line["method"] for line in lines}
    assert methods == {
        "S = 1",
        "S = 5",
        "S = 5 at the settings of S = 1",
        "hard labels",
        "shuffled subclasses",
    }
    assert len(lines) == 2 * len(methods)
    again = StudentsTable(tmp_path, paths)
    again.lines["test"] = [line for line in again.lines["test"] if line["seed"] == "0"]
    again.run([TASK], ["LogisticRegression"])

    def scores(table):
        return sorted((*line.values(),) for line in table.lines["test"])

    assert scores(again) == scores(table)
    students_report.write_students(again, tmp_path / "students.md")
    text = (tmp_path / "students.md").read_text("utf-8")
    base = [float(x["accuracy"]) for x in lines if x["method"] == "S = 1"]
    assert f"{100 * np.mean(base):.2f} ±" in text
    capsys.readouterr()
