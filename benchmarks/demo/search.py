"""Find each method's best learning rate, temperature and epochs, for the demo to use.

    python benchmarks/demo/search.py [--jobs 2]

Scores on validation digits, on seeds that the demo does not use, and writes
``results/demo_search.json`` with every trial; about a quarter of an hour on two cores.
Run again after an interruption, it goes on from there: delete the file where the
library's defaults have changed.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

from benchmarks import files
from benchmarks.distillation.config import BASELINE, FITNET, HARD, OURS
from benchmarks.distillation.datasets.numbers import single_digits, two_digits
from benchmarks.distillation.methods import METHODS
from benchmarks.distillation.preparation import prepare
from benchmarks.distillation.tuning import FIRST_GRID, tune

RESULTS = files.RESULTS / "demo_search.json"
SEEDS = [100, 101, 102]
MAIN, NOTHING_TO_GAIN = "prime numbers", "single digits"
TASKS = {MAIN: partial(two_digits, labeling=MAIN), NOTHING_TO_GAIN: single_digits}
# The task of the demo with every method; the task with nothing to gain with two.
SEARCHES = {MAIN: list(METHODS), NOTHING_TO_GAIN: [BASELINE, OURS]}


def first_grid(method: str) -> dict[str, list[float]]:
    """Return the first grid of a method: the same one, for what the method has."""
    grid = dict(FIRST_GRID)
    if method == HARD:
        del grid["temperature"]
    if method == FITNET:
        grid["regression_weight"] = [10.0, 100.0]
    return grid


def main(arguments: list[str] | None = None) -> None:
    """Search, for every task and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    n_jobs = parser.parse_args(arguments).jobs
    made_with = {"seeds": SEEDS, "scored on": "validation digits"}
    results = files.read_json(RESULTS, made_with)
    for task, methods in SEARCHES.items():
        drawn = [TASKS[task](seed, "validation") for seed in SEEDS]
        data_by_seed = [prepare(*pair) for pair in zip(drawn, SEEDS, strict=True)]
        for method in methods:
            of_method = results.setdefault(task, {}).setdefault(method, {"trials": []})
            of_method["best"] = tune(
                METHODS[method],
                data_by_seed,
                of_method["trials"],
                grid=first_grid(method),
                n_jobs=n_jobs,
                after_batch=lambda: files.write_json(RESULTS, results),
            )
            files.write_json(RESULTS, results)
            print(f"{task}, {method}: {of_method['best']}", flush=True)


if __name__ == "__main__":
    main()
