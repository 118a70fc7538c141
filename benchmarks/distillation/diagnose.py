"""Compare what `subclass_report` predicts with what training came to.

    python benchmarks/distillation/diagnose.py --data-dir FOLDER --cache FOLDER
    python benchmarks/distillation/diagnose.py --report
    python benchmarks/distillation/diagnose.py --layers --data-dir FOLDER --cache FOLDER

The tasks are those of ``run.py untuned``, with teachers of another seed. The report is
asked about the library's plain `fit`, on all rows and on half of them. Every report
goes to ``results/distillation/diagnosis.csv`` as soon as it is there, and the same
command goes on after an interruption; ``diagnosis.md`` has, of the tasks that
``untuned.csv`` has results of, the verdicts beside the measured gain, and what they are
held to. No row that a result is scored on is read. ``--report`` only writes the tables.

``--layers`` asks about the last and an earlier layer of the teachers of ``run.py
layers``, in ``diagnosis_last.csv`` and ``diagnosis_earlier.csv``; then
``diagnosis_layers.md`` has, of the tasks that ``layers.csv`` has results of, whether
the reports tell which layer to split.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

from benchmarks.distillation import diagnosis, foresight
from benchmarks.distillation.comparison import parts_on_demand
from benchmarks.distillation.config import Table, TaskConfig
from benchmarks.distillation.datasets.base import Paths
from benchmarks.distillation.datasets.draw import prepare_files, what_is_missing
from benchmarks.distillation.layer_diagnosis import (
    EARLIER_LAYER,
    LAYERS,
    agreements,
    write_layers,
)
from benchmarks.distillation.preparation import make_data
from benchmarks.distillation.records import OtherResultsError, Records
from benchmarks.distillation.run import RESULTS
from benchmarks.distillation.tables import TABLES, untuned
from benchmarks.distillation.untuned_report import scores_of
from benchmarks.files import versions
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
    options = parser.parse_args(arguments)
    layers = TABLES["layers"]
    by_name = {task.name: task for task in layers.tasks}
    if not options.layers:
        by_name = untuned.ALL_TASKS
    if unknown := set(options.tasks or ()) - by_name.keys():
        parser.error(f"no such task: {', '.join(unknown)}; there are {[*by_name]}")
    if not options.report and options.cache is None:
        parser.error("name a folder that keeps teachers: --cache")
    tasks = [] if options.report else [by_name[x] for x in options.tasks or by_name]
    paths = Paths(options.data_dir, options.cache)
    if options.layers:
        try:
            diagnose_layers(layers, tasks, paths, options.results)
        except OtherResultsError as error:
            parser.error(f"{error} (run.py layers has that option.)")
        return
    path = options.results / "diagnosis.csv"
    report_on_plain_fits(tasks, paths, path)
    scores = scores_of(untuned.read(options.results / "untuned.csv"))
    foresight.write_foresight(untuned.read(path), scores, path.with_suffix(".md"))


def report_on_plain_fits(
    tasks: Sequence[TaskConfig | untuned.WideTask], paths: Paths, path: Path
) -> None:
    """Make the reports on plain fits that a file lacks, those on all rows first."""
    done = {(line["task"], line["rows"]) for line in untuned.read(path)}
    for rows, task in product((diagnosis.ALL, diagnosis.HALF), tasks):
        if (task.name, rows) in done:
            continue
        if reason := untuned.why_skipped(task, paths):
            print(f"Skipped: {task.name}: {reason}.", flush=True)
            continue
        with one_thread():
            data = draw(task, paths)
            start = time.perf_counter()
            line = diagnosis.diagnose_plain_fit(task, data, rows)
            seconds = f"{time.perf_counter() - start:.1f}"
        untuned.append(path, line | {"seconds": seconds} | versions())
        print(*line.values(), seconds, "s", flush=True)


def draw(task: TaskConfig | untuned.WideTask, paths: Paths) -> untuned.Data:
    """Draw rows, and train or load a teacher, of a seed of searches."""
    seed = diagnosis.SEEDS[0]
    if isinstance(task, untuned.WideTask):
        return untuned.wide_data(task, paths, seed)
    return untuned.task_data(task, paths, seed, "validation")


def diagnose_layers(
    table: Table, tasks: Iterable[TaskConfig], paths: Paths, folder: Path
) -> None:
    """Make the reports on both layers that are not there yet, then the table."""
    trials, results = (
        Records.open(folder / f"layers{end}", table, overwrite=False)
        for end in ("_trials.csv.gz", ".csv")
    )
    reports = {
        layer: reports_on(
            method, table, tasks, paths, folder / f"diagnosis_{layer}.csv"
        )
        for layer, method in LAYERS.items()
    }
    write_layers(table, reports, trials, results, folder / "diagnosis_layers.md")


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
