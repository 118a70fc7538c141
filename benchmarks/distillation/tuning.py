"""The search of the smaller benchmarks, whose trials are kept as JSON.

It is that of the comparison without a limit of trials: from the first grid on, as long
as a neighbour of the best setting, half or double one value, has not been tried.
"""

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
from joblib import Parallel, delayed, parallel_config

from benchmarks.distillation.config import HARD, Search
from benchmarks.distillation.methods.base import DistillationData, Method, Setting
from benchmarks.distillation.methods.fit import fit
from benchmarks.distillation.search import key_of, next_settings
from benchmarks.distillation.training import accuracies

# A trial is a setting with the key "accuracies", one for each seed.
Trial = dict[str, object]

FIRST_GRID = {
    "learning_rate": [0.02, 0.04, 0.08],
    "temperature": [2.0, 4.0, 8.0],
    "max_epochs": [240],
}
# No method may train for longer than this, and below τ = 1 targets would be sharpened.
BOUNDS = {"max_epochs": (30, 960), "temperature": (1.0, np.inf)}


def tune(
    method: Method,
    data_by_seed: list[DistillationData],
    trials: list[Trial],
    *,
    grid: Mapping[str, list[float]] = FIRST_GRID,
    bounds: Mapping[str, tuple[float, float]] = BOUNDS,
    n_jobs: int = 1,
    after_batch: Callable[[], None] = lambda: None,
) -> Setting:
    """Return the setting of the highest mean accuracy; `trials` grows on the way.

    Settings found in `trials` are not run again, so a search that was stopped goes on.
    """
    search = Search(grid, bounds, n_trials=0, seeds=())
    while wanted := next_settings(search, means_of(trials)):
        scores = score(method, data_by_seed, wanted, n_jobs)
        for setting, row in zip(wanted, scores, strict=True):
            trials.append({**setting, "accuracies": row})
        after_batch()
    return setting_of(max(trials, key=lambda trial: np.mean(trial["accuracies"])))


def settings_in(grid: Mapping[str, list[float]], method: str) -> list[Setting]:
    """Return all settings of a grid, without a temperature for hard labels."""
    names = [name for name in grid if method != HARD or name != "temperature"]
    values = product(*(grid[name] for name in names))
    return [dict(zip(names, row, strict=True)) for row in values]


def setting_of(trial: Trial) -> Setting:
    """Return the setting of a trial."""
    return {name: value for name, value in trial.items() if name != "accuracies"}


def means_of(trials: list[Trial]) -> dict:
    """Return the mean accuracy of each setting that was tried."""
    return {key_of(setting_of(t)): float(np.mean(t["accuracies"])) for t in trials}


def score(
    method: Method,
    data_by_seed: list[DistillationData],
    settings: list[Setting],
    n_jobs: int,
) -> list[list[float]]:
    """Return the accuracy of each setting on the data of each seed.

    Students of one hidden layer are trained side by side, others one by one.
    """
    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        if data_by_seed[0].module is None:
            by_seed = Parallel()(
                delayed(accuracies)(method, [data], settings) for data in data_by_seed
            )
            return np.transpose(np.concatenate(by_seed)).tolist()
        one_by_one = Parallel()(
            delayed(accuracy)(method, data, setting)
            for setting in settings
            for data in data_by_seed
        )
    return np.reshape(one_by_one, (len(settings), len(data_by_seed))).tolist()


def accuracy(method: Method, data: DistillationData, setting: Setting) -> float:
    """Train a student by the public API and return its accuracy."""
    return fit(method, data, setting).score(data.X_score, data.y_score)
