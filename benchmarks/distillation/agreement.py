"""Whether a table that was run again agrees with its results before.

    python benchmarks/distillation/run.py methods --results FOLDER …
    python benchmarks/distillation/agreement.py FOLDER

It prints the gains over vanilla KD before and now, of the seeds that both have, and how
the accuracies differ. The students of a seed share rows and teacher, so differences are
paired. Intervals are at 95 %; the last line corrects for their number (Holm).
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np

from benchmarks.distillation.config import BASELINE
from benchmarks.distillation.records import Line, read
from benchmarks.distillation.run import RESULTS
from benchmarks.distillation.statistics import (
    Scores,
    difference,
    holm,
    interval,
    paired,
)
from benchmarks.files import markdown

SIGNIFICANT = 0.05
TITLES = ["task", "method", "seeds", "gain before", "gain now", "now less before"]


def points(lines: Iterable[Line]) -> Scores:
    """Return accuracies in points."""
    found: Scores = {}
    for line in lines:
        of_task = found.setdefault(str(line["task"]), {})
        of_method = of_task.setdefault(str(line["method"]), {})
        of_method[line["seed"]] = 100 * line["accuracy"]
    return found


def shared(one: Scores, other: Scores) -> Scores:
    """Return the scores that another run has too, of methods with two such seeds."""
    found: Scores = {}
    for task in one.keys() & other.keys():
        for method in one[task].keys() & other[task].keys():
            seeds = one[task][method].keys() & other[task][method].keys()
            if len(seeds) > 1:
                scores = {seed: one[task][method][seed] for seed in sorted(seeds)}
                found.setdefault(task, {})[method] = scores
    return found


def agreement(before: Scores, now: Scores) -> str:
    """Return a table of what two runs share, and how many differences are clear."""
    before, now = shared(before, now), shared(now, before)
    rows, changes = [], []
    for task in sorted(now):
        for method in sorted(now[task], key=lambda name: (name != BASELINE, name)):
            gains = ["", ""]
            if method != BASELINE and BASELINE in now[task]:
                gains = [
                    interval(paired(difference(scores[task], method, BASELINE)))
                    for scores in (before, now)
                ]
            both = {"now": now[task][method], "before": before[task][method]}
            changes.append(paired(difference(both, "now", "before")))
            n_seeds = str(len(now[task][method]))
            rows.append([task, method, n_seeds, *gains, interval(changes[-1])])
    if not rows:
        return "The two runs share no method with two seeds: there is nothing to print."
    is_clear = holm([change.p for change in changes]) < SIGNIFICANT
    mean = np.mean([change.mean for change in changes])
    summary = (
        f"Of {len(rows)} differences {is_clear.sum()} are clear; their mean is "
        f"{mean:+.2f} points."
    )
    return f"{markdown(TITLES, rows)}\n\n{summary}"


def main() -> None:
    """Print how a run agrees with the results in the repository."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="results of the run")
    parser.add_argument("--table", default="methods", help="its name")
    options = parser.parse_args()
    before, now = (
        points(read(folder / f"{options.table}.csv"))
        for folder in (RESULTS, options.folder)
    )
    print(agreement(before, now))


if __name__ == "__main__":
    main()
