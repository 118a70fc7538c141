"""The comparison of methods: its search, its files, its statistics and its report."""

import csv
import gzip
import shutil
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from filelock import FileLock
from scipy import stats

# Statistics


def test_paired_differences_agree_with_scipy(load):
    statistics = load("accuracy.statistics")
    one, other = np.random.default_rng(0).normal(size=(2, 8))
    one += 0.5
    expected = stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    found = statistics.paired(one - other)
    assert found.mean == pytest.approx((one - other).mean())
    assert found.error == pytest.approx(stats.sem(one - other))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)


def test_mean_over_two_tasks_agrees_with_welchs_test(load):
    """The mean of two is half the difference of the one and the other's negative."""
    statistics = load("accuracy.statistics")
    rng = np.random.default_rng(0)
    few, many = rng.normal(1, 3, size=5), rng.normal(0, 1, size=10)
    expected = stats.ttest_ind(few, -many, equal_var=False)
    interval = expected.confidence_interval(0.95)
    found = statistics.mean_over_tasks([few, many])
    assert (found.low, found.high) == pytest.approx(
        (interval.low / 2, interval.high / 2)
    )
    assert found.p == pytest.approx(expected.pvalue)


def test_equal_scores_are_no_difference(load):
    statistics = load("accuracy.statistics")
    assert statistics.paired(np.zeros(5)).p == 1
    always = statistics.paired(np.full(5, 0.25))
    assert (always.low, always.high, always.p) == (0.25, 0.25, 0)


def test_holm_is_bonferroni_over_every_subset(load):
    """By the closure principle, of which Holm's procedure is a short cut."""
    statistics = load("accuracy.statistics")
    p = np.random.default_rng(0).uniform(0, 0.3, size=6)
    p[3] = p[1]
    closed = [
        max(
            min(1.0, len(subset) * p[list(subset)].min())
            for size in range(1, 7)
            for subset in combinations(range(6), size)
            if i in subset
        )
        for i in range(6)
    ]
    np.testing.assert_allclose(statistics.holm(p), closed)


# Search


SUMMIT = {"learning_rate": 0.32, "temperature": 1.0, "max_epochs": 480}


def hill(search_module, setting):
    distance = sum(abs(np.log2(setting[name] / SUMMIT[name])) for name in SUMMIT)
    return 1 - 0.01 * distance


def climb(search_module, search, known):
    """Search on a hill; return the settings in the order in which they were wanted."""
    order = []
    while wanted := search_module.next_settings(search, known):
        # One by one: a search may be stopped within a round.
        known[search_module.key_of(wanted[0])] = hill(search_module, wanted[0])
        order.append(search_module.key_of(wanted[0]))
    return order


@pytest.fixture
def search(load):
    config = load("accuracy.config")
    return config.SEARCH.of(config.TASKS[0], config.BASELINE)


def test_search_leaves_a_grid_whose_edge_is_best(load, search):
    module = load("accuracy.search")
    known = {}
    climb(module, search, known)
    assert module.finalists(search, known)[0] == SUMMIT
    neighbours = module.untried_neighbours(search, SUMMIT, {})
    assert all(module.key_of(setting) in known for setting in neighbours)
    assert min(dict(key)["temperature"] for key in known) == 1


def test_every_quick_look_has_settings_to_try(load):
    config, module = load("accuracy.config"), load("accuracy.search")
    for table in map(config.quick, load("accuracy.tables").TABLES.values()):
        for task in table.tasks:
            for method in table.of(task):
                wanted = module.next_settings(table.search.of(task, method), {})
                assert min(setting["max_epochs"] for setting in wanted) >= 1
        for methods in table.chosen.values():
            assert set(methods) <= set(table.methods)


def test_search_finds_a_summit_of_few_epochs_beyond_a_valley(load, search):
    module = load("accuracy.search")
    by_epochs = {7: 0.9, 15: 0.89, 240: 0.85, 480: 0.84}
    known = {}
    while wanted := module.next_settings(search, known):
        known |= {module.key_of(s): by_epochs.get(s["max_epochs"], 0.8) for s in wanted}
    assert module.finalists(search, known)[0]["max_epochs"] == 7


