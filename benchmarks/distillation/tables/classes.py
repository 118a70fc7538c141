"""How many classes: known groups merged into ever more of them, for linear students."""

from collections.abc import Callable

from benchmarks.distillation.config import (
    BASELINE,
    ORACLE,
    OURS,
    UNION,
    Panel,
    Table,
    TaskConfig,
)
from benchmarks.distillation.tables.paper import (
    EARLIER,
    FOLDS,
    SEARCH_OF_PAPER,
    documents,
    photos,
)

# How many classes at random and by kind, always fewer than the groups.
COUNTS = {
    "20 Newsgroups": ((2, 4, 5, 10), (2, 4)),
    "CLINC150": ((2, 4, 5, 10, 20, 50), (2, 5, 10)),
    "CIFAR-100": ((2, 4, 5, 10, 20, 50), (2, 4, 5, 10, 20)),
}
FOLDERS = {"20 Newsgroups": "newsgroups20", "CLINC150": "clinc150"}


def _task(source: str, n_classes: int, by_kind: bool) -> TaskConfig:
    name = f"{source}, {n_classes} classes {'by kind' if by_kind else 'at random'}"
    classes = {"n_classes": n_classes, "by_kind": by_kind}
    if source in FOLDERS:
        folder = FOLDERS[source]
        return documents(
            name,
            UNION,
            folder=folder,
            arguments={"name": folder, **classes},
            n_units=0,
            **FOLDS,
        )
    return photos(
        name,
        arguments=classes,
        n_student=5_000,
        n_patches=200,
        n_units=0,
        rows_of=name,
    )


def _sweep(
    make: Callable[[str, int, bool], TaskConfig],
) -> tuple[tuple[TaskConfig, ...], tuple[Panel, ...]]:
    """Return the tasks and, for each source, panels at random and by kind."""
    tasks: list[TaskConfig] = []
    panels = []
    for source, counts in COUNTS.items():
        for by_kind, values in enumerate(counts):
            own = [make(source, n, bool(by_kind)) for n in values]
            how = "by kind" if by_kind else "at random"
            names = tuple(task.name for task in own)
            panels.append(Panel(f"classes {how}: {source}", values, names))
            tasks += own
    return tuple(tasks), tuple(panels)


_tasks, _panels = _sweep(_task)
TABLE = Table(
    "How many classes",
    _tasks,
    (BASELINE, OURS, EARLIER, ORACLE),
    SEARCH_OF_PAPER,
    _panels,
    quick_methods=(BASELINE, OURS, ORACLE),
)
