"""What the class logits of new rows are made of, epoch by epoch.

    python benchmarks/distillation/class_logits.py --data-dir FOLDER [--cache FOLDER]

The logit of a class is the mean of its subclass logits plus their spread, τ times the
logarithm of the sum of exp((a - mean) / τ). Each line shows by how much the teacher's
class leads the others in mean and in spread, on training rows and on new ones, beside
the teacher's own lead, and how often the student agrees with the teacher: with the
defaults, and with earlier ones at the temperatures 1 and 4, on tf-idf of AG News with
400 labels and on two union tasks. A quarter of the student's rows are kept as new ones.
It writes ``results/distillation/class_logits.csv``.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import torch
from scipy.sparse import issparse
from scipy.special import logsumexp
from torch import Tensor

from benchmarks import files
from benchmarks.distillation.datasets.base import Array, Paths
from benchmarks.distillation.tables.untuned import (
    ALL_TASKS,
    RECIPES,
    WIDE,
    Data,
    Recipe,
    student_of,
    task_data,
    wide_data,
)
from benchmarks.timing import one_thread
from lelp_sklearn import LELPStudentClassifier

RESULTS = files.RESULTS / "distillation" / "class_logits.csv"
TASKS = "letters, 500 rows", "numbers, random halves", "AG News, 400 labels"
SHOWN = "defaults", "earlier defaults", "earlier defaults, τ = 4"
EPOCHS = 1, 2, 3, 5, 10, 20, 30, 50, 100
PARTS = "teacher", "mean", "spread", "agreement"
PLACES = "training", "new"
# Rows of each place that are looked at.
N_SHOWN = 1_000


def parts(
    student: LELPStudentClassifier, rows: Tensor, teacher: Array
) -> dict[str, float]:
    """Return the leads of the teacher's class, and the agreement in percent."""
    n, n_classes = teacher.shape
    tau = student.projector_.temperature_
    with torch.no_grad():
        a = student.module_(rows).double().numpy().reshape(n, n_classes, -1)
    mean = a.mean(axis=2)
    spread = tau * logsumexp((a - mean[:, :, None]) / tau, axis=2)
    own = teacher.argmax(axis=1)
    leads = [lead(part, own) for part in (teacher, mean, spread)]
    agreement = 100 * float(((mean + spread).argmax(axis=1) == own).mean())
    return dict(zip(PARTS, (*leads, agreement), strict=True))


def lead(logits: Array, own: Array) -> float:
    """Return how far each row's own class leads the mean of the others, on average."""
    of_own = logits[np.arange(len(own)), own]
    others = (logits.sum(axis=1) - of_own) / (logits.shape[1] - 1)
    return float((of_own - others).mean())


def part(
    student: LELPStudentClassifier,
    X: Any,
    y: Any,
    *,
    rows: Tensor,
    logits: Array,
    name: str,
) -> float:
    """Return one of the parts, as a scorer of scikit-learn; X and y do not count."""
    del X, y
    return parts(student, rows, logits)[name]


def epochs(data: Data, recipe: Recipe) -> Iterator[tuple[int, dict[str, float]]]:
    """Train on three quarters of the rows; yield the parts by epoch."""
    n = len(data.embeddings)
    train, new = slice(3 * n // 4), slice(3 * n // 4, None)
    logits = head_logits(data.head, data.embeddings)
    scoring = {}
    for place, rows in zip(PLACES, (train, new), strict=True):
        shown, of_shown = dense(data.X[rows][:N_SHOWN]), logits[rows][:N_SHOWN]
        for name in PARTS:
            scorer = partial(part, rows=shown, logits=of_shown, name=name)
            scoring[f"{place} {name}"] = scorer
    # Callbacks came with scikit-learn 1.9; the other parts run with earlier versions.
    from sklearn.callback import ScoringMonitor

    monitor = ScoringMonitor(scoring=scoring)
    student = student_of(data, recipe).set_callbacks(monitor)
    student.fit(data.X[train], data.y[train], teacher_embeddings=data.embeddings[train])
    found = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    for epoch in EPOCHS:
        yield epoch, {name: found[epoch - 1][name] for name in scoring}


def dense(X: Any) -> Tensor:
    """Return rows as a tensor."""
    return torch.from_numpy(X.toarray() if issparse(X) else np.asarray(X))


def head_logits(head: Any, embeddings: Array) -> Array:
    """Return the teacher's logits."""
    if hasattr(head, "coef_"):
        found = head.decision_function(embeddings)
        return found if found.ndim == 2 else np.column_stack([-found / 2, found / 2])
    with torch.no_grad():
        return head(torch.from_numpy(embeddings)).numpy()


def main(arguments: list[str] | None = None) -> None:
    """Train, print a line per epoch and write all lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--cache", type=Path, help="keeps teachers and embeddings")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    options = parser.parse_args(arguments)
    lines = []
    with tempfile.TemporaryDirectory() as folder, one_thread():
        paths = Paths(options.data_dir, options.cache or Path(folder))
        for name in options.tasks:
            task = ALL_TASKS[name]
            draw = wide_data if task.kind == WIDE else task_data
            data = draw(task, paths, 0)
            for recipe in SHOWN:
                for epoch, found in epochs(data, RECIPES[recipe]):
                    numbers = {key: f"{value:.2f}" for key, value in found.items()}
                    line = {"task": name, "recipe": recipe, "epoch": epoch, **numbers}
                    print(", ".join(f"{k} {v}" for k, v in line.items()), flush=True)
                    lines.append(line)
    with files.replacing(RESULTS) as unfinished, unfinished.open("w") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
