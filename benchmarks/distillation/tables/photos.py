"""Photos, with convolutional teachers and students."""

from functools import partial

from benchmarks.distillation.config import (
    BASELINE,
    FITNET,
    HARD,
    ORACLE,
    OURS,
    PUBLISHED,
    SHUFFLED,
    UNION,
    WIDE,
    Search,
    Table,
    TaskConfig,
)
from benchmarks.distillation.tables.tasks import SEARCH

_photos = partial(
    TaskConfig,
    kind=UNION,
    draw="photos",
    folder="cifar10_jpeg",
    teacher_steps=2_000,
    teacher_width=64,
    n_seeds=5,
    quick={"n_train": 2_000, "n_score": 500},
    quick_fields={"teacher_steps": 30, "teacher_width": 8},
    rows_of="CIFAR-10-bin",
)
TASKS = (
    # Hours on two cores of a CPU; the others are for a GPU.
    _photos(
        "CIFAR-10-bin, 5 000 rows, small nets",
        teacher_steps=1_000,
        teacher_width=16,
        student_params={"widths": (8, 16, 32), "strided": True},
        n_student=5_000,
        max_epochs=32,
        epoch_bounds=(1, 256),
    ),
    _photos(
        "CIFAR-10-bin, 5 000 rows",
        n_student=5_000,
        max_epochs=32,
        epoch_bounds=(1, 128),
    ),
    _photos(
        "CIFAR-10-bin, 40 000 rows",
        n_student=40_000,
        max_epochs=8,
        epoch_bounds=(1, 32),
    ),
)
SEARCH_OF_PHOTOS = Search(
    grid={"learning_rate": (0.003, 0.01, 0.03), "temperature": (2.0, 4.0, 8.0)},
    bounds=SEARCH.bounds,
    n_trials=14,
    seeds=(100, 101),
    final_seeds=(102, 103, 104),
    n_finalists=3,
)


TABLE = Table(
    "Photos",
    TASKS,
    (
        HARD,
        BASELINE,
        PUBLISHED,
        OURS,
        "PCA, annealed",
        FITNET,
        WIDE,
        SHUFFLED,
        ORACLE,
    ),
    SEARCH_OF_PHOTOS,
    quick_methods=(BASELINE, OURS, FITNET, SHUFFLED, ORACLE),
    notes={
        "CIFAR-10-bin": (
            "ten kinds of photos, even or odd, from copies that are JPEG files and "
            "not the original pixels; teacher and student are convolutional"
        )
    },
)
