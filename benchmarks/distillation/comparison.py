"""Searches on validation rows, then the test rows once, for every task and method."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed, parallel_config
from sklearn.metrics import average_precision_score, matthews_corrcoef

from benchmarks.distillation.config import Search, Table, TaskConfig, digest
from benchmarks.distillation.datasets.base import Array, Paths
from benchmarks.distillation.datasets.draw import prepare_files, what_is_missing
from benchmarks.distillation.methods import TRAINABLE
from benchmarks.distillation.methods.base import (
    DistillationData,
    EarlierLayerMethod,
    Peer,
    Setting,
)
from benchmarks.distillation.methods.clusters import tsne_kmeans
from benchmarks.distillation.methods.subclass_distillation import NAME as SUBCLASS
from benchmarks.distillation.preparation import make_data
from benchmarks.distillation.records import (
    MATTHEWS,
    Line,
    Records,
    scores_by_setting,
    setting_of,
)
from benchmarks.distillation.search import (
    Key,
    finalists,
    is_on_edge,
    key_of,
    next_settings,
)
from benchmarks.distillation.training import accuracies, class_logits
from benchmarks.files import versions
from benchmarks.timing import one_thread

# The mean scores of settings.
Known = dict[Key, float]

# Seeds of a report that are trained side by side; more are no faster.
SEEDS_AT_ONCE = 5


@dataclass(frozen=True)
class Unit:
    """Students of one method that a worker trains, side by side where they can be."""

    method: str
    settings: list[Setting]
    seeds: tuple[int, ...]


@dataclass
class Comparison:
    """One table, its files and where its data are."""

    table: Table
    paths: Paths
    trials: Records
    results: Records

    def run(self, tasks: Iterable[TaskConfig], n_jobs: int) -> None:
        """Do what is not done yet, task by task; each unit is kept once it is done."""
        with (
            one_thread(),
            parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1),
        ):
            for task in tasks:
                if reason := what_is_missing(task, self.paths):
                    print(f"Skipped: {task.name}: {reason}.", flush=True)
                    continue
                self.run_task(task)

    def run_task(self, task: TaskConfig) -> None:
        """Search for the settings of every method, then report on test rows."""
        data_by_seed: dict[int, DistillationData] = {}
        while units := [u for m in self.table.of(task) for u in self.wanted(task, m)]:
            missing = {
                seed for unit in units for seed in unit.seeds
            } - data_by_seed.keys()
            if missing:
                data_by_seed |= self.prepared(task, sorted(missing), "validation")
            self.work(task, units, data_by_seed, self.trials)
        settings = {m: self.best(task, m) for m in self.table.of(task)}
        units = list(self.unreported(task, settings))
        if units:
            needed = sorted({seed for unit in units for seed in unit.seeds})
            self.work(task, units, self.prepared(task, needed, "test"), self.results)
        self.print_task(task, settings)

    def wanted(self, task: TaskConfig, method: str) -> Iterator[Unit]:
        """Yield what the search of a method lacks to go on, or its final."""
        if method in self.table.at_setting_of:
            return
        search, known = self.searched(task, method)
        seeds = search.seeds
        settings = next_settings(search, known)
        if not settings and search.final_seeds:
            seeds, known = (
                search.final_seeds,
                self.scores(task, method, search.final_seeds),
            )
            settings = [
                setting
                for setting in finalists(*self.searched(task, method))
                if key_of(setting) not in known
            ]
        for alike in trained_together(task, settings):
            yield Unit(method, alike, seeds)

    def best(self, task: TaskConfig, method: str) -> Setting:
        """Return the finalist that is best over all seeds of a search."""
        method = self.table.at_setting_of.get(method, method)
        search, known = self.searched(task, method)
        scores = self.scores(task, method, search.seeds + search.final_seeds)
        return max(finalists(search, known), key=lambda x: scores[key_of(x)])

    def searched(self, task: TaskConfig, method: str) -> tuple[Search, Known]:
        """Return the search of a method and the scores that are known."""
        search = self.table.search.of(task, method)
        return search, self.scores(task, method, search.seeds)

    def scores(self, task: TaskConfig, method: str, seeds: tuple[int, ...]) -> Known:
        """Return the mean scores of the settings that have met all of some seeds."""
        return scores_by_setting(self.trials.of(task.name, method), seeds)

    def unreported(
        self, task: TaskConfig, settings: dict[str, Setting]
    ) -> Iterator[Unit]:
        """Yield what has no result; those of other settings than the best are void."""
        self.results.lines = [
            line
            for line in self.results.lines
            if line["task"] != task.name or setting_of(line) == settings[line["method"]]
        ]
        at_once = 1 if task.is_one_by_one else SEEDS_AT_ONCE
        for method, setting in settings.items():
            done = {line["seed"] for line in self.results.of(task.name, method)}
            for start in range(0, task.n_seeds, at_once):
                seeds = range(start, min(start + at_once, task.n_seeds))
                if missing := tuple(seed for seed in seeds if seed not in done):
                    yield Unit(method, [setting], missing)

    def prepared(
        self, task: TaskConfig, seeds: Iterable[int], part: str
    ) -> dict[int, DistillationData]:
        """Return the data of each seed, with what single methods of a table want."""
        start, seeds = time.perf_counter(), list(seeds)
        # Here, not in a worker: they would all write the same files.
        prepare_files(task, self.paths)
        methods = self.table.of(task)
        wanted = {name for method in methods for name in parts_on_demand(method)}
        made = Parallel()(
            delayed(make_data)(task, self.paths, seed, part, wanted) for seed in seeds
        )
        accuracy = np.mean([data.teacher_accuracy for data in made])
        print(
            f"{task.name}: {len(made)} teachers, {accuracy:.2%} on {part} rows, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
        return dict(zip(seeds, made, strict=True))

    def work(
        self,
        task: TaskConfig,
        units: list[Unit],
        data_by_seed: dict[int, DistillationData],
        records: Records,
    ) -> None:
        """Train the students of all units and keep each unit's lines at once."""
        calls = (
            delayed(train)(
                task,
                unit,
                [data_by_seed[seed] for seed in unit.seeds],
                is_search=records is self.trials,
            )
            for unit in units
        )
        for lines, seconds in Parallel(return_as="generator_unordered")(calls):
            records.add(lines, self.table)
            top = max(line["accuracy"] for line in lines)
            print(
                f"{task.name}, {lines[0]['method']}: {len(lines)} students of "
                f"{lines[0]['max_epochs']} epochs, the best {top:.4f}, {seconds:.1f} s",
                flush=True,
            )

    def print_task(self, task: TaskConfig, settings: dict[str, Setting]) -> None:
        """Print what each method reached, the teacher beside it, and with what."""
        for method, setting in settings.items():
            lines = self.results.of(task.name, method)
            accuracy = np.array([line["accuracy"] for line in lines])
            teacher = np.mean([line["teacher_accuracy"] for line in lines])
            search = self.table.search.of(task, method)
            edge = " (at a bound)" if is_on_edge(search, setting) else ""
            print(
                f"{task.name}: {method} {accuracy.mean():.2%}, teacher {teacher:.2%}, "
                f"{len(accuracy)} seeds, with {setting}{edge}",
                flush=True,
            )


