"""What is compared: every number of the tables follows from this file.

A table has tasks, methods and a search. A task names the function of ``datasets`` that
draws its rows. Whoever changes what the code computes raises `CODE`: results of another
number, or of another configuration, are not mixed with new ones.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from benchmarks.distillation.methods import TRAINABLE, own_weight
from benchmarks.distillation.methods.base import TRAINING
from lelp_sklearn import LELPProjector, LELPStudentClassifier

CODE = 1
# The library's version when the first results were made. Each line of a file has its
# own; a version that computes otherwise raises `CODE`.
FIRST_VERSION = "0.1.0"

# Defaults of the library that results depend on.
DEFAULTS = (
    "n_subclasses",
    "splitter",
    "null_space",
    "rotation",
    "subclass_temperature",
    "subclass_weight",
    "within_class_temperature",
    "label_weight",
    "optimizer",
)

BASELINE, OURS, PUBLISHED = "vanilla KD", "LELP, library defaults", "LELP as published"
FITNET, WIDE, ORACLE = "FitNet", "same outputs, λ = 0", "oracle"
HARD = "hard labels"
SHUFFLED = "shuffled subclasses"
UNION, PLAIN = "union", "plain"
# Tasks by which something was chosen: no mean of the others has them.
CHOSEN_BY = "chosen by"


# How many times fewer epochs a search starts with too: between students that are best
# because they stop early and those that are best after long there may be worse ones.
TIMES_FEWER = 16


@dataclass(frozen=True)
class TaskConfig:
    """One task.

    `kind` is UNION where each class is a union of many groups, else PLAIN, or CHOSEN_BY
    in a table of what the task was used to choose. `draw` is a function of
    ``datasets`` that takes the `arguments`, and `folder` what it wants under the folder
    of data. The student, of one hidden layer of `n_units`, has the first
    `n_student` rows. A search starts at `max_epochs` and at a sixteenth of them, and
    stays within `epoch_bounds`.
    `quick` replaces some of the arguments for a quick look, and `quick_fields` some of
    what is here. With `rows_of` a task has the rows and, where labels and copies agree,
    the teachers of another one.

    Of all training rows the first `labelled_share` have a label: the teacher is trained
    on these alone, and the other rows of a student have the class it predicts.
    A student has `n_copies` of its rows, a teacher `teacher_copies` of its own, all but
    the first shifted pictures.

    With a `teacher_width` teacher and student are convolutional, the first layer of the
    teacher as wide, and students, which have `student_params`, are trained one by one,
    on labelled rows as they are.

    Where the task `is_by_library`, students are trained one by one by the library's
    class: linear where `n_units` is 0, convolutional with `student_params`; others than
    these read pictures as vectors, or what random patches respond to them. A teacher
    may drop units, and with `teacher_folds` > 1 the class targets of a row come from a
    teacher that did not learn from it. `has_matthews` asks for Matthews' coefficient.
    """

    name: str
    kind: str
    draw: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    folder: str | None = None
    n_student: int = 2_000
    n_units: int = 32
    teacher_steps: int = 3_500
    max_epochs: int = 240
    epoch_bounds: tuple[int, int] = (1, 960)
    n_seeds: int = 10
    has_groups: bool = True
    has_rare_class: bool = False
    quick: Mapping[str, object] = field(default_factory=dict)
    rows_of: str = ""
    labelled_share: float = 1.0
    n_copies: int = 1
    teacher_copies: int = 1
    teacher_width: int | None = None
    student_params: Mapping[str, object] = field(default_factory=dict)
    quick_fields: Mapping[str, object] = field(default_factory=dict)
    is_by_library: bool = False
    teacher_dropout: float = 0.0
    teacher_folds: int = 1
    n_patches: int = 0
    has_matthews: bool = False

    @property
    def is_convolutional(self) -> bool:
        """Whether teacher and student are."""
        return self.teacher_width is not None

    @property
    def is_one_by_one(self) -> bool:
        """Whether students are trained one after the other."""
        return self.is_convolutional or self.is_by_library

    @property
    def is_linear(self) -> bool:
        """Whether students have no hidden units."""
        return not self.n_units and not self.student_params

    @property
    def drawn_as(self) -> str:
        """The name that rows, teachers and seeds depend on."""
        return self.rows_of or self.name


@dataclass(frozen=True)
class Search:
    """The same search for every method, in what the method has.

    Every method tries `grid` first, then the neighbours of its best settings, half or
    double one value: those of the best until all are tried, however many there are, and
    then those of the next ones until `n_trials` settings have been tried. Where it is
    not `thorough`, it ends with the grid. The best `n_finalists` then meet the
    `final_seeds` too, for few seeds do not show that a setting loses one in ten; the
    best of them over all seeds is what is reported on.
    """

    grid: Mapping[str, tuple[float, ...]]
    bounds: Mapping[str, tuple[float, float]]
    n_trials: int
    seeds: tuple[int, ...]
    final_seeds: tuple[int, ...] = ()
    n_finalists: int = 1
    thorough: bool = True

    def of(self, task: TaskConfig, method: str) -> "Search":
        """Return the search of a method on a task."""
        lowest, _ = task.epoch_bounds
        epochs = [
            n for n in (task.max_epochs // TIMES_FEWER, task.max_epochs) if n >= lowest
        ]
        grid = {**self.grid, "max_epochs": tuple(epochs)}
        if method == HARD:
            del grid["temperature"]
        if (weight := own_weight(TRAINABLE[method])) is not None:
            grid["regression_weight"] = (weight,)
        return replace(
            self, grid=grid, bounds={**self.bounds, "max_epochs": task.epoch_bounds}
        )


@dataclass(frozen=True)
class Panel:
    """Tasks that differ in one quantity, by its values: a panel of a figure.

    It shows each method's gain over vanilla KD, or its accuracy.
    """

    quantity: str
    values: tuple[float, ...]
    tasks: tuple[str, ...]
    shows_gain: bool = True


@dataclass(frozen=True)
class Table:
    """What one command runs; with `panels`, it is a sweep over some quantities.

    Trials and results that the table named by `shares` has of the same methods and
    tasks are taken over. `chosen` names choices, each with the methods of which it
    takes, task by task, the best on validation rows. `at_setting_of` names methods that
    are not searched for, each with the one whose best setting it takes. `notes` tell
    what is to be known of a method or of the data, and `quick_methods` are those of a
    quick look.
    """

    title: str
    tasks: tuple[TaskConfig, ...]
    methods: tuple[str, ...]
    search: Search
    panels: tuple[Panel, ...] = ()
    quick_methods: tuple[str, ...] = (BASELINE, PUBLISHED, OURS, WIDE)
    shares: str | None = None
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    at_setting_of: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def of(self, task: TaskConfig) -> list[str]:
        """Return the methods that a task allows."""
        impossible = set() if task.has_groups else {ORACLE}
        if task.is_linear:
            # Nothing to regress from.
            impossible.add(FITNET)
        return [method for method in self.methods if method not in impossible]


def quick(table: Table) -> Table:
    """Return a table that shows in minutes whether something broke."""
    tasks = tuple(
        replace(
            task,
            arguments={**task.arguments, **task.quick},
            **{
                "n_student": min(task.n_student, 500),
                "teacher_steps": 300,
                "max_epochs": task.max_epochs // 4,
                "epoch_bounds": tuple(max(1, n // 4) for n in task.epoch_bounds),
                "n_seeds": 2,
                **task.quick_fields,
            },
        )
        for task in table.tasks
    )
    search = replace(
        table.search,
        grid={"learning_rate": (0.02, 0.08), "temperature": (4.0,)},
        seeds=table.search.seeds[:1],
        final_seeds=(),
        n_finalists=1,
        thorough=False,
    )
    return replace(
        table,
        title=f"{table.title}, a quick look",
        tasks=tasks,
        methods=table.quick_methods,
        search=search,
        panels=(),
        shares=None,
        chosen={},
    )


def digest(task: TaskConfig, method: str | None = None) -> str:
    """Return what stands for the code and the configuration of results.

    Without a method it is that of the teachers. Seeds and searches are no part of it:
    more of them can be added.
    """
    parts: dict[str, object] = {
        "code": CODE,
        "library": FIRST_VERSION,
        "name": task.drawn_as,
        "draw": [task.draw, dict(task.arguments), task.teacher_steps],
    }
    # What is 1 or empty is left out: it was so for all before there was a choice.
    if task.labelled_share != 1:
        parts["labelled"] = task.labelled_share
    if task.teacher_copies != 1:
        parts["copies for the teacher"] = task.teacher_copies
    if task.is_convolutional:
        parts["teacher"] = task.teacher_width
    if task.teacher_dropout:
        parts["dropout"] = task.teacher_dropout
    if task.teacher_folds != 1:
        parts["folds"] = task.teacher_folds
    if method is not None:
        parts["student"] = [task.n_student, task.n_units, TRAINING]
        if task.n_copies != 1:
            parts["copies"] = task.n_copies
        if task.is_by_library:
            parts["by the library"] = True
        if task.n_patches:
            parts["patches"] = task.n_patches
        if task.student_params:
            parts["module"] = dict(task.student_params)
        parts["method"] = TRAINABLE[method]
        defaults = LELPStudentClassifier().get_params() | LELPProjector().get_params()
        parts["defaults"] = {name: defaults[name] for name in DEFAULTS}
    text = json.dumps(parts, sort_keys=True, default=_describe)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _describe(part: object) -> object:
    return vars(part) if hasattr(part, "__dataclass_fields__") else part.__qualname__
