"""Embeddings on disk: anonymous memory, time, and whether time is linear in the rows.

Half precision rows are written to a scratch folder and mapped. Each work (the fit with
either splitter, the transform into a file, the peer) runs in a process of its own, ours
on all rows and on a quarter of them. The peer, scikit-learn's IncrementalPCA of each
class, is slow and runs once; its directions and ours are compared by the variance along
them, over all rows.
"""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.speed.comparison import table_of
from benchmarks.speed.problems import Array, Options, Shape, Teacher
from benchmarks.speed.processes import run_alone

REPEATS = 3
BLOCK_ROWS = 4096
PCA, PEER = "fit, pca", "IncrementalPCA"
GROWTH = "t(n) / t(n/4)"
OURS = ["fit, kmeans", PCA, "transform"]
QUICK = [(Shape(160_000, 384, 2, 10), True)]
# With 4096 features the peer would take many hours.
FULL = [(Shape(1_600_000, 768, 2, 10), True), (Shape(1_600_000, 4096, 2, 8), False)]


def measure(options: Options) -> dict:
    """Measure each size that the scratch folder has room for."""
    lines = {}
    for shape, with_peer in FULL if options.full else QUICK:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            needed = _bytes_on_disk(shape)
            free = shutil.disk_usage(folder).free
            if needed > free:
                lines[str(shape)] = {
                    "skipped": f"needs {needed / 1e9:.1f} GB of scratch space, "
                    f"{free / 1e9:.1f} GB are free"
                }
                continue
            lines[str(shape)] = _measure(shape, Path(folder), with_peer=with_peer)
    return {"shapes": lines}


def _bytes_on_disk(shape: Shape) -> int:
    """Rows in half precision, their soft labels in single, and a tenth to spare."""
    n_outputs = shape.n_classes * shape.n_subclasses
    return int(1.1 * shape.n_rows * (2 * shape.n_features + 4 * n_outputs))


def _measure(shape: Shape, folder: Path, *, with_peer: bool) -> dict:
    _write_rows(shape, folder)
    works = {}
    for work in OURS:
        quarter = _run(work, folder, shape, shape.n_rows // 4, REPEATS)
        works[work] = _run(work, folder, shape, shape.n_rows, REPEATS)
        works[work][GROWTH] = works[work]["seconds"] / quarter["seconds"]
    line = {"bytes": 2 * shape.n_rows * shape.n_features, "works": works}
    if not with_peer:
        return line
    works[PEER] = _run(PEER, folder, shape, shape.n_rows, repeats=1)
    ours, theirs = _variance(folder, shape.n_classes, [PCA, PEER])
    return line | {
        "ratio": works[PEER]["seconds"] / works[PCA]["seconds"],
        # Of the class in which we do worst.
        "captured over the peer": float(np.min(ours / theirs)),
    }


def _run(work: str, folder: Path, shape: Shape, n_rows: int, repeats: int) -> dict:
    """Median seconds, and the peak of the memory beyond what the imports hold."""
    task = {"work": work, "folder": str(folder), "shape": shape}
    task |= {"n_rows": n_rows, "repeats": repeats}
    found, peak = run_alone("memory_child", task)
    return {
        "seconds": float(np.median(found["seconds"])),
        "import baseline": found["baseline"],
        "peak above it": peak - found["baseline"],
    }


def _write_rows(shape: Shape, folder: Path) -> None:
    teacher = Teacher(shape)
    size = shape.n_rows, shape.n_features
    X = np.lib.format.open_memmap(folder / "X.npy", "w+", np.float16, size)
    y = np.empty(shape.n_rows, np.int64)

    def write(start: int) -> None:
        rows = slice(start, min(start + BLOCK_ROWS, shape.n_rows))
        X[rows], y[rows] = teacher.draw(rows.stop - start, seed=start)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(write, range(0, shape.n_rows, BLOCK_ROWS)))
    # The disk is not to be busy with them while time is taken.
    X.flush()
    np.save(folder / "y.npy", y)


def _variance(folder: Path, n_classes: int, works: list[str]) -> Array:
    """Variance of each class along each work's directions: (works, C)."""
    X, y = np.load(folder / "X.npy", mmap_mode="r"), np.load(folder / "y.npy")
    found = [np.load(folder / f"{work}.npy") for work in works]
    n_directions = found[0].shape[1]
    sums = np.zeros((2, n_classes, len(works) * n_directions))
    for start in range(0, len(X), BLOCK_ROWS):
        rows = X[start : start + BLOCK_ROWS].astype(np.float32)
        for label in range(n_classes):
            directions = np.vstack([each[label] for each in found])
            mine = rows[y[start : start + BLOCK_ROWS] == label]
            z = (mine @ directions.T.astype(np.float32)).astype(np.float64)
            sums[:, label] += z.sum(axis=0), (z**2).sum(axis=0)
    mean, square = sums / np.bincount(y, minlength=n_classes)[:, None]
    each = (square - mean**2).reshape(n_classes, len(works), n_directions)
    return each.sum(axis=2).T


def table(entry: dict) -> str:
    """One line a work, and below what the peer says."""
    rows, notes = [], []
    for shape, line in entry["shapes"].items():
        if "skipped" in line:
            notes.append(f"{shape}: skipped, {line['skipped']}.")
            continue
        for work, found in line["works"].items():
            row = {
                "float16 on disk": f"{shape}, {line['bytes'] / 1e9:.2f} GB",
                "work": work,
                "s": f"{found['seconds']:.2f}",
                "GB/s": f"{line['bytes'] / found['seconds'] / 1e9:.2f}",
                "peak anonymous MiB": f"{found['peak above it'] / 2**20:.0f}",
            }
            if GROWTH in found:
                row[GROWTH] = f"{found[GROWTH]:.2f}"
            rows.append(row)
        if "ratio" in line:
            notes.append(
                f"{shape}: {PCA} {line['ratio']:.1f} times as fast as {PEER}, at "
                f"{line['captured over the peer']:.5f} of its variance."
            )
    notes.append("Memory is counted above what the imports hold.")
    return "\n\n".join(([table_of(rows)] if rows else []) + ["  \n".join(notes)])
