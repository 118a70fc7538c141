"""From one modality to another: images or texts for teachers, sounds for students."""

from functools import partial

from benchmarks.distillation.config import (
    BASELINE,
    HARD,
    ORACLE,
    OURS,
    PUBLISHED,
    SHUFFLED,
    UNION,
    WIDE,
    Table,
)
from benchmarks.distillation.tables.paper import (
    CONTROLS,
    EARLIER,
    FOLDS,
    SEARCH_OF_PAPER,
    by_library,
)

STUDENTS = {
    "linear": {},
    "convolutions": {
        "student_params": {"widths": (8, 16, 32), "strided": True, "n_means": 4}
    },
}
_sounds = partial(
    by_library, kind=UNION, n_student=4_000, n_units=0, max_epochs=32, **FOLDS
)
_SMALL = {"n_train": 300, "n_score": 100}
_TASKS = {
    "digits seen, numbers heard": partial(
        _sounds,
        draw="spoken numbers",
        folder="spoken_digits",
        arguments={"labeling": "prime numbers"},
        quick=_SMALL,
    ),
    "Banking77 read and heard": partial(
        _sounds,
        draw="spoken documents",
        folder="banking77",
        arguments={"name": "banking77", "n_classes": 2},
        quick={"n_pool": 300, **_SMALL},
    ),
    "CLINC150 read and heard": partial(
        _sounds,
        draw="spoken documents",
        folder="clinc150",
        arguments={"name": "clinc150", "n_classes": 2},
        quick={"n_pool": 300, **_SMALL},
    ),
}

TABLE = Table(
    "From one modality to another",
    tuple(
        task(f"{name}, {student}", rows_of=name, **fields)
        for student, fields in STUDENTS.items()
        for name, task in _TASKS.items()
    ),
    (HARD, BASELINE, PUBLISHED, OURS, EARLIER, WIDE, SHUFFLED, ORACLE),
    SEARCH_OF_PAPER,
    quick_methods=(HARD, BASELINE, OURS, SHUFFLED, ORACLE),
    at_setting_of=CONTROLS,
    notes={
        "digits": (
            "an image and a sound are of one number, and of nothing else together; "
            "four speakers are to train on, one to validate on, another to test on"
        ),
        "texts": (
            "espeak-ng speaks each message in one of several voices; those of the test "
            "are none of those in training. The teacher reads MiniLM's embeddings"
        ),
        SHUFFLED: (
            "the subclasses of another row of the class, as if rows were paired within "
            f"the class alone, at the best setting of {OURS}, as {WIDE}"
        ),
    },
)
