"""The methods of ``METHODS`` on all tasks."""

from benchmarks.distillation.config import Table
from benchmarks.distillation.methods import METHODS
from benchmarks.distillation.tables.tasks import SEARCH, TASKS

TABLE = Table("Methods", TASKS, tuple(METHODS), SEARCH)
