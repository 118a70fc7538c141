"""Four ways to train a student, on the tasks of the comparison: see ``search.py``."""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin

from benchmarks import files
from benchmarks.distillation.config import BASELINE, OURS, TaskConfig
from benchmarks.distillation.datasets.base import Paths
from benchmarks.distillation.datasets.draw import prepare_files, what_is_missing
from benchmarks.distillation.methods import TRAINABLE
from benchmarks.distillation.methods.base import DistillationData, Setting
from benchmarks.distillation.methods.fit import fit as fit_by_hand
from benchmarks.distillation.preparation import make_data
from benchmarks.distillation.records import read as read_records
from benchmarks.distillation.records import setting_of
from benchmarks.distillation.statistics import (
    Scores,
    difference,
    interval,
    level,
    mean_over_tasks,
    paired,
)
from benchmarks.distillation.tables.tasks import BY_NAME, TASKS
from benchmarks.distillation.tables.untuned import append, read
from benchmarks.files import markdown, versions
from benchmarks.timing import geometric_mean, one_thread
from lelp_sklearn import LELPProjector, LELPStudentClassifier, LELPStudentClassifierCV

RESULTS = files.RESULTS / "search.csv"
METHODS = files.RESULTS / "distillation" / "methods.csv"
PLAIN_FIT, STOPPED, SEARCHED = "plain", "early stopping", "search"
WAYS, BY_HAND = (PLAIN_FIT, STOPPED, SEARCHED), "by hand"
TUNED_KD = "vanilla KD, tuned"
# The search may be so many points below the student that was tuned by hand.
ALLOWED_GAP = 0.3
N_SEEDS = 10


def student_of(data: DistillationData, **options: Any) -> LELPStudentClassifier:
    """Return a student of the library, not fitted yet."""
    return LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (data.n_units,)},
        projector=LELPProjector(head=data.head),
        device="cpu",
        random_state=data.seed % 2**31,
        **options,
    )


def train(way: str, data: DistillationData, setting: Setting) -> ClassifierMixin:
    """Train a student; `setting` is what was found by hand."""
    if way == BY_HAND:
        return fit_by_hand(TRAINABLE[OURS], data, setting)
    student: Any = student_of(data, early_stopping=way == STOPPED)
    if way == SEARCHED:
        student = LELPStudentClassifierCV(student, random_state=data.seed % 2**31)
    return student.fit(data.X, data.y, teacher_embeddings=data.embeddings)


def fit_all(tasks: list[TaskConfig], paths: Paths) -> None:
    """Do what is not done yet; each fit is kept once it is done."""
    done = {(x["task"], x["way"], int(x["seed"])) for x in read(RESULTS)}
    settings = {
        line["task"]: setting_of(line)
        for line in read_records(METHODS)
        if line["method"] == OURS
    }
    with one_thread():
        for seed in range(N_SEEDS):
            for task in tasks:
                # By hand once, for its seconds: its accuracy is in the table.
                wanted = (*WAYS, BY_HAND) if seed == 0 else WAYS
                ways = [w for w in wanted if (task.name, w, seed) not in done]
                if not ways:
                    continue
                if reason := what_is_missing(task, paths):
                    print(f"Skipped: {task.name}: {reason}.", flush=True)
                    continue
                prepare_files(task, paths)
                data = make_data(task, paths, seed, "test")
                for way in ways:
                    start = time.perf_counter()
                    student = train(way, data, settings[task.name])
                    line = {
                        "task": task.name,
                        "way": way,
                        "seed": seed,
                        "accuracy": f"{student.score(data.X_score, data.y_score):.6f}",
                        "seconds": f"{time.perf_counter() - start:.2f}",
                        "chosen": json.dumps(getattr(student, "best_params_", None)),
                    }
                    append(RESULTS, line | versions())
                    print(*line.values(), flush=True)


def scores_of(lines: list[dict[str, str]]) -> Scores:
    """Return percents by task, way and seed, beside those that were tuned by hand."""
    scores: Scores = {}
    for line in lines:
        if line["way"] in WAYS:
            by_way = scores.setdefault(line["task"], {})
            by_seed = by_way.setdefault(line["way"], {})
            by_seed[int(line["seed"])] = 100 * float(line["accuracy"])
    names = {OURS: BY_HAND, BASELINE: TUNED_KD}
    for line in read_records(METHODS):
        of_task, seed = scores.get(line["task"], {}), line["seed"]
        if line["method"] in names and seed in of_task.get(SEARCHED, {}):
            by_seed = of_task.setdefault(names[line["method"]], {})
            by_seed[seed] = 100 * line["accuracy"]
    return scores


