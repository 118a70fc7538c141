"""The benchmark of training: it compares what does the same work, and says so."""

import numpy as np
import pytest
import torch

from benchmarks.training import run


def test_quick_run_prints_every_ratio_and_keeps_nothing(monkeypatch, capsys):
    monkeypatch.setattr(run, "write_json", pytest.fail)
    run.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    for name in ("bare loop", "forward pass"):
        (row,) = (line for line in lines if line.startswith(f"| {name} |"))
        assert row.count("[") == 1
    assert any("skorch" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr(run, "write_json", pytest.fail)
    run.main(["--device", "cuda"])
    assert capsys.readouterr().out == "Skipped: torch finds no CUDA device.\n"


def test_the_loop_by_hand_learns_as_the_student_does():
    X, _, soft = run.make_data(2_000)
    soft = run.make_module()(torch.from_numpy(3 * X)).softmax(1)
    soft = soft.detach().numpy()
    y = soft.reshape(len(X), 2, 10).sum(axis=2).argmax(axis=1)
    ours = run.train_ours(X, y, soft, 8).loss_curve_
    by_hand = run.train_by_hand(X, soft, 8)
    # The initial weights and the order of rows differ, nothing else.
    np.testing.assert_allclose(by_hand, ours, rtol=0.03)
