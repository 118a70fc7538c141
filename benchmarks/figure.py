"""The demo's figure: what each method reached, and what the subclasses found."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t
from sklearn.manifold import TSNE

from methods import Lesson, projector, subclasses
from tasks import Array


def draw(
    path: Path, accuracies: dict[str, Array], lesson: Lesson, shown_class: int = 1
) -> None:
    """Draw the accuracies of all seeds and one class's embeddings; write to `path`."""
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    _draw_accuracies(left, accuracies)
    rows = lesson.y == shown_class
    places = _plane(lesson, rows)
    found = subclasses(lesson)[rows, shown_class].argmax(axis=1)
    _draw_map(middle, places, found)
    middle.set_title("The teacher's embeddings of primes (t-SNE):\nsubclasses found")
    _draw_map(right, places, lesson.groups[rows], names=True)
    right.set_title("the same embeddings:\nthe numbers, which the teacher never saw")
    figure.savefig(path, dpi=150)


def _draw_accuracies(axes: Axes, accuracies: dict[str, Array]) -> None:
    for height, values in enumerate(reversed(accuracies.values())):
        half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        axes.plot(100 * values, np.full(len(values), height), "o", c="0.75", ms=4)
        axes.errorbar(
            100 * values.mean(), height, xerr=100 * half, fmt="o", c="C0", capsize=3
        )
    axes.set_yticks(range(len(accuracies)), reversed(accuracies))
    axes.axvline(100 * accuracies["vanilla KD"].mean(), c="C0", ls=":", lw=1)
    axes.set_xlabel("test accuracy in %: each seed, mean and 95 % interval")
    axes.set_title("Prime or not: two-digit numbers")


def _plane(lesson: Lesson, rows: Array) -> Array:
    """Lay the class's principal coordinates in the null space out in the plane."""
    fitted = projector(lesson, splitter="pca", rotation=None)
    fitted.fit(lesson.embeddings, lesson.y)
    label = int(lesson.y[rows][0])
    coordinates = lesson.embeddings[rows] @ fitted.components_[label].T
    return TSNE(perplexity=20, init="pca", random_state=0).fit_transform(coordinates)


def _draw_map(axes: Axes, places: Array, groups: Array, names: bool = False) -> None:
    values, colours = np.unique(groups, return_inverse=True)
    axes.scatter(*places.T, c=colours % 20, cmap="tab20", s=8, vmin=0, vmax=19)
    axes.set(xticks=[], yticks=[])
    if names:
        for value in values:
            x, y = np.median(places[groups == value], axis=0)
            axes.text(x, y, f"{value:02d}", ha="center", va="center", weight="bold")
