"""Few labels: tasks of which ever more rows have a label."""

from dataclasses import replace

from benchmarks.distillation.config import (
    BASELINE,
    HARD,
    ORACLE,
    OURS,
    PUBLISHED,
    WIDE,
    Panel,
    Table,
    TaskConfig,
)
from benchmarks.distillation.tables.tasks import BY_NAME, SHORT

# The teacher's steps at each share of labels: with few rows, as many would overfit.
TEACHER_STEPS = {0.01: 700, 0.1: 1_500, 1.0: 3_500}
LABELLED = {
    "numbers, prime or not": "numbers, prime or not",
    "letters": "letters, 2 000 rows",
    "Fashion-MNIST": "Fashion-MNIST, 2 000 rows",
}
METHODS = (HARD, BASELINE, PUBLISHED, OURS, WIDE, ORACLE)
NOTES = {
    HARD: (
        "labels where they are known, and for the other rows the class that the "
        "teacher predicts, which is self-training"
    ),
    ORACLE: (
        "knows the true group of every row, which shows its true class too where the "
        "teacher errs; the mass of the classes is the teacher's"
    ),
}


def _few_labels() -> tuple[tuple[TaskConfig, ...], tuple[Panel, ...]]:
    """Return tasks of which ever more rows have a label, and all are the student's.

    A student has 4 000 rows, so that 120 epochs are as many steps as 240 elsewhere.
    """
    tasks, gains, levels = [], [], []
    for short, name in LABELLED.items():
        of_task = [
            replace(
                BY_NAME[name],
                name=f"{short}, {100 * share:g} % labelled",
                rows_of=name,
                n_student=4_000,
                teacher_steps=n_steps,
                max_epochs=120,
                epoch_bounds=(120, 120),
                n_seeds=5,
                labelled_share=share,
            )
            for share, n_steps in TEACHER_STEPS.items()
        ]
        tasks += of_task
        panel = Panel(
            f"rows with a label, %: {short}",
            tuple(100 * share for share in TEACHER_STEPS),
            tuple(task.name for task in of_task),
        )
        gains.append(panel)
        levels.append(replace(panel, shows_gain=False))
    return tuple(tasks), (*gains, *levels)


_tasks, _panels = _few_labels()
TABLE = Table(
    "Few labels",
    _tasks,
    METHODS,
    SHORT,
    _panels,
    quick_methods=METHODS,
    notes=NOTES,
)
