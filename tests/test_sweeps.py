"""What sweeps of the comparison change: the share of rows with a label."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def load():
    """Import a module of the benchmarks by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module


def small(load, table, words):
    """Return the first task of a table that starts with some words, made small."""
    tasks = load("accuracy.tables").TABLES[table].tasks
    task = next(task for task in tasks if task.name.startswith(words))
    arguments = {**task.arguments, "n_train": 600, "n_score": 200}
    return replace(task, arguments=arguments, n_student=500, teacher_steps=10)


# Few labels


@pytest.fixture(scope="module")
def few_labels(load, tmp_path_factory):
    """The lesson of a task of which 60 of 600 rows have a label, and its teacher."""
    task = replace(small(load, "labels", "numbers"), labelled_share=0.1)
    places = load("accuracy.data").Places(None, tmp_path_factory.mktemp("cache"))
    lesson = load("accuracy.lessons").make_lesson(task, places, 3, "validation")
    return SimpleNamespace(task=task, places=places, lesson=lesson)


def test_labelled_rows_keep_their_label_and_others_have_the_teachers_class(few_labels):
    lesson = few_labels.lesson
    predicted = lesson.logits.argmax(1)
    assert (predicted[:60] != lesson.true_y[:60]).any()
    assert (predicted[60:] != lesson.true_y[60:]).any()
    np.testing.assert_array_equal(lesson.y[:60], lesson.true_y[:60])
    np.testing.assert_array_equal(lesson.y[60:], predicted[60:])


def test_teacher_never_sees_a_label_beyond_the_share(load, few_labels, monkeypatch):
    """Other labels there change nothing but the groups, which the oracle alone has."""
    lessons, task = load("accuracy.lessons"), few_labels.task
    draw = lessons.draw

    def hidden(*arguments):
        drawn = draw(*arguments)
        y = np.where(np.arange(600) < 60, drawn.task.y, 1 - drawn.task.y)
        return replace(drawn, task=replace(drawn.task, y=y))

    monkeypatch.setattr(lessons, "draw", hidden)
    elsewhere = replace(few_labels.places, cache=few_labels.places.cache / "other")
    other = lessons.make_lesson(task, elsewhere, 3, "validation")
    assert (other.true_y != few_labels.lesson.true_y).any()
    np.testing.assert_array_equal(other.embeddings, few_labels.lesson.embeddings)
    np.testing.assert_array_equal(other.y, few_labels.lesson.y)


def test_oracle_has_true_groups_of_true_classes_whatever_the_teacher_says(
    load, few_labels
):
    lesson = few_labels.lesson
    true_groups = load("methods").true_groups
    within = true_groups(lesson)
    assert (lesson.y != lesson.true_y).any()
    np.testing.assert_array_equal(
        within, true_groups(replace(lesson, y=lesson.true_y, true_y=None))
    )
    np.testing.assert_allclose(within.sum(2), 1, rtol=1e-5)
    own = within[np.arange(len(lesson.y)), lesson.true_y]
    for group in np.unique(lesson.groups):
        assert len(np.unique(own[lesson.groups == group], axis=0)) == 1
    assert len(np.unique(own.argmax(1) + 100 * lesson.true_y)) == 100


def test_more_labels_are_taught_on_the_same_rows_by_other_teachers(load, tmp_path):
    lessons, config = load("accuracy.lessons"), load("accuracy.config")
    by_rows = {}
    for task in load("accuracy.tables").TABLES["labels"].tasks:
        by_rows.setdefault(task.drawn_as, []).append(task)
    assert len(by_rows) == 3
    for tasks in by_rows.values():
        assert [task.labelled_share for task in tasks] == [0.01, 0.1, 1]
        assert len({task.n_student for task in tasks}) == 1
        assert len({lessons.teacher_path(task, tmp_path, 3) for task in tasks}) == 3
        assert len({config.digest(task, config.OURS) for task in tasks}) == 3


def test_all_rows_labelled_is_the_task_of_the_first_table(load, tmp_path):
    """Its teachers serve both."""
    lessons, tables = load("accuracy.lessons"), load("accuracy.tables")
    for task in tables.TABLES["labels"].tasks:
        if task.labelled_share == 1:
            first = tables.BY_NAME[task.drawn_as]
            paths = [lessons.teacher_path(x, tmp_path, 3) for x in (task, first)]
            assert paths[0] == paths[1]
