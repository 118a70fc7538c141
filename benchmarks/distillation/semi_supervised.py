"""What rows without a label add: student accuracy against their number.

    python benchmarks/distillation/semi_supervised.py [--data-dir FOLDER] [--quick]

Of a pool of rows one in a hundred has a label. The student gets these and 0, 1, 4, 16
or 64 times as many without one, which learn from the teacher alone (``unlabeled=-1``).
There are two teachers: one that was trained on the labels of the whole data, as in
distillation from a model that somebody else trained, and one that was trained on the
labelled rows alone, as where there are no other labels in the world.

Two tasks: the two-digit numbers of the demo, prime or not, and Fashion-MNIST, even
classes or odd, from ``FOLDER/fashion_mnist`` (``train.npz`` and ``test.npz`` with
arrays x and y). Every student has 32 hidden units and takes 2 000 steps. Each method
tries the same learning rates and temperatures at each point, on one seed and validation
rows; the tables are of test rows and five other seeds. They go to
``results/semi_supervised.json``, a task and a teacher at a time: run again after an
interruption, the program goes on from there.
"""

import argparse
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
from joblib import Parallel, delayed, parallel_config

from benchmarks import files
from benchmarks.distillation.config import BASELINE, HARD, OURS
from benchmarks.distillation.datasets.base import Array, Task
from benchmarks.distillation.datasets.numbers import two_digits
from benchmarks.distillation.methods.base import DistillationData
from benchmarks.distillation.statistics import interval, level, paired
from benchmarks.distillation.teachers.perceptron import accuracy, embed, train_teacher
from benchmarks.distillation.tuning import settings_in
from benchmarks.files import markdown, read_json, write_json
from lelp_sklearn import LELPProjector, LELPStudentClassifier

RESULTS = files.RESULTS / "semi_supervised.json"
SEARCH_SEED, SEEDS = 100, range(5)
# Rows without a label for each row with one.
POINTS = [0, 1, 4, 16, 64]
PRIME, FASHION = "prime or not", "Fashion-MNIST, even or odd"
# Steps of each teacher: the small one has 300 or 500 rows to learn from.
TEACHERS = {"all labels": 3_500, "labelled rows alone": 700}
GRID = {
    "learning_rate": [0.01, 0.04],
    "temperature": [3.0, 9.0],
}
BATCH_SIZE, N_STEPS = 100, 2_000
N_UNITS = 32

Setting = dict[str, float]
# A point of a curve: the method and the number of unlabelled rows for each labelled.
Point = tuple[str, int]
# A task and a teacher.
Case = tuple[str, str]


def fashion(folder: Path, seed: int, part: str) -> Task:
    """Return 50 000 rows of clothes in random order, the rest to validate on."""
    with np.load(folder / "train.npz") as train, np.load(folder / "test.npz") as test:
        order = np.random.default_rng(seed).permutation(len(train["y"]))
        X, y = train["x"][order], train["y"][order]
        score = (X[50_000:], y[50_000:])
        if part == "test":
            score = (test["x"], test["y"])
    groups = y[:50_000].astype(int)
    return Task(
        X=_pixels(X[:50_000]),
        y=groups % 2,
        groups=groups,
        X_score=_pixels(score[0]),
        y_score=score[1].astype(int) % 2,
        n_student=50_000,
        n_units=N_UNITS,
    )


def _pixels(images: Array) -> Array:
    return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1


def make_data(
    name: str, teacher: str, seed: int, part: str, options: argparse.Namespace
) -> DistillationData:
    """Draw the rows of a seed, hide most labels and train the teacher.

    The labelled rows come first; `y` is -1 for the others.
    """
    if name == PRIME:
        task = two_digits(seed, part, labeling="prime numbers")
    else:
        task = fashion(options.data_dir / "fashion_mnist", seed, part)
    n_labelled = len(task.X) // 100
    labelled = task
    if teacher == "labelled rows alone":
        labelled = replace(task, X=task.X[:n_labelled], y=task.y[:n_labelled])
    n_steps = 100 if options.quick else TEACHERS[teacher]
    model = train_teacher(labelled, seed, n_steps)
    return DistillationData(
        X=task.X,
        y=np.where(np.arange(len(task.y)) < n_labelled, task.y, -1),
        groups=None,
        embeddings=embed(model, task.X),
        head=model.head,
        n_units=N_UNITS,
        X_score=task.X_score,
        y_score=task.y_score,
        teacher_accuracy=accuracy(model, task.X_score, task.y_score),
        seed=seed,
    )


