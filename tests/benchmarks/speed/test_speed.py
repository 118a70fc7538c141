"""The speed benchmark keeps what it measured before; no time is looked at here."""

import json
from types import SimpleNamespace

import pytest
import torch
from numpy.testing import assert_allclose

from benchmarks.speed import memory, peers, problems, run
from lelp_sklearn import LELPProjector


@pytest.fixture
def speed(monkeypatch, tmp_path):
    """The benchmark with two parts that measure nothing."""
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    part = SimpleNamespace(
        measure=lambda options: {"repeats": options.repeats},
        table=lambda entry: f"{entry['repeats']} turns",
    )
    monkeypatch.setattr(run, "PARTS", {"first": part, "second": part})
    monkeypatch.setattr(run, "machine", lambda: {"cores": 2})
    return run


def parts(path):
    results = json.loads(path.read_text())
    return {name: entry["repeats"] for name, entry in results["parts"].items()}


def test_a_part_measured_again_leaves_the_others(speed, tmp_path, capsys):
    speed.main([])
    speed.main(["second", "--repeats", "5"])
    assert parts(tmp_path / "speed_quick.json") == {"first": 3, "second": 5}
    assert capsys.readouterr().out.endswith("\n## second\n\n5 turns\n")


def test_each_part_names_its_machine(speed, tmp_path, monkeypatch):
    speed.main([])
    monkeypatch.setattr(speed, "machine", lambda: {"cores": 4})
    speed.main(["second"])
    results = json.loads((tmp_path / "speed_quick.json").read_text())["parts"]
    cores = {name: entry["machine"]["cores"] for name, entry in results.items()}
    assert cores == {"first": 2, "second": 4}


def test_quick_results_do_not_touch_the_full_ones(speed, tmp_path):
    speed.main(["--full"])
    speed.main(["second"])
    assert parts(tmp_path / "speed.json") == {"first": 7, "second": 7}
    assert parts(tmp_path / "speed_quick.json") == {"second": 3}


def test_a_size_that_does_not_fit_the_disk_is_skipped(speed, monkeypatch, tmp_path):
    monkeypatch.setattr(
        memory.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e6)
    )
    entry = memory.measure(problems.Options(full=True, repeats=1, scratch=tmp_path))
    table = memory.table(entry)
    assert table.count("skipped, needs") == len(memory.FULL)
    assert not any(tmp_path.iterdir())


def test_the_peers_compute_the_soft_labels_of_the_projector():
    shape = problems.Shape(300, 20, 2, 3)
    teacher = problems.Teacher(shape)
    X, y = teacher.draw(shape.n_rows)
    projector = LELPProjector(
        shape.n_subclasses, splitter="pca", head=teacher.head, random_state=0
    )
    expected = projector.fit(X, y).transform(X)
    columns = peers.soft_label_columns(projector, X.dtype)
    offsets_shape = projector.offsets_.shape
    found = peers.numpy_soft_labels(X, *columns, offsets_shape)
    assert_allclose(found, expected, rtol=0, atol=1e-5)
    tensors = [torch.from_numpy(array) for array in (X, *columns)]
    for peer in (peers.torch_soft_labels, peers.torch_transposed_soft_labels):
        found = peer(*tensors, offsets_shape).numpy()
        assert_allclose(found, expected, rtol=0, atol=1e-5)
