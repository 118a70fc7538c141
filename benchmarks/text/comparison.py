"""Tune every method alike on validation texts, then compare them on test texts."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from joblib import Parallel, delayed, parallel_config
from torch import nn

from benchmarks.distillation.config import BASELINE, FITNET, HARD
from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods import METHODS
from benchmarks.distillation.methods.base import DistillationData, Setting, subclasses
from benchmarks.distillation.methods.fit import fit
from benchmarks.distillation.statistics import agreement, interval, level, paired
from benchmarks.distillation.tuning import tune
from benchmarks.files import markdown

TEMPERATURE = 4.0
SPLITTERS = {"principal directions": "pca", "k-means": "kmeans"}
REGRESSION_WEIGHTS = [10.0, 100.0]


@dataclass(frozen=True)
class TextTask:
    """What is compared, on which seeds, and where the searches start.

    `make_data` takes the name of a reader, a seed and whether test texts, rather than
    validation texts, are to be scored. `scored_on` has the numbers of the test texts,
    in their order. The rest is for the costs: `teacher` is the module whose size counts
    and `ask_teacher` its answer to one of some `texts`; `fit_reader` gives the reader
    of a name.
    """

    title: str
    make_data: Callable[[str, int, bool], DistillationData]
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
        if method != HARD:
            grid["temperature"] = [TEMPERATURE]
        if method == FITNET:
            grid["regression_weight"] = REGRESSION_WEIGHTS
        return grid


def search(task: TextTask, reader: str, found: dict, n_jobs: int, keep) -> None:
    """Find the best setting of each method; `found` grows, and is kept on the way.

    Students that cannot be trained side by side are searched for on one seed.
    """
    data_by_seed = [task.make_data(reader, seed, False) for seed in task.search_seeds]
    if data_by_seed[0].module is not None:
        data_by_seed = data_by_seed[:1]
    for method in task.methods:
        of_method = found.setdefault(method, {"trials": []})
        start = time.perf_counter()
        of_method["best"] = tune(
            METHODS[method],
            data_by_seed,
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
    task: TextTask,
    data_by_seed: list[DistillationData],
    settings: dict[str, Setting],
    n_jobs: int,
) -> dict[str, dict[str, Array]]:
    """Return each method's accuracy by seed, for each set of test texts."""
    calls = [
        delayed(right)(data, method, settings[method])
        for method in task.methods
        for data in data_by_seed
    ]
    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        rows = Parallel()(calls)
    by_method = np.reshape(rows, (len(task.methods), len(data_by_seed), -1))
    ends = np.cumsum([0, *task.scored_on.values()])
    return {
        name: dict(
            zip(task.methods, by_method[:, :, first:last].mean(axis=2), strict=True)
        )
        for name, (first, last) in zip(task.scored_on, pairwise(ends), strict=True)
    }


def right(data: DistillationData, method: str, setting: Setting) -> Array:
    """Train a student; return for each test text whether it was right."""
    predicted = fit(METHODS[method], data, setting).predict(data.X_score)
    return predicted == data.y_score


def print_table(scores: dict[str, dict[str, Array]], settings: dict) -> None:
    """Print a line a method: for each set of test texts accuracy and paired gain."""
    rows = []
    for method in next(iter(scores.values())):
        row = [method]
        for of_method in scores.values():
            lead = 100 * (of_method[method] - of_method[BASELINE])
            row.append(level(100 * of_method[method]))
            row.append("" if method == BASELINE else interval(paired(lead)))
        rows.append([*row, ", ".join(f"{x:g}" for x in settings[method].values())])
    titles = [x for name in scores for x in (f"{name}, %", f"gain over {BASELINE}")]
    print(markdown(["method", *titles, "setting"], rows))


def print_agreement(data_by_seed: Sequence[DistillationData]) -> None:
    """Print how well subclasses meet the groups that the classes hide."""
    for name, splitter in SPLITTERS.items():
        values = [agreement(d, subclasses(d, splitter=splitter)) for d in data_by_seed]
        print(
            f"Adjusted mutual information of groups and {name}: {np.mean(values):.2f}"
        )
