"""Ours beside the peers: timed in turns, and printed as a table."""

import time
from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.files import markdown
from benchmarks.speed.problems import Options, Shape, shapes
from benchmarks.timing import geometric_mean, ratio, take_turns

Run = Callable[[], object]
# A peer that takes so many times as long as the fastest one is out of the race.
HOPELESS = 5


def over_shapes(
    options: Options, measure: Callable[[Shape, int], dict]
) -> dict[str, object]:
    """Measure every shape; give the lines and the geometric mean of their ratios."""
    lines = {str(shape): measure(shape, options.repeats) for shape in shapes(options)}
    ratios = [line["ratio"][0] for line in lines.values()]
    return {"shapes": lines, "geometric mean": geometric_mean(ratios)}


def race(
    runs: dict[str, Run],
    repeats: int,
    judge: Callable[[object], float],
    counts: Callable[[float, float], bool],
) -> tuple[dict, dict[str, float]]:
    """Compare "ours" with the peers whose results count; give the results' worth too.

    Everyone runs once, and `judge` says what the result is worth. Only peers that
    `counts`, told their worth and ours, lets pass and that are not hopelessly slow are
    timed in turns; of the others stands the time of that one run.
    """
    once, worth = {}, {}
    for name, run in runs.items():
        start = time.perf_counter()
        result = run()
        once[name] = time.perf_counter() - start
        worth[name] = judge(result)
    peers = [name for name in runs if name != "ours"]
    good = [name for name in peers if counts(worth[name], worth["ours"])] or peers
    limit = HOPELESS * min(once[name] for name in good)
    peers = [name for name in good if once[name] <= limit]
    runs = {name: runs[name] for name in ["ours", *peers]}
    line = compare(runs, repeats, peers, warm=True)
    return line | {"seconds": once | line["seconds"]}, worth


def compare(
    runs: dict[str, Run], repeats: int, peers: Iterable[str], *, warm: bool = False
) -> dict:
    """Time all runs in turns; "ours" counts against the fastest of the peers."""
    seconds = take_turns(runs, repeats, warm=warm)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    fastest = min(peers, key=medians.__getitem__)
    return {
        "seconds": medians,
        "fastest peer": fastest,
        "ratio": ratio(seconds["ours"], seconds[fastest]),
    }


def table_of(rows: list[dict[str, str]]) -> str:
    """Lay out rows as a Markdown table; a cell that a row lacks stays empty."""
    columns = list(max(rows, key=len))
    return markdown(columns, [[row.get(name, "") for name in columns] for row in rows])


def milliseconds(seconds: float) -> str:
    """Print a time as the tables do."""
    return f"{1e3 * seconds:.1f}"


def times_as_fast(line: dict) -> str:
    """Print the median of the ratios, their quartiles and the peer."""
    middle, low, high = line["ratio"]
    return f"{middle:.2f} [{low:.2f}, {high:.2f}] {line['fastest peer']}"
