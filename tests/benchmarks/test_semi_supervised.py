"""The benchmark with few labels: what it reads, and hides."""

import importlib
from argparse import Namespace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def semi_supervised():
    return importlib.import_module("semi_supervised")


def test_a_task_without_data_is_skipped_with_a_line(semi_supervised, tmp_path, capsys):
    assert semi_supervised.names_of_tasks(None) == [semi_supervised.PRIME]
    assert semi_supervised.names_of_tasks(tmp_path) == [semi_supervised.PRIME]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("Skipped: ") for line in lines)


def test_one_row_in_a_hundred_keeps_its_label(semi_supervised):
    options = Namespace(quick=True, data_dir=None)
    make_pool = semi_supervised.make_pool
    pools = {
        teacher: make_pool(semi_supervised.PRIME, teacher, 0, "validation", options)
        for teacher in semi_supervised.TEACHERS
    }
    for pool in pools.values():
        assert pool.n_labelled == (pool.y != -1).sum() == len(pool.X) // 100
        assert (pool.y[: pool.n_labelled] != -1).all()
    heads = [pool.head.weight for pool in pools.values()]
    assert not torch.equal(*heads)
    # Rows without a label take part: the student is another one for them.
    setting = {"learning_rate": 0.03, "temperature": 4.0}
    pool = pools["all labels"]
    found = [
        semi_supervised.score(pool, (semi_supervised.BASELINE, n), setting, 40)
        for n in (0, 4)
    ]
    assert found[0] != found[1]