def by_task(lines: list[dict[str, str]], scores: Scores, tasks: list[str]) -> str:
    """Return the table of accuracies."""
    rows = []
    for task in tasks:
        of_task = scores[task]
        chosen = [
            json.loads(line["chosen"])["projector__n_subclasses"]
            for line in lines
            if line["task"] == task and line["way"] == SEARCHED
        ]
        rows.append(
            [
                task,
                str(len(chosen)),
                *(level(of_task[way].values()) for way in (*WAYS, BY_HAND)),
                *(
                    interval(paired(difference(of_task, SEARCHED, other)))
                    for other in (BY_HAND, TUNED_KD)
                ),
                f"{chosen.count(1)} of {len(chosen)}",
            ]
        )
    head = [
        *("task", "seeds", *WAYS, BY_HAND, f"search − {BY_HAND}"),
        *(f"search − {TUNED_KD}", "S = 1 chosen"),
    ]
    return markdown(head, rows)


def by_way(lines: list[dict[str, str]], scores: Scores, tasks: list[str]) -> str:
    """Return the table of means over tasks, and of seconds beside a plain fit."""
    plain = seconds_of(lines, PLAIN_FIT)
    rows = []
    for way in (*WAYS, BY_HAND):
        mean = np.mean([np.mean([*scores[task][way].values()]) for task in tasks])
        lead = mean_over_tasks(
            [difference(scores[task], way, PLAIN_FIT) for task in tasks]
        )
        seconds = seconds_of(lines, way)
        times = [seconds[task] / plain[task] for task in tasks if task in seconds]
        rows.append(
            [
                way,
                f"{mean:.2f}",
                "" if way == PLAIN_FIT else interval(lead),
                f"{np.median([seconds[t] for t in tasks if t in seconds]):.1f}",
                f"{geometric_mean(times):.1f}",
            ]
        )
    head = ["way", "accuracy, %", "lead over plain", "seconds", "times a plain fit"]
    return markdown(head, rows)


def seconds_of(lines: list[dict[str, str]], way: str) -> dict[str, float]:
    """Return the median seconds of a way on each task."""
    of_way = [line for line in lines if line["way"] == way]
    return {
        task: float(
            np.median([float(x["seconds"]) for x in of_way if x["task"] == task])
        )
        for task in {line["task"] for line in of_way}
    }


def write_report(lines: list[dict[str, str]]) -> None:
    """Print and write what is reached, of tasks with two seeds or more."""
    scores = scores_of(lines)
    tasks = [
        task.name
        for task in TASKS
        if all(len(scores.get(task.name, {}).get(way, {})) > 1 for way in WAYS)
    ]
    gap = mean_over_tasks(
        [difference(scores[task], BY_HAND, SEARCHED) for task in tasks]
    )
    text = "\n\n".join(
        [
            "# Ways to tune a student",
            "Test accuracy in percent, mean ± standard error over seeds, and paired "
            "differences in points with 95 % intervals. The accuracies by hand, and "
            f"of {TUNED_KD}, are those of the table `methods` on the same seeds.",
            by_task(lines, scores, tasks),
            f"Over these {len(tasks)} tasks the student that was tuned by hand leads "
            f"that of the search by {interval(gap)} points (wanted: at most "
            f"{ALLOWED_GAP}).",
            "The median seconds of a fit on one thread, and the geometric mean over "
            "tasks of the times of a plain fit; by hand without its search.",
            by_way(lines, scores, tasks),
        ]
    )
    print(text)
    RESULTS.with_suffix(".md").write_text(text + "\n", encoding="utf-8")


def run(options: argparse.Namespace) -> None:
    """Fit what is missing, and write the report."""
    names = options.tasks or list(BY_NAME)
    if not options.report:
        with tempfile.TemporaryDirectory() as folder:
            paths = Paths(options.data_dir, options.cache or Path(folder))
            fit_all([BY_NAME[name] for name in names], paths)
    write_report(read(RESULTS))
