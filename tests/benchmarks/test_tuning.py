"""The searches of the benchmarks leave the first grid where its edge is best."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SUMMIT = {"learning_rate": 0.32, "temperature": 1.0, "max_epochs": 480}


@pytest.fixture
def tuning(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("tuning")

    def score(method, lessons, settings, n_jobs):
        """One hill whose summit lies outside the first grid on every axis."""
        distances = [
            sum(abs(np.log2(setting[name] / SUMMIT[name])) for name in SUMMIT)
            for setting in settings
        ]
        return [[1 - 0.01 * distance] * len(lessons) for distance in distances]

    monkeypatch.setattr(module, "score", score)
    return module


def test_search_climbs_to_a_summit_outside_the_first_grid(tuning):
    trials = []
    assert tuning.tune(None, [None, None], trials) == SUMMIT
    tried = tuning.tried(trials)
    assert all(setting in tried for setting in tuning.neighbours(SUMMIT))
    assert min(setting["temperature"] for setting in tried) == 1.0


@pytest.mark.parametrize("n_kept", [3, 27, 30])
def test_stopped_search_goes_on_to_the_same_trials(tuning, n_kept):
    whole, rest = [], []
    tuning.tune(None, [None], whole)
    rest.extend(whole[:n_kept])
    assert tuning.tune(None, [None], rest) == SUMMIT
    # In another order perhaps, and none twice.
    assert sorted(map(str, rest)) == sorted(map(str, whole))


def test_default_gives_way_only_to_a_clearly_better_candidate(tuning, monkeypatch):
    defaults = importlib.import_module("defaults")
    monkeypatch.setattr(defaults, "CANDIDATES", dict.fromkeys(["now", "new"]))
    now = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    better = np.array([[1.1, 2.3, 3.2, 4.2], [0.2, 0.2, 0.2, 0.2]])
    by_luck = np.array([[4.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    assert defaults.choose({"now": now, "new": better}) == "new"
    assert defaults.choose({"now": now, "new": by_luck}) == "now"
