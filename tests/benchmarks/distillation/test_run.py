"""The command of the comparison and its files."""

from collections import Counter
from dataclasses import replace

import pytest
from filelock import FileLock

from benchmarks.distillation import comparison, config, records, report
from benchmarks.distillation.tables.tasks import TASKS


def call(tiny, folder, *options):
    arguments = ["tiny", "--cache", str(folder / "cache")]
    tiny.main([*arguments, "--results", str(folder), *options])


def lines_of(path):
    return records.read_lines(path)


@pytest.mark.slow
def test_run_leaves_a_line_for_each_seed_and_each_trial(tiny, finished, capsys):
    table = tiny.TABLES["tiny"]
    results = lines_of(finished / "tiny.csv")
    paths = [(x["task"], x["method"], x["seed"]) for x in results]
    assert paths == [
        (task.name, method, str(seed))
        for task in table.tasks
        for method in table.methods
        for seed in range(3)
    ]
    for line in results:
        assert 0 < float(line["accuracy"]) <= 1
        assert 0 < float(line["teacher_accuracy"]) <= 1
        assert bool(line["average_precision"]) == (line["task"] == "single digits")
        assert bool(line["regression_weight"]) == (line["method"] == "FitNet")
        assert line["torch"]
    trials = lines_of(finished / "tiny_trials.csv.gz")
    assert {line["seed"] for line in trials} == {"100", "101", "102"}
    in_final = [(x["task"], x["method"]) for x in trials if x["seed"] == "102"]
    assert Counter(in_final) == {(task, method): 2 for task, method, _ in paths}
    settings = {(x["task"], x["method"], x["learning_rate"]) for x in trials}
    assert {(x["task"], x["method"], x["learning_rate"]) for x in results} <= settings


