"""Figures of the results that are there."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.distillation.config import BASELINE, ORACLE, Panel, Table
from benchmarks.distillation.statistics import Scores, difference, paired

PANELS_ABREAST = 4


def draw(path: Path, table: Table, scores: Scores) -> None:
    """Draw the panels of a sweep, or every method's gain on every task."""
    figure = draw_panels(table, scores) if table.panels else draw_gains(table, scores)
    # Neither a date nor numbers drawn at random: equal results give an equal file.
    with rc_context({"svg.hashsalt": "accuracy"}):
        figure.savefig(path, metadata={"Date": None})


def draw_panels(table: Table, scores: Scores) -> Figure:
    """Draw a line a method against the quantity of each panel."""
    n_rows = -(-len(table.panels) // PANELS_ABREAST)
    n_columns = -(-len(table.panels) // n_rows)
    size = 4.2 * n_columns, 3.6 * n_rows + 0.4
    figure = Figure(figsize=size, layout="constrained")
    axes = [
        figure.add_subplot(n_rows, n_columns, place + 1)
        for place in range(len(table.panels))
    ]
    for panel, ax in zip(table.panels, axes, strict=True):
        draw_panel(ax, panel, table.methods, scores)
    # A panel of accuracies has the baseline too.
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_panel(
    ax: Axes, panel: Panel, methods: tuple[str, ...], scores: Scores
) -> None:
    """Draw one panel, of the tasks that are there."""
    known = [
        (value, task)
        for value, task in zip(panel.values, panel.tasks, strict=True)
        if task in scores
    ]
    values = [value for value, _ in known]
    for number, method in enumerate(methods):
        if panel.shows_gain and method == BASELINE:
            continue
        found = [
            paired(difference(scores[task], method, BASELINE))
            if panel.shows_gain
            else paired(np.array([*scores[task][method].values()]))
            for _, task in known
        ]
        ax.errorbar(
            values,
            [estimate.mean for estimate in found],
            yerr=[(estimate.high - estimate.low) / 2 for estimate in found],
            fmt="*-" if method == ORACLE else "o-",
            color=f"C{number}",
            ms=4,
            lw=1,
            label=method,
        )
    if panel.shows_gain:
        ax.axhline(0, c="0.5", lw=1)
    ax.set_xscale("log")
    ax.set_xticks(values, [f"{value:g}" for value in values], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlabel(panel.quantity)
    ax.set_ylabel(
        f"gain over {BASELINE}, points" if panel.shows_gain else "test accuracy, %"
    )


def draw_gains(table: Table, scores: Scores) -> Figure:
    """Draw every method's gain on every task, with its interval."""
    methods = [method for method in table.methods if method != BASELINE]
    height = 1.5 + 0.1 * len(methods) * len(scores)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    for place, of_task in enumerate(scores.values()):
        for number, method in enumerate(methods):
            if method not in of_task:
                continue
            gain = paired(difference(of_task, method, BASELINE))
            height = place + 0.8 * ((number + 0.5) / len(methods) - 0.5)
            axes.errorbar(
                gain.mean,
                height,
                xerr=(gain.high - gain.low) / 2,
                fmt="*" if method == ORACLE else "osv"[number // 10],
                color=f"C{number}",
                ms=4,
                label="" if place else method,
            )
        axes.axhline(place + 0.5, c="0.9", lw=0.8)
    axes.axvline(0, c="0.5", lw=1)
    axes.set_yticks(range(len(scores)), scores)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel(f"gain over {BASELINE} in points, with its 95 % interval")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure
