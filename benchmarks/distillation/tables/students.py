"""Classifiers of scikit-learn, and a linear module, as students with S subclasses.

    python benchmarks/distillation/run.py students --data-dir FOLDER --cache FOLDER

The students are `STUDENTS`, on the tasks of the table ``methods`` with the same
teachers and rows. Regularisation (or learning rate) and temperature are found on
validation rows and a seed of their own, for each student, method and S. For S > 1 the
settings that were best with S = 1 are reported too. The seeds of the report come in
`ROUNDS`, each over all tasks: a run that is stopped has few seeds of all tasks, rather
than all seeds of few.
"""

import json
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks.distillation.config import HARD, ORACLE, SHUFFLED, TaskConfig, digest
from benchmarks.distillation.datasets.base import Array, Paths
from benchmarks.distillation.datasets.draw import prepare_files, what_is_missing
from benchmarks.distillation.methods.base import (
    DistillationData,
    Setting,
    subclasses,
)
from benchmarks.distillation.methods.controls import shuffled_subclasses, true_groups
from benchmarks.distillation.preparation import make_data
from benchmarks.distillation.records import read_lines, write_lines
from benchmarks.distillation.tables.tasks import TASKS
from benchmarks.files import versions
from benchmarks.timing import one_thread
from lelp_sklearn import LELPMetaClassifier, LELPProjector, LELPStudentClassifier

SEARCH_SEEDS = (100,)
ROUNDS = tuple(range(3)), tuple(range(3, 10))
# Of these, boosting has those of five seeds alone.
BOOSTING_SEEDS = range(5)
BOOSTING_TASKS = (
    "letters, 2 000 rows",
    "numbers, random halves",
    "bank customers",
    "incomes (Adult)",
)
COLUMNS = ("task", "kind", "student", "method", "setting", "seed", "accuracy")
AT_S1 = " at the settings of S = 1"

Targets = Callable[[DistillationData], Array]


@dataclass(frozen=True)
class Student:
    """What builds a classifier of a setting and a seed, and the settings to try."""

    build: Callable[[Setting, int], ClassifierMixin]
    grid: Mapping[str, tuple[float, ...]]
    n_subclasses: tuple[int, ...] = (5, 20, 40)
    controls: tuple[str, ...] = (HARD, SHUFFLED, ORACLE)


def _logistic_regression(setting: Setting, seed: int) -> ClassifierMixin:
    linear = LogisticRegression(C=setting["C"], max_iter=200)
    return LELPMetaClassifier(linear, random_state=seed)


def _random_forest(setting: Setting, seed: int) -> ClassifierMixin:
    forest = RandomForestClassifier(
        min_samples_leaf=int(setting["min_samples_leaf"]), random_state=seed
    )
    return LELPMetaClassifier(forest, random_state=seed)


def _boosting(setting: Setting, seed: int) -> ClassifierMixin:
    boosting = HistGradientBoostingClassifier(
        l2_regularization=setting["l2_regularization"], random_state=seed
    )
    return LELPMetaClassifier(boosting, random_state=seed)


def _linear_module(setting: Setting, seed: int) -> ClassifierMixin:
    return LELPStudentClassifier(
        module_params={"hidden_layer_sizes": ()},
        projector=LELPProjector(temperature=setting["temperature"]),
        within_class_temperature=setting["temperature"],
        learning_rate=setting["learning_rate"],
        batch_size=128,
        max_epochs=60,
        random_state=seed,
    )


STUDENTS = {
    "LogisticRegression": Student(
        _logistic_regression, {"C": (0.1, 1.0, 10.0), "temperature": (1.0, 4.0)}
    ),
    "RandomForest": Student(
        _random_forest, {"min_samples_leaf": (1, 4), "temperature": (1.0, 4.0)}
    ),
    "linear module": Student(
        _linear_module, {"learning_rate": (0.003, 0.03), "temperature": (1.0, 4.0)}
    ),
    "HistGradientBoosting": Student(
        _boosting,
        {"l2_regularization": (0.0, 1.0), "temperature": (1.0, 4.0)},
        n_subclasses=(5,),
        controls=(),
    ),
}


