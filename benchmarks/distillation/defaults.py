"""Choose the library's defaults by measurement, on tasks that the demo does not use.

    python benchmarks/distillation/defaults.py [--jobs 2]

The first candidate is the library's default; the others differ from it, or from its
counterpart with principal directions, in one argument. On each task a candidate gets
its own best learning rate, temperature and epochs (found on tuning seeds, from the same
first grid as vanilla distillation); then it is compared with vanilla distillation,
paired, on other seeds. Validation digits only.

The rule: the default stays unless the mean gain over the tasks of another candidate is
higher by more than two standard errors of the paired difference; of several such
candidates the best one takes its place, and the sweep is run again around it.

Writes every trial to ``results/defaults.json``, the table to ``results/defaults.csv``;
about two hours of one core's time. Run again after an interruption, it goes on from
there.
"""

import argparse
import csv
import sys
from functools import partial
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
from joblib import Parallel, delayed, parallel_config

from benchmarks import files
from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.datasets.mixture import gaussian_mixture
from benchmarks.distillation.datasets.numbers import single_digits, two_digits
from benchmarks.distillation.methods.base import DistillationData, Method
from benchmarks.distillation.preparation import prepare
from benchmarks.distillation.tuning import score, tune
from benchmarks.files import read_json, write_json

RESULTS = files.RESULTS / "defaults.json"
TUNING_SEEDS = [200, 201]
SEEDS = [210, 211, 212, 213, 214]
TASKS = {
    "numbers divisible by 3": partial(two_digits, labeling="numbers divisible by 3"),
    "numbers in random halves": partial(
        two_digits, labeling="numbers in random halves", n_student=1_000
    ),
    "mixture of 40 Gaussians": gaussian_mixture,
    "single digits": single_digits,
}


def fall(end: float, progress: float) -> float:
    """Let λ fall linearly from 1 to 0 until `end`, a share of the training."""
    return max(0.0, 1 - progress / end)


KMEANS = {"splitter": "kmeans", "n_subclasses": 20, "subclass_temperature": 0.1}
PCA = {
    "splitter": "pca",
    "rotation": "equal",
    "n_subclasses": 20,
    "subclass_temperature": 0.3,
}
ANNEAL = {"subclass_weight": partial(fall, 0.5)}
QUARTER = {"subclass_weight": partial(fall, 0.25)}
EIGHTH = {"subclass_weight": partial(fall, 0.125)}
ONE_WITHIN = {**ANNEAL, "within_class_temperature": 1.0}

CANDIDATES = {
    "k-means": Method(KMEANS, ANNEAL),
    "k-means, S = 40": Method({**KMEANS, "n_subclasses": 40}, ANNEAL),
    "k-means, S = 10": Method({**KMEANS, "n_subclasses": 10}, ANNEAL),
    "k-means, β = 0.05": Method({**KMEANS, "subclass_temperature": 0.05}, ANNEAL),
    "k-means, β = 0.2": Method({**KMEANS, "subclass_temperature": 0.2}, ANNEAL),
    "k-means, hard": Method({**KMEANS, "subclass_temperature": 0.0}, ONE_WITHIN),
    "k-means, τ = 1 within": Method(KMEANS, ONE_WITHIN),
    "k-means, λ to a quarter": Method(KMEANS, QUARTER),
    "k-means, λ to an eighth": Method(KMEANS, EIGHTH),
    "k-means, λ = 1": Method(KMEANS, {"subclass_weight": 1.0}),
    "PCA": Method(PCA, ANNEAL),
    "PCA, β = 0.5": Method({**PCA, "subclass_temperature": 0.5}, ANNEAL),
    "PCA, λ to a quarter": Method(PCA, QUARTER),
    "PCA, random rotation": Method({**PCA, "rotation": "random"}, ANNEAL),
    "PCA, no rotation": Method({**PCA, "rotation": None}, ANNEAL),
    "random directions": Method({**PCA, "splitter": "random"}, ANNEAL),
    "LELP as published": Method(
        {**PCA, "rotation": "random"}, {"subclass_weight": 1.0}
    ),
    "same outputs, λ = 0": Method(KMEANS, {"subclass_weight": 0.0}),
}
VANILLA = Method({"n_subclasses": 1})


