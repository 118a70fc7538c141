"""A grid search that goes on while its best setting lies on the edge of what was tried.

Every method starts from the same grid. As long as a neighbour of the best setting, half
or double the value of one argument, has not been tried, the neighbours are tried.
"""

import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import sklearn
import torch
from joblib import Parallel, delayed, parallel_config

import lelp_sklearn
from methods import Lesson, Method, Setting, fit
from stacked import accuracies

# A trial is a setting with the key "accuracies", one for each lesson.
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
    lessons: list[Lesson],
    trials: list[Trial],
    *,
    grid: dict[str, list[float]] = FIRST_GRID,
    bounds: dict[str, tuple[float, float]] = BOUNDS,
    n_jobs: int = 1,
    after_batch: Callable[[], None] = lambda: None,
) -> Setting:
    """Return the setting of the highest mean accuracy; `trials` grows on the way.

    Settings found in `trials` are not run again, so a search that was stopped goes on.
    """
    while wanted := untried(trials, grid, bounds):
        scores = score(method, lessons, wanted, n_jobs)
        for setting, row in zip(wanted, scores, strict=True):
            trials.append({**setting, "accuracies": row})
        after_batch()
    return best(trials)


def untried(
    trials: list[Trial],
    grid: dict[str, list[float]],
    bounds: dict[str, tuple[float, float]] = BOUNDS,
) -> list[Setting]:
    """Return what is left of the grid, and after it the neighbours of the best."""
    first = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    done = tried(trials)
    missing = [setting for setting in first if setting not in done]
    return missing or [s for s in neighbours(best(trials), bounds) if s not in done]


def tried(trials: list[Trial]) -> list[Setting]:
    """Return the settings of trials."""
    return [
        {name: value for name, value in trial.items() if name != "accuracies"}
        for trial in trials
    ]


def best(trials: list[Trial]) -> Setting:
    """Return the setting with the highest mean accuracy."""
    return tried([max(trials, key=lambda trial: np.mean(trial["accuracies"]))])[0]


def neighbours(
    setting: Setting, bounds: dict[str, tuple[float, float]] = BOUNDS
) -> list[Setting]:
    """Return the setting with one value halved or doubled, within the bounds."""
    found = []
    for name, value in setting.items():
        lowest, highest = bounds.get(name, (0, np.inf))
        for other in (value / 2, value * 2):
            if lowest <= other <= highest:
                found.append({**setting, name: type(value)(other)})
    return found


def score(
    method: Method, lessons: list[Lesson], settings: list[Setting], n_jobs: int
) -> list[list[float]]:
    """Return the accuracy of each setting on each lesson.

    Students of one hidden layer are trained side by side, others one by one.
    """
    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        if lessons[0].module is None:
            by_lesson = Parallel()(
                delayed(accuracies)(method, lesson, settings) for lesson in lessons
            )
            return np.transpose(by_lesson).tolist()
        one_by_one = Parallel()(
            delayed(accuracy)(method, lesson, setting)
            for setting in settings
            for lesson in lessons
        )
    return np.reshape(one_by_one, (len(settings), len(lessons))).tolist()


def accuracy(method: Method, lesson: Lesson, setting: Setting) -> float:
    """Train a student by the public API and return its accuracy."""
    return fit(method, lesson, setting).score(lesson.X_score, lesson.y_score)


def read_results(path: Path, made_with: dict) -> dict:
    """Return the results of an earlier run, or none where it was made otherwise."""
    if path.exists():
        results = json.loads(path.read_text())
        if results["made_with"] == made_with:
            return results
    return {"made_with": made_with, "versions": versions()}


def best_settings(path: Path, task: str) -> dict[str, Setting]:
    """Return the best setting of each method on a task from a file of results."""
    results = json.loads(path.read_text())
    return {method: found["best"] for method, found in results[task].items()}


def write_results(path: Path, results: dict) -> None:
    """Write results beside their place and move them there once complete."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    os.replace(unfinished, path)


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    packages = (lelp_sklearn, sklearn, torch, np)
    return {package.__name__: package.__version__ for package in packages}
