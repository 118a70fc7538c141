"""One work of the part `memory`, in a process of its own.

Prints as JSON the seconds of each repeat, and the anonymous memory before the first.
"""

import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.speed.problems import Array, Shape, Teacher
from benchmarks.speed.processes import anonymous_memory
from lelp_sklearn import LELPProjector

Run = Callable[[], object]
# So few rows first compile the kernels, or read them from Numba's cache.
WARM_UP_ROWS = 4096


def fit(splitter: str, X: Array, y: Array, shape: Shape, folder: Path) -> Run:
    """Fit; keep the projector for the transform, its directions to be compared."""
    head = Teacher(shape).head
    projector = LELPProjector(
        shape.n_subclasses, splitter=splitter, head=head, random_state=0
    )
    projector.fit(X[:WARM_UP_ROWS], y[:WARM_UP_ROWS])

    def run() -> None:
        projector.fit(X, y)
        np.save(folder / f"fit, {splitter}.npy", projector.components_)
        (folder / "projector.pickle").write_bytes(pickle.dumps(projector))

    return run


def transform(X: Array, folder: Path) -> Run:
    """Write the soft labels to a file."""
    projector = pickle.loads((folder / "projector.pickle").read_bytes())
    projector.transform(X[:WARM_UP_ROWS])
    return lambda: projector.transform(X, out=folder / "soft_labels.npy")


def incremental_pca(X: Array, y: Array, shape: Shape, folder: Path) -> Run:
    """Find the peer's directions, and keep them."""
    coef = Teacher(shape).coef

    def run() -> None:
        directions = peers.incremental_pca(X, y, coef, shape.n_subclasses)
        np.save(folder / "IncrementalPCA.npy", directions)

    return run


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    work, folder, shape = task["work"], Path(task["folder"]), Shape(*task["shape"])
    if work == "IncrementalPCA":
        # Brings torch along, which nothing else here needs.
        from benchmarks.speed import peers
    baseline = anonymous_memory()
    X = np.load(folder / "X.npy", mmap_mode="r")[: task["n_rows"]]
    y = np.load(folder / "y.npy")[: task["n_rows"]]
    works: dict[str, Callable[[], Run]] = {
        "fit, kmeans": lambda: fit("kmeans", X, y, shape, folder),
        "fit, pca": lambda: fit("pca", X, y, shape, folder),
        "transform": lambda: transform(X, folder),
        "IncrementalPCA": lambda: incremental_pca(X, y, shape, folder),
    }
    run = works[work]()
    seconds = []
    for _ in range(task["repeats"]):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "baseline": baseline}))
