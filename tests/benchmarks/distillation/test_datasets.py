"""Rows that are scored are never trained on."""

import gzip

import numpy as np
import pytest

from benchmarks.distillation.datasets import draw, texts
from benchmarks.distillation.datasets.base import Paths
from benchmarks.distillation.tables.tasks import TASKS


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
def test_rows_that_are_scored_are_never_trained_on(data, folder):
    task = next(task for task in TASKS if task.folder == folder)
    paths = Paths(data, data)
    scored = []
    for seed in (0, 1):
        drawn = {
            part: draw.draw(task, paths, seed, part).task
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


def test_texts_that_are_scored_are_never_trained_on(tmp_path):
    for part, n in (("train", 1_500), ("test", 20)):
        with gzip.open(tmp_path / f"{part}.tsv.gz", "wt") as file:
            file.write("text\tlabel\n")
            file.writelines(f'"{part} {i}\t{i % 6}\n' for i in range(n))
    parts, n_groups = texts.read_texts(tmp_path, n_train=300, n_score=10)
    assert n_groups == 6
    assert {key: len(part) for key, part in parts.items()} == {
        "train": 300,
        "validation": 10,
        "test": 10,
    }
    assert not set(parts["train"].texts) & set(parts["validation"].texts)
    assert parts["test"].texts[0] == '"test 0'
