"""What subclass targets add to distillation when the teacher knows only two classes.

    python benchmarks/demo.py [--quick] [--jobs 2] [--figure PATH]

Two of scikit-learn's handwritten digits side by side make a two-digit number; the class
is whether it is prime. A teacher learns the two classes from 30 000 such images;
students of 32 hidden units learn from 2 000, by ten methods. The students of a seed
share images, teacher, initial weights of the hidden layer and order of batches.
Learning rate, temperature and epochs are each method's own best, found by ``search.py``
on other seeds and other digits.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed, parallel_config
from scipy.stats import t
from sklearn.metrics import (
    accuracy_score,
    adjusted_mutual_info_score,
    balanced_accuracy_score,
)

from figure import draw
from methods import METHODS, Lesson, fit, prepare, subclasses
from search import RESULTS
from tasks import TASKS, Array
from tuning import best_settings

SEEDS = range(8)
BASELINE, OURS, CEILING = "vanilla KD", "LELP, library defaults", "oracle"
MAIN, NOTHING_TO_GAIN = "prime numbers", "single digits"
SPLITTERS = {"principal directions": "pca", "k-means": "kmeans"}


def make_lesson(task: str, seed: int, quick: bool) -> Lesson:
    """Draw the images of a seed and train its teacher."""
    if not quick:
        return prepare(TASKS[task](seed, "test"), seed)
    sizes = {"n_train": 4_000, "n_student": 400} if task == MAIN else {}
    return prepare(TASKS[task](seed, "test", **sizes), seed, n_steps=200)


def judge(lesson: Lesson, method: str, settings: dict) -> tuple[float, float]:
    """Train a student; return its accuracy and balanced accuracy on test digits."""
    predicted = fit(METHODS[method], lesson, settings).predict(lesson.X_score)
    return (
        accuracy_score(lesson.y_score, predicted),
        balanced_accuracy_score(lesson.y_score, predicted),
    )


def purity(lesson: Lesson, splitter: str) -> float:
    """Return how well subclasses agree with the hidden numbers, mean over classes.

    Adjusted mutual information: 0 is chance, 1 is the same partition.
    """
    found = subclasses(lesson, splitter=splitter).argmax(axis=2)
    return float(
        np.mean(
            [
                adjusted_mutual_info_score(
                    lesson.groups[lesson.y == label], found[lesson.y == label, label]
                )
                for label in np.unique(lesson.y)
            ]
        )
    )


def in_parallel(what: str, n_jobs: int, calls: list) -> list:
    """Run calls in worker processes of one thread each and show the progress."""
    results, start = [], time.perf_counter()
    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        for result in Parallel(return_as="generator")(calls):
            results.append(result)
            elapsed = time.perf_counter() - start
            line = f"{what}: {len(results)} of {len(calls)}, {elapsed:.0f} s"
            if sys.stdout.isatty():
                print(f"\r{line}", end="", flush=True)
            elif len(results) % 10 == 0 or len(results) == len(calls):
                print(line, flush=True)
    if sys.stdout.isatty():
        print()
    return results


def compare(
    task: str, methods: list[str], options: argparse.Namespace
) -> tuple[list[Lesson], dict[str, Array]]:
    """Return the lesson of each seed, and each method's scores, (n_seeds, 2)."""
    seeds = SEEDS[:2] if options.quick else SEEDS
    lessons = in_parallel(
        f"{task}, teachers",
        options.jobs,
        [delayed(make_lesson)(task, seed, options.quick) for seed in seeds],
    )
    settings = best_settings(RESULTS, task)
    if options.quick:
        settings = {name: {**s, "max_epochs": 5} for name, s in settings.items()}
    scores = in_parallel(
        f"{task}, students",
        options.jobs,
        [
            delayed(judge)(lesson, method, settings[method])
            for lesson in lessons
            for method in methods
        ],
    )
    by_method = np.reshape(scores, (len(lessons), len(methods), 2)).swapaxes(0, 1)
    return lessons, dict(zip(methods, by_method, strict=True))


def mean_interval(values: Array) -> tuple[float, float]:
    """Return the mean and half of its 95 % confidence interval (Student's t)."""
    error = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(t.ppf(0.975, len(values) - 1) * error)


def gain_over_baseline(scores: dict[str, Array], method: str) -> str:
    """Return the paired gain in accuracy, in points, with its interval."""
    gains = 100 * (scores[method] - scores[BASELINE])[:, 0]
    gain, half = mean_interval(gains)
    return f"{gain:+.2f} [{gain - half:+.2f}, {gain + half:+.2f}]"


def print_table(scores: dict[str, Array]) -> None:
    """Print a line per method: mean ± standard error, paired gain, share closed."""
    titles = "accuracy %", "balanced %", "gain over vanilla KD", "distance closed"
    print("\n" + " " * 25 + "{:16}{:16}{:23}{}".format(*titles))
    means = {method: values[:, 0].mean() for method, values in scores.items()}
    distance = means[CEILING] - means[BASELINE]
    for method, values in scores.items():
        errors = values.std(axis=0, ddof=1) / len(values) ** 0.5
        line = f"{method:25}"
        for mean, error in zip(values.mean(axis=0), errors, strict=True):
            line += f"{100 * mean:.2f} ± {100 * error:.2f}".ljust(16)
        if method != BASELINE:
            line += f"{gain_over_baseline(scores, method):23}"
        if method != BASELINE and distance > 0:
            line += f"{(means[method] - means[BASELINE]) / distance:10.0%}"
        print(line)
    print(
        "± standard error; [95 % confidence interval, paired by seed]; the distance is"
        f" that\nfrom {BASELINE} to the {CEILING}, which is told the hundred numbers."
    )


def print_purity(lessons: list[Lesson]) -> None:
    """Print how well the subclasses of each splitter agree with the hidden numbers."""
    print("\nAdjusted mutual information of subclasses and hidden numbers, in a class:")
    for name, splitter in SPLITTERS.items():
        values = np.array([purity(lesson, splitter) for lesson in lessons])
        print(f"  {name:20} {values.mean():.2f}")


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison, print its table and draw its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, not a result")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--figure", type=Path, default=Path("demo.png"))
    options = parser.parse_args(arguments)
    start = time.perf_counter()

    lessons, scores = compare(MAIN, list(METHODS), options)
    teachers = np.mean([lesson.teacher_accuracy for lesson in lessons])
    print(f"\nPrime or not, {len(lessons)} seeds; the teacher has {teachers:.1%}.")
    print_table(scores)
    print_purity(lessons)

    _, others = compare(NOTHING_TO_GAIN, [BASELINE, OURS], options)
    print(
        "\nWhere there is nothing to gain (single digits, even or odd): "
        f"{BASELINE} {others[BASELINE][:, 0].mean():.2%}, "
        f"{OURS} {gain_over_baseline(others, OURS)}"
    )
    draw(
        options.figure,
        {name: values[:, 0] for name, values in scores.items()},
        lessons[0],
    )
    print(f"Figure: {options.figure.resolve()}; {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
