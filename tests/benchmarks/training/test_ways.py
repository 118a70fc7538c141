"""What the report of the ways to tune a student says of the lines that it is given."""

import json

from benchmarks.distillation.statistics import mean_over_tasks
from benchmarks.training import ways

TASKS = "letters, 500 rows", "single digits"


def make_lines():
    """Four fits of each way: the search is one point better, in three times as long."""
    return [
        {
            "task": task,
            "way": way,
            "seed": str(seed),
            "accuracy": str(0.9 + 0.01 * (way == ways.SEARCHED) + 0.02 * seed),
            "seconds": str((1 + 2 * (way == ways.SEARCHED)) * (1 + len(task))),
            "chosen": json.dumps({"projector__n_subclasses": [1, "auto"][seed]}),
        }
        for task in TASKS
        for way in (*ways.WAYS, ways.BY_HAND)
        for seed in (0, 1)
    ]


def test_means_and_times_of_the_ways():
    lines = make_lines()
    scores = ways.scores_of(lines)
    # Those by hand are on the same seeds, by the table of the methods.
    assert scores[TASKS[0]][ways.BY_HAND].keys() == {0, 1}
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in ways.by_way(lines, scores, list(TASKS)).splitlines()[2:]
    ]
    _, mean, lead, _, times = rows[[row[0] for row in rows].index(ways.SEARCHED)]
    assert (mean, times) == ("92.00", "3.0")
    assert lead.startswith("+1.00 ")
    differences = [
        ways.difference(scores[task], ways.SEARCHED, ways.PLAIN_FIT) for task in TASKS
    ]
    assert ways.interval(mean_over_tasks(differences)) == lead


def test_choices_of_one_subclass_are_counted():
    lines = make_lines()
    table = ways.by_task(lines, ways.scores_of(lines), list(TASKS))
    assert table.count("1 of 2 |") == len(TASKS)
