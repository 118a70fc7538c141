"""How fast the projector is beside what a user would write without it.

    python benchmarks/speed.py [--full] [PART ...]

The parts: transform, fit, kmeans, start-up. Ours and the peers take turns in one
process; the table shows medians, and the median of the ratios, turn by turn, with their
quartiles. Without ``--full`` every array has a quarter of its rows.

Writes ``results/speed.json``.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from lelp_sklearn import LELPProjector
from peers import (
    Array,
    kmeans_peers,
    null_space_rows,
    pca_peers,
    soft_label_peers,
)
from timing import (
    geometric_mean,
    machine,
    peak_flops,
    ratio,
    read_bandwidth,
    take_turns,
    without_pinned_blas,
    write,
)

RESULTS = Path(__file__).parent / "results" / "speed.json"
# Rows, features, classes, subclasses.
SHAPES = [
    (100_000, 768, 2, 10),
    (100_000, 384, 2, 5),
    (30_000, 4096, 2, 8),
    (400_000, 64, 2, 5),
    (50_000, 1024, 5, 10),
]


def embeddings(shape: tuple[int, int, int, int], divisor: int) -> tuple[Array, Array]:
    """Draw rows whose spread falls off slowly, in groups, far from the origin."""
    n, d, n_classes, _ = shape
    rng = np.random.default_rng(0)
    y = rng.integers(n_classes, size=n // divisor)
    spread = (np.arange(1, d + 1) ** -0.6).astype(np.float32)
    X = rng.standard_normal((len(y), d), dtype=np.float32) * spread
    centres = rng.standard_normal((n_classes * 10, d), dtype=np.float32) * spread
    X += centres[y * 10 + rng.integers(10, size=len(y))] + np.float32(1)
    return X, y


def head(shape: tuple[int, int, int, int]) -> tuple[Array, Array]:
    """Draw the teacher's head."""
    _, d, n_classes, _ = shape
    coef = np.random.default_rng(1).standard_normal((n_classes, d)) / d**0.5
    return coef, np.zeros(n_classes)


def compare(
    name: str, runs: dict, repeats: int, peers: list[str] | None = None
) -> tuple[dict, float]:
    """Time ours, the first, against the peers; print a line; return it as a dict."""
    seconds = take_turns(runs, repeats)
    ours, *others = runs
    medians = {who: float(np.median(values)) for who, values in seconds.items()}
    fastest = min(peers or others, key=medians.get)
    middle, low, high = ratio(seconds[ours], seconds[fastest])
    times = ", ".join(f"{who} {1e3 * value:.1f}" for who, value in medians.items())
    print(f"{name}: {times} ms; {middle:.2f} [{low:.2f}, {high:.2f}] times {fastest}")
    line = {"seconds": medians, "fastest peer": fastest, "ratio": [middle, low, high]}
    return line, middle


def transform(divisor: int, repeats: int) -> dict:
    """Soft labels, the logits from the head."""
    bandwidth, flops = read_bandwidth(), peak_flops()
    print(f"reads {bandwidth / 1e9:.1f} GB/s, multiplies {flops / 1e9:.0f} GFLOP/s")
    lines, ratios = {}, []
    for shape in SHAPES:
        X, y = embeddings(shape, divisor)
        n_outputs = shape[2] * (shape[3] + 1)
        projector = LELPProjector(
            shape[3], splitter="pca", head=head(shape), random_state=0
        ).fit(X[:5000], y[:5000])
        half = X.astype(np.float16)
        runs = {
            "ours": lambda p=projector, X=X: p.transform(X),
            **soft_label_peers(X, projector),
            "ours, float16": lambda p=projector, X=half: p.transform(X),
        }
        peers = [who for who in runs if not who.startswith("ours")]
        line, middle = compare(f"transform {shape}", runs, repeats, peers)
        bound = max(X.nbytes / bandwidth, 2 * X.size * n_outputs / flops)
        line["share of the roofline"] = bound / line["seconds"]["ours"]
        line["float16 gain"] = (
            line["seconds"]["ours"] / line["seconds"]["ours, float16"]
        )
        print(
            f"  {line['share of the roofline']:.0%} of the roofline; float16 "
            f"{line['float16 gain']:.2f} times as fast as float32"
        )
        lines[str(shape)] = line
        ratios.append(middle)
    print(f"transform: geometric mean {geometric_mean(ratios):.2f}")
    return {"shapes": lines, "geometric mean": geometric_mean(ratios)}


def exact_variance(X: Array, y: Array, coef: Array, n_directions: int) -> list[float]:
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
    return found