def compare(
    task: str, name: str, data_by_seed: dict[str, list[DistillationData]]
) -> tuple:
    """Tune a candidate on one task, then score its best setting on the other seeds."""
    method = {"vanilla KD": VANILLA, **CANDIDATES}[name]
    trials = []
    best = tune(method, data_by_seed["tuning"], trials)
    accuracies = score(method, data_by_seed["scoring"], [best], n_jobs=1)[0]
    return task, name, {"trials": trials, "best": best, "accuracies": accuracies}


def prepare_data(tasks: set[str], seeds: dict[str, list[int]]) -> dict[str, dict]:
    """Train the teachers: the data_by_seed of each task, for tuning and for scoring."""
    wanted = [
        (task, use, seed)
        for task in sorted(tasks)
        for use in seeds
        for seed in seeds[use]
    ]
    made = Parallel()(
        delayed(prepare)(TASKS[task](seed, "validation"), seed)
        for task, _, seed in wanted
    )
    data_by_seed = {task: {use: [] for use in seeds} for task in tasks}
    for (task, use, _), data in zip(wanted, made, strict=True):
        data_by_seed[task][use].append(data)
    return data_by_seed


def gains(results: dict) -> dict[str, Array]:
    """Return each candidate's gains over vanilla KD in points, (n_tasks, n_seeds)."""
    accuracies = {
        name: np.array([results[task][name]["accuracies"] for task in TASKS])
        for name in ["vanilla KD", *CANDIDATES]
    }
    return {
        name: 100 * (accuracies[name] - accuracies["vanilla KD"]) for name in CANDIDATES
    }


def choose(gain: dict[str, Array]) -> str:
    """Apply the rule to gains of shape (n_tasks, n_seeds), the default first."""
    default, *others = CANDIDATES
    clearly_better = {default: 0.0}
    for name in others:
        difference = (gain[name] - gain[default]).mean(axis=0)
        error = difference.std(ddof=1) / len(difference) ** 0.5
        if difference.mean() > 2 * error:
            clearly_better[name] = difference.mean()
    return max(clearly_better, key=clearly_better.get)


def print_table(results: dict) -> None:
    """Print and write the gains of every candidate, and the choice."""
    gain = gains(results)
    rows = [["candidate", *TASKS, "mean"]]
    for name, values in gain.items():
        errors = values.std(axis=1, ddof=1) / values.shape[1] ** 0.5
        cells = zip(values.mean(axis=1), errors, strict=True)
        mean = f"{values.mean():+.2f}"
        rows.append([name, *(f"{m:+.2f} ± {e:.2f}" for m, e in cells), mean])
    with RESULTS.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    for row in rows:
        print("".join(f"{cell:26}" for cell in row))
    print("Gain over vanilla KD in points ± standard error, each tuned on each task.")
    print("The rule chooses:", choose(gain))


def main(arguments: list[str] | None = None) -> None:
    """Run all candidates on all tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    n_jobs = parser.parse_args(arguments).jobs
    seeds = {"tuning": TUNING_SEEDS, "scoring": SEEDS}
    results = read_json(RESULTS, {"seeds": seeds, "scored on": "validation digits"})
    wanted = [
        (task, name)
        for task in TASKS
        for name in ["vanilla KD", *CANDIDATES]
        if name not in results.setdefault(task, {})
    ]
    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        data_by_seed = prepare_data({task for task, _ in wanted}, seeds)
        found = Parallel(return_as="generator_unordered")(
            delayed(compare)(task, name, data_by_seed[task]) for task, name in wanted
        )
        for task, name, result in found:
            results[task][name] = result
            write_json(RESULTS, results)
            accuracy = np.mean(result["accuracies"])
            print(f"{task}, {name}: {accuracy:.4f} with {result['best']}", flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
