"""What the report says, held to measured gains: thresholds, tables, interruptions."""

import numpy as np
import torch

from benchmarks.distillation import config, diagnose, diagnosis, records
from benchmarks.distillation.methods import base
from benchmarks.distillation.tables import TABLES
from benchmarks.distillation.tables.tasks import TASKS


def made_up(table, gains):
    """Reports and results of tasks on which subclasses gain so many points."""

    reports, results, rng = [], [], np.random.RandomState(0)
    for task, gain in zip(table.tasks, gains, strict=False):
        for seed in diagnosis.SEEDS:
            line = dict.fromkeys(diagnosis.COLUMNS, "")
            line |= {name: rng.uniform() for name in diagnosis.NUMBERS}
            line |= {"pilot_gain": gain / 100, "pilot_gain_se": 0.001}
            line["verdict"] = "helps" if gain > 1 else "does not help"
            line["made_with"] = diagnosis.made_with(task)
            reports.append(line | {"task": task.name, "kind": task.kind, "seed": seed})
        for method in table.of(task):
            for seed in range(5):
                accuracy = 0.8 + 0.001 * rng.normal()
                accuracy += gain / 100 * (method == config.OURS)
                results.append(
                    {"task": task.name, "method": method, "accuracy": accuracy}
                    | {"seed": seed, "average_precision": None}
                )
    return reports, results


def test_threshold_lies_in_the_widest_gap_that_tells_gains_apart():
    pilot = np.array([0.0, 1.0, 2.0, 9.0, 10.0])
    gained = pilot > 1.5
    assert diagnosis.best_threshold(pilot, gained) == 1.5
    # One gain that none can foresee: the gap decides.
    assert diagnosis.best_threshold(np.append(pilot, 0.5), np.append(gained, True)) in (
        0.25,
        1.5,
    )


def test_a_task_is_guessed_by_the_others_alone():
    pilot = np.array([0.0, 1.0, 8.0, 9.0])
    gained = np.array([False, False, True, True])
    np.testing.assert_array_equal(diagnosis.held_out_guesses(pilot, gained), gained)
    # The odd one is guessed as its neighbours are, whatever it is itself.
    for odd in (False, True):
        gained = np.array([False, False, True, odd])
        assert diagnosis.held_out_guesses(pilot, gained)[3]


def test_perfect_foresight_is_told_as_such(tmp_path, capsys):
    table = TABLES["methods"]
    path = tmp_path / "diagnosis.md"
    diagnosis.write_report(table, *made_up(table, [0, 3, 4.5, 6, 9]), path)
    text = path.read_text("utf-8")
    assert text in capsys.readouterr().out
    assert f"5 of {len(table.tasks)} tasks have reports and results" in text
    assert "| pilot gain | +1.00 [+1.00, +1.00] |" in text
    assert "| pilot gain | 4 of 4 | 4 of 4 | 5 of 5 |" in text
    assert "| helps | 8 | 0 |" in text
    assert "| does not help | 0 | 2 |" in text


def test_a_policy_keeps_the_gains_of_the_reports_that_it_heeds():
    def reports(kind, *verdicts):
        shares = {"helps": 0.5, "unclear": 0.9, "does not help": 0.9}
        return [
            {"kind": kind, "verdict": verdict, "margin_r2": shares[verdict]}
            for verdict in verdicts
        ]

    by_task = [
        reports("union", "helps", "unclear"),
        reports("union", "helps", "helps"),
        reports("plain", "does not help", "unclear"),
    ]
    leads = [np.full(5, 4.0), np.full(5, 2.0), np.full(5, -2.0)]
    table = diagnosis.policies_table(by_task, leads)
    by_policy = {
        row.split(" | ")[0].strip("| "): [
            cell.split()[0] for cell in row.split("|")[2:4]
        ]
        for row in table.splitlines()[2:]
    }
    always, advised, by_share, where_it_helps = by_policy.values()
    assert always == ["+3.00", "-2.00"]
    assert advised == ["+3.00", "-1.00"]
    assert by_share == where_it_helps == ["+2.00", "+0.00"]


def test_too_few_tasks_are_no_report(tmp_path, capsys):
    table = TABLES["methods"]
    path = tmp_path / "diagnosis.md"
    diagnosis.write_report(table, *made_up(table, [0, 3]), path)
    assert not path.exists()
    assert "nothing to report" in capsys.readouterr().out


def test_reports_are_made_once_for_each_configuration(tmp_path, monkeypatch):
    table = TABLES["methods"]
    lines, _ = made_up(table, [0, 3])
    lines[0]["made_with"] = "other"
    diagnosis.write(tmp_path / "diagnosis.csv", lines, table)
    (tmp_path / "methods.csv").write_text(",".join(records.COMMON))
    asked = []

    def report(task, paths, seed, method):
        asked.append((task.name, seed))
        return [lines[0] | {"made_with": diagnosis.made_with(task), "seed": seed}]

    monkeypatch.setattr(diagnose, "diagnose", report)
    tasks = [table.tasks[i].name for i in (0, 1)]
    arguments = ["--cache", str(tmp_path), "--results", str(tmp_path), "--tasks"]
    diagnose.main([*arguments, *tasks])
    assert asked == [(tasks[0], 100)]
    diagnose.main([*arguments, *tasks])
    assert len(asked) == 1


def test_no_scored_row_is_read():
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
    assert line["verdict"] in diagnosis.VERDICTS
    assert set(line) == set(diagnosis.COLUMNS)
