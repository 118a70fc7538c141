"""Which of the teacher's layers is split: what is prepared, and what is chosen."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.distillation import (
    chosen,
    comparison,
    config,
    diagnosis,
    layer_diagnosis,
    methods,
    preparation,
    records,
    report,
)
from benchmarks.distillation.datasets.base import Paths
from benchmarks.distillation.methods import base
from benchmarks.distillation.tables.tasks import SEARCH, TASKS
from benchmarks.distillation.teachers import perceptron
from lelp_sklearn import LELPProjector


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Data with the earlier layer of its teacher, and that teacher."""
    task = next(x for x in TASKS if x.draw == "numbers")
    arguments = {**task.arguments, "n_train": 300, "n_score": 100}
    task = replace(task, arguments=arguments, n_student=120, teacher_steps=30)
    paths = Paths(None, tmp_path_factory.mktemp("cache"))
    data = preparation.make_data(task, paths, 3, "validation", {"earlier"})
    path = preparation.teacher_path(task, paths.cache, 3)
    teacher = perceptron.Teacher(data.X.shape[1], 2)
    teacher.load_state_dict(torch.load(path, weights_only=True))
    return SimpleNamespace(task=task, paths=paths, data=data, teacher=teacher)


def test_upper_layers_make_the_logits_of_the_earlier_one(drawn):
    upper = drawn.teacher.body[2:]
    with torch.no_grad():
        embeddings = upper(torch.from_numpy(drawn.data.earlier)).numpy()
    assert drawn.data.earlier.shape == (120, 256)
    np.testing.assert_allclose(embeddings, drawn.data.embeddings, rtol=1e-6)


def test_earlier_layer_of_texts_is_what_the_teacher_reads(drawn):
    X = drawn.data.X
    of_texts = replace(drawn.task, draw="texts")
    found = preparation.earlier_layer(of_texts, drawn.teacher, X)
    np.testing.assert_array_equal(found, X)


def test_only_methods_that_want_it_are_given_the_earlier_layer(drawn):
    for name in methods.EARLIER:
        assert list(comparison.parts_on_demand(name)) == ["earlier"]
    for name in methods.METHODS:
        assert not list(comparison.parts_on_demand(name))
    data = preparation.make_data(drawn.task, drawn.paths, 3, "validation")
    assert data.earlier is None


def test_subclasses_are_those_of_the_public_api(drawn):
    """The classes' mass, which the logits give, is divided as the projector does."""
    data = drawn.data
    method = methods.EARLIER["LELP, library defaults, earlier layer"]
    selected = method.select_layer(data)
    np.testing.assert_array_equal(selected.logits, data.logits)
    within = base.subclasses(selected, n_subclasses=3)
    mass = torch.softmax(torch.from_numpy(data.logits), 1).numpy()
    projector = LELPProjector(n_subclasses=3, random_state=data.seed)
    expected = projector.fit_transform(data.earlier, data.y, teacher_logits=data.logits)
    found = (mass[:, :, np.newaxis] * within).reshape(len(mass), -1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


# What is chosen


@pytest.fixture
def compared():
    """A table that chooses one of two methods, which are best on one task each.

    On validation rows that is seen on the seeds of the search and its finals together.
    """
    one, other = "LELP, library defaults", "FitNet"
    tasks = TASKS[:2]
    table = config.Table(
        "Tiny",
        tasks,
        (config.BASELINE, one, other),
        replace(SEARCH, seeds=(100,), final_seeds=(101,)),
        chosen={"one or other": (one, other)},
    )
    best = {tasks[0].name: one, tasks[1].name: other}
    trials, results = [], []
    for level, (task, good) in zip((0.5, 0.6), best.items(), strict=True):
        for method in table.methods:
            setting = {"learning_rate": 0.1, "temperature": 2.0, "max_epochs": 9}
            setting["regression_weight"] = None
            line = {"task": task, "method": method, "teacher_accuracy": 0.9, **setting}
            # The worse one leads on the first seed.
            validated = (0.6, 0.9) if method == good else (0.7, 0.5)
            trials += [
                {**line, "seed": 100 + i, "accuracy": x}
                for i, x in enumerate(validated)
            ]
            # On test rows it is far better: no choice may look there.
            others = {config.BASELINE: 0.4, good: level}
            results += [
                {**line, "seed": seed, "accuracy": others.get(method, 0.9)}
                for seed in range(3)
            ]
    return SimpleNamespace(
        table=table,
        best=best,
        trials=records.Records(None, trials),
        results=records.Records(None, results),
    )


def test_choice_is_the_best_on_all_validation_seeds(compared):
    scores = report.scores_of(compared.table, compared.results.lines)
    found = chosen.take(compared.table, compared.trials, compared.results, scores)
    assert found == {
        task: {"one or other": method} for task, method in compared.best.items()
    }
    reached = chosen.scores_of_choices(found, scores)
    for level, task in zip((50.0, 60.0), compared.best, strict=True):
        assert reached[task]["one or other"] == dict.fromkeys(range(3), level)


def test_report_names_what_was_chosen_and_what_it_reached(compared):
    scores = report.scores_of(compared.table, compared.results.lines)
    parts = report.chosen_parts(
        compared.table, compared.trials, compared.results, scores
    )
    text = "\n".join(parts)
    for task, method in compared.best.items():
        assert f"| {task} | {method} |" in text
    means = text.split("| of the oracle's |")[1].split("##")[0]
    (row,) = (x for x in means.splitlines() if x.startswith("| one or other |"))
    # The first task is plain, the second a union.
    assert row.split("|")[2:5:2] == [
        " +20.00 [+20.00, +20.00] (1) ",
        " +10.00 [+10.00, +10.00] (1) ",
    ]


# What reports say before training


def reports_of(task, layer, gain):
    """Two reports, of which only the mean has that gain in points."""
    return [
        {"task": task, "layer": layer, "pilot_gain": (gain + by) / 100}
        | {"pilot_gain_se": 0.01, "seed": seed}
        | {"last_agreement": None, "earlier_agreement": 0.5 + 0.1 * by}
        for seed, by in ((100, -3), (101, 3))
    ]


def test_layer_is_chosen_by_the_mean_of_reports(compared, tmp_path, capsys):
    """The reports are right on the first task, wrong on the second."""
    first, second = compared.best
    last, earlier = layer_diagnosis.LAYERS.values()
    # What the fixture calls FitNet is the earlier layer here.
    table = replace(
        compared.table,
        methods=(*compared.table.methods[:2], earlier),
        chosen={"layer chosen": (last, earlier)},
    )
    for kept in (compared.trials, compared.results):
        for line in kept.lines:
            if line["method"] == "FitNet":
                line["method"] = earlier
    reports = {
        "last": [*reports_of(first, "last", 2), *reports_of(second, "last", 4)],
        "earlier": [
            *reports_of(first, "earlier", 1),
            *reports_of(second, "earlier", 3.5),
        ],
    }
    path = tmp_path / "layers.md"
    layer_diagnosis.write_layers(
        table, reports, compared.trials, compared.results, path
    )
    text = path.read_text("utf-8")
    assert text in capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()
    ]
    by_name = {row[0]: row[1:] for row in rows if len(row) > 1}
    # On rows to validate on the first layer is best on the first task only; on test
    # rows, which hindsight alone sees, it is the other way round.
    assert by_name[first][:2] == ["+2.0 ± 1.0", "+1.0 ± 1.0"]
    assert by_name[first][4:] == ["last", "last", "", "0.50"]
    assert by_name[second][:2] == ["+4.0 ± 1.0", "+3.5 ± 1.0"]
    assert by_name[second][4:6] == ["last", "earlier"]
    assert by_name["by the pilot gain"][2] == "1 of 2"
    assert by_name["on validation rows"][2] == "0 of 2"
    assert by_name["with hindsight"][2] == "2 of 2"
    gains = {
        name: [cell.split()[0] for cell in by_name[name][:2]]
        for name in ("the last layer", "the earlier layer", "with hindsight")
    }
    # First the union task, then the plain one.
    assert gains == {
        "the last layer": ["+50.00", "+10.00"],
        "the earlier layer": ["+20.00", "+50.00"],
        "with hindsight": ["+50.00", "+50.00"],
    }


