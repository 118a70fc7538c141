"""Sweeps of the comparison: over the share of labels and over shifted copies."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.distillation import config, preparation
from benchmarks.distillation.datasets import shifted
from benchmarks.distillation.datasets.base import Paths, Task, standardised
from benchmarks.distillation.methods import base, controls
from benchmarks.distillation.tables import TABLES
from benchmarks.distillation.tables.tasks import BY_NAME


def small(table, words):
    """Return the first task of a table that starts with some words, made small."""
    tasks = TABLES[table].tasks
    task = next(task for task in tasks if task.name.startswith(words))
    arguments = {**task.arguments, "n_train": 600, "n_score": 200}
    return replace(task, arguments=arguments, n_student=500, teacher_steps=10)


# Few labels


@pytest.fixture(scope="module")
def few_labels(tmp_path_factory):
    """The data of a task of which 60 of 600 rows have a label, and its teacher."""
    task = replace(small("labels", "numbers"), labelled_share=0.1)
    paths = Paths(None, tmp_path_factory.mktemp("cache"))
    data = preparation.make_data(task, paths, 3, "validation")
    return SimpleNamespace(task=task, paths=paths, data=data)


def test_labelled_rows_keep_their_label_and_others_have_the_teachers_class(few_labels):
    data = few_labels.data
    predicted = data.logits.argmax(1)
    assert (predicted[:60] != data.true_y[:60]).any()
    assert (predicted[60:] != data.true_y[60:]).any()
    np.testing.assert_array_equal(data.y[:60], data.true_y[:60])
    np.testing.assert_array_equal(data.y[60:], predicted[60:])


def test_teacher_never_sees_a_label_beyond_the_share(few_labels, monkeypatch):
    """Other labels there change nothing but the groups, which the oracle alone has."""
    task = few_labels.task
    draw = preparation.draw

    def hidden(*arguments):
        drawn = draw(*arguments)
        y = np.where(np.arange(600) < 60, drawn.task.y, 1 - drawn.task.y)
        return replace(drawn, task=replace(drawn.task, y=y))

    monkeypatch.setattr(preparation, "draw", hidden)
    elsewhere = replace(few_labels.paths, cache=few_labels.paths.cache / "other")
    other = preparation.make_data(task, elsewhere, 3, "validation")
    assert (other.true_y != few_labels.data.true_y).any()
    np.testing.assert_array_equal(other.embeddings, few_labels.data.embeddings)
    np.testing.assert_array_equal(other.y, few_labels.data.y)


def test_oracle_has_true_groups_of_true_classes_whatever_the_teacher_says(few_labels):
    data = few_labels.data
    true_groups = controls.true_groups
    within = true_groups(data)
    assert (data.y != data.true_y).any()
    np.testing.assert_array_equal(
        within, true_groups(replace(data, y=data.true_y, true_y=None))
    )
    np.testing.assert_allclose(within.sum(2), 1, rtol=1e-5)
    own = within[np.arange(len(data.y)), data.true_y]
    for group in np.unique(data.groups):
        assert len(np.unique(own[data.groups == group], axis=0)) == 1
    assert len(np.unique(own.argmax(1) + 100 * data.true_y)) == 100


def test_more_labels_are_taught_on_the_same_rows_by_other_teachers(tmp_path):
    by_rows = {}
    for task in TABLES["labels"].tasks:
        by_rows.setdefault(task.drawn_as, []).append(task)
    assert len(by_rows) == 3
    for tasks in by_rows.values():
        assert [task.labelled_share for task in tasks] == [0.01, 0.1, 1]
        assert len({task.n_student for task in tasks}) == 1
        assert len({preparation.teacher_path(task, tmp_path, 3) for task in tasks}) == 3
        assert len({config.digest(task, config.OURS) for task in tasks}) == 3


def test_all_rows_labelled_is_the_task_of_the_first_table(tmp_path):
    """Its teachers serve both."""
    for task in TABLES["labels"].tasks:
        if task.labelled_share == 1:
            first = BY_NAME[task.drawn_as]
            paths = [preparation.teacher_path(x, tmp_path, 3) for x in (task, first)]
            assert paths[0] == paths[1]


# Shifted copies


def as_images(pictures, X):
    """Return rows as images, put together picture by picture."""
    apart = X.reshape(len(X), pictures.n_abreast, pictures.height, pictures.width)
    return [np.hstack(list(of_row)) for of_row in apart]


@pytest.mark.parametrize("draw", ["numbers", "clothes"])
def test_shifted_pictures_are_those_of_scipy(draw):
    pictures = shifted.PICTURES[draw]
    far = pictures.max_shift
    shifts = np.array(list(np.ndindex(2 * far + 1, 2 * far + 1))) - far
    size = pictures.n_abreast * pictures.height * pictures.width
    X = np.random.default_rng(0).uniform(size=(len(shifts), size)).astype(np.float32)
    found = as_images(pictures, pictures.shifted(X, shifts, -3.0))
    for image, original, shift in zip(
        found, as_images(pictures, X), shifts, strict=True
    ):
        expected = ndimage.shift(original, shift, order=0, cval=-3.0)
        np.testing.assert_array_equal(image, expected)


def test_images_of_numbers_show_one_digit_beside_the_other():
    """As the rows are laid out: the pixels of the left digit come first."""
    rows = np.zeros((1, 128), np.float32)
    rows[0, 7] = 1  # the upper right corner of the left digit
    right = shifted.PICTURES["numbers"].shifted(rows, np.array([[0, 1]]), 0.0)
    assert np.flatnonzero(right) == 64  # the upper left corner of the right one


def shifts_of(pictures, original, copy, background):
    """Return all shifts of an image that give the other."""
    far = range(-pictures.max_shift, pictures.max_shift + 1)
    return {
        (down, right)
        for down in far
        for right in far
        if np.array_equal(
            ndimage.shift(original, (down, right), order=0, cval=background), copy
        )
    }


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The data of 1, 2, 4 and 8 copies of numbers."""
    paths = Paths(None, tmp_path_factory.mktemp("cache"))
    task = replace(small("augmented", "numbers"), n_student=100)
    return {
        n: preparation.make_data(replace(task, n_copies=n), paths, 3, "validation")
        for n in (1, 2, 4, 8)
    }


