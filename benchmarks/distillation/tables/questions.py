"""Variants of the default on few tasks: cheap ones, all at 240 epochs."""

from dataclasses import replace

from benchmarks.distillation.config import BASELINE, OURS, WIDE, Table
from benchmarks.distillation.methods.variants import VARIANTS
from benchmarks.distillation.tables.tasks import BY_NAME, SHORT

# Many variants on few tasks: cheap ones, all at 240 epochs.
NAMES = (
    "single digits",
    "mixture of 40 Gaussians",
    "letters, 2 000 rows",
    "numbers, random halves",
)
TASKS = tuple(replace(BY_NAME[name], epoch_bounds=(240, 240)) for name in NAMES)

TABLE = Table("Questions", TASKS, (BASELINE, WIDE, OURS, *VARIANTS), SHORT)
