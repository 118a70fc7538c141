"""What subclass targets add to distillation when the teacher knows only two classes.

    python benchmarks/demo/run.py [--quick] [--jobs 2] [--figure PATH]

Two of scikit-learn's handwritten digits side by side make a two-digit number; the class
is whether it is prime. A teacher learns the two classes from 30 000 such images;
students of 32 hidden units learn from 2 000, by ten methods. The students of a seed
share images, teacher, initial weights of the hidden layer and order of batches.
Learning rate, temperature and epochs are each method's own best, found by ``search.py``
on other seeds and other digits.
"""

import argparse
import json
import sys
import time
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
from joblib import Parallel, delayed, parallel_config
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from benchmarks.demo.figure import draw
from benchmarks.demo.search import MAIN, NOTHING_TO_GAIN, RESULTS, TASKS
from benchmarks.distillation.config import BASELINE, ORACLE, OURS
from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods import METHODS
from benchmarks.distillation.methods.base import DistillationData, subclasses
from benchmarks.distillation.methods.fit import fit
from benchmarks.distillation.preparation import prepare
from benchmarks.distillation.statistics import agreement, interval, level, paired

SEEDS = range(8)
SPLITTERS = {"principal directions": "pca", "k-means": "kmeans"}


def make_data(task: str, seed: int, quick: bool) -> DistillationData:
    """Draw the images of a seed and train its teacher."""
    if not quick:
        return prepare(TASKS[task](seed, "test"), seed)
    sizes = {"n_train": 4_000, "n_student": 400} if task == MAIN else {}
    return prepare(TASKS[task](seed, "test", **sizes), seed, n_steps=50)


def judge(data: DistillationData, method: str, setting: dict) -> tuple[float, float]:
    """Train a student; return its accuracy and balanced accuracy on test digits."""
    predicted = fit(METHODS[method], data, setting).predict(data.X_score)
    return (
        accuracy_score(data.y_score, predicted),
        balanced_accuracy_score(data.y_score, predicted),
    )


def in_parallel(what: str, n_jobs: int, calls: list) -> list:
    """Run calls in worker processes of one thread each and show the progress."""
    results, start = [], time.perf_counter()
    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        for result in Parallel(return_as="generator")(calls):
            results.append(result)
            if len(results) % 10 == 0 or len(results) == len(calls):
                elapsed = time.perf_counter() - start
                done = f"{len(results)} of {len(calls)}"
                print(f"{what}: {done}, {elapsed:.0f} s", flush=True)
    return results


def compare(
    task: str, methods: list[str], options: argparse.Namespace
) -> tuple[list[DistillationData], dict[str, Array]]:
    """Return the data of each seed, and each method's scores, (n_seeds, 2)."""
    seeds = SEEDS[:2] if options.quick else SEEDS
    data_by_seed = in_parallel(
        f"{task}, teachers",
        options.jobs,
        [delayed(make_data)(task, seed, options.quick) for seed in seeds],
    )
    found = json.loads(RESULTS.read_text(encoding="utf-8"))[task]
    epochs = {"max_epochs": 5} if options.quick else {}
    scores = in_parallel(
        f"{task}, students",
        options.jobs,
        [
            delayed(judge)(data, method, found[method]["best"] | epochs)
            for data in data_by_seed
            for method in methods
        ],
    )
    by_method = np.reshape(scores, (len(seeds), len(methods), 2)).swapaxes(0, 1)
    return data_by_seed, dict(zip(methods, by_method, strict=True))


def gain_over_baseline(scores: dict[str, Array], method: str) -> str:
    """Return the paired gain in accuracy, in points, with its interval."""
    return interval(paired(100 * (scores[method] - scores[BASELINE])[:, 0]))


def print_table(scores: dict[str, Array]) -> None:
    """Print a line per method: mean ± standard error, paired gain, share closed."""
    titles = "accuracy %", "balanced %", "gain over vanilla KD", "distance closed"
    print("\n" + " " * 25 + "{:16}{:16}{:23}{}".format(*titles))
    means = {method: values[:, 0].mean() for method, values in scores.items()}
    distance = means[ORACLE] - means[BASELINE]
    for method, values in scores.items():
        line = f"{method:25}" + "".join(level(x).ljust(16) for x in 100 * values.T)
        if method != BASELINE:
            line += f"{gain_over_baseline(scores, method):23}"
        if method != BASELINE and distance > 0:
            line += f"{(means[method] - means[BASELINE]) / distance:10.0%}"
        print(line)
    print(
        "± standard error; [95 % confidence interval, paired by seed]; the distance is"
        f" that\nfrom {BASELINE} to the {ORACLE}, which knows the hundred numbers."
    )


def print_agreement(data_by_seed: list[DistillationData]) -> None:
    """Print how well the subclasses of each splitter agree with the hidden numbers."""
    print("\nAdjusted mutual information of subclasses and hidden numbers, in a class:")
    for name, splitter in SPLITTERS.items():
        values = [agreement(d, subclasses(d, splitter=splitter)) for d in data_by_seed]
        print(f"  {name:20} {np.mean(values):.2f}")


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison, print its table and draw its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, not a result")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--figure", type=Path, default=Path("demo.png"))
    options = parser.parse_args(arguments)
    start = time.perf_counter()

    data_by_seed, scores = compare(MAIN, list(METHODS), options)
    teachers = np.mean([data.teacher_accuracy for data in data_by_seed])
    print(f"\nPrime or not, {len(data_by_seed)} seeds; the teacher has {teachers:.1%}.")
    print_table(scores)
    print_agreement(data_by_seed)

    _, others = compare(NOTHING_TO_GAIN, [BASELINE, OURS], options)
    print(
        "\nWhere there is nothing to gain (single digits, even or odd): "
        f"{BASELINE} {others[BASELINE][:, 0].mean():.2%}, "
        f"{OURS} {gain_over_baseline(others, OURS)}"
    )
    accuracies = {name: values[:, 0] for name, values in scores.items()}
    draw(options.figure, accuracies, data_by_seed[0])
    print(f"Figure: {options.figure.resolve()}; {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
