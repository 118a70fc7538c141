"""Searches for the student's parameters: how long they take, and what they reach.

    python benchmarks/training/search.py speed [--quick]
    python benchmarks/training/search.py accuracy --data-dir FOLDER --cache FOLDER
    python benchmarks/training/search.py accuracy --report

speed
    Sixteen candidates, four learning rates by four temperatures, at S = 20 and 40
    epochs: 2 000 rows of 128 numbers with groups in their two classes, of which a tenth
    is held out once, and a default student of 32 or 128 hidden units.
    ``LELPStudentClassifierCV``, without halving and with ``factor=3``, takes turns with
    ``GridSearchCV`` and ``HalvingGridSearchCV`` in two worker processes of one thread
    each, which have been started before. Nothing is trained again at the end. Run it on
    two free cores; it takes about four minutes and writes ``results/search.json``.
accuracy
    Four ways to train a student on the tasks of the table ``methods``, with the same
    teachers and seeds: as it comes, with early stopping, by the search with its own
    grid, and by hand, at the learning rate, temperature and epochs that the search of
    that table found in thirty trials or more, on other seeds and with labels of some
    thousand further rows. Test accuracy with 95 % intervals, and the seconds of a fit,
    the search by hand left out. Every fit is a line of ``results/search.csv``; after an
    interruption the same command goes on. ``--report`` writes ``results/search.md``.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import torch
from joblib import parallel_config
from sklearn.base import BaseEstimator
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - enables
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, ShuffleSplit

from benchmarks import files
from benchmarks.files import markdown, read_json, write_json
from benchmarks.timing import machine, ratio, take_turns
from benchmarks.training import ways
from lelp_sklearn import LELPProjector, LELPStudentClassifier, LELPStudentClassifierCV

RESULTS = files.RESULTS / "search.json"
N_ROWS, N_FEATURES, N_GROUPS, N_SUBCLASSES, N_EPOCHS = 2_000, 128, 40, 20, 40
GRID = {
    "learning_rate": [0.003, 0.01, 0.03, 0.1],
    "projector__temperature": [1.0, 2.0, 4.0, 8.0],
}
FACTOR, N_WORKERS = 3, 2
GRID_SEARCH, HALVING, TOGETHER, BOTH = (
    "GridSearchCV",
    "HalvingGridSearchCV",
    "LELPStudentClassifierCV",
    "LELPStudentClassifierCV, factor=3",
)
# Ours may take so many times the seconds of GridSearchCV, by hidden units.
BARS = {(TOGETHER, 32): 0.3, (TOGETHER, 128): 0.6, (BOTH, 128): 0.35}
REPEATS, QUICK_EPOCHS = 3, 2

Array = np.ndarray


def make_rows(n_rows: int) -> tuple[Array, Array, Array]:
    """Draw rows and embeddings of 40 groups in two classes, and the labels."""
    rng = np.random.default_rng(0)
    group = rng.integers(N_GROUPS, size=n_rows)
    y = group % 2
    rows = [
        rng.standard_normal((N_GROUPS, N_FEATURES))[group]
        + rng.standard_normal((n_rows, N_FEATURES))
        for _ in range(2)
    ]
    X, E = (part.astype(np.float32) for part in rows)
    E[:, 0] += 8 * y
    return X, E, y


def make_searches(n_hidden: int, n_epochs: int) -> dict[str, BaseEstimator]:
    """Return the searches that are timed."""
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (n_hidden,)},
        projector=LELPProjector(N_SUBCLASSES, random_state=0),
        max_epochs=n_epochs,
        random_state=0,
    )
    cv = ShuffleSplit(1, test_size=0.1, random_state=0)
    common = {"cv": cv, "scoring": "accuracy", "refit": False}
    theirs = {**common, "n_jobs": N_WORKERS, "error_score": "raise"}
    return {
        GRID_SEARCH: GridSearchCV(student, GRID, **theirs),
        HALVING: HalvingGridSearchCV(
            student, GRID, factor=FACTOR, random_state=0, **theirs
        ),
        TOGETHER: LELPStudentClassifierCV(student, GRID, random_state=0, **common),
        BOTH: LELPStudentClassifierCV(
            student, GRID, factor=FACTOR, random_state=0, **common
        ),
    }


def time_searches(n_hidden: int, repeats: int, *, quick: bool) -> dict[str, Array]:
    """Return the seconds of each search in each turn."""
    X, E, y = make_rows(N_ROWS // 2 if quick else N_ROWS)

    def fits(n_epochs: int) -> dict[str, Callable[[], object]]:
        searches = make_searches(n_hidden, n_epochs)
        return {
            name: partial(search.fit, X, y, teacher_embeddings=E)
            for name, search in searches.items()
        }

    with parallel_config("loky", inner_max_num_threads=1):
        # Imports, compiled code and worker processes are there before the clock runs.
        for fit in fits(QUICK_EPOCHS).values():
            fit()
        return take_turns(fits(QUICK_EPOCHS if quick else N_EPOCHS), repeats, warm=True)


def speed(*, quick: bool) -> dict[str, object]:
    """Time the searches, and print the ratios to GridSearchCV."""
    found: dict[str, object] = {}
    for n_hidden in (32, 128):
        seconds = time_searches(n_hidden, 1 if quick else REPEATS, quick=quick)
        rows = []
        of_size = found[f"{n_hidden} units"] = {}
        for name, of_search in seconds.items():
            middle, low, high = ratio(seconds[GRID_SEARCH], of_search)
            bar = BARS.get((name, n_hidden))
            of_size[name] = {
                "seconds": float(np.median(of_search)),
                "times GridSearchCV": [middle, low, high],
                "bar": bar,
            }
            rows.append(
                [
                    name,
                    f"{np.median(of_search):.2f}",
                    f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                    "" if bar is None else f"{bar:.2g}",
                ]
            )
        head = [f"{n_hidden} hidden units", "seconds", "times GridSearchCV", "bar"]
        print("\n" + markdown(head, rows), flush=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for, print tables and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["speed", "accuracy"])
    parser.add_argument("--quick", action="store_true", help="seconds, not a result")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--cache", type=Path, help="keeps teachers and embeddings")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these")
    parser.add_argument("--report", action="store_true", help="only the tables")
    options = parser.parse_args(arguments)
    if options.part == "accuracy":
        ways.run(options)
        return
    torch.set_num_threads(N_WORKERS)
    results = read_json(RESULTS, {"grid": GRID, "epochs": N_EPOCHS})
    results["speed"] = speed(quick=options.quick)
    if not options.quick:
        write_json(RESULTS, {**results, "machine": machine()})


if __name__ == "__main__":
    main()
