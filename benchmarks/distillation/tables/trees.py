"""Trees as teachers: class targets that leak, cross-fitted ones, and labels alone.

    python benchmarks/distillation/run.py trees --data-dir FOLDER

A teacher that has been fitted to the label of a row is far too sure of its class. Here
a student learns from the same rows as its teacher, with targets of three kinds:
``leaking`` from the teacher of all rows (``teacher_cv=None``), ``cross-fitted`` from
fits that did not see the row (``teacher_cv=3``), and ``hard labels`` without a teacher.
Nothing is tuned. Each student is scored by the area under the ROC curve on test rows,
with S = 1 and S = 5.
"""

import pickle
import time
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, clone
from sklearn.datasets import load_breast_cancer, make_classification, make_hastie_10_2
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict, train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks.distillation.datasets.base import Array, Paths
from benchmarks.distillation.datasets.customers import (
    columns_as_numbers,
    read_customers,
)
from benchmarks.distillation.records import read_lines, write_lines
from benchmarks.files import versions
from benchmarks.timing import one_thread
from lelp_sklearn import (
    EmbeddingExtractor,
    LELPMetaClassifier,
    LELPProjector,
    LELPStudentClassifier,
)

N_TRAIN, N_TEST = 2_000, 5_000
SEEDS = range(5)
FOLDS = 3
HARD, LEAKING, CROSS_FITTED = "hard labels", "leaking", "cross-fitted"
SIZES = "1", "5"
COLUMNS = (
    "set",
    "seed",
    "teacher",
    "student",
    "method",
    "n_subclasses",
    "auc",
    "ms",
    "kB",
)
# Probabilities below it are as unlikely in the log-probabilities of the library.
SMALLEST = 1e-7

Split = tuple[Array, Array, Array, Array]


def customers(
    folder: str, left_out: str | None = None
) -> Callable[[Paths, int], Split]:
    """Return what draws rows of a table of customers."""

    def draw(paths: Paths, seed: int) -> Split:
        frames = read_customers(paths.data / folder, left_out)
        train = frames["train"].sample(N_TRAIN, random_state=seed)
        test = frames["test"].sample(N_TEST, random_state=0)
        X, X_test = train.drop(columns="label"), test.drop(columns="label")
        columns = columns_as_numbers().fit(X)
        arrays = (columns.transform(each).astype(np.float32) for each in (X, X_test))
        return *arrays, train["label"].to_numpy(), test["label"].to_numpy()

    return draw