def test_layers_without_all_reports_are_no_table(compared, tmp_path, capsys):
    path = tmp_path / "layers.md"
    last, earlier = (reports_of("single digits", x, 2) for x in ("last", "earlier"))
    reports = {"last": last, "earlier": earlier[:1]}
    layer_diagnosis.write_layers(
        compared.table, reports, compared.trials, compared.results, path
    )
    assert not path.exists()
    assert "nothing to report" in capsys.readouterr().out


def test_report_is_asked_about_the_layer_of_a_method(drawn, monkeypatch):
    asked = []
    earlier = "LELP, library defaults, earlier layer"
    report = diagnosis.subclass_report

    def watched(student, X, y, **given):
        asked.append((student.projector.head, given))
        return report(student, X, y, **given, n_splits=2, max_steps=4)

    monkeypatch.setattr(diagnosis, "subclass_report", watched)
    # 20 subclasses a class are too many for these rows.
    monkeypatch.setattr(
        diagnosis, "LELPProjector", lambda **options: LELPProjector(2, **options)
    )
    monkeypatch.setattr(diagnosis, "made_with", lambda task, method: method)
    line = diagnosis.diagnose(drawn.task, drawn.data, 100, earlier)
    assert line["made_with"] == earlier
    ((head, given),) = asked
    assert head is None
    np.testing.assert_array_equal(given["teacher_embeddings"], drawn.data.earlier)
    np.testing.assert_array_equal(given["teacher_logits"], drawn.data.logits)
    assert config.digest(drawn.task, earlier) != config.digest(drawn.task, config.OURS)


def test_agreement_is_one_where_subclasses_are_the_groups(drawn):
    """Groups far apart in the last layer, and nothing but noise in the earlier one."""
    rng = np.random.default_rng(0)
    n_groups = 20
    groups = np.arange(800) % (2 * n_groups)
    noise = rng.normal(size=(800, 50)).astype(np.float32)
    data = replace(
        drawn.data,
        y=groups % 2,
        groups=groups,
        embeddings=np.eye(50, dtype=np.float32)[groups] + 0.01 * noise,
        earlier=rng.normal(size=(800, 50)).astype(np.float32),
        head=torch.nn.Linear(50, 2),
    )
    found = layer_diagnosis.agreements(data)
    assert found["last_agreement"] > 0.99
    assert abs(found["earlier_agreement"]) < 0.1
    assert set(layer_diagnosis.agreements(replace(data, groups=None)).values()) == {
        None
    }
