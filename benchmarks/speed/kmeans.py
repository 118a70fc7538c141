"""Centroids of arrays in memory, and the inertia that they leave."""

import numpy as np

from benchmarks.speed.comparison import (
    milliseconds,
    over_shapes,
    race,
    table_of,
    times_as_fast,
)
from benchmarks.speed.peers import kmeans_peers, null_space_rows, outside_head
from benchmarks.speed.problems import Array, Options, Shape, Teacher
from lelp_sklearn import LELPProjector

# Peers of an inertia further above ours do not count.
CLOSE = 1.02


def measure(options: Options) -> dict:
    """Time the fit beside scikit-learn's two k-means of each class."""
    return over_shapes(options, _measure)


def _measure(shape: Shape, repeats: int) -> dict:
    teacher = Teacher(shape)
    X, y = teacher.draw(shape.n_rows)
    projector = LELPProjector(
        shape.n_subclasses, splitter="kmeans", head=teacher.head, random_state=0
    )

    def ours() -> list[Array]:
        projector.fit(X, y)
        means = outside_head(projector.mean_, teacher.coef)
        return list((means[:, None] + projector.components_).astype(X.dtype))

    peers = kmeans_peers(X, y, teacher.coef, shape.n_subclasses)
    runs = {"ours": ours, **peers}
    line, inertias = race(
        runs,
        repeats,
        lambda found: _inertia(X, y, teacher.coef, found),
        lambda inertia, ours: inertia <= CLOSE * ours,
    )
    return line | {"inertia": inertias}


def _inertia(X: Array, y: Array, coef: Array, centroids: list[Array]) -> float:
    """Mean squared distance to the nearest centroid of the class."""
    total = 0.0
    for label, each in enumerate(centroids):
        rows = null_space_rows(X, y, label, coef)
        half_squares = (each**2).sum(axis=1) / 2
        nearest = np.argmax(rows @ each.T - half_squares, axis=1)
        total += float(np.sum((rows - each[nearest]) ** 2, dtype=np.float64))
    return total / len(X)


def table(entry: dict) -> str:
    """One line a shape, milliseconds and the inertia relative to the best."""
    rows = []
    for shape, line in entry["shapes"].items():
        best = min(line["inertia"].values())
        times = {
            name: f"{milliseconds(seconds)} ({line['inertia'][name] / best:.4f})"
            for name, seconds in line["seconds"].items()
        }
        compared = {"times the fastest peer": times_as_fast(line)}
        rows.append({"k-means, ms (inertia over the best)": shape} | times | compared)
    return (
        f"{table_of(rows)}\n\nGeometric mean {entry['geometric mean']:.2f}, over peers "
        f"whose inertia is at most {CLOSE} times ours."
    )