def score(
    data: DistillationData, point: Point, setting: Setting, n_steps: int
) -> float:
    """Train a student by a method on some of the rows; return its accuracy."""
    method, n_times = point
    rows = slice(len(data.X) // 100 * (1 + n_times))
    X, y = data.X[rows], data.y[rows]
    splitting = {} if method == OURS else {"n_subclasses": 1}
    temperature = setting.get("temperature", 1.0)
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (N_UNITS,)},
        projector=LELPProjector(head=data.head, temperature=temperature, **splitting),
        within_class_temperature=temperature,
        unlabeled=-1,
        learning_rate=setting["learning_rate"],
        max_epochs=max(1, round(n_steps * BATCH_SIZE / len(X))),
        batch_size=BATCH_SIZE,
        random_state=data.seed,
    )
    if method == HARD:
        student.fit(X, y, soft_targets=np.eye(2, dtype=np.float32)[y])
    else:
        student.fit(X, y, teacher_embeddings=data.embeddings[rows])
    return student.score(data.X_score, data.y_score)


def score_all(
    case: Case, seed: int, part: str, settings: dict[Point, list[Setting]], options
) -> tuple[float, dict[Point, list[float]]]:
    """Return the teacher's accuracy on a seed, and that of each point's settings."""
    n_steps = 100 if options.quick else N_STEPS
    data = make_data(*case, seed, part, options)
    return data.teacher_accuracy, {
        point: [score(data, point, setting, n_steps) for setting in tried]
        for point, tried in settings.items()
    }


def names_of_tasks(data_dir: Path | None) -> list[str]:
    """Return the tasks whose data are there; print a line of one that is left out."""
    if data_dir is None:
        print("Skipped: Fashion-MNIST, for which no --data-dir is given.")
    elif not (data_dir / "fashion_mnist").is_dir():
        print(f"Skipped: there is no {data_dir / 'fashion_mnist'}.")
    else:
        return [PRIME, FASHION]
    return [PRIME]


def search(case: Case, points: list[Point], options) -> dict[Point, list[Setting]]:
    """Return the best setting of each point, the only one in its list."""
    tried = {point: settings_in(GRID, point[0]) for point in points}
    # Two halves of about the same work.
    parts = [
        {p: settings for p, settings in tried.items() if (p[0] == OURS) == is_ours}
        for is_ours in (True, False)
    ]
    found = Parallel()(
        delayed(score_all)(case, SEARCH_SEED, "validation", part, options)
        for part in parts
    )
    accuracies = {point: row for _, part in found for point, row in part.items()}
    return {p: [tried[p][int(np.argmax(accuracies[p]))]] for p in points}


def compare(case: Case, options) -> dict:
    """Search and then run all points of a task and a teacher; return the results."""
    times, seeds = (POINTS[:2], SEEDS[:2]) if options.quick else (POINTS, SEEDS)
    points = [(HARD, 0), *product([BASELINE, OURS], times)]
    best = search(case, points, options)
    scored = Parallel()(
        delayed(score_all)(case, seed, "test", best, options) for seed in seeds
    )
    return {
        "teacher": [accuracy for accuracy, _ in scored],
        "points": [
            {
                "method": point[0],
                "unlabelled for each labelled": point[1],
                "setting": best[point][0],
                "accuracy": [found[point][0] for _, found in scored],
            }
            for point in points
        ],
    }


def print_table(case: Case, found: dict) -> None:
    """Print the curves of a task and a teacher: mean ± standard error, paired gain."""
    curves = {
        (p["method"], p["unlabelled for each labelled"]): p["accuracy"]
        for p in found["points"]
    }
    print(
        f"\n{case[0]}; teacher of {case[1]}: "
        f"{level(100 * np.array(found['teacher']))}; "
        f"hard labels, labelled rows alone: {level(100 * np.array(curves[HARD, 0]))}\n"
    )
    rows = []
    for n_times in sorted({n for method, n in curves if method == OURS}):
        pair = [100 * np.array(curves[m, n_times]) for m in (BASELINE, OURS)]
        gain = interval(paired(pair[1] - pair[0]))
        rows.append([f"{n_times}", *map(level, pair), gain])
    titles = ["unlabelled : labelled", f"{BASELINE}, %", f"{OURS}, %", "gain"]
    print(markdown(titles, rows), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison, print its tables and keep its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="holds fashion_mnist")
    parser.add_argument("--quick", action="store_true", help="a minute, not a result")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    made_with = {"search seed": SEARCH_SEED, "seeds": len(SEEDS), "grid": GRID}
    results = read_json(RESULTS, made_with)
    for teacher, name in product(TEACHERS, names_of_tasks(options.data_dir)):
        of_task = results.setdefault(name, {})
        if options.quick or teacher not in of_task:
            with parallel_config("loky", n_jobs=options.jobs, inner_max_num_threads=1):
                of_task[teacher] = compare((name, teacher), options)
            if not options.quick:
                write_json(RESULTS, results)
        print_table((name, teacher), of_task[teacher])
    print(f"\n{time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
