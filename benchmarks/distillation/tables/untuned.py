"""What the library's plain `fit` reaches, by its own class.

It is the table ``untuned`` of ``run.py``. Beside the defaults are the same with one
subclass, both at the temperature 4, and the defaults of an earlier version; on the
tasks of the table ``methods``, and on tf-idf of texts, where the teacher is a logistic
regression on the embeddings of a sentence encoder. A hundred fits of the defaults on
each of three tasks show how far a single one may fall.

Every fit is a line of ``untuned.csv``; after an interruption the same command goes on.
``--report`` writes ``untuned.md`` of what is there.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.distillation.config import TaskConfig
from benchmarks.distillation.datasets.base import Paths
from benchmarks.distillation.datasets.draw import prepare_files, what_is_missing
from benchmarks.distillation.datasets.texts import embeddings_path, read_texts
from benchmarks.distillation.preparation import make_data
from benchmarks.distillation.tables.tasks import BY_NAME, TASKS
from benchmarks.distillation.untuned_report import write_untuned
from benchmarks.files import versions
from benchmarks.timing import one_thread
from lelp_sklearn import LELPProjector, LELPStudentClassifier

# Arguments of the projector and of the student.
Recipe = tuple[dict[str, Any], dict[str, Any]]

ONE_SUBCLASS = {"n_subclasses": 1}


def earlier_defaults(temperature: float) -> Recipe:
    """Return what were the defaults, at a temperature."""
    training = {
        "learning_rate": 0.01,
        "batch_size": 128,
        "within_class_temperature": temperature,
    }
    return {"temperature": temperature}, training


RECIPES: dict[str, Recipe] = {
    "defaults": ({}, {}),
    "S = 1": (ONE_SUBCLASS, {}),
    "earlier defaults": earlier_defaults(1.0),
    "defaults, τ = 4": ({"temperature": 4.0}, {}),
    "S = 1, τ = 4": ({**ONE_SUBCLASS, "temperature": 4.0}, {}),
    "earlier defaults, τ = 4": earlier_defaults(4.0),
}

# Cheap tasks first, so that a run that is stopped has finished as many as it could.
N_SEEDS, N_CHEAP = 10, 9
# Tasks of a hundred fits: ten initial weights and orders of rows on each seed.
STEADY = "letters, 500 rows", "mixture of 40 Gaussians", "numbers, random halves"
N_STARTS = 10
NAMES = ("task", "kind", "recipe", "seed", "start", "accuracy", "chance", "seconds")
WIDE = "wide"


@dataclass(frozen=True)
class WideTask:
    """Tf-idf of texts; the teacher has the labels of the first `n_labelled` rows."""

    name: str
    folder: str
    n_labelled: int
    n_columns: int = 5_000

    kind = WIDE


def _wide(name: str, folder: str, n_columns: int = 5_000) -> Iterator[WideTask]:
    of_columns = "" if n_columns == 5_000 else f", {n_columns // 1000} 000 columns"
    for n, what in ((400, "400 labels"), (N_ROWS, "all labels")):
        yield WideTask(f"{name}{of_columns}, {what}", folder, n, n_columns)


N_ROWS, N_DRAWN, N_SCORE = 4_000, 6_000, 2_000
WIDE_TASKS = (
    *_wide("AG News", "ag_news_partial"),
    *_wide("IMDB", "imdb"),
    *_wide("20 Newsgroups", "newsgroups20"),
    *_wide("AG News", "ag_news_partial", 50_000),
    *_wide("IMDB", "imdb", 50_000),
)
ALL_TASKS: dict[str, TaskConfig | WideTask] = {
    task.name: task for task in (*TASKS[:N_CHEAP], *WIDE_TASKS, *TASKS[N_CHEAP:])
}


@dataclass(frozen=True)
class Data:
    """What a student learns from and is scored on; its labels may be -1."""

    X: Any
    y: Any
    embeddings: Any
    head: Any
    X_score: Any
    y_score: Any
    seed: int
    hidden_layer_sizes: tuple[int, ...] = (128,)

    @property
    def chance(self) -> float:
        """The share of the most frequent class among the rows to score on."""
        return float(np.unique(self.y_score, return_counts=True)[1].max()) / len(
            self.y_score
        )


def task_data(task: TaskConfig, paths: Paths, seed: int, part: str = "test") -> Data:
    """Draw a task of the comparison, to be scored on a part of its rows."""
    prepare_files(task, paths)
    data = make_data(task, paths, seed, part)
    return Data(
        data.X,
        data.y,
        data.embeddings,
        data.head,
        data.X_score,
        data.y_score,
        data.seed,
        (data.n_units,),
    )


def wide_data(task: WideTask, paths: Paths, seed: int) -> Data:
    """Draw texts, and fit the teacher to those that have a label."""
    texts, embeddings = embedded_texts(task.folder, paths)
    train, score = texts["train"], texts["test"]
    order = np.random.default_rng(seed).permutation(len(train))[:N_ROWS]
    rows = train[order]
    reader = TfidfVectorizer(max_features=task.n_columns, dtype=np.float32)
    labelled = slice(task.n_labelled)
    head = LogisticRegression(max_iter=2_000)
    head.fit(embeddings[order[labelled]], rows.labels[labelled])
    y = rows.labels.copy()
    y[task.n_labelled :] = -1
    return Data(
        reader.fit_transform(rows.texts),
        y,
        embeddings[order],
        head,
        reader.transform(score.texts),
        score.labels,
        seed,
    )


def embedded_texts(folder: str, paths: Paths) -> tuple[dict[str, Any], Any]:
    """Return the texts of a folder, and the embeddings of those to train on."""
    from benchmarks.text import encoder
    from lelp_sklearn import EmbeddingExtractor

    texts, _ = read_texts(paths.data / folder, N_DRAWN, N_SCORE)
    path = embeddings_path(paths, folder, "wide", N_DRAWN)
    path.parent.mkdir(parents=True, exist_ok=True)
    extractor = EmbeddingExtractor(encoder.sentence_encoder())
    train = texts["train"].texts
    return texts, extractor.extract(train, path, dtype="float32")


def student_of(data: Data, recipe: Recipe, start: int = 0) -> LELPStudentClassifier:
    """Return a student of the library, not fitted yet."""
    splitting, training = recipe
    return LELPStudentClassifier(
        module_params={"hidden_layer_sizes": data.hidden_layer_sizes},
        projector=LELPProjector(head=data.head, **splitting),
        unlabeled=-1,
        device="cpu",
        random_state=(data.seed + start) % 2**31,
        **training,
    )


def fit_score(data: Data, recipe: Recipe, start: int = 0) -> float:
    """Train a student by the library's own class, and return its accuracy."""
    student = student_of(data, recipe, start)
    student.fit(data.X, data.y, teacher_embeddings=data.embeddings)
    return float(student.score(data.X_score, data.y_score))