def trained_together(task: TaskConfig, settings: list[Setting]) -> list[list[Setting]]:
    """Split settings into those of one unit: of equally many epochs, or each alone."""
    if task.is_one_by_one:
        return [[setting] for setting in settings]
    return [
        [s for s in settings if s["max_epochs"] == max_epochs]
        for max_epochs in sorted({setting["max_epochs"] for setting in settings})
    ]


def parts_on_demand(method: str) -> Iterator[str]:
    """Yield the fields of `DistillationData` that few methods use."""
    if isinstance(TRAINABLE[method], EarlierLayerMethod):
        yield "earlier"
    if TRAINABLE[method].within is tsne_kmeans:
        yield "layout"
    if has_own_teacher(method):
        yield "subclass_teacher"


def has_own_teacher(method: str) -> bool:
    """Return whether a method trains a teacher for itself."""
    found = TRAINABLE[method]
    return isinstance(found, Peer) and found.term == SUBCLASS


def train(
    task: TaskConfig,
    unit: Unit,
    data_by_seed: list[DistillationData],
    *,
    is_search: bool,
) -> tuple[list[Line], float]:
    """Train the students of a unit; return their lines and the seconds it took.

    A line of a search has the accuracy alone, by which settings are compared.
    """
    start, method = time.perf_counter(), TRAINABLE[unit.method]
    with one_thread():
        if is_search:
            found = [
                [{"accuracy": round(accuracy, 6)} for accuracy in by_setting]
                for by_setting in accuracies(method, data_by_seed, unit.settings)
            ]
        else:
            found = [
                [scores(task, data, logits) for logits in by_setting]
                for data, by_setting in zip(
                    data_by_seed,
                    class_logits(method, data_by_seed, unit.settings),
                    strict=True,
                )
            ]
    common = {"task": task.name, "kind": task.kind, "method": unit.method}
    kept = {"made_with": digest(task, unit.method), **versions()}
    lines = [
        {
            **common,
            **dict.fromkeys(("temperature", "regression_weight")),
            **setting,
            "seed": seed,
            **of_setting,
            "teacher_accuracy": round(data.teacher_accuracy, 6),
            **(own_teacher(data, setting) if has_own_teacher(unit.method) else {}),
            **kept,
        }
        for seed, data, by_setting in zip(unit.seeds, data_by_seed, found, strict=True)
        for setting, of_setting in zip(unit.settings, by_setting, strict=True)
    ]
    return lines, time.perf_counter() - start


def scores(task: TaskConfig, data: DistillationData, logits: Array) -> Line:
    """Return the student's scores."""
    precision = None
    if task.has_rare_class:
        margin = np.nan_to_num(logits[:, 1] - logits[:, 0])
        precision = round(float(average_precision_score(data.y_score, margin)), 6)
    predicted, matthews = logits.argmax(1), {}
    if task.has_matthews:
        found = float(matthews_corrcoef(data.y_score, predicted))
        matthews = {MATTHEWS: round(found, 6)}
    return {
        **matthews,
        "accuracy": round(float(np.mean(predicted == data.y_score)), 6),
        "average_precision": precision,
    }


def own_teacher(data: DistillationData, setting: Setting) -> Line:
    """Return the accuracy of a method's own teacher and the work of both trainings."""
    teacher = data.subclass_teacher
    (n, width), n_outputs = data.X.shape, teacher.logits.shape[1]
    n_parameters = (width + 1) * data.n_units + (data.n_units + 1) * n_outputs
    return {
        "teacher_accuracy": round(teacher.accuracy, 6),
        "teacher_work": teacher.work,
        "student_work": float(n_parameters * n * setting["max_epochs"]),
    }
