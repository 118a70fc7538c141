"""Tune every method alike on validation texts, then compare them on test texts."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from joblib import Parallel, delayed, parallel_config
from torch import nn

from demo import BASELINE, SPLITTERS, mean_interval, purity
from methods import METHODS, Lesson, Setting, fit
from tasks import Array
from tuning import tune

TEMPERATURE = 4.0
REGRESSION_WEIGHTS = [10.0, 100.0]


@dataclass(frozen=True)
class TextTask:
    """What is compared, on which seeds, and where the searches start.

    `make_lesson` takes the name of a reader, a seed and whether test texts, rather than
    validation texts, are to be scored. `scored_on` has the numbers of the test texts,
    in their order. The rest is for the costs: `teacher` is the module whose size counts
    and `ask_teacher` its answer to one of some `texts`; `fit_reader` gives the reader
    of a name.
    """

    title: str
    make_lesson: Callable[[str, int, bool], Lesson]
    methods: list[str]
    learning_rates: list[float]
    epochs: int
    epoch_bounds: tuple[int, int]
    search_seeds: list[int]
    seeds: Iterable[int]
    scored_on: dict[str, int]
    teacher: nn.Module
    ask_teacher: Callable[[str], object]
    fit_reader: Callable[[str], object]
    texts: list[str]

    def first_grid(self, method: str) -> dict[str, list]:
        """Return the first grid: the same for all methods, in what they have."""
        grid = {"learning_rate": self.learning_rates, "max_epochs": [self.epochs]}
        if method != "hard labels":
            grid["temperature"] = [TEMPERATURE]
        if method == "FitNet":
            grid["regression_weight"] = REGRESSION_WEIGHTS
        return grid


def search(task: TextTask, reader: str, found: dict, n_jobs: int, keep) -> None:
    """Find the best setting of each method; `found` grows, and is kept on the way.

    Students that cannot be trained side by side are searched for on one seed.
    """
    lessons = [task.make_lesson(reader, seed, False) for seed in task.search_seeds]
    if lessons[0].module is not None:
        lessons = lessons[:1]
    for method in task.methods:
        of_method = found.setdefault(method, {"trials": []})
        start = time.perf_counter()
        of_method["best"] = tune(
            METHODS[method],
            lessons,
            of_method["trials"],
            grid=task.first_grid(method),
            bounds={"max_epochs": task.epoch_bounds, "temperature": (1.0, np.inf)},
            n_jobs=n_jobs,
            after_batch=keep,
        )
        keep()
        elapsed = time.perf_counter() - start
        print(f"{task.title}, {reader}, {method}: {of_method['best']}, {elapsed:.0f} s")


def compare(
    task: TextTask, lessons: list[Lesson], settings: dict[str, Setting], n_jobs: int
) -> dict[str, dict[str, Array]]:
    """Return each method's accuracy by seed, for each set of test texts."""
    calls = [
        delayed(right)(lesson, method, settings[method])
        for method in task.methods
        for lesson in lessons
    ]
    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        rows = Parallel()(calls)
    by_method = np.reshape(rows, (len(task.methods), len(lessons), -1))
    ends = np.cumsum([0, *task.scored_on.values()])
    return {
        name: dict(
            zip(task.methods, by_method[:, :, first:last].mean(axis=2), strict=True)
        )
        for name, (first, last) in zip(task.scored_on, pairwise(ends), strict=True)
    }


def right(lesson: Lesson, method: str, setting: Setting) -> Array:
    """Train a student; tell for each test text whether it was right."""
    predicted = fit(METHODS[method], lesson, setting).predict(lesson.X_score)
    return predicted == lesson.y_score


def print_table(scores: dict[str, dict[str, Array]], settings: dict) -> None:
    """Print a line a method: for each set of test texts accuracy and paired gain."""
    titles = [f"{name}, % | gain over {BASELINE}" for name in scores]
    print("| method | " + " | ".join(titles) + " | setting |")
    print("| --- " * (2 + 2 * len(scores)) + "|")
    for method in next(iter(scores.values())):
        cells = [method]
        for of_method in scores.values():
            values = 100 * of_method[method]
            error = values.std(ddof=1) / len(values) ** 0.5
            cells.append(f"{values.mean():.2f} ± {error:.2f}")
            cells.append(gain(100 * of_method[BASELINE], values, method))
        cells.append(", ".join(f"{value:g}" for value in settings[method].values()))
        print("| " + " | ".join(cells) + " |")


def gain(baseline: Array, values: Array, method: str) -> str:
    """Return the gain, paired by seed, with its 95 % confidence interval."""
    if method == BASELINE:
        return ""
    mean, half = mean_interval(values - baseline)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def print_purity(lessons: Sequence[Lesson]) -> None:
    """Print how well subclasses meet the groups that the classes hide."""
    for name, splitter in SPLITTERS.items():
        values = [purity(lesson, splitter) for lesson in lessons]
        print(
            f"Adjusted mutual information of groups and {name}: {np.mean(values):.2f}"
        )