@pytest.mark.parametrize("summit", [{}, {"learning_rate": 0.02, "max_epochs": 240}])
def test_search_that_ends_early_spends_its_trials_elsewhere(
    load, search, summit, monkeypatch
):
    module = load("accuracy.search")
    for name, value in summit.items():
        monkeypatch.setitem(SUMMIT, name, value)
    known = {}
    climb(module, search, known)
    assert len(known) >= search.n_trials
    if summit:
        assert len(known) == search.n_trials


def test_search_that_was_stopped_goes_on_as_if_it_had_not_been(load, search):
    module = load("accuracy.search")
    whole = {}
    order = climb(module, search, whole)
    for n_done in (1, 8, 10, 17):
        known = {key: whole[key] for key in order[:n_done]}
        assert climb(module, search, known) == order[n_done:]


def test_every_method_starts_from_the_same_grid_in_what_it_has(load):
    config, peers = load("accuracy.config"), load("peer_methods")
    for table in load("accuracy.tables").TABLES.values():
        for task in table.tasks:
            grids = {m: table.search.of(task, m).grid for m in table.methods}
            baseline = grids[config.BASELINE]
            for method, grid in grids.items():
                weight = peers.own_weight(config.TRAINABLE[method])
                expected = dict(baseline)
                if method == "hard labels":
                    del expected["temperature"]
                if weight is not None:
                    expected["regression_weight"] = (weight,)
                assert grid == expected


def test_controls_stand_in_every_table(load):
    config = load("accuracy.config")
    tables = load("accuracy.tables").TABLES
    for table in (tables["methods"], tables["peers"]):
        controls = {config.BASELINE, config.WIDE, config.SHUFFLED, config.ORACLE}
        assert controls <= set(table.methods)
        assert set(table.methods) <= config.TRAINABLE.keys()


def test_every_auxiliary_loss_is_compared_constant_and_annealed(load):
    peers = load("peer_methods").PEERS
    for term in ("VID", "RKD", "CRD"):
        constant = peers[f"{term}, constant"]
        assert constant.training == {"subclass_weight": 1.0}
        assert replace(constant, training={}) == peers[f"{term}, annealed"]
    assert "FitNet, constant" in peers


# The run and its files


@pytest.fixture(scope="module")
def tiny(load):
    """The command, whose only table is tiny and of bundled data."""
    module, config = load("compare"), load("accuracy.config")
    small = {"teacher_steps": 30, "max_epochs": 2, "epoch_bounds": (1, 4), "n_seeds": 3}
    by_draw = {task.draw: task for task in config.TASKS}
    numbers, digits = by_draw["numbers"], by_draw["digits"]
    sizes = {"n_train": 400, "n_score": 200}
    tasks = (
        replace(
            numbers,
            arguments={**numbers.arguments, **sizes},
            n_student=100,
            **small,
        ),
        replace(digits, has_rare_class=True, **small),
    )
    methods = (config.BASELINE, config.OURS, config.FITNET, config.ORACLE)
    search = replace(
        config.SEARCH,
        grid={"learning_rate": (0.02, 0.08), "temperature": (2.0,)},
        n_trials=5,
        seeds=(100, 101),
        final_seeds=(102,),
        n_finalists=2,
    )
    table = config.Table("Tiny", tasks, methods, search)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TABLES", {"tiny": table})
        yield module


def call(tiny, folder, *options):
    arguments = ["tiny", "--cache", str(folder / "cache")]
    tiny.main([*arguments, "--results", str(folder), *options])


@pytest.fixture(scope="module")
def first_run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    call(tiny, folder)
    return folder


