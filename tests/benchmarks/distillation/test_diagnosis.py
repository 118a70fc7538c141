"""What the report says, held to measured gains: tables, bars, interruptions."""

import numpy as np
import torch

from benchmarks.distillation import diagnose, diagnosis, foresight
from benchmarks.distillation.methods import base
from benchmarks.distillation.tables import untuned
from benchmarks.distillation.tables.tasks import TASKS

# Points, by task; of the last one the report is wrong.
GAINS = {"a": 0.0, "b": 3.0, "c": 6.0, "d": -2.0}
VERDICTS = {"a": "does not help", "b": "unclear", "c": "helps", "d": "helps"}


def made_up():
    """Reports, and scores of two recipes on five seeds."""
    lines, scores, rng = [], {}, np.random.RandomState(0)
    for task, gain in GAINS.items():
        for rows in (diagnosis.ALL, diagnosis.HALF):
            line = dict.fromkeys(diagnosis.NUMBERS, "0.01")
            line |= {"task": task, "rows": rows, "verdict": VERDICTS[task]}
            line |= {"pilot_gain": str(gain / 100), "training_length": ""}
            lines.append(line)
        one = {seed: 80 + 0.1 * rng.normal() for seed in range(5)}
        now = {seed: score + gain + 0.1 * rng.normal() for seed, score in one.items()}
        scores[task] = {"S = 1": one, "defaults": now}
    return lines, scores


def test_wrong_verdicts_are_named(tmp_path, capsys):
    lines, scores = made_up()
    # At half of the rows one verdict is the opposite.
    lines[1] |= {"verdict": "helps"}
    path = tmp_path / "diagnosis.md"
    foresight.write_foresight(lines, scores, path)
    text = path.read_text("utf-8")
    assert text in capsys.readouterr().out
    assert "rank correlation +1.00" in text
    assert "clearly negative (Holm, p < 0.05; 1 tasks): d" in text
    assert "clearly above 1 point (95 %; 2 tasks): none" in text
    assert '"unclear": 1 of 4' in text
    assert "half the rows (4 tasks): a" in text


def test_too_few_tasks_are_no_report(tmp_path, capsys):
    lines, scores = made_up()
    path = tmp_path / "diagnosis.md"
    foresight.write_foresight(lines[:4], scores, path)
    assert not path.exists()
    assert "nothing to report" in capsys.readouterr().out


def tiny(task, paths, seed, part="test"):
    """Data of a task, with two groups in each class."""
    rng = np.random.RandomState(seed)
    groups = np.arange(120) % 4
    X = (3 * np.eye(4)[groups] + rng.normal(size=(120, 4))).astype(np.float32)
    head = np.array([[1.0, -1, 1, -1], [-1, 1, -1, 1]]), np.zeros(2)
    return untuned.Data(X, groups % 2, X, head, None, None, seed, (4,))


def test_reports_are_made_once_and_read_no_scored_row(tmp_path, monkeypatch):
    defaults = {**diagnosis.subclass_report.__kwdefaults__, "max_steps": 4}
    monkeypatch.setattr(diagnosis.subclass_report, "__kwdefaults__", defaults)
    monkeypatch.setattr(untuned, "task_data", tiny)
    recipe = {"n_subclasses": 2}, {}
    student_of = untuned.student_of
    monkeypatch.setattr(
        diagnosis, "student_of", lambda data, _: student_of(data, recipe)
    )
    path = tmp_path / "diagnosis.csv"
    for _ in range(2):
        diagnose.report_on_plain_fits(TASKS[:1], None, path)
        lines = untuned.read(path)
        assert [line["rows"] for line in lines] == [diagnosis.ALL, diagnosis.HALF]
    assert [int(line["n_samples"]) for line in lines] == [120, 60]
    assert {line["task"] for line in lines} == {TASKS[0].name}


def test_no_scored_row_is_read_for_a_layer():
    """The rows to score on may be anything."""
    rng = np.random.RandomState(0)
    X, y = rng.normal(size=(80, 4)).astype(np.float32), np.arange(80) % 2
    head = torch.nn.Linear(4, 2)
    data = base.DistillationData(
        X=X,
        y=y,
        groups=None,
        embeddings=X,
        head=head,
        n_units=4,
        X_score=None,
        y_score=None,
        teacher_accuracy=0.9,
        seed=0,
    )
    line = diagnosis.diagnose(TASKS[0], data, 100)
    assert set(line) == set(diagnosis.COLUMNS)
