"""What subclasses cost in training, beside vanilla distillation.

    python benchmarks/training/cost.py

Two classes, 20 000 rows of 100 numbers with embeddings of 384, the default student in
batches of 256, single precision, one thread, seconds of the processor. An epoch is the
difference of fits of few and of more epochs; what comes once a fit, above all to split
the classes and make the targets, is what `LELPProjector.fit_transform` takes. All take
turns in one process, vanilla distillation being S = 1.

Prints medians and the median of ratios with their quartiles; writes
``results/cost.json``.
"""

import argparse
import sys
import time
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np

from benchmarks import files
from benchmarks.files import markdown, write_json
from benchmarks.timing import (
    machine,
    one_thread,
    ratio,
    take_turns,
    without_pinned_blas,
)
from lelp_sklearn import LELPProjector, LELPStudentClassifier

RESULTS = files.RESULTS
N_ROWS, N_FEATURES, N_EMBEDDING, BATCH_SIZE = 20_000, 100, 384, 256
COUNTS = (1, 10, 20, 40)
FEW, MORE = 2, 6
REPEATS = 9
# So many epochs are a common length of training, to set the cost of a fit against.
EPOCHS = 100

Array = np.ndarray


def make_data() -> dict[str, Array]:
    """Draw rows, embeddings and a head; the classes are the head's."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_ROWS, N_FEATURES), dtype=np.float32)
    weights = rng.standard_normal((N_FEATURES, N_EMBEDDING), dtype=np.float32)
    E = np.maximum(X @ weights / N_FEATURES**0.5, 0)
    coef = rng.standard_normal((2, N_EMBEDDING), dtype=np.float32) / N_EMBEDDING**0.5
    intercept = -(E @ coef.T).mean(axis=0)
    return {
        "X": X,
        "E": E,
        "y": (E @ coef.T + intercept).argmax(axis=1),
        "coef": coef,
        "intercept": intercept,
    }


def projector(data: dict[str, Array], n_subclasses: int) -> LELPProjector:
    """Return a projector of so many subclasses, otherwise the default."""
    head = data["coef"], data["intercept"]
    return LELPProjector(n_subclasses, head=head, random_state=0)


def train(data: dict[str, Array], n_subclasses: int, n_epochs: int) -> None:
    """Train the default student for some epochs."""
    LELPStudentClassifier(
        projector=projector(data, n_subclasses),
        batch_size=BATCH_SIZE,
        max_epochs=n_epochs,
        random_state=0,
    ).fit(data["X"], data["y"], teacher_embeddings=data["E"])


def measure(data: dict[str, Array]) -> dict[str, dict[str, object]]:
    """Return milliseconds and ratios by the number of subclasses."""
    fits = {
        (S, n): (lambda S=S, n=n: train(data, S, n))
        for S in COUNTS
        for n in (FEW, MORE)
    }
    splits = {
        (S, 0): (lambda S=S: projector(data, S).fit_transform(data["E"], data["y"]))
        for S in COUNTS
    }
    seconds = take_turns({**fits, **splits}, REPEATS, clock=time.process_time)
    epochs = {S: (seconds[S, MORE] - seconds[S, FEW]) / (MORE - FEW) for S in COUNTS}
    whole = {S: seconds[S, 0] + EPOCHS * epochs[S] for S in COUNTS}
    return {
        str(S): {
            "epoch, ms": 1e3 * float(np.median(epochs[S])),
            "epoch / vanilla": ratio(epochs[1], epochs[S]),
            "split and targets, ms": 1e3 * float(np.median(seconds[S, 0])),
            f"fit of {EPOCHS} epochs / vanilla": ratio(whole[1], whole[S]),
        }
        for S in COUNTS
    }


def _cell(value: float | tuple[float, float, float]) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return "{:.2f} [{:.2f}, {:.2f}]".format(*value)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    without_pinned_blas()
    with one_thread():
        found = measure(make_data())
    rows = [[S, *map(_cell, values.values())] for S, values in found.items()]
    print(markdown(["S", *next(iter(found.values()))], rows))
    write_json(RESULTS / "cost.json", {"machine": machine(), "by subclasses": found})


if __name__ == "__main__":
    main()
