"""Learning curves: tasks that are trained for ever more epochs."""

from dataclasses import replace

from benchmarks.distillation.config import (
    BASELINE,
    OURS,
    PUBLISHED,
    WIDE,
    Panel,
    Table,
    TaskConfig,
)
from benchmarks.distillation.tables.tasks import BY_NAME, SHORT

EPOCHS = (8, 15, 30, 60, 120, 240, 480)


def _curves() -> tuple[tuple[TaskConfig, ...], tuple[Panel, ...]]:
    """Return tasks that are trained for ever more epochs."""
    tasks, panels = [], []
    for name in ("letters, 2 000 rows", "numbers, random halves"):
        of_task = [
            replace(
                BY_NAME[name],
                name=f"{name}, {n} epochs",
                rows_of=name,
                max_epochs=n,
                epoch_bounds=(n, n),
            )
            for n in EPOCHS
        ]
        tasks += of_task
        names = tuple(task.name for task in of_task)
        panels.append(Panel(f"epochs: {name}", EPOCHS, names, shows_gain=False))
    return tuple(tasks), tuple(panels)


_tasks, _panels = _curves()
TABLE = Table(
    "Learning curves",
    _tasks,
    (BASELINE, PUBLISHED, OURS, WIDE),
    SHORT,
    _panels,
)
