"""Where the gain begins and ends: mixtures around one that is in all panels."""

from benchmarks.distillation.config import (
    BASELINE,
    ORACLE,
    OURS,
    PLAIN,
    PUBLISHED,
    UNION,
    WIDE,
    Panel,
    Table,
    TaskConfig,
)
from benchmarks.distillation.tables.tasks import SHORT

# Groups in each class, and the spread of centres at which no classifier of points from
# such a mixture can be right in more than 98 % of cases: all are equally hard.
SPREADS = {1: 0.67, 2: 0.79, 5: 0.92, 10: 1.0, 20: 1.07, 50: 1.2}
# The same by classes, of ten groups each.
CLASS_SPREADS = {2: 1.0, 3: 1.08, 5: 1.19, 10: 1.29}
# The widest student has about as many weights as the teacher.
ROWS, WIDTHS = (300, 1_000, 3_000, 10_000), (8, 32, 128, 512)


def _mixture(
    n_groups: int,
    n_classes: int = 2,
    n_student: int = 1_000,
    n_units: int = 32,
) -> TaskConfig:
    spread = CLASS_SPREADS[n_classes] if n_classes > 2 else SPREADS[n_groups]
    rows = f"mixture, {n_classes} classes of {n_groups} groups"
    return TaskConfig(
        f"{rows}, {n_student} rows, {n_units} units",
        UNION if n_groups > 1 else PLAIN,
        "mixture",
        {"n_classes": n_classes, "n_groups": n_groups, "spread": spread},
        n_student=n_student,
        n_units=n_units,
        epoch_bounds=(240, 240),
        n_seeds=5,
        rows_of=rows,
    )


def _sweep() -> tuple[tuple[TaskConfig, ...], tuple[Panel, ...]]:
    """Return mixtures around one that is in all panels."""
    by_quantity = {
        "groups in each of two classes": {n: _mixture(n) for n in SPREADS},
        "classes of ten groups": {n: _mixture(10, n) for n in CLASS_SPREADS},
        "student's rows": {n: _mixture(20, n_student=n) for n in ROWS},
        "student's hidden units": {n: _mixture(20, n_units=n) for n in WIDTHS},
    }
    panels = tuple(
        Panel(quantity, tuple(tasks), tuple(task.name for task in tasks.values()))
        for quantity, tasks in by_quantity.items()
    )
    every = [task for tasks in by_quantity.values() for task in tasks.values()]
    return tuple({task.name: task for task in every}.values()), panels


_tasks, _panels = _sweep()
TABLE = Table(
    "Where the gain begins and ends",
    _tasks,
    (BASELINE, PUBLISHED, OURS, WIDE, ORACLE),
    SHORT,
    _panels,
)
