"""The benchmark with a rare class."""

import gzip

import numpy as np
import torch

from benchmarks.distillation import imbalance
from benchmarks.distillation.datasets.customers import read_customers


def test_without_its_data_it_is_skipped_with_a_line(tmp_path, capsys):
    imbalance.main(["--data-dir", str(tmp_path)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Skipped: there is no")


def test_the_length_of_the_call_is_not_read(tmp_path):
    table = "age,duration,default,label\n30,200,NA,0\n40,100,no,1\n"
    for part in ("train", "test"):
        with gzip.open(tmp_path / f"{part}.csv.gz", "wt") as file:
            file.write(table)
    for frame in read_customers(tmp_path, "duration").values():
        assert list(frame.columns) == ["age", "default", "label"]
        assert list(frame["default"]) == ["NA", "no"]


def test_a_shifted_head_takes_the_shares_of_the_classes_out():
    head, y = torch.nn.Linear(3, 2), np.array([0, 0, 0, 1])
    before = head.bias.detach().clone()
    rows = torch.randn(5, 3)
    odds = head(rows).softmax(1) / torch.tensor([0.75, 0.25])
    expected = odds / odds.sum(1, keepdim=True)
    torch.testing.assert_close(imbalance.shifted(head, y)(rows).softmax(1), expected)
    torch.testing.assert_close(head.bias.detach(), before)
