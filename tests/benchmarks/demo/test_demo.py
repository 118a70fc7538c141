"""The demo runs from end to end and reports every method."""

import json

import pytest

from benchmarks.demo import run, search
from benchmarks.distillation import tuning
from benchmarks.distillation.config import BASELINE, Search
from benchmarks.distillation.datasets import numbers
from benchmarks.distillation.search import untried_neighbours


@pytest.mark.slow
def test_quick_demo_reports_every_method_and_draws_its_figure(tmp_path, capsys):
    figure = tmp_path / "run.png"
    run.main(["--quick", "--jobs", "1", "--figure", str(figure)])
    lines = capsys.readouterr().out.splitlines()
    for method in run.METHODS:
        (row,) = (line for line in lines if line.startswith(method))
        assert row.count("±") == 2
        assert ("[" in row) == (method != BASELINE)
    assert any("nothing to gain" in line for line in lines)
    assert str(figure) in lines[-1]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_settings_come_from_other_seeds_than_the_demos():
    assert not set(search.SEEDS) & set(run.SEEDS)


def test_training_validation_and_test_digits_are_disjoint():
    parts = [
        {row.tobytes() for row in numbers.read_digits(part)[0]}
        for part in ("train", "validation", "test")
    ]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_every_setting_of_the_demo_has_tried_neighbours():
    """No optimum lies on the edge of what the search tried."""
    results = json.loads(run.RESULTS.read_text())
    for methods in (results[run.MAIN], results[run.NOTHING_TO_GAIN]):
        for found in methods.values():
            tried = tuning.means_of(found["trials"])
            problem = Search({}, tuning.BOUNDS, n_trials=0, seeds=())
            assert not untried_neighbours(problem, found["best"], tried)
