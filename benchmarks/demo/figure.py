"""The demo's figure: what each method reached, and what the subclasses found."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods.base import DistillationData, projector, subclasses
from benchmarks.distillation.statistics import paired


def draw(
    path: Path,
    accuracies: dict[str, Array],
    data: DistillationData,
    shown_class: int = 1,
) -> None:
    """Draw the accuracies of all seeds and one class's embeddings; write to `path`."""
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    _draw_accuracies(left, accuracies)
    rows = data.y == shown_class
    positions = _plane(data, rows)
    found = subclasses(data)[rows, shown_class].argmax(axis=1)
    _draw_map(middle, positions, found)
    middle.set_title("The teacher's embeddings of primes (t-SNE):\nsubclasses found")
    _draw_map(right, positions, data.groups[rows], names=True)
    right.set_title("the same embeddings:\nthe numbers, which the teacher never saw")
    figure.savefig(path, dpi=150)


def _draw_accuracies(axes: Axes, accuracies: dict[str, Array]) -> None:
    for height, values in enumerate(reversed(accuracies.values())):
        axes.plot(100 * values, np.full(len(values), height), "o", c="0.75", ms=4)
        mean = paired(100 * values)
        half = mean.high - mean.mean
        axes.errorbar(mean.mean, height, xerr=half, fmt="o", c="C0", capsize=3)
    axes.set_yticks(range(len(accuracies)), reversed(accuracies))
    axes.axvline(100 * accuracies["vanilla KD"].mean(), c="C0", ls=":", lw=1)
    axes.set_xlabel("test accuracy in %: each seed, mean and 95 % interval")
    axes.set_title("Prime or not: two-digit numbers")


def _plane(data: DistillationData, rows: Array) -> Array:
    """Lay the class's principal coordinates in the null space out in the plane."""
    fitted = projector(data, splitter="pca", rotation=None)
    fitted.fit(data.embeddings, data.y)
    label = int(data.y[rows][0])
    coordinates = data.embeddings[rows] @ fitted.components_[label].T
    return TSNE(perplexity=20, init="pca", random_state=0).fit_transform(coordinates)


def _draw_map(axes: Axes, positions: Array, groups: Array, names: bool = False) -> None:
    values, colours = np.unique(groups, return_inverse=True)
    axes.scatter(*positions.T, c=colours % 20, cmap="tab20", s=8, vmin=0, vmax=19)
    axes.set(xticks=[], yticks=[])
    if names:
        for value in values:
            x, y = np.median(positions[groups == value], axis=0)
            axes.text(x, y, f"{value:02d}", ha="center", va="center", weight="bold")
