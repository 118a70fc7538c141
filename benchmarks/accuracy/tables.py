"""The tables, by the name that a command gives them."""

from dataclasses import replace
from functools import partial

from accuracy.config import (
    BASELINE,
    CHOSEN_BY,
    FITNET,
    ORACLE,
    OURS,
    PLAIN,
    PUBLISHED,
    SEARCH,
    SHUFFLED,
    TASKS,
    UNION,
    WIDE,
    Panel,
    Search,
    Table,
    TaskConfig,
)
from accuracy.variants import VARIANTS
from methods import EARLIER, METHODS, of_earlier_layer
from peer_methods import PEERS

BY_NAME = {task.name: task for task in TASKS}

# Many variants on few tasks: cheap ones, all at 240 epochs.
QUESTIONED_NAMES = (
    "single digits",
    "mixture of 40 Gaussians",
    "letters, 2 000 rows",
    "numbers, random halves",
)
QUESTIONED = tuple(
    replace(BY_NAME[name], epoch_bounds=(240, 240)) for name in QUESTIONED_NAMES
)
# A first grid, and what is next to its best settings until none is left.
SHORT = Search(
    grid={"learning_rate": (0.02, 0.04, 0.08), "temperature": (4.0, 8.0)},
    bounds=SEARCH.bounds,
    n_trials=0,
    seeds=SEARCH.seeds,
    final_seeds=(103, 104, 105),
    n_finalists=3,
)