def rows_of(
    make: Callable[[int], tuple[Array, Array]],
) -> Callable[[Paths, int], Split]:
    """Return what splits rows that are bundled or generated, and standardises them."""

    def draw(paths: Paths, seed: int) -> Split:
        X, y = make(seed)
        n_train = min(N_TRAIN, len(y) // 2)
        X, X_test, y, y_test = train_test_split(
            X, y, train_size=n_train, random_state=seed, stratify=y
        )
        scaler = StandardScaler().fit(X)
        arrays = (scaler.transform(each).astype(np.float32) for each in (X, X_test))
        return *arrays, y, y_test

    return draw


def generated(flip_y: float, class_sep: float) -> Callable[[int], tuple[Array, Array]]:
    """Return what makes clusters, some labels of which are wrong."""
    return lambda seed: make_classification(
        N_TRAIN + N_TEST,
        20,
        n_informative=10,
        n_clusters_per_class=4,
        flip_y=flip_y,
        class_sep=class_sep,
        random_state=seed,
    )


def _hastie(seed: int) -> tuple[Array, Array]:
    X, y = make_hastie_10_2(N_TRAIN + N_TEST, random_state=seed)
    return X, (y > 0).astype(int)


SETS = {
    "incomes (Adult)": customers("adult"),
    "bank customers": customers("bank_additional", "duration"),
    "breast cancer": rows_of(lambda seed: load_breast_cancer(return_X_y=True)),
    "clusters": rows_of(generated(0.01, 1.0)),
    "clusters, noisy labels": rows_of(generated(0.3, 1.0)),
    "Hastie 10.2": rows_of(_hastie),
}
FOLDERS = {"incomes (Adult)": "adult", "bank customers": "bank_additional"}


def teachers_of(seed: int) -> dict[str, ClassifierMixin]:
    """Return the teachers, not fitted."""
    boosting = HistGradientBoostingClassifier(max_iter=50, random_state=seed)
    forest = RandomForestClassifier(50, random_state=seed)
    parts = [("boosting", boosting), ("forest", forest)]
    stack = StackingClassifier(parts, LogisticRegression(), cv=2)
    return {"HistGradientBoosting": boosting, "RandomForest": forest, "stack": stack}


def student_of(name: str, S: str, seed: int, head: Any = None) -> ClassifierMixin:
    """Return a student, not fitted."""
    projector = LELPProjector(int(S), head=head)
    if name == "linear":
        linear = LogisticRegression(max_iter=300)
        return LELPMetaClassifier(linear, projector=projector, random_state=seed)
    return LELPStudentClassifier(
        projector=projector, max_epochs=30, batch_size=128, random_state=seed
    )


def latency(model: Any, X: Array) -> float:
    """Return the fewest milliseconds that the prediction of one row takes."""
    seconds = []
    for row in range(10):
        start = time.perf_counter()
        model.predict_proba(X[row : row + 1])
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def measure(model: Any, X: Array, y: Array) -> dict[str, float]:
    """Return the area under the ROC curve, milliseconds a row, and kB of a pickle."""
    return {
        "auc": roc_auc_score(y, model.predict_proba(X)[:, 1]),
        "ms": latency(model, X),
        "kB": len(pickle.dumps(model)) / 1000,
    }


def lines_of(name: str, paths: Paths, seed: int) -> Iterator[dict[str, Any]]:
    """Yield teachers and students of a set and a seed."""
    own_seed = zlib.crc32(f"{name} {seed}".encode()) % 2**31
    X, X_test, y, y_test = SETS[name](paths, own_seed)

    def line(teacher: str, student: str, method: str, S: str, model: Any) -> dict:
        keys = (name, seed, teacher, student, method, S)
        return dict(zip(COLUMNS[:6], keys, strict=True)) | measure(
            model, X_test, y_test
        )

    for student in ("linear", "MLP"):
        model = student_of(student, "1", own_seed)
        model.fit(X, y, soft_targets=np.eye(2, dtype=np.float32)[y])
        yield line("", student, HARD, "1", model)
    for teacher_name, teacher in teachers_of(own_seed).items():
        fitted = clone(teacher).fit(X, y)
        yield line(teacher_name, "", "", "", fitted)
        extractor = EmbeddingExtractor(fitted).fit(X)
        embeddings = extractor.transform(X)
        # As a student with this teacher and `teacher_cv` does it, made once for all.
        unseen = cross_val_predict(teacher, X, y, cv=FOLDS, method="predict_proba")
        logits = {
            LEAKING: extractor.predict_logits(X),
            CROSS_FITTED: np.log(np.maximum(unseen, SMALLEST)),
        }
        for student in ("linear", "MLP"):
            for method, S in ((m, S) for m in logits for S in SIZES):
                model = student_of(student, S, own_seed, extractor.head_)
                model.fit(
                    X,
                    y,
                    teacher_embeddings=embeddings,
                    teacher_logits=logits[method],
                )
                yield line(teacher_name, student, method, S, model)


def run(options: Namespace, paths: Paths) -> None:
    """Run what is not done yet, unless only the report is wanted, and report."""
    from benchmarks.distillation.tables.trees_report import write_trees

    file = options.results / "trees.csv"
    lines = read_lines(file) if file.exists() else []
    done = {(line["set"], line["seed"]) for line in lines}
    todo = [(seed, name) for seed in SEEDS for name in SETS]
    for seed, name in [] if options.report else todo:
        folder = FOLDERS.get(name)
        if (name, str(seed)) in done or (options.tasks and name not in options.tasks):
            continue
        if folder and not (paths.data and (paths.data / folder).is_dir()):
            print(f"Skipped: {name}: there is no {folder} below --data-dir.")
            continue
        start = time.perf_counter()
        with one_thread():
            new = [
                {k: str(v) for k, v in line.items()}
                for line in lines_of(name, paths, seed)
            ]
        lines += [line | versions() for line in new]
        write_lines(file, [*COLUMNS, *versions()], lines)
        print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    write_trees(lines, options.results / "trees.md")
