"""The tasks of the comparison, and how methods are searched for on them."""

from functools import partial

from benchmarks.distillation.config import PLAIN, UNION, Search, TaskConfig

# Learning rate and temperature have no upper bound; below τ = 1 targets would be
# sharpened. Seeds of searches are never reported on.
SEARCH = Search(
    grid={"learning_rate": (0.005, 0.02, 0.08), "temperature": (2.0, 4.0, 8.0)},
    bounds={"temperature": (1.0, float("inf"))},
    n_trials=30,
    seeds=(100, 101, 102),
    final_seeds=(103, 104, 105, 106, 107),
    n_finalists=4,
)


def _numbers(name: str, labeling: str) -> TaskConfig:
    return TaskConfig(
        name,
        UNION,
        "numbers",
        {"labeling": labeling},
        quick={"n_train": 4_000, "n_score": 2_000},
    )


_letters = partial(
    TaskConfig,
    kind=UNION,
    draw="letters",
    folder="letter",
    quick={"n_train": 4_000},
)
_texts = partial(
    TaskConfig,
    draw="texts",
    teacher_steps=2_000,
    max_epochs=60,
    epoch_bounds=(1, 480),
    quick={"n_train": 1_500, "n_score": 500},
)
_fashion = partial(
    TaskConfig,
    kind=PLAIN,
    draw="clothes",
    folder="fashion_mnist",
    n_units=16,
    quick={"n_train": 5_000, "n_score": 2_000},
)
_customers = partial(
    TaskConfig,
    kind=PLAIN,
    draw="customers",
    n_student=4_000,
    n_units=16,
    teacher_steps=1_000,  # three times as many overfit
    max_epochs=60,
    epoch_bounds=(1, 480),
    has_groups=False,
    quick={"n_train": 5_000, "n_score": 2_000},
)

# Cheap ones first, so that a run that is stopped has finished as many as it could.
TASKS = (
    TaskConfig("single digits", PLAIN, "digits", n_student=898, n_units=8),
    TaskConfig("mixture of 40 Gaussians", UNION, "mixture", n_student=1_000),
    _letters("letters, 500 rows", n_student=500),
    _letters("letters, 2 000 rows"),
    _customers(
        "bank customers",
        folder="bank_additional",
        arguments={"name": "bank_additional", "left_out": "duration"},
        has_rare_class=True,
    ),
    _customers("incomes (Adult)", folder="adult", arguments={"name": "adult"}),
    _numbers("numbers, prime or not", "prime numbers"),
    _numbers("numbers, divisible by 3", "numbers divisible by 3"),
    _numbers("numbers, random halves", "numbers in random halves"),
    _fashion("Fashion-MNIST, 2 000 rows"),
    _texts(
        "TREC questions",
        PLAIN,
        folder="trec",
        arguments={"name": "trec", "mixed": False},
    ),
    _texts("Banking77", UNION, folder="banking77", arguments={"name": "banking77"}),
    _texts(
        "CLINC150",
        UNION,
        folder="clinc150",
        arguments={"name": "clinc150"},
        n_student=4_000,
    ),
    _letters(
        "letters, 14 000 rows",
        n_student=14_000,
        max_epochs=120,
        epoch_bounds=(1, 480),
    ),
    _fashion(
        "Fashion-MNIST, 20 000 rows",
        n_student=20_000,
        max_epochs=30,
        epoch_bounds=(1, 240),
    ),
    _texts(
        "reviews (MR)",
        PLAIN,
        folder="mr",
        arguments={"name": "mr", "mixed": False},
        has_groups=False,
    ),
    _texts(
        "objective or not (Subj)",
        PLAIN,
        folder="subj",
        arguments={"name": "subj", "mixed": False},
        has_groups=False,
    ),
    _texts(
        "phrases (SST-2)",
        PLAIN,
        folder="sst2",
        arguments={"name": "sst2", "mixed": False, "n_train": 10_000},
        has_groups=False,
    ),
    _texts(
        "news (AG News, in part)",
        PLAIN,
        folder="ag_news_partial",
        arguments={"name": "ag_news_partial", "mixed": False, "n_train": 10_000},
    ),
)

BY_NAME = {task.name: task for task in TASKS}
# A first grid, and what is next to its best settings until none is left.
SHORT = Search(
    grid={"learning_rate": (0.02, 0.04, 0.08), "temperature": (4.0, 8.0)},
    bounds=SEARCH.bounds,
    n_trials=0,
    seeds=SEARCH.seeds,
    final_seeds=(103, 104, 105),
    n_finalists=3,
)
