"""The benchmark of sparse rows compares what does the same work."""

import numpy as np
import pytest

from benchmarks.training import sparse


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(sparse, "N_FEATURES", 2**10)
    monkeypatch.setattr(sparse, "N_ROWS_QUICK", 600)
    monkeypatch.setattr(sparse, "write_json", pytest.fail)


def test_quick_run_prints_every_ratio_and_keeps_nothing(capsys):
    sparse.main(["speed", "banking77", "--quick"])
    lines = capsys.readouterr().out.splitlines()
    for name in sparse.BARS:
        (row,) = (line for line in lines if f"/ {name} |" in line)
        assert row.count("[") == 1
    assert lines[-1] == "Skipped: banking77, which is not in --data-dir."


def test_the_loop_by_hand_learns_as_the_student_does():
    X, y, soft = sparse.make_data(3_000)
    ours = sparse.make_student("adamw", 4).fit(X, y, soft_targets=soft).loss_curve_
    by_hand = sparse.train_by_hand(X, soft, 4)
    # The initial weights and the order of rows differ, nothing else.
    np.testing.assert_allclose(by_hand, ours, rtol=0.02)
