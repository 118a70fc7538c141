"""Reports of `subclass_report` on tasks: on plain fits, and on a layer of a teacher."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.distillation.config import OURS, Table, TaskConfig, digest
from benchmarks.distillation.methods import TRAINABLE
from benchmarks.distillation.methods.base import DistillationData
from benchmarks.distillation.records import Line, read_lines, write_lines
from benchmarks.distillation.tables.untuned import Data, WideTask, student_of
from benchmarks.files import versions
from lelp_sklearn import LELPProjector, LELPStudentClassifier, subclass_report

# What no task was searched for: a student that a user asks about is not tuned yet.
SETTING = {"learning_rate": 0.02, "max_epochs": 240}
TEMPERATURE = 4.0
# Those of searches, which no result is reported on.
SEEDS = (100, 101)

NUMBERS = "pilot_gain", "pilot_gain_se", "headroom", "learnability", "margin_r2"
COLUMNS = ("task", "kind", "seed", "verdict", *NUMBERS, "made_with", *versions())

# How well the subclasses of each layer agree with the groups, None without groups.
# Reports on an earlier layer have these columns.
AGREEMENTS = ("last_agreement", "earlier_agreement")

# Of the reports on plain fits.
ACCURACIES = (
    "teacher_accuracy",
    "label_accuracy",
    "vanilla_accuracy",
    "subclass_accuracy",
)
# The rows of the report: all that there are, up to its own limit, or half of them.
ALL, HALF = "all", "half"


def diagnose_plain_fit(
    task: TaskConfig | WideTask, data: Data, rows: str
) -> dict[str, object]:
    """Return the line of a report on the library's plain `fit`."""
    limit = subclass_report.__kwdefaults__["max_samples"]
    max_samples = min(limit, len(data.y)) // (2 if rows == HALF else 1)
    report = subclass_report(
        student_of(data, ({}, {})),
        data.X,
        data.y,
        teacher_embeddings=data.embeddings,
        max_samples=max_samples,
        random_state=data.seed % 2**31,
    )
    found = asdict(report)
    numbers = {
        name: "" if found[name] is None else round(found[name], 6)
        for name in (*NUMBERS, *ACCURACIES)
    }
    return {
        **{"task": task.name, "kind": task.kind, "rows": rows},
        **{"n_samples": report.n_samples, "verdict": report.verdict},
        **numbers,
        "training_length": report.training_length or "",
    }


def made_with(task: TaskConfig, method: str = OURS) -> str:
    """Return what stands for the configuration of a report on a method."""
    defaults = subclass_report.__kwdefaults__
    parts = [digest(task, method), SETTING, TEMPERATURE, SEEDS, defaults]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def diagnose(
    task: TaskConfig, data: DistillationData, seed: int, method: str = OURS
) -> Line:
    """Return the line of a report on data whose rows to score are not read.

    The method says which embeddings are asked about; its other arguments do not count.
    """
    data = TRAINABLE[method].select_layer(data)
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (data.n_units,)},
        projector=LELPProjector(head=data.head, temperature=TEMPERATURE),
        within_class_temperature=TEMPERATURE,
        **data.training,
        **SETTING,
    )
    report = subclass_report(
        student,
        data.X,
        data.y,
        teacher_embeddings=data.embeddings,
        teacher_logits=data.given_logits,
        random_state=data.seed,
    )
    found = asdict(report)
    return {
        **{"task": task.name, "kind": task.kind, "seed": seed},
        "verdict": report.verdict,
        **{name: round(found[name], 6) for name in NUMBERS},
        "made_with": made_with(task, method),
        **versions(),
    }


def read(path: Path, table: Table, method: str = OURS) -> list[Line]:
    """Return the lines of a file that this configuration made."""
    current = {task.name: made_with(task, method) for task in table.tasks}
    lines: list[Line] = []
    for row in read_lines(path) if path.exists() else []:
        numbers = {name: float(row[name]) for name in NUMBERS}
        agreements = {
            name: float(row[name]) if row[name] else None
            for name in AGREEMENTS
            if name in row
        }
        if current.get(row["task"]) == row["made_with"]:
            lines.append(row | numbers | agreements | {"seed": int(row["seed"])})
    return lines


def write(path: Path, lines: list[Line], table: Table) -> None:
    """Write the lines in the order of the tasks."""
    order = [task.name for task in table.tasks]
    names = [name for name in AGREEMENTS if any(name in line for line in lines)]
    in_order = sorted(lines, key=lambda x: (order.index(x["task"]), x["seed"]))
    write_lines(path, [*COLUMNS, *names], in_order)
