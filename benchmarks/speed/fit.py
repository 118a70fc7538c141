"""Principal directions of arrays in memory, and the variance that they capture."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.speed.comparison import (
    milliseconds,
    over_shapes,
    race,
    table_of,
    times_as_fast,
)
from benchmarks.speed.peers import null_space_rows, pca_peers
from benchmarks.speed.problems import Array, Options, Shape, Teacher
from lelp_sklearn import LELPProjector

# Peers that capture less of what can be captured do not count.
ENOUGH = 0.999


def measure(options: Options) -> dict:
    """Time the fit beside scikit-learn's and torch's PCA of each class."""
    return over_shapes(options, _measure)


def _measure(shape: Shape, repeats: int) -> dict:
    teacher = Teacher(shape)
    X, y = teacher.draw(shape.n_rows)
    projector = LELPProjector(
        shape.n_subclasses, splitter="pca", head=teacher.head, random_state=0
    )
    peers = pca_peers(X, y, teacher.coef, shape.n_subclasses)
    runs = {"ours": lambda: projector.fit(X, y).components_, **peers}
    exact = _exact_variance(X, y, teacher.coef, shape.n_subclasses)
    line, shares = race(
        runs,
        repeats,
        lambda found: float(np.min(_variance(X, y, teacher.coef, found) / exact)),
        lambda share, _: share >= ENOUGH,
    )
    return line | {"captured": shares}


def _exact_variance(X: Array, y: Array, coef: Array, n_directions: int) -> Array:
    """Variance along the leading directions of each class, in double precision."""
    found = []
    for label in range(len(coef)):
        rows = null_space_rows(X, y, label, coef).astype(np.float64)
        rows -= rows.mean(axis=0)
        operator = LinearOperator(
            (X.shape[1],) * 2, matvec=lambda v, rows=rows: rows.T @ (rows @ v)
        )
        values = eigsh(operator, n_directions, return_eigenvectors=False, tol=1e-8)
        found.append(values.sum() / len(rows))
    return np.array(found)


def _variance(X: Array, y: Array, coef: Array, directions: list[Array]) -> Array:
    """Variance of each class along directions (S, d), summed in double precision."""
    found = []
    for label, each in enumerate(directions):
        rows = null_space_rows(X, y, label, coef)
        found.append((rows @ each.T).var(axis=0, dtype=np.float64).sum())
    return np.array(found)


def table(entry: dict) -> str:
    """One line a shape, milliseconds and the least share captured of any class."""
    rows = [
        {"fit, ms (captured)": shape}
        | {
            name: f"{milliseconds(seconds)} ({line['captured'][name]:.3%})"
            for name, seconds in line["seconds"].items()
        }
        | {"times the fastest peer": times_as_fast(line)}
        for shape, line in entry["shapes"].items()
    ]
    return (
        f"{table_of(rows)}\n\nGeometric mean {entry['geometric mean']:.2f}, over peers "
        f"that capture {ENOUGH:.1%} of the exact variance."
    )
