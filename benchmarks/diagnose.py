"""Hold what `subclass_report` says before training to what training came to.

    python benchmarks/diagnose.py --data-dir FOLDER --cache FOLDER
    python benchmarks/diagnose.py --report

The tasks are those of ``compare.py methods``, with the same teachers. Every report goes
to ``results/accuracy/diagnosis.csv`` as soon as it is there, and the same command goes
on after an interruption; ``diagnosis.md`` has, of the tasks that ``methods.csv`` has
results of, each measure beside the measured gain, and how well it foresees it. No row
that a result is scored on is read. ``--report`` only writes the tables.
"""

import argparse
import time
from pathlib import Path

from accuracy import diagnosis
from accuracy.config import TaskConfig
from accuracy.data import Places, embed_texts, what_is_missing
from accuracy.lessons import make_lesson
from accuracy.records import read
from accuracy.tables import TABLES
from compare import RESULTS
from timing import one_thread


def main(arguments: list[str] | None = None) -> None:
    """Make the reports that are not there yet, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    parser.add_argument("--cache", type=Path, help="keeps teachers and embeddings")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these")
    parser.add_argument("--report", action="store_true", help="only the tables")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV")
    parser.add_argument("--methods", type=Path, help="methods.csv, if elsewhere")
    options = parser.parse_args(arguments)
    table = TABLES["methods"]
    by_name = {task.name: task for task in table.tasks}
    if unknown := set(options.tasks or ()) - by_name.keys():
        parser.error(f"no such task: {', '.join(unknown)}; there are {[*by_name]}")
    if not options.report and options.cache is None:
        parser.error("name a folder that keeps teachers: --cache")
    path = options.results / "diagnosis.csv"
    lines = diagnosis.read(path, table)
    if not options.report:
        places = Places(options.data_dir, options.cache)
        for name in options.tasks or by_name:
            for seed in diagnosis.SEEDS:
                if not any((x["task"], x["seed"]) == (name, seed) for x in lines):
                    lines += diagnose(by_name[name], places, seed)
                    diagnosis.write(path, lines, table)
    results = read(options.methods or options.results / "methods.csv")
    diagnosis.write_report(table, lines, results, path.with_suffix(".md"))


def diagnose(task: TaskConfig, places: Places, seed: int) -> list[diagnosis.Line]:
    """Return the line of a report, none where the data are missing."""
    if reason := what_is_missing(task, places):
        print(f"Skipped: {task.name}: {reason}.", flush=True)
        return []
    if task.draw == "texts":
        embed_texts(task, places)
    with one_thread():
        lesson = make_lesson(task, places, seed, "validation")
        start = time.perf_counter()
        line = diagnosis.diagnose(task, lesson, seed)
    print(
        f"{task.name}, seed {seed}: {line['verdict']}, pilot gain "
        f"{100 * line['pilot_gain']:+.1f} ± {100 * line['pilot_error']:.1f}, "
        f"{time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return [line]


if __name__ == "__main__":
    main()
