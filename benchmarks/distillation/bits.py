"""Bits that subclass targets carry for a row, beside what they gain.

    python benchmarks/distillation/bits.py --data-dir FOLDER --cache FOLDER

For each variant of ``run.py questions`` that differs in the partition: the mutual
information of a row and its subclass within its class, the entropy of the mean of the
targets less the mean of their entropies, in bits, a mean over classes and three seeds.
At β = 0 it is the entropy of the sizes of the subclasses, near log2 S; soft targets say
less. The classes themselves carry one bit at most. The gains are those of
``results/distillation/questions.csv``; what is printed also goes to
``results/distillation/bits.csv``.
"""

import argparse
import csv
import sys
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
from scipy.stats import spearmanr

from benchmarks import files
from benchmarks.distillation.config import BASELINE, UNION
from benchmarks.distillation.datasets.base import Array, Paths
from benchmarks.distillation.datasets.draw import what_is_missing
from benchmarks.distillation.methods.base import within_class_targets
from benchmarks.distillation.methods.variants import QUESTIONS
from benchmarks.distillation.preparation import make_data
from benchmarks.distillation.records import Records
from benchmarks.distillation.report import scores_of
from benchmarks.distillation.statistics import difference
from benchmarks.distillation.tables import TABLES
from benchmarks.files import markdown

RESULTS = files.RESULTS / "distillation"
SEEDS = range(3)
# Those whose variants differ in the partition alone.
ABOUT_PARTITIONS = (
    "S and β, k-means",
    "S and β, principal directions",
    "Other partitions",
)
COLUMNS = ("task", "variant", "bits", "gain")


def entropy(p: Array) -> Array:
    """Return the entropies of distributions along the last axis, in bits."""
    return -np.sum(p * np.log2(np.where(p > 0, p, 1.0)), axis=-1)


def bits_within(within: Array, y: Array) -> float:
    """Return the mutual information of rows and subclasses, given the class.

    `within` (n, C, S) has each row's distribution over the subclasses of each class.
    """
    found = 0.0
    for label in np.unique(y):
        own = within[y == label, label]
        found += np.mean(y == label) * (entropy(own.mean(0)) - entropy(own).mean())
    return float(found)


def main(arguments: list[str] | None = None) -> None:
    """Measure every variant, and print bits and gains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--cache", type=Path, required=True, help="that of run.py")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV")
    options = parser.parse_args(arguments)
    table = TABLES["questions"]
    results = Records.open(options.results / "questions.csv", table, overwrite=False)
    scores = scores_of(table, results.lines)
    paths = Paths(options.data_dir, options.cache)
    lines, summary = [], []
    for task in table.tasks:
        reason = what_is_missing(task, paths)
        if task.name not in scores or task.kind != UNION or reason:
            print(f"Skipped: {task.name}: {reason or 'no union task with results'}.")
            continue
        data_by_seed = [make_data(task, paths, seed, "test") for seed in SEEDS]
        of_task = []
        for question in QUESTIONS:
            if question.title not in ABOUT_PARTITIONS:
                continue
            for name, method in question.variants.items():
                bits = [
                    bits_within(within_class_targets(method, le), le.y)
                    for le in data_by_seed
                ]
                gain = difference(scores[task.name], name, BASELINE).mean()
                of_task.append((task.name, name, np.mean(bits), gain))
        order = spearmanr(*np.array([line[2:] for line in of_task], float).T)
        summary.append([task.name, str(len(of_task)), f"{order.statistic:+.2f}"])
        lines += of_task
    with (options.results / "bits.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((*line[:2], *(f"{x:.4f}" for x in line[2:])) for line in lines)
    rows = [[*line[:2], f"{line[2]:.2f}", f"{line[3]:+.2f}"] for line in lines]
    print(markdown(list(COLUMNS), rows))
    print(markdown(["task", "variants", "rank correlation of bits and gain"], summary))


if __name__ == "__main__":
    main()
