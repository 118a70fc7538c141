"""Tables and figures of made-up results."""

import numpy as np
from scipy import stats

from benchmarks.distillation import config, question_report, records, report, summary
from benchmarks.distillation.methods import variants
from benchmarks.distillation.tables import TABLES


def test_leads_count_clear_tasks_of_each_kind(tiny):
    """Ours leads by two points on the first task and is level on the second."""
    union, plain = tiny.TABLES["tiny"].tasks
    noise = dict(enumerate(np.random.default_rng(0).normal(scale=0.1, size=10)))
    level = dict.fromkeys(noise, 90.0)
    scores = {
        union.name: {
            config.BASELINE: level,
            config.OURS: {seed: 92 + value for seed, value in noise.items()},
        },
        plain.name: {
            config.BASELINE: level,
            config.OURS: {
                seed: 90 + value * (-1) ** seed for seed, value in noise.items()
            },
        },
    }
    table = report.leads_table(tiny.TABLES["tiny"], scores, config.OURS)
    *_, row = table.splitlines()
    _, method, lead, clear_union, _, clear_plain, _ = map(str.strip, row.split("|"))
    assert method == config.BASELINE
    expected = stats.ttest_1samp(2 + np.array(list(noise.values())), 0)
    low, high = expected.confidence_interval(0.95)
    assert lead.endswith(f"[{low:+.2f}, {high:+.2f}]")
    assert clear_union == "1 / 0 of 1"
    assert clear_plain == "0 / 0 of 1"


def test_question_shows_gain_and_lead_of_a_variant():
    """A variant two points above the default, which is one above the baseline."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=(2, 10))
    scores = {"task": dict.fromkeys((config.BASELINE, config.OURS, "variant"))}
    for method, values in zip(
        scores["task"], (np.full(10, 90.0), 91 + noise[0], 93 + noise[1]), strict=True
    ):
        scores["task"][method] = dict(enumerate(values))
    printed = question_report.variants_table(scores, ["task"], [config.OURS, "variant"])
    *_, row = printed.splitlines()
    _, name, gain, lead, lost, each, _ = map(str.strip, row.split("|"))
    assert (name, lost) == ("variant", "")
    for cell, values in ((gain, 3 + noise[1]), (lead, 2 + noise[1] - noise[0])):
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert f"[{low:+.2f}, {high:+.2f}]" in cell
    assert lead.endswith(r"\*")
    assert each == f"{3 + noise[1].mean():+.2f}"


def test_students_far_below_the_others_are_counted():
    n_lost = question_report.n_lost
    assert n_lost([90.0, 91.0, 92.0, 86.1, 85.9, 70.0, 91.0]) == 2
    assert n_lost([50.0, 90.0, 90.0]) == 1
    assert n_lost([88.0, 90.0, 92.0]) == 0


def test_surface_looks_variants_up_by_both_arguments():
    question = variants.QUESTIONS[0]
    scores = {"task": {config.BASELINE: {0: 90.0, 1: 90.0}}}
    for number, name in enumerate(question.variants):
        scores["task"][name] = {0: 90.0 + number, 1: 90.0 + number}
    title, _, *rows = question_report.surface_table(
        question, scores, ["task"]
    ).splitlines()
    assert [cell.strip() for cell in title.split("|")[2:-1]] == [
        "β = 0.0",
        "β = 0.05",
        "β = 0.1",
        "β = 0.2",
        "β = 0.5",
    ]
    found = [float(cell) for row in rows for cell in row.split("|")[2:-1]]
    assert found == list(range(len(question.variants)))


def test_summary_has_gains_of_tasks_and_means_of_kinds(tmp_path):
    """Ours gains one point on the first union task and three on the second."""
    table = TABLES["methods"]
    gains = {"letters, 500 rows": 0.01, "letters, 2 000 rows": 0.03}
    noise = np.random.default_rng(0).normal(scale=1e-3, size=(2, 10))
    lines = [
        {
            "task": task,
            "method": method,
            "seed": seed,
            "accuracy": 0.9 + (method == config.OURS) * (gain + noise[number, seed]),
            "teacher_accuracy": 0.97,
        }
        for number, (task, gain) in enumerate(gains.items())
        for method in table.methods
        for seed in range(10)
    ]
    results = records.Records(tmp_path / "methods.csv", lines)
    summary.write_summary(table, results, tmp_path / "summary")
    *tasks, mean = records.read_lines(tmp_path / "summary.csv")
    for line, gain, deviations in zip(tasks, gains.values(), noise, strict=True):
        low, high = stats.ttest_1samp(gain + deviations, 0).confidence_interval(0.95)
        assert line["ours"].endswith(f"[{100 * low:+.2f}, {100 * high:+.2f}]")
        assert line["teacher, %"] == "97.00"
    assert mean["task"] == "mean of 2 union tasks"
    expected = 100 * np.mean(np.add([[0.01], [0.03]], noise))
    assert mean["ours"].startswith(f"{expected:+.2f} [")