def shown(n_subclasses: int) -> str:
    """Return the name of the method with S subclasses."""
    return f"S = {n_subclasses}"


def methods_of(student: Student, task: TaskConfig) -> list[str]:
    """Return the methods that have a search of their own."""
    names = [shown(S) for S in (1, *student.n_subclasses)]
    return names + [c for c in student.controls if c != ORACLE or task.has_groups]


def within_of(method: str, data: DistillationData) -> Array:
    """Return the distribution (n, C, S) over the subclasses of each class."""
    if method in (shown(1), HARD):
        return np.ones((len(data.y), 2, 1), np.float32)
    if method == SHUFFLED:
        return shuffled_subclasses(data)
    if method == ORACLE:
        return true_groups(data)
    return subclasses(data, n_subclasses=int(method.removeprefix("S = ")))


@dataclass
class Fits:
    """Fits of a student on one seed of a task; nothing is made twice."""

    student: Student
    data: DistillationData
    within: dict[str, Array] = field(default_factory=dict)
    scored: dict[str, float] = field(default_factory=dict)

    def accuracy(self, method: str, setting: Setting) -> float:
        """Return the accuracy of the student on the targets of a method."""
        key = json.dumps([method, setting])
        if key not in self.scored:
            self.scored[key] = self.fit_and_score(method, setting)
        return self.scored[key]

    def fit_and_score(self, method: str, setting: Setting) -> float:
        """Fit the student to the targets of a method and score it."""
        data = self.data
        if method not in self.within:
            self.within[method] = within_of(method, data)
        mass = np.eye(2)[data.y]
        if method != HARD:
            mass = softmax(data.logits / setting["temperature"], axis=1)
        targets = mass[:, :, np.newaxis] * self.within[method]
        targets = targets.reshape(len(mass), -1).astype(np.float32)
        classifier = self.student.build(setting, data.seed)
        classifier.fit(data.X, data.y, soft_targets=targets)
        return float(classifier.score(data.X_score, data.y_score))


