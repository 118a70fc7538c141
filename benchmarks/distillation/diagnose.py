"""Compare what `subclass_report` predicts with what training came to.

    python benchmarks/distillation/diagnose.py --data-dir FOLDER --cache FOLDER
    python benchmarks/distillation/diagnose.py --report
    python benchmarks/distillation/diagnose.py --layers --data-dir FOLDER --cache FOLDER

The tasks are those of ``run.py methods``, with the same teachers. Every report goes to
``results/distillation/diagnosis.csv`` as soon as it is there, and the same command goes
on after an interruption; ``diagnosis.md`` has, of the tasks that ``methods.csv`` has
results of, each measure beside the measured gain, and how well it foresees it. No row
that a result is scored on is read. ``--report`` only writes the tables.

``--layers`` asks about an earlier layer of the teachers too, in
``diagnosis_earlier.csv``; then ``diagnosis_layers.md`` has, of the tasks that
``layers.csv`` has results of, whether the reports tell which layer to split.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

from benchmarks.distillation import diagnosis
from benchmarks.distillation.comparison import parts_on_demand
from benchmarks.distillation.config import OURS, Table, TaskConfig
from benchmarks.distillation.datasets.base import Paths
from benchmarks.distillation.datasets.draw import prepare_files, what_is_missing
from benchmarks.distillation.layer_diagnosis import (
    EARLIER_LAYER,
    agreements,
    write_layers,
)
from benchmarks.distillation.preparation import make_data
from benchmarks.distillation.records import OtherResultsError, Records, read
from benchmarks.distillation.run import RESULTS
from benchmarks.distillation.tables import TABLES
from benchmarks.timing import one_thread


def main(arguments: list[str] | None = None) -> None:
    """Make the reports that are not there yet, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--cache", type=Path, help="keeps teachers and embeddings")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these")
    parser.add_argument("--report", action="store_true", help="only the tables")
    parser.add_argument(
        "--layers", action="store_true", help="the teachers' earlier layer too"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV")
    parser.add_argument("--methods", type=Path, help="methods.csv, if elsewhere")
    options = parser.parse_args(arguments)
    table = TABLES["layers" if options.layers else "methods"]
    by_name = {task.name: task for task in table.tasks}
    if unknown := set(options.tasks or ()) - by_name.keys():
        parser.error(f"no such task: {', '.join(unknown)}; there are {[*by_name]}")
    if not options.report and options.cache is None:
        parser.error("name a folder that keeps teachers: --cache")
    tasks = [] if options.report else [by_name[x] for x in options.tasks or by_name]
    paths = Paths(options.data_dir, options.cache)
    path = options.results / "diagnosis.csv"
    if options.layers:
        try:
            trials, results = (
                Records.open(options.results / f"layers{end}", table, overwrite=False)
                for end in ("_trials.csv.gz", ".csv")
            )
        except OtherResultsError as error:
            parser.error(f"{error} (run.py layers has that option.)")
    lines = reports_on(OURS, table, tasks, paths, path)
    if not options.layers:
        results = read(options.methods or options.results / "methods.csv")
        diagnosis.write_report(table, lines, results, path.with_suffix(".md"))
        return
    earlier = path.with_stem("diagnosis_earlier")
    reports = {
        "last": lines,
        "earlier": reports_on(EARLIER_LAYER, table, tasks, paths, earlier),
    }
    write_layers(table, reports, trials, results, path.with_name("diagnosis_layers.md"))


def reports_on(
    method: str,
    table: Table,
    tasks: Iterable[TaskConfig],
    paths: Paths,
    path: Path,
) -> list[diagnosis.Line]:
    """Return the reports on a method that a file has, after those that it lacked."""
    lines = diagnosis.read(path, table, method)
    for task in tasks:
        for seed in diagnosis.SEEDS:
            if not any((x["task"], x["seed"]) == (task.name, seed) for x in lines):
                lines += diagnose(task, paths, seed, method)
                diagnosis.write(path, lines, table)
    return lines


def diagnose(
    task: TaskConfig, paths: Paths, seed: int, method: str
) -> list[diagnosis.Line]:
    """Return the line of a report, none where the data are missing."""
    if reason := what_is_missing(task, paths):
        print(f"Skipped: {task.name}: {reason}.", flush=True)
        return []
    prepare_files(task, paths)
    wanted = set(parts_on_demand(method))
    with one_thread():
        data = make_data(task, paths, seed, "validation", wanted)
        start = time.perf_counter()
        line = diagnosis.diagnose(task, data, seed, method)
        if method == EARLIER_LAYER:
            line |= agreements(data)
    print(
        f"{task.name}, seed {seed}, {method}: {line['verdict']}, pilot gain "
        f"{100 * line['pilot_gain']:+.1f} ± {100 * line['pilot_gain_se']:.1f}, "
        f"{time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return [line]


if __name__ == "__main__":
    main()