# The losses of some peers are costly: for all methods of their table fewer trials and
# epochs than in the first one.
COMPARED_WITH_PEERS = tuple(
    replace(BY_NAME[name], epoch_bounds=(1, 480))
    for name in (
        "single digits",
        "letters, 2 000 rows",
        "numbers, divisible by 3",
        "Fashion-MNIST, 2 000 rows",
    )
)
AMONG_PEERS = replace(SEARCH, n_trials=16, final_seeds=(103, 104, 105), n_finalists=3)
NOTES_ON_PEERS = {
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

LAYER_CHOSEN = {
    f"{name}, layer chosen": (name, of_earlier_layer(name))
    for name in (OURS, PUBLISHED, FITNET)
}
NOTES_ON_LAYERS = {
    "earlier layer": (
        "the teacher's first hidden layer of 256 units instead of its second, or where "
        "it reads a sentence encoder's embeddings, these"
    ),
}

CANDIDATES = (
    "k-means, S = 40, β = 0.1",
    "S = 40, λ from 3 to 0 at 50%",
    "40 outputs a class, λ = 0",
)

# Groups in each class, and the spread of centres at which no classifier of points from
# such a mixture can be right in more than 98 % of cases: all are equally hard.
SPREADS = {1: 0.67, 2: 0.79, 5: 0.92, 10: 1.0, 20: 1.07, 50: 1.2}
# The same by classes, of ten groups each.
CLASS_SPREADS = {2: 1.0, 3: 1.08, 5: 1.19, 10: 1.29}
# The widest student has about as many weights as the teacher.
ROWS, WIDTHS = (300, 1_000, 3_000, 10_000), (8, 32, 128, 512)
EPOCHS = (8, 15, 30, 60, 120, 240, 480)
# The teacher's steps at each share of labels: with few rows, as many would overfit.
TEACHER_STEPS = {0.01: 700, 0.1: 1_500, 1.0: 3_500}
LABELLED = {
    "numbers, prime or not": "numbers, prime or not",
    "letters": "letters, 2 000 rows",
    "Fashion-MNIST": "Fashion-MNIST, 2 000 rows",
}
HARD = "hard labels"
WITH_LABELS = (HARD, BASELINE, PUBLISHED, OURS, WIDE, ORACLE)
NOTES_ON_LABELS = {
    HARD: (
        "labels where they are known, and for the other rows the class that the "
        "teacher predicts, which is self-training"
    ),
    ORACLE: (
        "knows the true group of every row, which shows its true class too where the "
        "teacher errs; the mass of the classes is the teacher's"
    ),
}
# At `max_epochs` divided by these, all students take equally many steps.
COPIES = (1, 2, 4, 8)


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


def _curves() -> tuple[tuple[TaskConfig, ...], tuple[Panel, ...]]:
    """Return tasks that are trained for ever more epochs."""
    tasks, panels = [], []
    for name in ("letters, 2 000 rows", "numbers, random halves"):
        of_task = [
            replace(
                BY_NAME[name],
                name=f"{name}, {n} epochs",
                rows_of=name,
                max_epochs=n,
                epoch_bounds=(n, n),
            )
            for n in EPOCHS
        ]
        tasks += of_task
        names = tuple(task.name for task in of_task)
        panels.append(Panel(f"epochs: {name}", EPOCHS, names, shows_gain=False))
    return tuple(tasks), tuple(panels)


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
PHOTOS = (
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
OF_PHOTOS = Search(
    grid={"learning_rate": (0.003, 0.01, 0.03), "temperature": (2.0, 4.0, 8.0)},
    bounds=SEARCH.bounds,
    n_trials=14,
    seeds=(100, 101),
    final_seeds=(102, 103, 104),
    n_finalists=3,
)

_mixtures, _mixture_panels = _sweep()
_trained_longer, _epoch_panels = _curves()
_partly_labelled, _label_panels = _few_labels()
_copied, _copy_panels = _augmented()

TABLES = {
    "methods": Table("Methods", TASKS, tuple(METHODS), SEARCH),
    "peers": Table(
        "Methods of the literature",
        COMPARED_WITH_PEERS,
        (BASELINE, PUBLISHED, OURS, FITNET, *PEERS, WIDE, SHUFFLED, ORACLE),
        AMONG_PEERS,
        quick_methods=(BASELINE, OURS, "CRD, annealed", "Subclass Distillation"),
        shares="methods",
        notes=NOTES_ON_PEERS,
    ),
    "questions": Table(
        "Questions", QUESTIONED, (BASELINE, WIDE, OURS, *VARIANTS), SHORT
    ),
    "candidates": Table(
        "Candidates for a default",
        tuple(
            replace(task, kind=CHOSEN_BY) if task.name in QUESTIONED_NAMES else task
            for task in TASKS
        ),
        (BASELINE, OURS, WIDE, *CANDIDATES, ORACLE),
        SEARCH,
        shares="methods",
    ),
    "layers": Table(
        "Which layer to split",
        TASKS,
        (BASELINE, PUBLISHED, OURS, FITNET, *EARLIER, ORACLE),
        SEARCH,
        quick_methods=(BASELINE, *EARLIER),
        shares="methods",
        chosen=LAYER_CHOSEN,
        notes=NOTES_ON_LAYERS,
    ),
    "photos": Table(
        "Photos",
        PHOTOS,
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
        OF_PHOTOS,
        quick_methods=(BASELINE, OURS, FITNET, SHUFFLED, ORACLE),
        notes={
            "CIFAR-10-bin": (
                "ten kinds of photos, even or odd, from copies that are JPEG files and "
                "not the original pixels; teacher and student are convolutional"
            )
        },
    ),
    "mixtures": Table(
        "Where the gain begins and ends",
        _mixtures,
        (BASELINE, PUBLISHED, OURS, WIDE, ORACLE),
        SHORT,
        _mixture_panels,
    ),
    "epochs": Table(
        "Learning curves",
        _trained_longer,
        (BASELINE, PUBLISHED, OURS, WIDE),
        SHORT,
        _epoch_panels,
    ),
    "labels": Table(
        "Few labels",
        _partly_labelled,
        WITH_LABELS,
        SHORT,
        _label_panels,
        quick_methods=WITH_LABELS,
        notes=NOTES_ON_LABELS,
    ),
    "augmented": Table(
        "Shifted copies",
        _copied,
        (BASELINE, PUBLISHED, OURS, WIDE),
        SHORT,
        _copy_panels,
    ),
}
