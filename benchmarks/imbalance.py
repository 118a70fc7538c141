"""Where one class is rare: class weights, distillation and LELP.

    python benchmarks/imbalance.py --data-dir FOLDER [--quick] [--jobs 2]

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
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
)
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from demo import BASELINE, OURS, mean_interval
from methods import METHODS, TRAINING, Lesson, Setting, fit, prepare
from tasks import Array, Task
from tuning import versions, write_results

RESULTS = Path(__file__).parent / "results" / "imbalance.json"
SEARCH_SEEDS, SEEDS = [100, 101], range(8)
N_TEACHER, N_STUDENT, N_UNITS = 26_000, 4_000, 16
N_STEPS = 1_000  # of the teacher; three times as many overfit
COMPARED = "hard labels", BASELINE, OURS
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
CASES = [c for c in product(COMPARED, WAYS) if c != ("hard labels", "shifted head")]


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the rows of both files, without the length of the call."""
    return {
        part: pd.read_csv(folder / f"{part}.csv.gz", keep_default_na=False).drop(
            columns="duration"
        )
        for part in ("train", "test")
    }


def make_task(frames: dict[str, pd.DataFrame], seed: int, part: str) -> Task:
    """Draw the teacher's rows, the student's first; the others are to validate on."""
    order = np.random.default_rng(seed).permutation(len(frames["train"]))
    train = frames["train"].iloc[order[:N_TEACHER]]
    score = frames["train"].iloc[order[N_TEACHER:]]
    if part == "test":
        score = frames["test"]
    columns = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            make_column_selector(dtype_exclude="number"),
        ),
    )
    y = train["label"].to_numpy(copy=True)
    return Task(
        X=columns.fit_transform(train.drop(columns="label")).astype(np.float32),
        y=y,
        groups=y,
        X_score=columns.transform(score.drop(columns="label")).astype(np.float32),
        y_score=score["label"].to_numpy(),
        n_student=N_STUDENT,
        n_units=N_UNITS,
    )


def shifted(head: nn.Linear, y: Array) -> nn.Linear:
    """Return a head for which the classes are equally frequent."""
    head = copy.deepcopy(head)
    shares = torch.from_numpy(np.bincount(y) / len(y))
    with torch.no_grad():
        head.bias -= torch.log(shares)
    return head


def judge(lesson: Lesson, case: Case, setting: Setting) -> list[float]:
    """Train a student; return what it has in each metric."""
    method, way = case
    if way == "balanced":
        lesson = replace(lesson, training=TRAINING | {"class_weight": "balanced"})
    if way == "shifted head":
        lesson = replace(lesson, head=shifted(lesson.head, lesson.y))
    student = fit(METHODS[method], lesson, setting)
    probability = student.predict_proba(lesson.X_score)[:, 1]
    return [float(metric(lesson.y_score, probability)) for metric in METRICS.values()]


def judge_all(
    frames: dict[str, pd.DataFrame],
    seed: int,
    part: str,
    settings: dict[Case, list[Setting]],
    n_steps: int,
) -> tuple[float, dict[Case, list[list[float]]]]:
    """Return the teacher's accuracy on a seed, and each case's metrics by setting."""
    lesson = prepare(make_task(frames, seed, part), seed, n_steps=n_steps)
    return lesson.teacher_accuracy, {
        case: [judge(lesson, case, setting) for setting in tried]
        for case, tried in settings.items()
    }


def settings_of(method: str, grid: dict[str, list]) -> list[Setting]:
    """Return what a method tries: all of the grid that it has."""
    names = [n for n in grid if method != "hard labels" or n != "temperature"]
    values = product(*(grid[name] for name in names))
    return [dict(zip(names, row, strict=True)) for row in values]


def compare(frames: dict[str, pd.DataFrame], *, quick: bool) -> dict:
    """Search, then run every case at its best setting; return all results."""
    searched_on, seeds, grid, n_steps = SEARCH_SEEDS, SEEDS, GRID, N_STEPS
    if quick:
        searched_on, seeds, n_steps = SEARCH_SEEDS[:1], SEEDS[:2], 300
        grid = {name: values[:1] for name, values in GRID.items()}
    tried = {case: settings_of(case[0], grid) for case in CASES}
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
    titles = ["method", "way", *(f"{name}, %" for name in METRICS)]
    print("| " + " | ".join([*titles, f"its gain over {BASELINE}", "setting"]) + " |")
    print("| --- " * (len(titles) + 2) + "|")
    precision = {
        (s["method"], s["way"]): _percent(s, "average precision")
        for s in results["students"]
    }
    for student in results["students"]:
        method, way = student["method"], student["way"]
        cells = [method, way]
        for metric in METRICS:
            values = _percent(student, metric)
            error = values.std(ddof=1) / len(values) ** 0.5
            cells.append(f"{values.mean():.2f} ± {error:.2f}")
        gain = ""
        if method != BASELINE:
            pair = precision[method, way], precision[BASELINE, way]
            mean, half = mean_interval(pair[0] - pair[1])
            gain = f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"
        setting = ", ".join(f"{value:g}" for value in student["setting"].values())
        print("| " + " | ".join([*cells, gain, setting]) + " |")


def _percent(student: dict, metric: str) -> Array:
    return 100 * np.array(student["scores"][metric])


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
        results = compare(read(folder), quick=options.quick)
    print_table(results)
    if not options.quick:
        kept = {"search seeds": SEARCH_SEEDS, "grid": GRID, **results}
        write_results(RESULTS, {"versions": versions(), **kept})
    print(f"\n{time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
