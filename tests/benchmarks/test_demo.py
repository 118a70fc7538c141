"""The demo runs from end to end and reports every method."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("demo")


def test_quick_demo_reports_every_method_and_draws_its_figure(demo, tmp_path, capsys):
    figure = tmp_path / "demo.png"
    demo.main(["--quick", "--jobs", "1", "--figure", str(figure)])
    lines = capsys.readouterr().out.splitlines()
    for method in demo.METHODS:
        (row,) = (line for line in lines if line.startswith(method))
        assert row.count("±") == 2
        assert ("[" in row) == (method != demo.BASELINE)
    assert any("nothing to gain" in line for line in lines)
    assert str(figure) in lines[-1]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_settings_come_from_other_seeds_than_the_demos(demo):
    search = importlib.import_module("search")
    assert not set(search.SEEDS) & set(demo.SEEDS)


def test_training_validation_and_test_digits_are_disjoint(demo):
    tasks = importlib.import_module("tasks")
    parts = [
        {row.tobytes() for row in tasks._digits(part)[0]}
        for part in ("train", "validation", "test")
    ]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_every_setting_of_the_demo_has_tried_neighbours(demo):
    """No optimum lies on the edge of what the search tried."""
    tuning = importlib.import_module("tuning")
    results = tuning.json.loads(demo.RESULTS.read_text())
    for methods in (results[demo.MAIN], results[demo.NOTHING_TO_GAIN]):
        for found in methods.values():
            settings = tuning.tried(found["trials"])
            assert all(s in settings for s in tuning.neighbours(found["best"]))
