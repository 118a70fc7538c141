"""Pictures of which a student has ever more shifted copies."""

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

# At `max_epochs` divided by these, all students take equally many steps.
COPIES = (1, 2, 4, 8)


def _augmented() -> tuple[tuple[TaskConfig, ...], tuple[Panel, ...]]:
    """Return tasks of pictures of which a student has ever more shifted copies.

    A pixel at the border is seldom lit. Scaled by itself it would be huge wherever a
    shift lights it, so here all pixels are scaled alike. The teacher has learned from a
    shifted copy too: one that has not is often wrong on what it would teach.
    """
    tasks, panels = [], []
    for name in ("numbers, random halves", "Fashion-MNIST, 2 000 rows"):
        base = BY_NAME[name]
        of_task = [
            replace(
                base,
                name=f"{name}, {n} {'copies' if n > 1 else 'copy'}",
                rows_of=name,
                arguments={**base.arguments, "pixels_alike": True},
                max_epochs=base.max_epochs // n,
                epoch_bounds=(base.max_epochs // n, base.max_epochs // n),
                n_seeds=5,
                n_copies=n,
                teacher_copies=2,
                teacher_steps=2 * base.teacher_steps,
            )
            for n in COPIES
        ]
        tasks += of_task
        names = tuple(task.name for task in of_task)
        panels += [
            Panel(f"copies: {name}", COPIES, names, shows_gain=shows_gain)
            for shows_gain in (True, False)
        ]
    return tuple(tasks), tuple(panels)


_tasks, _panels = _augmented()
TABLE = Table(
    "Shifted copies",
    _tasks,
    (BASELINE, PUBLISHED, OURS, WIDE),
    SHORT,
    _panels,
)
