"""Where one class is rare: class weights, distillation and LELP.

    python benchmarks/distillation/imbalance.py --data-dir FOLDER [--quick] [--jobs 2]

Which customers of a bank subscribed after a call: 11 % did. ``FOLDER/bank_additional``
holds ``train.csv.gz`` and ``test.csv.gz`` with a column ``label``; the length of the
call, which is known only afterwards, is left out. A teacher learns from 26 000 rows,
students of 16 hidden units from 4 000, in up to three ways:

as it is
    Without weights.
balanced
    With ``class_weight="balanced"``.
shifted head
    Without weights, from a teacher whose head has the logarithms of the classes' shares
    taken from its intercepts, as if both were equally frequent.

Every method takes its own best learning rate, temperature and number of epochs in each
way, of the same grid, by average precision on validation rows and two other seeds; the
table is of the test rows and eight seeds, and goes to ``results/imbalance.json``.
"""

import argparse
import copy
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
)
from torch import nn

from benchmarks import files
from benchmarks.distillation.config import BASELINE, HARD, OURS
from benchmarks.distillation.datasets.base import Array, Task
from benchmarks.distillation.datasets.customers import (
    columns_as_numbers,
    make_task,
    read_customers,
)
from benchmarks.distillation.methods import METHODS
from benchmarks.distillation.methods.base import TRAINING, DistillationData, Setting
from benchmarks.distillation.methods.fit import fit
from benchmarks.distillation.preparation import prepare
from benchmarks.distillation.statistics import interval, level, paired
from benchmarks.distillation.tuning import settings_in
from benchmarks.files import versions, write_json

RESULTS = files.RESULTS / "imbalance.json"
SEARCH_SEEDS, SEEDS = [100, 101], range(8)
N_TEACHER, N_STUDENT, N_UNITS = 26_000, 4_000, 16
N_STEPS = 1_000  # of the teacher; three times as many overfit
COMPARED = HARD, BASELINE, OURS
WAYS = "as it is", "balanced", "shifted head"
GRID = {
    "learning_rate": [0.001, 0.003, 0.01],
    "temperature": [1.0, 2.0, 4.0],
    "max_epochs": [10, 40, 160],
}
METRICS = {
    "accuracy": lambda y, p: accuracy_score(y, p > 0.5),
    "balanced accuracy": lambda y, p: balanced_accuracy_score(y, p > 0.5),
    "average precision": average_precision_score,
}
CHOSEN_BY = list(METRICS).index("average precision")

# A method and a way.
Case = tuple[str, str]
CASES = [c for c in product(COMPARED, WAYS) if c != (HARD, "shifted head")]


def draw(frames: dict[str, pd.DataFrame], seed: int, part: str) -> Task:
    """Draw the teacher's rows, the student's first; the others are to validate on."""
    order = np.random.default_rng(seed).permutation(len(frames["train"]))
    train = frames["train"].iloc[order[:N_TEACHER]]
    score = frames["train"].iloc[order[N_TEACHER:]]
    if part == "test":
        score = frames["test"]
    columns = columns_as_numbers().fit(train.drop(columns="label"))
    task = make_task(train, score, columns)
    return replace(task, n_student=N_STUDENT, n_units=N_UNITS)


def shifted(head: nn.Linear, y: Array) -> nn.Linear:
    """Return a head for which the classes are equally frequent."""
    head = copy.deepcopy(head)
    shares = torch.from_numpy(np.bincount(y) / len(y))
    with torch.no_grad():
        head.bias -= torch.log(shares)
    return head


def judge(data: DistillationData, case: Case, setting: Setting) -> list[float]:
    """Train a student; return what it has in each metric."""
    method, way = case
    if way == "balanced":
        data = replace(data, training=TRAINING | {"class_weight": "balanced"})
    if way == "shifted head":
        data = replace(data, head=shifted(data.head, data.y))
    student = fit(METHODS[method], data, setting)
    probability = student.predict_proba(data.X_score)[:, 1]
    return [float(metric(data.y_score, probability)) for metric in METRICS.values()]


def judge_all(
    frames: dict[str, pd.DataFrame],
    seed: int,
    part: str,
    settings: dict[Case, list[Setting]],
    n_steps: int,
) -> tuple[float, dict[Case, list[list[float]]]]:
    """Return the teacher's accuracy on a seed, and each case's metrics by setting."""
    data = prepare(draw(frames, seed, part), seed, n_steps=n_steps)
    return data.teacher_accuracy, {
        case: [judge(data, case, setting) for setting in tried]
        for case, tried in settings.items()
    }


def compare(frames: dict[str, pd.DataFrame], *, quick: bool) -> dict:
    """Search, then run every case at its best setting; return all results."""
    searched_on, seeds, grid, n_steps = SEARCH_SEEDS, SEEDS, GRID, N_STEPS
    if quick:
        searched_on, seeds, n_steps = SEARCH_SEEDS[:1], SEEDS[:2], 300
        grid = {name: values[:1] for name, values in GRID.items()}
    tried = {case: settings_in(grid, case[0]) for case in CASES}
    searched = Parallel()(
        delayed(judge_all)(frames, seed, "validation", tried, n_steps)
        for seed in searched_on
    )
    best = {}
    for case in CASES:
        mean = np.mean([found[case] for _, found in searched], axis=0)[:, CHOSEN_BY]
        best[case] = [tried[case][int(mean.argmax())]]
    scored = Parallel()(
        delayed(judge_all)(frames, seed, "test", best, n_steps) for seed in seeds
    )
    return {
        "teacher's accuracy": [accuracy for accuracy, _ in scored],
        "students": [
            {
                "method": case[0],
                "way": case[1],
                "setting": best[case][0],
                "scores": {
                    metric: [found[case][0][place] for _, found in scored]
                    for place, metric in enumerate(METRICS)
                },
            }
            for case in CASES
        ],
    }


def print_table(results: dict) -> None:
    """Print a line a case: each metric ± standard error, gain over vanilla KD."""
    teacher = 100 * np.array(results["teacher's accuracy"])
    print(f"\nThe teacher has {teacher.mean():.2f} % in {len(teacher)} seeds.\n")
    scores = {
        (s["method"], s["way"]): {m: 100 * np.array(x) for m, x in s["scores"].items()}
        for s in results["students"]
    }
    rows = []
    for student in results["students"]:
        case = method, way = student["method"], student["way"]
        gain = ""
        if method != BASELINE:
            pair = (scores[x]["average precision"] for x in (case, (BASELINE, way)))
            gain = interval(paired(next(pair) - next(pair)))
        setting = ", ".join(f"{value:g}" for value in student["setting"].values())
        levels = [level(scores[case][metric]) for metric in METRICS]
        rows.append([method, way, *levels, gain, setting])
    metrics = [f"{name}, %" for name in METRICS]
    titles = ["method", "way", *metrics, f"its gain over {BASELINE}", "setting"]
    print(files.markdown(titles, rows))


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison, print its table and keep its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a minute, not a result")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    options = parser.parse_args(arguments)
    folder = options.data_dir / "bank_additional"
    if not folder.is_dir():
        print(f"Skipped: there is no {folder}.")
        return
    start = time.perf_counter()
    with parallel_config("loky", n_jobs=options.jobs, inner_max_num_threads=1):
        results = compare(read_customers(folder, "duration"), quick=options.quick)
    print_table(results)
    if not options.quick:
        kept = {"search seeds": SEARCH_SEEDS, "grid": GRID, **results}
        write_json(RESULTS, {"versions": versions(), **kept})
    print(f"\n{time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
