"""What is reached by methods that are chosen on validation rows, task by task."""

from collections.abc import Iterable

from benchmarks.distillation.config import Search, Table
from benchmarks.distillation.records import Records, scores_by_setting, setting_of
from benchmarks.distillation.search import key_of
from benchmarks.distillation.statistics import Scores

# Of each task and choice, the method that was taken.
Taken = dict[str, dict[str, str]]


def take(
    table: Table, trials: Records, results: Records, tasks: Iterable[str]
) -> Taken:
    """Return what each choice of a table takes: the best over all seeds of a search."""
    return {
        task: {
            choice: max(
                methods,
                key=lambda method: validated(
                    table.search, trials, results, task, method
                ),
            )
            for choice, methods in table.chosen.items()
        }
        for task in tasks
    }


def validated(
    search: Search, trials: Records, results: Records, task: str, method: str
) -> float:
    """Return the accuracy on validation rows of the setting that is reported on."""
    known = scores_by_setting(
        trials.of(task, method), search.seeds + search.final_seeds
    )
    return known[key_of(setting_of(results.of(task, method)[0]))]


def scores_of_choices(taken: Taken, scores: Scores) -> Scores:
    """Return the scores of choices, and of the methods that are not among them."""
    return {
        task: scores[task] | {choice: scores[task][m] for choice, m in of_task.items()}
        for task, of_task in taken.items()
    }