def stop_after(monkeypatch, n_writings, *arguments):
    """Interrupt a run after so many writings of results."""
    write, left = records.Records.write, [n_writings]

    def stopped(self, table):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(self, table)

    with monkeypatch.context() as patch:
        patch.setattr(records.Records, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            call(*arguments)


@pytest.mark.slow
def test_run_that_was_stopped_goes_on_to_the_same_files(
    tiny, finished, tmp_path_factory, monkeypatch
):
    other = tmp_path_factory.mktemp("stopped")
    for n_writings in (1, 8, 8):
        stop_after(monkeypatch, n_writings, tiny, other)
    call(tiny, other)
    for name in ("tiny.csv", "tiny_trials.csv.gz", "tiny.md", "tiny.svg"):
        assert (other / name).read_bytes() == (finished / name).read_bytes()


def test_finished_run_trains_nothing_again(tiny, finished, monkeypatch):
    monkeypatch.setattr(comparison, "make_data", None)
    monkeypatch.setattr(comparison, "class_logits", None)
    monkeypatch.setattr(comparison, "accuracies", None)
    call(tiny, finished)


def test_results_of_other_code_are_refused_or_replaced(
    tiny, finished, monkeypatch, capsys
):
    before = (finished / "tiny.csv").read_text()
    monkeypatch.setattr(config, "CODE", 10**6)
    with pytest.raises(SystemExit):
        call(tiny, finished)
    error = capsys.readouterr().err
    assert "another configuration" in error
    assert "--overwrite" in error
    assert (finished / "tiny.csv").read_text() == before
    n_trials = len(lines_of(finished / "tiny_trials.csv.gz"))
    stop_after(monkeypatch, 1, tiny, finished, "--overwrite")
    assert 0 < len(lines_of(finished / "tiny_trials.csv.gz")) < n_trials


def test_another_best_setting_makes_results_void(tiny, finished):
    """More trials may find one: what was reported of the old one is measured again."""
    table = tiny.TABLES["tiny"]
    trials = records.Records.open(
        finished / "tiny_trials.csv.gz", table, overwrite=False
    )
    task, method = table.tasks[0].name, table.methods[0]
    worst = min(trials.of(task, method), key=lambda x: x["accuracy"])
    setting = records.setting_of(worst)
    for line in trials.of(task, method):
        if records.setting_of(line) == setting:
            line["accuracy"] = 1.0
    trials.write(table)
    call(tiny, finished)
    results = records.Records.open(finished / "tiny.csv", table, overwrite=False)
    assert len(results.of(task, method)) == 3
    for line in results.of(task, method):
        assert records.setting_of(line)["learning_rate"] == setting["learning_rate"]


def test_setting_that_fails_on_another_seed_is_not_reported_on(tiny, finished):
    table = tiny.TABLES["tiny"]
    trials = records.Records.open(
        finished / "tiny_trials.csv.gz", table, overwrite=False
    )
    task, method = table.tasks[0].name, table.methods[0]
    in_final = [line for line in trials.of(task, method) if line["seed"] == 102]
    assert len(in_final) == 2
    results = records.Records.open(finished / "tiny.csv", table, overwrite=False)
    reported = records.setting_of(results.of(task, method)[0])
    (other,) = (s for s in map(records.setting_of, in_final) if s != reported)
    for line in in_final:
        if records.setting_of(line) == reported:
            line["accuracy"] = 0.0
    trials.write(table)
    call(tiny, finished)
    results = records.Records.open(finished / "tiny.csv", table, overwrite=False)
    assert [records.setting_of(x) for x in results.of(task, method)] == [other] * 3


def test_report_shows_every_method_and_task(tiny, finished, capsys):
    call(tiny, finished, "--report")
    printed = capsys.readouterr().out
    written = (finished / "tiny.md").read_text()
    assert written in printed
    for task in tiny.TABLES["tiny"].tasks:
        assert f"### {task.name}" in written
    for method in tiny.TABLES["tiny"].methods:
        assert written.count(f"| {method} |") >= 2
    assert "average precision" in written
    assert (finished / "tiny.svg").read_text().count("<svg") == 1


def test_sweep_is_drawn_and_leaves_out_means_over_tasks(tiny, finished):
    table = tiny.TABLES["tiny"]
    names = tuple(task.name for task in table.tasks)
    panels = (
        config.Panel("quantity of the sweep", (1, 2), names),
        config.Panel("its accuracy", (1, 2), names, shows_gain=False),
    )
    results = [
        records.Records.open(finished / name, table, overwrite=False)
        for name in ("tiny_trials.csv.gz", "tiny.csv")
    ]
    sweep = replace(table, panels=panels)
    report.write_report(sweep, *results, finished / "sweep")
    assert "Means over tasks" not in (finished / "sweep.md").read_text()
    assert "### " + names[0] in (finished / "sweep.md").read_text()
    assert "<svg" in (finished / "sweep.svg").read_text()


@pytest.fixture
def peers(tiny, monkeypatch):
    """A table of more methods than tasks that shares some of them with the tiny one."""
    table = tiny.TABLES["tiny"]
    own = ("CRD, annealed", "DKD", "Subclass Distillation", "t-SNE + k-means")
    found = replace(
        table,
        title="Peers",
        tasks=table.tasks[:1],
        methods=(config.BASELINE, config.OURS, *own),
        search=replace(table.search, n_trials=2, thorough=False),
        shares="tiny",
        notes={"DKD": "degenerates"},
    )
    monkeypatch.setitem(tiny.TABLES, "peers", found)
    return found


def call_peers(tiny, folder, *options):
    arguments = ["peers", "--cache", str(folder / "cache")]
    tiny.main([*arguments, "--results", str(folder), *options])


@pytest.mark.slow
def test_what_another_table_has_measured_is_taken_over(
    tiny, peers, finished, monkeypatch
):
    trained = []
    train = comparison.train

    def watched(task, unit, data_by_seed, *, is_search):
        trained.append(unit.method)
        return train(task, unit, data_by_seed, is_search=is_search)

    monkeypatch.setattr(comparison, "train", watched)
    call_peers(tiny, finished)
    shared = {"vanilla KD", "LELP, library defaults"}
    # Another best setting among fewer trials may have to be measured, no trial.
    assert set(trained) >= set(peers.methods) - shared
    trials = lines_of(finished / "peers_trials.csv.gz")
    theirs = lines_of(finished / "tiny_trials.csv.gz")
    no_work = {"teacher_work": "", "student_work": ""}
    for line in theirs:
        if line["method"] in shared and line["task"] == peers.tasks[0].name:
            assert {**line, **no_work} in trials
    # A trial that the other table went on to is none of this one's.
    written = (finished / "peers.md").read_text()
    for method in peers.methods:
        *_, row = (x for x in written.splitlines() if x.startswith(f"| {method} |"))
        assert row.endswith("| 2 |")
    before = (finished / "peers.csv").read_text()
    trained.clear()
    call_peers(tiny, finished)
    assert not trained
    assert (finished / "peers.csv").read_text() == before


@pytest.mark.slow
def test_retrained_teacher_is_scored_and_its_work_counted(tiny, peers, tmp_path):
    """32 pixels a digit, n a step: multiply-adds of the networks, in full."""
    call_peers(tiny, tmp_path)
    lines = lines_of(tmp_path / "peers.csv")
    own = [x for x in lines if x["method"] == "Subclass Distillation"]
    others = [x for x in lines if x not in own]
    assert {x["teacher_work"] for x in others} == {""}
    weights = 128 * 256 + 256 + 256 * 128 + 128 + 128 * 40 + 40
    for line in own:
        assert float(line["teacher_work"]) == weights * 30 * 128
        student = 128 * 32 + 32 + 32 * 40 + 40
        expected = student * 100 * int(line["max_epochs"])
        assert float(line["student_work"]) == expected
    accuracies = [{x["teacher_accuracy"] for x in part} for part in (own, others)]
    assert accuracies[0] != accuracies[1]
    written = (tmp_path / "peers.md").read_text()
    ratio = float(own[0]["teacher_work"]) / float(own[0]["student_work"])
    assert f"| {ratio:.3g} |" in written
    assert "- DKD: degenerates." in written
    # More methods than tasks: a line a method.
    *_, first = (x for x in written.splitlines() if x.startswith("| task |"))
    assert first.count("|") == 2 + len(peers.tasks)
    for name in ("subclasses_20_teacher_0.pt", "layout_0_100.npy"):
        assert len(list((tmp_path / "cache").glob(f"*/{name}"))) == 1


def test_two_runs_never_write_to_one_file(tiny, tmp_path, capsys):
    with FileLock(tmp_path / "tiny.lock"), pytest.raises(SystemExit):
        call(tiny, tmp_path)
    assert "another run is writing" in capsys.readouterr().err
    call(tiny, tmp_path, "--report")


def test_task_without_its_data_is_skipped_with_a_line(
    tiny, tmp_path, capsys, monkeypatch
):
    table = tiny.TABLES["tiny"]
    letters = next(task for task in TASKS if task.folder == "letter")
    monkeypatch.setitem(tiny.TABLES, "tiny", replace(table, tasks=(letters,)))
    call(tiny, tmp_path)
    assert "Skipped: letters, 500 rows: no --data-dir was given." in (
        capsys.readouterr().out
    )
    call(tiny, tmp_path, "--data-dir", str(tmp_path))
    assert f"there is no {tmp_path / 'letter'}" in capsys.readouterr().out