# A recipe and a start.
Fits = list[tuple[str, int]]


def rounds(tasks: list[TaskConfig | WideTask]) -> Iterator[tuple[Any, int, Fits]]:
    """Yield tasks, seeds and what to fit: the most telling fits first."""
    cheap = [task for task in tasks if task in TASKS[:N_CHEAP]]
    steady = [task for task in tasks if task.name in STEADY]
    others = [task for task in tasks if task not in cheap]
    plain, at_4 = ([(recipe, 0) for recipe in [*RECIPES][i : i + 3]] for i in (0, 3))
    more = [("defaults", start) for start in range(1, N_STARTS)]
    for group, fits in (
        (cheap, plain),
        (others, plain),
        (steady, more),
        (cheap, at_4),
        (others, at_4),
    ):
        for seed in range(N_SEEDS):
            yield from ((task, seed, fits) for task in group)


def fit_all(tasks: list[TaskConfig | WideTask], paths: Paths, path: Path) -> None:
    """Do what is not done yet; each fit is kept once it is done."""
    lines = read(path)
    done = {(x["task"], x["recipe"], int(x["seed"]), int(x["start"])) for x in lines}
    with one_thread():
        for task, seed, wanted in rounds(tasks):
            fits = [
                (recipe, start)
                for recipe, start in wanted
                if (task.name, recipe, seed, start) not in done
            ]
            if not fits:
                continue
            if reason := why_skipped(task, paths):
                print(f"Skipped: {task.name}: {reason}.", flush=True)
                continue
            draw: Callable[..., Data] = wide_data if task.kind == WIDE else task_data
            data = draw(task, paths, seed)
            for recipe, start in fits:
                begin = time.perf_counter()
                accuracy = fit_score(data, RECIPES[recipe], start)
                seconds = time.perf_counter() - begin
                values = task.name, task.kind, recipe, seed, start
                numbers = f"{accuracy:.6f}", f"{data.chance:.4f}", f"{seconds:.2f}"
                line = dict(zip(NAMES, (*values, *numbers), strict=True))
                append(path, line | versions())
                print(*values, f"{accuracy:.2%} {seconds:.1f} s", flush=True)


def why_skipped(task: TaskConfig | WideTask, paths: Paths) -> str | None:
    """Say why a task cannot be drawn, None where it can."""
    if isinstance(task, WideTask):
        return what_is_missing(
            TaskConfig(task.name, WIDE, "texts", folder=task.folder), paths
        )
    return what_is_missing(task, paths)


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines of an earlier run."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, line: dict[str, Any]) -> None:
    """Write one more line."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(line), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(line)


def run(
    options: argparse.Namespace, parser: argparse.ArgumentParser, paths: Paths
) -> None:
    """Run the table and write its report."""
    options.results.mkdir(parents=True, exist_ok=True)
    names = options.tasks or list(ALL_TASKS)
    if unknown := set(names) - ALL_TASKS.keys():
        parser.error(f"no such task: {', '.join(unknown)}; there are {[*ALL_TASKS]}")
    path = options.results / "untuned.csv"
    if not options.report:
        fit_all([ALL_TASKS[name] for name in names], paths, path)
    write_untuned(read(path), list(ALL_TASKS), BY_NAME.keys(), options.results)
