"""The benchmark of accelerators: what it compares agrees, and what it keeps stays."""

import json

import pytest

from benchmarks.speed import gpu


def test_quick_run_prints_tables_and_keeps_nothing(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "write_json", pytest.fail)
    monkeypatch.setattr(gpu, "QUICK", gpu.Size(3000, 24, 1))
    gpu.main(["--quick", "--device", "cpu"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    errors = [float(line[6]) for line in lines if len(line) > 3 and line[2] == "ours"]
    assert len(errors) == 5
    assert max(errors) < 1e-4
    assert {line[0] for line in lines} >= {"| ours, pca", "| ours, kmeans"}


def test_without_an_accelerator_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    gpu.main([])
    assert capsys.readouterr().out.startswith("No accelerator")


def test_parts_of_one_machine_stand_in_one_file(tmp_path):
    path = tmp_path / "gpu.json"
    gpu.keep(path, "training", [1], {"device": "A"})
    gpu.keep(path, "projector", [2], {"device": "A"})
    kept = json.loads(path.read_text())
    assert kept == {"machine": {"device": "A"}, "training": [1], "projector": [2]}
    gpu.keep(path, "projector", [3], {"device": "B"})
    assert json.loads(path.read_text()) == {
        "machine": {"device": "B"},
        "projector": [3],
    }