def test_each_copy_but_the_first_is_shifted_at_random(copied):
    pictures = shifted.PICTURES["numbers"]
    originals = as_images(pictures, copied[1].X)
    background = copied[1].X.min()
    np.testing.assert_array_equal(copied[8].X[:100], copied[1].X)
    seen = set()
    for start in range(100, 800, 100):
        copies = as_images(pictures, copied[8].X[start : start + 100])
        for original, copy in zip(originals, copies, strict=True):
            found = shifts_of(pictures, original, copy, background)
            assert found
            if len(found) == 1:
                seen |= found
    assert len(seen) == 9


def test_more_copies_begin_as_fewer_do_and_have_one_teacher(copied):
    for n, data in copied.items():
        assert len(data.X) == 100 * n
        np.testing.assert_array_equal(data.X, copied[8].X[: 100 * n])
        np.testing.assert_allclose(
            data.embeddings, copied[8].embeddings[: 100 * n], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(data.y, np.tile(copied[1].y, n))
        np.testing.assert_array_equal(data.groups, np.tile(copied[1].groups, n))
        np.testing.assert_array_equal(data.X_score, copied[1].X_score)
        assert data.teacher_accuracy == copied[1].teacher_accuracy


def test_copies_have_the_class_that_their_original_is_given(tmp_path):
    """The true one, or the teacher's of the original where that has no label."""
    task = small("augmented", "numbers")
    task = replace(task, n_copies=3, labelled_share=0.1)
    data = preparation.make_data(task, Paths(None, tmp_path), 3, "validation")
    predicted = data.logits.argmax(1)
    assert (predicted[500:] != np.tile(predicted[:500], 2)).any()
    np.testing.assert_array_equal(data.y[:60], data.true_y[:60])
    np.testing.assert_array_equal(data.y[60:500], predicted[60:500])
    np.testing.assert_array_equal(data.y, np.tile(data.y[:500], 3))


def test_teacher_learns_from_shifts_that_no_student_reads():
    """Both have their own; the labels of the teacher's go with the pictures."""
    task = next(iter(TABLES["augmented"].tasks))
    rng = np.random.default_rng(0)
    pool = Task(
        X=rng.uniform(size=(50, 128)).astype(np.float32),
        y=rng.integers(2, size=50),
        groups=np.arange(50),
        X_score=np.zeros((0, 128), np.float32),
        y_score=np.zeros(0, int),
        n_student=50,
        n_units=32,
    )
    of_teacher = preparation.teacher_rows(task, pool, 3)
    np.testing.assert_array_equal(of_teacher.X[:50], pool.X)
    np.testing.assert_array_equal(of_teacher.y, np.tile(pool.y, 2))
    np.testing.assert_array_equal(of_teacher.groups, np.tile(pool.groups, 2))
    of_student = shifted.with_copies("numbers", pool.X, 2, (3, preparation.OF_STUDENT))
    same = (of_student == of_teacher.X).all(1)
    assert same[:50].all()
    assert not same[50:].all()


def test_students_of_more_copies_take_equally_many_steps(tmp_path):
    batch_size = base.TRAINING["batch_size"]
    by_rows = {}
    for task in TABLES["augmented"].tasks:
        by_rows.setdefault(task.drawn_as, []).append(task)
    for tasks in by_rows.values():
        assert [task.n_copies for task in tasks] == [1, 2, 4, 8]
        assert all(task.arguments["pixels_alike"] for task in tasks)
        steps = set()
        for task in tasks:
            assert task.epoch_bounds == (task.max_epochs, task.max_epochs)
            n_batches, rest = divmod(task.n_student * task.n_copies, batch_size)
            assert not rest
            steps.add(task.max_epochs * n_batches)
        assert len(steps) == 1
        assert len({preparation.teacher_path(task, tmp_path, 3) for task in tasks}) == 1
        assert len({config.digest(task, config.OURS) for task in tasks}) == 4


@pytest.mark.parametrize("pixels_alike", [False, True])
def test_rows_are_scaled_pixel_by_pixel_or_all_pixels_alike(pixels_alike):
    train, score = np.random.default_rng(0).uniform(0, 16, size=(2, 50, 6))
    train[:, 2] /= 100
    task = standardised(
        (train, np.arange(50) % 4),
        (score, np.arange(50) % 4),
        np.arange(4) % 2,
        50,
        8,
        pixels_alike=pixels_alike,
    )
    axis = None if pixels_alike else 0
    for X, original in ((task.X, train), (task.X_score, score)):
        expected = (original - train.mean(axis)) / train.std(axis)
        np.testing.assert_allclose(X, expected, rtol=1e-4, atol=1e-5)
