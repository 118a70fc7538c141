"""Results as tidy CSV: read, checked, and written as a whole at every step.

A file is written beside its place and moved there once complete, its lines sorted: a
run that was stopped at any moment, and went on, leaves the same file as another. What a
stop loses are the students that were being trained. Files whose name ends in ``.gz``
are compressed, without a time stamp, so that equal lines make equal files.
"""

import csv
import gzip
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.distillation.config import Table, digest
from benchmarks.distillation.methods.base import Setting
from benchmarks.distillation.search import Key, key_of
from benchmarks.files import replacing, versions

SETTING = ("learning_rate", "temperature", "max_epochs", "regression_weight")
SCORES = ("accuracy", "average_precision", "teacher_accuracy")
COMMON = ("task", "kind", "method", *SETTING, "seed", *SCORES, "made_with")
# Columns of files that have something to write there: multiply-adds of forward passes
# where a method trains a teacher of its own, and Matthews' coefficient.
WORK, MATTHEWS = ("teacher_work", "student_work"), "matthews"
OPTIONAL = (*WORK, MATTHEWS)
VERSIONS = tuple(versions())

# A line of a file: what its columns hold, None where a column does not apply.
Line = dict[str, object]


class OtherResultsError(RuntimeError):
    """There are results of another configuration or code."""


@dataclass
class Records:
    """The lines of one file."""

    path: Path
    lines: list[Line]

    @classmethod
    def open(cls, path: Path, table: Table, *, overwrite: bool) -> "Records":
        """Read the file of a table.

        Lines of another configuration or code are dropped if `overwrite`, else refused.
        """
        lines = list(read(path)) if path.exists() else []
        current = _digests(table)
        fit = [x for x in lines if current.get(place_of(x)) == x["made_with"]]
        if len(fit) < len(lines) and not overwrite:
            odd = sorted({", ".join(place_of(x)) for x in lines if x not in fit})
            raise OtherResultsError(
                f"{path} has results that another configuration or version made: "
                f"{'; '.join(odd[:3])}{' and others' if len(odd) > 3 else ''}. "
                "Run with --overwrite to drop them, or move the file away to keep them."
            )
        return cls(path, fit)

    def borrow(self, path: Path, table: Table) -> None:
        """Take over another table's lines of what this one has, but has no line of."""
        if not path.exists():
            return
        own = {place_of(line) for line in self.lines}
        current = _digests(table)
        self.lines += [
            line
            for line in read(path)
            if current.get(place_of(line)) == line["made_with"]
            and place_of(line) not in own
        ]

    def of(self, task: str, method: str) -> list[Line]:
        """Return the lines of a method on a task."""
        return [line for line in self.lines if place_of(line) == (task, method)]

    def add(self, lines: Iterable[Line], table: Table) -> None:
        """Add lines and write the file."""
        self.lines.extend(lines)
        self.write(table)

    def write(self, table: Table) -> None:
        """Write the lines in the order of the table."""
        tasks = [task.name for task in table.tasks]
        self.lines.sort(
            key=lambda x: (
                tasks.index(x["task"]),
                table.methods.index(x["method"]),
                *(x[name] or 0 for name in SETTING),
                x["seed"],
            )
        )
        optional = [name for name in OPTIONAL if any(name in x for x in self.lines)]
        write_lines(self.path, [*COMMON, *optional, *VERSIONS], self.lines)


def read(path: Path) -> Iterable[Line]:
    """Yield the lines of a file, numbers as numbers and what is empty as None."""
    for row in read_lines(path):
        line: Line = dict(row)
        for name in (*SETTING, *SCORES, *(row.keys() & OPTIONAL)):
            line[name] = float(row[name]) if row[name] else None
        for name in ("max_epochs", "seed"):
            line[name] = int(row[name])
        yield line


def read_lines(path: Path) -> list[dict[str, str]]:
    """Return the lines of a file as they are written."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def write_lines(path: Path, names: Sequence[str], lines: Iterable[Line]) -> None:
    """Write a file of lines; what a line lacks is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    content = text.getvalue().encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def setting_of(line: Line) -> Setting:
    """Return the setting of a line."""
    return {name: line[name] for name in SETTING if line[name] is not None}


def scores_by_setting(lines: list[Line], seeds: Iterable[int]) -> dict[Key, float]:
    """Return the mean accuracy of each setting that has all seeds of a search."""
    found: dict[Key, dict[int, float]] = {}
    for line in lines:
        of_setting = found.setdefault(key_of(setting_of(line)), {})
        of_setting[line["seed"]] = line["accuracy"]
    wanted = list(seeds)
    return {
        key: sum(by_seed[seed] for seed in wanted) / len(wanted)
        for key, by_seed in found.items()
        if by_seed.keys() >= set(wanted)
    }


def _digests(table: Table) -> dict[tuple[str, str], str]:
    return {
        (task.name, method): digest(task, method)
        for task in table.tasks
        for method in table.of(task)
    }


def place_of(line: Line) -> tuple[str, str]:
    """Return the task and the method of a line."""
    return str(line["task"]), str(line["method"])
