"""The searches of the benchmarks leave the first grid where its edge is best."""

import numpy as np
import pytest

from benchmarks.distillation import defaults, tuning
from benchmarks.distillation.config import Search
from benchmarks.distillation.search import untried_neighbours

SUMMIT = {"learning_rate": 0.32, "temperature": 1.0, "max_epochs": 480}


@pytest.fixture
def hill(monkeypatch):
    """Score settings by their place on a hill."""

    def score(method, data_by_seed, settings, n_jobs):
        """One hill whose summit lies outside the first grid on every axis."""
        distances = [
            sum(abs(np.log2(setting[name] / SUMMIT[name])) for name in SUMMIT)
            for setting in settings
        ]
        return [[1 - 0.01 * distance] * len(data_by_seed) for distance in distances]

    monkeypatch.setattr(tuning, "score", score)


def test_search_climbs_to_a_summit_outside_the_first_grid(hill):
    trials = []
    assert tuning.tune(None, [None, None], trials) == SUMMIT
    tried = [tuning.setting_of(trial) for trial in trials]
    search = Search({}, tuning.BOUNDS, n_trials=0, seeds=())
    assert not untried_neighbours(search, SUMMIT, tuning.means_of(trials))
    assert min(setting["temperature"] for setting in tried) == 1.0


@pytest.mark.parametrize("n_kept", [3, 27, 30])
def test_stopped_search_goes_on_to_the_same_trials(hill, n_kept):
    whole, rest = [], []
    tuning.tune(None, [None], whole)
    rest.extend(whole[:n_kept])
    assert tuning.tune(None, [None], rest) == SUMMIT
    # In another order perhaps, and none twice.
    assert sorted(map(str, rest)) == sorted(map(str, whole))


def test_default_gives_way_only_to_a_clearly_better_candidate(monkeypatch):
    monkeypatch.setattr(defaults, "CANDIDATES", dict.fromkeys(["now", "new"]))
    now = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    better = np.array([[1.1, 2.3, 3.2, 4.2], [0.2, 0.2, 0.2, 0.2]])
    by_luck = np.array([[4.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    assert defaults.choose({"now": now, "new": better}) == "new"
    assert defaults.choose({"now": now, "new": by_luck}) == "now"
