"""Which of the teacher's layers to split."""

from benchmarks.distillation.config import (
    BASELINE,
    FITNET,
    ORACLE,
    OURS,
    PUBLISHED,
    Table,
)
from benchmarks.distillation.methods import EARLIER
from benchmarks.distillation.methods.lelp import of_earlier_layer
from benchmarks.distillation.tables.tasks import SEARCH, TASKS

CHOSEN = {
    f"{name}, layer chosen": (name, of_earlier_layer(name))
    for name in (OURS, PUBLISHED, FITNET)
}
NOTES = {
    "earlier layer": (
        "the teacher's first hidden layer of 256 units instead of its second, or where "
        "it reads a sentence encoder's embeddings, these"
    ),
}


TABLE = Table(
    "Which layer to split",
    TASKS,
    (BASELINE, PUBLISHED, OURS, FITNET, *EARLIER, ORACLE),
    SEARCH,
    quick_methods=(BASELINE, *EARLIER),
    shares="methods",
    chosen=CHOSEN,
    notes=NOTES,
)