@pytest.fixture
def finished(first_run, tmp_path):
    """A folder of its own of a finished run."""
    return shutil.copytree(first_run, tmp_path / "finished")


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_leaves_a_line_for_each_seed_and_each_trial(tiny, finished, capsys):
    table = tiny.TABLES["tiny"]
    results = lines_of(finished / "tiny.csv")
    places = [(x["task"], x["method"], x["seed"]) for x in results]
    assert places == [
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
    trials = lines_of(finished / "tiny_trials.csv")
    assert {line["seed"] for line in trials} == {"100", "101", "102"}
    in_final = [(x["task"], x["method"]) for x in trials if x["seed"] == "102"]
    assert Counter(in_final) == {(task, method): 2 for task, method, _ in places}
    settings = {(x["task"], x["method"], x["learning_rate"]) for x in trials}
    assert {(x["task"], x["method"], x["learning_rate"]) for x in results} <= settings


@pytest.mark.parametrize("n_writings", [1, 9, 17])
def test_run_that_was_stopped_goes_on_to_the_same_files(
    tiny, finished, load, n_writings, tmp_path_factory, monkeypatch
):
    records = load("accuracy.records").Records
    write, left = records.write, [n_writings]

    def stopped(self, table):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(self, table)

    other = tmp_path_factory.mktemp("stopped")
    with monkeypatch.context() as patch:
        patch.setattr(records, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            call(tiny, other)
    call(tiny, other)
    for name in ("tiny.csv", "tiny_trials.csv", "tiny.md", "tiny.svg"):
        assert (other / name).read_text() == (finished / name).read_text()


def test_finished_run_trains_nothing_again(tiny, finished, load, monkeypatch):
    run = load("accuracy.run")
    monkeypatch.setattr(run, "make_lesson", None)
    monkeypatch.setattr(run, "class_logits", None)
    call(tiny, finished)


def test_results_of_other_code_are_refused_or_begun_anew(
    tiny, finished, load, monkeypatch, capsys
):
    before = (finished / "tiny.csv").read_text()
    monkeypatch.setattr(load("accuracy.config"), "CODE", 10**6)
    with pytest.raises(SystemExit):
        call(tiny, finished)
    error = capsys.readouterr().err
    assert "another configuration" in error
    assert "--anew" in error
    assert (finished / "tiny.csv").read_text() == before
    call(tiny, finished, "--anew")
    assert len(lines_of(finished / "tiny.csv")) == len(before.splitlines()) - 1


def test_another_best_setting_makes_results_void(tiny, finished, load):
    """More trials may find one: what was reported of the old one is measured again."""
    records = load("accuracy.records")
    table = tiny.TABLES["tiny"]
    trials = records.Records.open(finished / "tiny_trials.csv", table, anew=False)
    task, method = table.tasks[0].name, table.methods[0]
    worst = min(trials.of(task, method), key=lambda x: x["accuracy"])
    setting = records.setting_of(worst)
    for line in trials.of(task, method):
        if records.setting_of(line) == setting:
            line["accuracy"] = 1.0
    trials.write(table)
    call(tiny, finished)
    results = records.Records.open(finished / "tiny.csv", table, anew=False)
    assert len(results.of(task, method)) == 3
    for line in results.of(task, method):
        assert records.setting_of(line)["learning_rate"] == setting["learning_rate"]


def test_setting_that_fails_on_another_seed_is_not_reported_on(tiny, finished, load):
    records = load("accuracy.records")
    table = tiny.TABLES["tiny"]
    trials = records.Records.open(finished / "tiny_trials.csv", table, anew=False)
    task, method = table.tasks[0].name, table.methods[0]
    in_final = [line for line in trials.of(task, method) if line["seed"] == 102]
    assert len(in_final) == 2
    results = records.Records.open(finished / "tiny.csv", table, anew=False)
    reported = records.setting_of(results.of(task, method)[0])
    (other,) = (s for s in map(records.setting_of, in_final) if s != reported)
    for line in in_final:
        if records.setting_of(line) == reported:
            line["accuracy"] = 0.0
    trials.write(table)
    call(tiny, finished)
    results = records.Records.open(finished / "tiny.csv", table, anew=False)
    assert [records.setting_of(x) for x in results.of(task, method)] == [other] * 3


def test_report_shows_every_method_and_task(tiny, finished, capsys):
    call(tiny, finished, "--report")
    printed = capsys.readouterr().out
    report = (finished / "tiny.md").read_text()
    assert report in printed
    for task in tiny.TABLES["tiny"].tasks:
        assert f"### {task.name}" in report
    for method in tiny.TABLES["tiny"].methods:
        assert report.count(f"| {method} |") >= 2
    assert "average precision" in report
    assert (finished / "tiny.svg").read_text().count("<svg") == 1


@pytest.fixture
def peers(tiny, load, monkeypatch):
    """A table of more methods than tasks that shares some of them with the tiny one."""
    config = load("accuracy.config")
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


def test_what_another_table_has_measured_is_taken_over(
    tiny, peers, finished, load, monkeypatch
):
    run, trained = load("accuracy.run"), []
    train = run.train

    def watched(task, unit, lessons):
        trained.append(unit.method)
        return train(task, unit, lessons)

    monkeypatch.setattr(run, "train", watched)
    call_peers(tiny, finished)
    shared = {"vanilla KD", "LELP, library defaults"}
    # Another best setting among fewer trials may have to be measured, no trial.
    assert set(trained) >= set(peers.methods) - shared
    trials = lines_of(finished / "peers_trials.csv")
    theirs = lines_of(finished / "tiny_trials.csv")
    no_work = {"teacher_work": "", "student_work": ""}
    for line in theirs:
        if line["method"] in shared and line["task"] == peers.tasks[0].name:
            assert {**line, **no_work} in trials
    # A trial that the other table went on to is none of this one's.
    report = (finished / "peers.md").read_text()
    for method in peers.methods:
        *_, row = (x for x in report.splitlines() if x.startswith(f"| {method} |"))
        assert row.endswith("| 2 |")
    before = (finished / "peers.csv").read_text()
    trained.clear()
    call_peers(tiny, finished)
    assert not trained
    assert (finished / "peers.csv").read_text() == before


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
    report = (tmp_path / "peers.md").read_text()
    ratio = float(own[0]["teacher_work"]) / float(own[0]["student_work"])
    assert f"| {ratio:.3g} |" in report
    assert "- DKD: degenerates." in report
    # More methods than tasks: a line a method.
    *_, first = (x for x in report.splitlines() if x.startswith("| task |"))
    assert first.count("|") == 2 + len(peers.tasks)
    for name in ("subclasses_20_teacher_0.pt", "layout_0_100.npy"):
        assert len(list((tmp_path / "cache").glob(f"*/{name}"))) == 1


def test_two_runs_never_write_to_one_file(tiny, tmp_path, capsys):
    with FileLock(tmp_path / "tiny.lock"), pytest.raises(SystemExit):
        call(tiny, tmp_path)
    assert "another run is writing" in capsys.readouterr().err
    call(tiny, tmp_path, "--report")


def test_leads_count_clear_tasks_of_each_kind(load, tiny):
    """Ours leads by two points on the first task and is level on the second."""
    report, config = load("accuracy.report"), load("accuracy.config")
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


def test_question_shows_gain_and_lead_of_a_variant(load):
    """A variant two points above the default, which is one above the baseline."""
    report, config = load("accuracy.question_report"), load("accuracy.config")
    noise = np.random.default_rng(0).normal(scale=0.1, size=(2, 10))
    scores = {"task": dict.fromkeys((config.BASELINE, config.OURS, "variant"))}
    for method, values in zip(
        scores["task"], (np.full(10, 90.0), 91 + noise[0], 93 + noise[1]), strict=True
    ):
        scores["task"][method] = dict(enumerate(values))
    printed = report.variants_table(scores, ["task"], [config.OURS, "variant"])
    *_, row = printed.splitlines()
    _, name, gain, lead, lost, each, _ = map(str.strip, row.split("|"))
    assert (name, lost) == ("variant", "")
    for cell, values in ((gain, 3 + noise[1]), (lead, 2 + noise[1] - noise[0])):
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert f"[{low:+.2f}, {high:+.2f}]" in cell
    assert lead.endswith(r"\*")
    assert each == f"{3 + noise[1].mean():+.2f}"


def test_students_far_below_the_others_are_counted(load):
    n_lost = load("accuracy.question_report").n_lost
    assert n_lost([90.0, 91.0, 92.0, 86.1, 85.9, 70.0, 91.0]) == 2
    assert n_lost([50.0, 90.0, 90.0]) == 1
    assert n_lost([88.0, 90.0, 92.0]) == 0


def test_surface_looks_variants_up_by_both_arguments(load):
    module, config = load("accuracy.question_report"), load("accuracy.config")
    question = load("accuracy.variants").QUESTIONS[0]
    scores = {"task": {config.BASELINE: {0: 90.0, 1: 90.0}}}
    for number, name in enumerate(question.variants):
        scores["task"][name] = {0: 90.0 + number, 1: 90.0 + number}
    title, _, *rows = module.surface_table(question, scores, ["task"]).splitlines()
    assert [cell.strip() for cell in title.split("|")[2:-1]] == [
        "β = 0.0",
        "β = 0.05",
        "β = 0.1",
        "β = 0.2",
        "β = 0.5",
    ]
    found = [float(cell) for row in rows for cell in row.split("|")[2:-1]]
    assert found == list(range(len(question.variants)))


def test_sweep_is_drawn_and_leaves_out_means_over_tasks(load, tiny, finished):
    table, config = tiny.TABLES["tiny"], load("accuracy.config")
    names = tuple(task.name for task in table.tasks)
    panels = (
        config.Panel("quantity of the sweep", (1, 2), names),
        config.Panel("its accuracy", (1, 2), names, shows_gain=False),
    )
    records = load("accuracy.records").Records
    results = [
        records.open(finished / f"{name}.csv", table, anew=False)
        for name in ("tiny_trials", "tiny")
    ]
    sweep = replace(table, panels=panels)
    load("accuracy.report").write_report(sweep, *results, finished / "sweep")
    assert "Means over tasks" not in (finished / "sweep.md").read_text()
    assert "### " + names[0] in (finished / "sweep.md").read_text()
    assert "<svg" in (finished / "sweep.svg").read_text()


def test_summary_has_gains_of_tasks_and_means_of_kinds(load, tmp_path):
    """Ours gains one point on the first union task and three on the second."""
    config, summary = load("accuracy.config"), load("accuracy.summary")
    table = load("accuracy.tables").TABLES["methods"]
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
    results = load("accuracy.records").Records(tmp_path / "methods.csv", lines)
    summary.write_summary(table, results, tmp_path / "summary")
    *tasks, mean = lines_of(tmp_path / "summary.csv")
    for line, gain, deviations in zip(tasks, gains.values(), noise, strict=True):
        low, high = stats.ttest_1samp(gain + deviations, 0).confidence_interval(0.95)
        assert line["ours"].endswith(f"[{100 * low:+.2f}, {100 * high:+.2f}]")
        assert line["teacher, %"] == "97.00"
    assert mean["task"] == "mean of 2 union tasks"
    expected = 100 * np.mean(np.add([[0.01], [0.03]], noise))
    assert mean["ours"].startswith(f"{expected:+.2f} [")


def test_tasks_that_differ_in_the_student_share_rows_and_teachers(load, tmp_path):
    tables, lessons = load("accuracy.tables"), load("accuracy.lessons")
    config = load("accuracy.config")
    groups = {}
    for task in (*tables.TABLES["mixtures"].tasks, *tables.TABLES["epochs"].tasks):
        groups.setdefault(task.drawn_as, []).append(task)
    assert any(len(tasks) > 1 for tasks in groups.values())
    for tasks in groups.values():
        paths = {lessons.teacher_path(task, tmp_path, 3) for task in tasks}
        assert len(paths) == 1
        digests = {config.digest(task, config.OURS) for task in tasks}
        students = {(task.n_student, task.n_units) for task in tasks}
        assert len(digests) == len(students)


# The data


@pytest.fixture
def data(tmp_path):
    """Folders of data in which every row is another."""
    rng = np.random.default_rng(0)
    for folder, n, shape in (
        ("letter", 3_000, (16,)),
        ("fashion_mnist", 11_000, (2, 2)),
    ):
        (tmp_path / folder).mkdir()
        for part, size in (("train", n), ("test", 50)):
            path = tmp_path / folder / f"{part}.npz"
            np.savez(path, x=rng.normal(size=(size, *shape)), y=np.arange(size) % 10)
    (tmp_path / "adult").mkdir()
    for part, size in (("train", 7_000), ("test", 50)):
        with gzip.open(tmp_path / "adult" / f"{part}.csv.gz", "wt") as file:
            file.write("age,work,label\n")
            first = 10_000 if part == "test" else 0
            rows = range(first, first + size)
            file.writelines(f"{i},{'ab'[i % 3 > 0]},{i % 2}\n" for i in rows)
    return tmp_path


@pytest.mark.parametrize("folder", ["letter", "fashion_mnist", "adult"])
def test_rows_that_are_scored_are_never_trained_on(load, data, folder):
    module, config = load("accuracy.data"), load("accuracy.config")
    task = next(task for task in config.TASKS if task.folder == folder)
    places = module.Places(data, data)
    scored = []
    for seed in (0, 1):
        drawn = {
            part: module.draw(task, places, seed, part).task
            for part in ("validation", "test")
        }
        np.testing.assert_array_equal(drawn["validation"].X, drawn["test"].X)
        assert len(drawn["test"].X_score) == 50
        assert len(drawn["validation"].X_score) >= 1_000
        for part in drawn.values():
            trained = {row.tobytes() for row in part.X}
            assert not trained & {row.tobytes() for row in part.X_score}
        scored.append(drawn["validation"].y_score)
    np.testing.assert_array_equal(*scored)


def test_texts_that_are_scored_are_never_trained_on(load, tmp_path):
    module = load("accuracy.data")
    for part, n in (("train", 1_500), ("test", 20)):
        with gzip.open(tmp_path / f"{part}.tsv.gz", "wt") as file:
            file.write("text\tlabel\n")
            file.writelines(f'"{part} {i}\t{i % 6}\n' for i in range(n))
    parts, n_groups = module._read_texts(tmp_path, n_train=300, n_score=10)
    assert n_groups == 6
    assert {key: len(part) for key, part in parts.items()} == {
        "train": 300,
        "validation": 10,
        "test": 10,
    }
    assert not set(parts["train"].texts) & set(parts["validation"].texts)
    assert parts["test"].texts[0] == '"test 0'


def test_task_without_its_data_is_skipped_with_a_line(
    load, tiny, tmp_path, capsys, monkeypatch
):
    config = load("accuracy.config")
    table = tiny.TABLES["tiny"]
    letters = next(task for task in config.TASKS if task.folder == "letter")
    monkeypatch.setitem(tiny.TABLES, "tiny", replace(table, tasks=(letters,)))
    call(tiny, tmp_path)
    assert "Skipped: letters, 500 rows: no --data-dir was given." in (
        capsys.readouterr().out
    )
    call(tiny, tmp_path, "--data-dir", str(tmp_path))
    assert f"there is no {tmp_path / 'letter'}" in capsys.readouterr().out


def test_searches_and_reports_have_no_seed_in_common(load):
    for table in load("accuracy.tables").TABLES.values():
        reported = {seed for task in table.tasks for seed in range(task.n_seeds)}
        searched = {*table.search.seeds, *table.search.final_seeds}
        assert not reported & searched
        assert len(searched) == len(table.search.seeds + table.search.final_seeds)
