"""The short tables of the guide, as CSV, of the results that are there."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.distillation.config import (
    BASELINE,
    FITNET,
    ORACLE,
    OURS,
    PUBLISHED,
    UNION,
    WIDE,
    Table,
)
from benchmarks.distillation.records import Records
from benchmarks.distillation.report import KINDS, scores_of
from benchmarks.distillation.statistics import (
    Scores,
    difference,
    interval,
    level,
    mean_over_tasks,
    paired,
)

SHOWN = (PUBLISHED, OURS, FITNET, WIDE, ORACLE)
TITLES = {OURS: "ours", PUBLISHED: "as published", WIDE: "same outputs"}


def write_summary(table: Table, results: Records, path: Path) -> None:
    """Write a line a task, and below it the means of each kind, to `path`.csv."""
    scores = scores_of(table, results.lines)
    if not scores or not set(SHOWN) <= set(table.methods):
        return
    named = [TITLES.get(method, method) for method in SHOWN]
    titles = ["task", "teacher, %", f"{BASELINE}, %", *named]
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(titles)
        writer.writerows(_rows(table, results, scores))


def _rows(table: Table, results: Records, scores: Scores) -> Iterable[list[str]]:
    for kind, name in KINDS.items():
        tasks = [x.name for x in table.tasks if x.kind == kind and x.name in scores]
        for task in tasks:
            lines = results.of(task, BASELINE)
            teacher = 100 * np.mean([line["teacher_accuracy"] for line in lines])
            gains = [
                interval(paired(difference(scores[task], method, BASELINE)))
                if method in scores[task]
                else ""
                for method in SHOWN
            ]
            yield [
                task,
                f"{teacher:.2f}",
                level(scores[task][BASELINE].values()),
                *gains,
            ]
        if tasks:
            yield [f"mean of {len(tasks)} {name}", "", "", *_means(scores, tasks, kind)]


def _means(scores: Scores, tasks: list[str], kind: str) -> Iterable[str]:
    for method in SHOWN:
        # Without groups there is no oracle: its mean would be of other tasks.
        if kind != UNION and any(method not in scores[task] for task in tasks):
            yield ""
            continue
        found = [difference(scores[task], method, BASELINE) for task in tasks]
        yield interval(mean_over_tasks(found))
