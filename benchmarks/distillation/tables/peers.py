"""Methods of the literature on four of the tasks."""

from dataclasses import replace

from benchmarks.distillation.config import (
    BASELINE,
    FITNET,
    ORACLE,
    OURS,
    PUBLISHED,
    SHUFFLED,
    WIDE,
    Table,
)
from benchmarks.distillation.methods import PEERS
from benchmarks.distillation.tables.tasks import BY_NAME, SEARCH

# The losses of some peers are costly: for all methods of their table fewer trials and
# epochs than in the first one.
TASKS = tuple(
    replace(BY_NAME[name], epoch_bounds=(1, 480))
    for name in (
        "single digits",
        "letters, 2 000 rows",
        "numbers, divisible by 3",
        "Fashion-MNIST, 2 000 rows",
    )
)
SEARCH_OF_PEERS = replace(
    SEARCH, n_trials=16, final_seeds=(103, 104, 105), n_finalists=3
)
NOTES = {
    "DKD": (
        "degenerates with two classes: beside the row's own class there is one other, "
        "so the divergence among the others is zero whatever its weight, and what is "
        "left is vanilla KD beside the labels' cross-entropy"
    ),
    "DIST": (
        "degenerates with two classes: within a row two probabilities are always "
        "correlated by ±1, so the term between the classes of a row has no gradient, "
        "and the two columns say the same; one correlation over the batch is left, "
        "beside the labels' cross-entropy"
    ),
    "Subclass Distillation": (
        "trains a teacher of its own, with its auxiliary loss at its authors' weight "
        "and temperature, 1 and 1, which were not searched for; the student has the "
        "labels' cross-entropy too"
    ),
}


TABLE = Table(
    "Methods of the literature",
    TASKS,
    (BASELINE, PUBLISHED, OURS, FITNET, *PEERS, WIDE, SHUFFLED, ORACLE),
    SEARCH_OF_PEERS,
    quick_methods=(BASELINE, OURS, "CRD, annealed", "Subclass Distillation"),
    shares="methods",
    notes=NOTES,
)
