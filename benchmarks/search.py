"""Find each method's best learning rate, temperature and epochs, for the demo to use.

    python benchmarks/search.py [--jobs 2]

Scores on validation digits, on seeds that the demo does not use, and writes
``results/demo_search.json`` with every trial; about a quarter of an hour on two cores.
Run again after an interruption, it goes on from there: delete the file where the
library's defaults have changed.
"""

import argparse
from pathlib import Path

from methods import METHODS, prepare
from tasks import TASKS
from tuning import FIRST_GRID, read_results, tune, write_results

RESULTS = Path(__file__).parent / "results" / "demo_search.json"
SEEDS = [100, 101, 102]
# The task of the demo with every method; the task with nothing to gain with two.
SEARCHES = {
    "prime numbers": list(METHODS),
    "single digits": ["vanilla KD", "LELP, library defaults"],
}


def first_grid(method: str) -> dict[str, list[float]]:
    """Return the first grid of a method: the same one, for what the method has."""
    grid = dict(FIRST_GRID)
    if method == "hard labels":
        del grid["temperature"]
    if method == "FitNet":
        grid["regression_weight"] = [10.0, 100.0]
    return grid


def main(arguments: list[str] | None = None) -> None:
    """Search, for every task and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    n_jobs = parser.parse_args(arguments).jobs
    results = read_results(RESULTS, {"seeds": SEEDS, "scored on": "validation digits"})
    for task, methods in SEARCHES.items():
        lessons = [prepare(TASKS[task](seed), seed) for seed in SEEDS]
        for method in methods:
            found = results.setdefault(task, {}).setdefault(method, {"trials": []})
            found["best"] = tune(
                METHODS[method],
                lessons,
                found["trials"],
                grid=first_grid(method),
                n_jobs=n_jobs,
                after_batch=lambda: write_results(RESULTS, results),
            )
            write_results(RESULTS, results)
            print(f"{task}, {method}: {found['best']}", flush=True)


if __name__ == "__main__":
    main()