def captured(X: Array, y: Array, coef: Array, directions: list[Array]) -> list[float]:
    """Variance of each class along directions (S, d), in double precision."""
    found = []
    for label, each in enumerate(directions):
        rows = null_space_rows(X, y, label, coef)
        found.append(float((rows @ each.T).var(axis=0, dtype=np.float64).sum()))
    return found


def fit(divisor: int, repeats: int) -> dict:
    """Principal directions of each class; peers count that capture 99.9 %."""
    lines, ratios = {}, []
    for shape in SHAPES:
        X, y = embeddings(shape, divisor)
        coef, intercept = head(shape)
        projector = LELPProjector(
            shape[3], splitter="pca", head=(coef, intercept), random_state=0
        )
        exact = np.array(exact_variance(X, y, coef, shape[3]))
        peers = pca_peers(X, y, coef, shape[3])
        shares = {
            who: float(np.min(captured(X, y, coef, run()) / exact))
            for who, run in peers.items()
        }
        directions = list(projector.fit(X, y).components_)
        ours = float(np.min(captured(X, y, coef, directions) / exact))
        good = [who for who in peers if shares[who] >= 0.999]
        runs = {"ours": lambda p=projector, X=X, y=y: p.fit(X, y), **peers}
        line, middle = compare(f"fit {shape}", runs, repeats, good)
        print(
            f"  captured: ours {ours:.4%}, "
            + ", ".join(f"{who} {share:.4%}" for who, share in shares.items())
        )
        lines[str(shape)] = line | {"captured": {"ours": ours, **shares}}
        ratios.append(middle)
    print(f"fit: geometric mean {geometric_mean(ratios):.2f}")
    return {"shapes": lines, "geometric mean": geometric_mean(ratios)}


def inertia(X: Array, y: Array, coef: Array, centroids: list[Array]) -> float:
    """Mean squared distance to the nearest centroid, over the classes."""
    total = 0.0
    for label, each in enumerate(centroids):
        rows = null_space_rows(X, y, label, coef)
        half = (each**2).sum(axis=1) / 2
        nearest = np.argmax(rows @ each.T - half, axis=1)
        total += float(np.sum((rows - each[nearest]) ** 2, dtype=np.float64))
    return total / len(X)


def kmeans(divisor: int, repeats: int) -> dict:
    """Centroids of each class."""
    lines, ratios = {}, []
    for shape in SHAPES:
        X, y = embeddings(shape, divisor)
        coef, intercept = head(shape)
        projector = LELPProjector(
            shape[3], splitter="kmeans", head=(coef, intercept), random_state=0
        )
        peers = kmeans_peers(X, y, coef, shape[3])
        projector.fit(X, y)
        removed = projector.mean_ - null_space_rows(
            projector.mean_, np.zeros(shape[2]), 0, coef
        )
        means = projector.mean_ - removed
        own = [m + each for m, each in zip(means, projector.components_, strict=True)]
        inertias = {
            "ours": inertia(X, y, coef, [each.astype(X.dtype) for each in own]),
            **{who: inertia(X, y, coef, run()) for who, run in peers.items()},
        }
        good = [who for who in peers if inertias[who] <= 1.02 * inertias["ours"]]
        runs = {"ours": lambda p=projector, X=X, y=y: p.fit(X, y), **peers}
        line, middle = compare(f"kmeans {shape}", runs, repeats, good or None)
        best = min(inertias.values())
        print(
            "  inertia over the best: "
            + ", ".join(f"{who} {value / best:.4f}" for who, value in inertias.items())
        )
        lines[str(shape)] = line | {"inertia": inertias}
        ratios.append(middle)
    print(f"kmeans: geometric mean {geometric_mean(ratios):.2f}")
    return {"shapes": lines, "geometric mean": geometric_mean(ratios)}


def start_up(divisor: int, repeats: int) -> dict:
    """Imports, each in a process of its own."""
    imports = {
        what: min(_seconds(f"import {what}") for _ in range(repeats))
        for what in ("sklearn", "lelp_sklearn")
    }
    times = ", ".join(f"import {what} {value:.2f} s" for what, value in imports.items())
    print(times)
    return {"imports": imports}


def _seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


PARTS = {"transform": transform, "fit": fit, "kmeans": kmeans, "start-up": start_up}


def main(arguments: list[str] | None = None) -> None:
    """Run the parts named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--full", action="store_true", help="all rows")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown parts {unknown}; choose from {list(PARTS)}")
    results = {"machine": machine(), "rows": "all" if options.full else "a quarter"}
    print(results["machine"])
    for part in options.parts or PARTS:
        results[part] = PARTS[part](1 if options.full else 4, options.repeats)
    write(RESULTS, results)


if __name__ == "__main__":
    without_pinned_blas()
    main()
