"""The paper's own tasks: CIFAR-100 merged into two classes, reviews and sentences.

Students are trained one by one by the library's own class. A method has twelve settings
on one seed; the best three meet two more.
"""

from functools import partial

from benchmarks.distillation.config import (
    BASELINE,
    FITNET,
    ORACLE,
    OURS,
    PLAIN,
    PUBLISHED,
    SHUFFLED,
    UNION,
    WIDE,
    Search,
    Table,
    TaskConfig,
)
from benchmarks.distillation.methods.lelp import of_earlier_layer

EARLIER = of_earlier_layer(OURS)
SEARCH_OF_PAPER = Search(
    grid={"learning_rate": (0.003, 0.01, 0.03), "temperature": (1.0, 4.0)},
    bounds={},
    n_trials=0,
    seeds=(100,),
    final_seeds=(101, 102),
    n_finalists=3,
    thorough=False,
)
CONTROLS = {WIDE: OURS, SHUFFLED: OURS}
FOLDS = {"teacher_folds": 3}
by_library = partial(
    TaskConfig, is_by_library=True, teacher_steps=1_000, n_seeds=5, epoch_bounds=(1, 48)
)
documents = partial(
    by_library,
    draw="documents",
    n_student=4_000,
    max_epochs=48,
    quick={"n_pool": 300, "n_train": 300, "n_score": 100},
)
photos = partial(
    by_library,
    kind=UNION,
    draw="cifar100",
    folder="cifar100",
    teacher_dropout=0.5,
    max_epochs=32,
    quick={"n_pool": 300, "n_train": 300, "n_score": 100},
    rows_of="CIFAR-100-bin",
    **FOLDS,
)
# Name, kind, folder, what its classes and groups are, and other fields.
_HALVES = {"n_classes": 2}
_TEXTS = (
    ("IMDB", UNION, "imdb", {"finer": ("stars",)}, {}),
    ("CoLA", PLAIN, "cola", {}, {"has_groups": False, "has_matthews": True}),
    ("Amazon", UNION, "amazon_mds", {"finer": ("stars", "domain")}, {}),
    (
        "Amazon, four stars",
        UNION,
        "amazon_mds",
        {"column": "stars", "finer": ("domain",)},
        {},
    ),
    (
        "SST-2",
        PLAIN,
        "sst2",
        {"files": ("sentences_train", "sst_test_labelled")},
        {"has_groups": False},
    ),
    ("20 Newsgroups, random halves", UNION, "newsgroups20", _HALVES, {}),
    (
        "20 Newsgroups, four kinds",
        UNION,
        "newsgroups20",
        {"n_classes": 4, "by_kind": True},
        {},
    ),
)


def _text_tasks() -> tuple[TaskConfig, ...]:
    """Return the texts with 400 labels and all, for a linear student and a network."""
    return tuple(
        documents(
            f"{name}, {labels}, {student}",
            kind,
            folder=folder,
            arguments={"name": folder, **arguments},
            n_units=n_units,
            rows_of=f"{name}, {labels}",
            **fields,
            **teacher,
        )
        for student, n_units in (("linear", 0), ("64 units", 64))
        for labels, teacher in (
            ("400 labels", {"labelled_share": 0.1}),
            ("all labels", FOLDS),
        )
        for name, kind, folder, arguments, fields in _TEXTS
    )


TABLE = Table(
    "The paper's tasks",
    (
        photos(
            "CIFAR-100-bin, 5 000, linear", n_student=5_000, n_patches=200, n_units=0
        ),
        photos(
            "CIFAR-100-bin, 5 000, 64 units", n_student=5_000, n_patches=200, n_units=64
        ),
        photos(
            "CIFAR-100-bin, 5 000, convolutions",
            n_student=5_000,
            n_units=0,
            student_params={"widths": (16, 32, 64), "strided": True},
        ),
        photos(
            "CIFAR-100-bin, 20 000, linear", n_student=20_000, n_patches=200, n_units=0
        ),
        photos(
            "CIFAR-100-bin, 20 000, 64 units",
            n_student=20_000,
            n_patches=200,
            n_units=64,
        ),
        *_text_tasks(),
    ),
    (BASELINE, PUBLISHED, OURS, EARLIER, FITNET, WIDE, SHUFFLED, ORACLE),
    SEARCH_OF_PAPER,
    quick_methods=(BASELINE, OURS, EARLIER, SHUFFLED, ORACLE),
    chosen={"layer chosen on validation rows": (OURS, EARLIER)},
    at_setting_of=CONTROLS,
    notes={
        "CIFAR-100-bin": (
            "the teacher is a network on the embeddings of EfficientNet-Lite0, with "
            "the weights of ImageNet, of photos enlarged to 128 pixels; it learns from "
            "20 000 photos, and the class targets of a photo come from one of three "
            "that have not seen it. Linear students and those of 64 units read what "
            "200 random whitened patches respond"
        ),
        "texts": (
            "the teacher is a network on the embeddings of MiniLM, which reads 128 "
            "tokens; 4 000 texts of each seed, 5 000 words. With 400 labels the other "
            "texts have the class that the teacher predicts; with all, class targets "
            "come from one of three teachers that have not seen the text"
        ),
        "the paper's numbers": (
            "CIFAR-100-bin, ResNet-92 to ResNet-56: vanilla KD 72.87, LELP 79.91, "
            "oracle 86.42; LELP on texts, with ALBERT as teacher: IMDB 90.22, CoLA "
            "81.43, SST-2 92.81, Amazon 88.16. Teachers, students and rows are others "
            "there: only its place between vanilla KD and the oracle compares"
        ),
        f"{WIDE}, {SHUFFLED}": f"at the best setting of {OURS}",
    },
)
