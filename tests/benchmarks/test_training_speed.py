"""The benchmark of training: it compares what does the same work, and says so."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("training")


def test_quick_run_prints_every_ratio_and_keeps_nothing(training, monkeypatch, capsys):
    monkeypatch.setattr(training, "write", pytest.fail)
    training.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    for name in ("bare loop", "forward pass"):
        (row,) = (line for line in lines if line.startswith(f"| {name} |"))
        assert row.count("[") == 1
    assert any("skorch" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_says_so(training, monkeypatch, capsys):
    monkeypatch.setattr(training, "write", pytest.fail)
    training.main(["--device", "cuda"])
    assert capsys.readouterr().out == "Skipped: torch finds no CUDA device.\n"


def test_the_loop_by_hand_learns_as_the_student_does(training):
    X, _, soft = training.make_data(2_000)
    soft = training.make_module()(training.torch.from_numpy(3 * X)).softmax(1)
    soft = soft.detach().numpy()
    y = soft.reshape(len(X), 2, 10).sum(axis=2).argmax(axis=1)
    ours = training.train_ours(X, y, soft, 8).loss_curve_
    by_hand = training.train_by_hand(X, soft, 8)
    # The initial weights and the order of rows differ, nothing else.
    np.testing.assert_allclose(by_hand, ours, rtol=0.03)
