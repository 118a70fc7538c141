"""What won by itself in the table of questions, on all tasks."""

from dataclasses import replace

from benchmarks.distillation.config import (
    BASELINE,
    CHOSEN_BY,
    ORACLE,
    OURS,
    WIDE,
    Table,
)
from benchmarks.distillation.tables.questions import NAMES
from benchmarks.distillation.tables.tasks import SEARCH, TASKS

CANDIDATES = (
    "k-means, S = 40, β = 0.1",
    "S = 40, λ from 3 to 0 at 50%",
    "40 outputs a class, λ = 0",
)


TABLE = Table(
    "Candidates for a default",
    tuple(
        replace(task, kind=CHOSEN_BY) if task.name in NAMES else task for task in TASKS
    ),
    (BASELINE, OURS, WIDE, *CANDIDATES, ORACLE),
    SEARCH,
    shares="methods",
)
