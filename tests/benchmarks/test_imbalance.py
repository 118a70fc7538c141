"""The benchmark with a rare class."""

import gzip
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def imbalance(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("imbalance")


def test_without_its_data_it_is_skipped_with_a_line(imbalance, tmp_path, capsys):
    imbalance.main(["--data-dir", str(tmp_path)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Skipped: there is no")


def test_the_length_of_the_call_is_not_read(imbalance, tmp_path):
    table = "age,duration,default,label\n30,200,NA,0\n40,100,no,1\n"
    for part in ("train", "test"):
        with gzip.open(tmp_path / f"{part}.csv.gz", "wt") as file:
            file.write(table)
    for frame in imbalance.read(tmp_path).values():
        assert list(frame.columns) == ["age", "default", "label"]
        assert list(frame["default"]) == ["NA", "no"]


def test_a_shifted_head_takes_the_shares_of_the_classes_out(imbalance):
    head, y = torch.nn.Linear(3, 2), np.array([0, 0, 0, 1])
    before = head.bias.detach().clone()
    rows = torch.randn(5, 3)
    odds = head(rows).softmax(1) / torch.tensor([0.75, 0.25])
    expected = odds / odds.sum(1, keepdim=True)
    torch.testing.assert_close(imbalance.shifted(head, y)(rows).softmax(1), expected)
    torch.testing.assert_close(head.bias.detach(), before)
