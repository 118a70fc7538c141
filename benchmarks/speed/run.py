"""How fast the projector is beside what a user would write without it.

    python benchmarks/speed/run.py [--full] [--repeats N] [--scratch FOLDER] [PART ...]

The parts, all unless named:

transform, fit, kmeans
    Arrays in memory. Ours and the peers take turns in one process; the tables show
    medians, and the median of the ratios, turn by turn, with their quartiles.
memory
    Memory-mapped embeddings in half precision, written to a scratch folder.
dask
    A cluster of processes on this machine: seconds, and bytes on the network.
start-up
    Imports and first calls.

Without ``--full`` the arrays have an eighth of their rows, those on disk fewer still,
and there are three turns instead of seven. Prints a Markdown table for each part and
writes ``results/speed.json``, or without ``--full`` ``results/speed_quick.json``, where
the parts measured before stay. Each part names its machine and versions.
"""

import argparse
import json
import sys
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

from benchmarks import files
from benchmarks.files import write_json
from benchmarks.speed import cluster, fit, kmeans, memory, start_up, transform
from benchmarks.speed.problems import Options
from benchmarks.timing import machine, without_pinned_blas

RESULTS = files.RESULTS
PARTS = {
    "transform": transform,
    "fit": fit,
    "kmeans": kmeans,
    "memory": memory,
    "dask": cluster,
    "start-up": start_up,
}


def earlier_parts(path: Path) -> dict:
    """Return the parts that a results file has."""
    return json.loads(path.read_text())["parts"] if path.exists() else {}


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--full", action="store_true", help="all rows")
    parser.add_argument(
        "--repeats", type=int, help="turns of each run; default: 3, and 7 in full"
    )
    parser.add_argument(
        "--scratch", type=Path, help="folder for the embeddings on disk (16 GB in full)"
    )
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown parts {unknown}; choose from {list(PARTS)}")
    repeats = given.repeats or (7 if given.full else 3)
    options = Options(given.full, repeats, given.scratch)
    setting = {"machine": machine()}
    print(json.dumps(setting, ensure_ascii=False, indent=1))
    path = RESULTS / ("speed.json" if given.full else "speed_quick.json")
    measured = earlier_parts(path)
    for name in given.parts or PARTS:
        measured[name] = setting | PARTS[name].measure(options)
        print(f"\n## {name}\n\n{PARTS[name].table(measured[name])}", flush=True)
        write_json(path, {"parts": {p: measured[p] for p in PARTS if p in measured}})


if __name__ == "__main__":
    without_pinned_blas()
    main()