class StudentsTable:
    """The lines of the table and of its trials, and what is not done yet."""

    def __init__(self, results: Path, paths: Paths) -> None:
        self.paths = paths
        self.files = {
            "validation": results / "students_trials.csv.gz",
            "test": results / "students.csv.gz",
        }
        self.lines = {
            part: read_lines(path) if path.exists() else []
            for part, path in self.files.items()
        }

    def known(self, part: str) -> dict[tuple[str, ...], str]:
        """Return accuracies by task, student, method, setting and seed."""
        names = ("task", "student", "method", "setting", "seed")
        return {
            tuple(line[name] for name in names): line["accuracy"]
            for line in self.lines[part]
        }

    def best(self, task: TaskConfig, name: str, method: str) -> Setting:
        """Return the setting that is best on the validation rows."""
        score = partial(self.searched, task, name, method)
        return max(settings_of(STUDENTS[name], method), key=score)

    def chosen_s(self, task: TaskConfig, name: str) -> str:
        """Return the S, 1 among them, whose best setting is best on validation rows."""
        sizes = [shown(S) for S in (1, *STUDENTS[name].n_subclasses)]
        scores = [self.searched(task, name, S, self.best(task, name, S)) for S in sizes]
        return sizes[int(np.argmax(scores))]

    def searched(
        self, task: TaskConfig, name: str, method: str, setting: Setting
    ) -> float:
        """Return the mean accuracy of a setting on the validation rows."""
        known, text = self.known("validation"), json.dumps(setting)
        keys = [(task.name, name, method, text, str(seed)) for seed in SEARCH_SEEDS]
        return float(np.mean([float(known[key]) for key in keys]))

    def run(self, tasks: Iterable[TaskConfig], names: Iterable[str]) -> None:
        """Search, then report, a round of seeds after the other."""
        for (seeds, name), task in product(product(ROUNDS, names), tasks):
            if name == "HistGradientBoosting" and task.name not in BOOSTING_TASKS:
                continue
            if reason := what_is_missing(task, self.paths):
                print(f"Skipped: {task.name}: {reason}.", flush=True)
                continue
            start = time.perf_counter()
            if missing := list(self.missing_trials(task, name)):
                self.work("validation", task, name, missing)
            if missing := list(self.missing_results(task, name, seeds)):
                self.work("test", task, name, missing)
                seconds = time.perf_counter() - start
                print(f"{task.name}, {name}: {seconds:.0f} s", flush=True)

    def missing_trials(self, task: TaskConfig, name: str) -> Iterator[Any]:
        """Yield seed, method and setting of trials that are not there."""
        known = self.known("validation")
        student = STUDENTS[name]
        for seed, method in product(SEARCH_SEEDS, methods_of(student, task)):
            for setting in settings_of(student, method):
                text = json.dumps(setting)
                if (task.name, name, method, text, str(seed)) not in known:
                    yield seed, method, method, setting

    def missing_results(
        self, task: TaskConfig, name: str, seeds: Iterable[int]
    ) -> Iterator[Any]:
        """Yield seed, method, name of the line and setting that are not reported."""
        known = self.known("test")
        student = STUDENTS[name]
        best = {m: self.best(task, name, m) for m in methods_of(student, task)}
        lines = [(method, method, setting) for method, setting in best.items()]
        lines += [
            (shown(S), f"{shown(S)}{AT_S1}", best[shown(1)])
            for S in student.n_subclasses
        ]
        for seed, (method, line, setting) in product(seeds, lines):
            if name == "HistGradientBoosting" and seed not in BOOSTING_SEEDS:
                continue
            if (task.name, name, line, json.dumps(setting), str(seed)) not in known:
                yield seed, method, line, setting

    def work(self, part: str, task: TaskConfig, name: str, missing: list[Any]) -> None:
        """Do what is missing of a task, seed by seed; write after each seed."""
        prepare_files(task, self.paths)
        for seed in sorted({seed for seed, *_ in missing}):
            data = sparse_texts(task, make_data(task, self.paths, seed, part))
            fits = Fits(STUDENTS[name], data)
            for other, method, line, setting in missing:
                if other != seed:
                    continue
                accuracy = fits.accuracy(method, setting)
                values = (task.name, task.kind, name, line, json.dumps(setting), seed)
                self.lines[part].append(
                    dict(zip(COLUMNS, (*map(str, values), str(accuracy)), strict=True))
                    | {"teacher_accuracy": str(data.teacher_accuracy)}
                    | {"made_with": digest(task)}
                    | versions()
                )
            names = [*COLUMNS, "teacher_accuracy", "made_with", *versions()]
            write_lines(self.files[part], names, self.lines[part])


def settings_of(student: Student, method: str) -> list[Setting]:
    """Return the settings that the search of a method tries."""
    grid = dict(student.grid)
    if method == HARD:
        # The temperature of labels is of no effect.
        grid["temperature"] = (1.0,)
    return [dict(zip(grid, row, strict=True)) for row in product(*grid.values())]


def sparse_texts(task: TaskConfig, data: DistillationData) -> DistillationData:
    """Return the data with the words of texts as sparse matrices."""
    if task.draw != "texts":
        return data
    return replace(data, X=csr_array(data.X), X_score=csr_array(data.X_score))


def run(options: Namespace, paths: Paths) -> None:
    """Run the table, unless only its report is wanted, and write the report."""
    from benchmarks.distillation.tables.students_report import write_students

    table = StudentsTable(options.results, paths)
    tasks = [t for t in TASKS if not options.tasks or t.name in options.tasks]
    if not options.report:
        with one_thread(), warnings.catch_warnings():
            # After 200 iterations the accuracy of a linear model changes no more.
            warnings.simplefilter("ignore", ConvergenceWarning)
            table.run(tasks, STUDENTS)
    write_students(table, options.results / "students.md")
