"""How fast the student trains and predicts, beside a loop written by hand and skorch.

    python benchmarks/training/run.py [--quick] [--device cuda]

An epoch on 20 000 rows of 100 numbers in single precision, in batches of 256, towards
2 × 10 subclass targets; student, optimizer and schedules are the defaults. Beside it:

bare loop
    What a user who knows torch would write: tensors in memory, ``index_select``, which
    is faster than ``X[index]``, fused AdamW, the loss of ``lelp_sklearn.losses``, the
    same module and schedules.
skorch
    ``NeuralNetClassifier`` with what it does by default, the same module, loss and
    optimizer; without its validation split, so that an epoch is the same rows, and
    without schedules. Left out with a line where skorch is not installed.

All take turns in one process on one thread. An epoch is the difference between fits of
few and of more epochs, so that nothing counts which comes once a fit. Seconds are those
of the processor: other work on the machine hardly moves them. ``predict_proba`` stands
beside the module by itself under ``torch.inference_mode``.

On a GPU two students stand beside the bare loop: the default one, whose steps are
recorded and replayed, and one that counts its calls, which keeps steps from being
recorded. Seconds are those of the clock.

Prints the medians over the turns and the medians of the ratios with their quartiles;
writes ``results/training.json``, or ``results/training_cuda.json``.
"""

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import torch
from torch import nn

from benchmarks import files
from benchmarks.files import markdown, write_json
from benchmarks.timing import machine, one_thread, ratio, take_turns
from lelp_sklearn import LELPStudentClassifier
from lelp_sklearn.losses import (
    SubclassCrossEntropyLoss,
    class_logits,
    subclass_cross_entropy,
)

RESULTS = files.RESULTS
N_FEATURES, N_CLASSES, N_SUBCLASSES, BATCH_SIZE = 100, 2, 10, 256
LEARNING_RATE, WEIGHT_DECAY = 0.01, 0.01
# An epoch is the difference of fits of so many epochs, by their difference.
EPOCHS = {"cpu": (2, 6), "cuda": (10, 20)}
# Ours may take so many times the seconds of the peer.
BARS = {"bare loop": 1.1, "skorch": 0.4, "forward pass": 1.5}
CUDA_BARS = {"bare loop": 1 / 3}

Array = np.ndarray


def make_data(n_rows: int) -> tuple[Array, Array, Array]:
    """Draw rows, labels and soft targets."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, N_FEATURES), dtype=np.float32)
    soft = rng.dirichlet(np.ones(N_CLASSES * N_SUBCLASSES), n_rows).astype(np.float32)
    y = soft.reshape(n_rows, N_CLASSES, N_SUBCLASSES).sum(axis=2).argmax(axis=1)
    return X, y, soft


def make_module() -> nn.Module:
    """Return the default student of the library."""
    n_outputs = N_CLASSES * N_SUBCLASSES
    return nn.Sequential(
        nn.Linear(N_FEATURES, 128), nn.ReLU(), nn.Linear(128, n_outputs)
    )


class CountingModule(nn.Module):
    """The default student, with a number that changes on the host."""

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.layers = make_module()
        self.n_calls = 0

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the outputs of rows."""
        self.n_calls += 1
        return self.layers(X)


def train_ours(
    X: Array,
    y: Array,
    soft: Array,
    n_epochs: int,
    device: str = "cpu",
    module: type[nn.Module] | None = None,
) -> LELPStudentClassifier:
    """Train the student of the library."""
    student = LELPStudentClassifier(
        module,
        max_epochs=n_epochs,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        within_class_temperature=1.0,
        device=device,
        random_state=0,
    )
    return student.fit(X, y, soft_targets=soft)


def train_by_hand(
    X: Array, soft: Array, n_epochs: int, device: str = "cpu"
) -> list[float]:
    """Train the same module by a loop of one's own; return the loss of each epoch."""
    rows, targets = (torch.from_numpy(a).to(device) for a in (X, soft))
    module = make_module().to(device)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    n_steps = -(-len(rows) // BATCH_SIZE)
    curve = []
    for epoch in range(n_epochs):
        total = torch.zeros((), device=device)
        order = torch.randperm(len(rows)).to(device)
        for step, index in enumerate(order.split(BATCH_SIZE)):
            progress = (epoch + step / n_steps) / n_epochs
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))
            optimizer.zero_grad()
            loss = subclass_cross_entropy(
                module(rows.index_select(0, index)),
                targets.index_select(0, index),
                N_CLASSES,
                subclass_weight=max(0.0, 1 - 2 * progress),
            ).mean()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        curve.append(float(total) / n_steps)
    return curve


def train_skorch(X: Array, soft: Array, n_epochs: int) -> object:
    """Train the same module by skorch."""
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        make_module(),
        criterion=SubclassCrossEntropyLoss,
        criterion__n_classes=N_CLASSES,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=WEIGHT_DECAY,
        optimizer__fused=True,
        lr=LEARNING_RATE,
        max_epochs=n_epochs,
        batch_size=BATCH_SIZE,
        iterator_train__shuffle=True,
        train_split=None,
        classes=list(range(N_CLASSES)),
        verbose=0,
    )
    return net.fit(X, soft)


def time_epochs(data: tuple[Array, Array, Array], repeats: int) -> dict[str, Array]:
    """Return the seconds of an epoch in each turn."""
    X, y, soft = data
    trainers: dict[str, Callable[[int], object]] = {
        "ours": lambda n: train_ours(X, y, soft, n),
        "bare loop": lambda n: train_by_hand(X, soft, n),
    }
    if importlib.util.find_spec("skorch") is None:
        print("Skipped: skorch, which is not installed (pip install skorch).")
    else:
        trainers["skorch"] = lambda n: train_skorch(X, soft, n)
    return differences(trainers, "cpu", repeats, time.process_time)


def time_epochs_on_gpu(
    data: tuple[Array, Array, Array], repeats: int
) -> dict[str, Array]:
    """Return the seconds of an epoch on a GPU in each turn."""
    X, y, soft = data
    trainers: dict[str, Callable[[int], object]] = {
        "ours": lambda n: train_ours(X, y, soft, n, "cuda"),
        "not recorded": lambda n: train_ours(X, y, soft, n, "cuda", CountingModule),
        "bare loop": lambda n: train_by_hand(X, soft, n, "cuda"),
    }
    return differences(trainers, "cuda", repeats, time.perf_counter)


def differences(
    trainers: dict[str, Callable[[int], object]],
    device: str,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Array]:
    """Return the seconds of an epoch of each trainer in each turn."""
    few, more = EPOCHS[device]
    fits = {
        (name, n_epochs): (lambda train=train, n=n_epochs: train(n))
        for name, train in trainers.items()
        for n_epochs in (few, more)
    }
    seconds = take_turns(fits, repeats, clock=clock)
    return {
        name: (seconds[name, more] - seconds[name, few]) / (more - few)
        for name in trainers
    }


def time_prediction(data: tuple[Array, Array, Array], repeats: int) -> dict[str, Array]:
    """Return the seconds of a prediction of all rows in each turn."""
    X, y, soft = data
    student = train_ours(X, y, soft, 1)
    module, rows = student.module_.eval(), torch.from_numpy(X)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return module(rows)

    folded = class_logits(forward(), N_CLASSES).softmax(1)
    assert np.allclose(folded, student.predict_proba(X), atol=1e-5)
    contestants = {"ours": lambda: student.predict_proba(X), "forward pass": forward}
    return take_turns(contestants, 5 * repeats, clock=time.process_time)


def summary(
    seconds: dict[str, Array], bars: dict[str, float] = BARS, ours: str = "ours"
) -> dict[str, dict]:
    """Return medians, and how many times the seconds of each peer ours takes."""
    found = {"ours": {"ms": 1e3 * float(np.median(seconds[ours]))}}
    for name in [name for name in seconds if name in BARS]:
        middle, low, high = ratio(seconds[name], seconds[ours])
        found[name] = {
            "ms": 1e3 * float(np.median(seconds[name])),
            "ours / peer": [middle, low, high],
            "bar": bars.get(name),
        }
    return found


def print_table(title: str, found: dict[str, dict]) -> None:
    """Print a line for each peer."""
    ours, rows = f"{found['ours']['ms']:.1f}", []
    for name, peer in found.items():
        if name != "ours":
            middle, low, high = peer["ours / peer"]
            bar = "" if peer["bar"] is None else f"{peer['bar']:.2g}"
            ratios = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
            rows.append([name, ours, f"{peer['ms']:.1f}", ratios, bar])
    print("\n" + markdown([title, "ours, ms", "peer, ms", "ours / peer", "bar"], rows))


def measure_on_cpu(data: tuple[Array, Array, Array], repeats: int) -> dict[str, dict]:
    """Time training and prediction on one thread, and print the ratios."""
    with one_thread():
        epoch = summary(time_epochs(data, repeats))
        prediction = summary(time_prediction(data, repeats))
    print_table("an epoch beside", epoch)
    print_table("predict_proba beside", prediction)
    return {"an epoch": epoch, "predict_proba": prediction}


def measure_on_gpu(data: tuple[Array, Array, Array], repeats: int) -> dict[str, dict]:
    """Time training of both students on a GPU, and print the ratios."""
    seconds = time_epochs_on_gpu(data, repeats)
    epoch = summary(seconds, CUDA_BARS)
    not_recorded = summary(seconds, {}, "not recorded")
    print_table("an epoch beside", epoch)
    print_table("an epoch, not recorded, beside", not_recorded)
    gpu = torch.cuda.get_device_name()
    return {"gpu": gpu, "an epoch": epoch, "not recorded": not_recorded}


def main(arguments: list[str] | None = None) -> None:
    """Time training and prediction, print the ratios and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, not a result")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("Skipped: torch finds no CUDA device.")
        return
    data = make_data(1_000 if options.quick else 20_000)
    on_cpu = options.device == "cpu"
    repeats = 2 if options.quick else 15 if on_cpu else 5
    found = (measure_on_cpu if on_cpu else measure_on_gpu)(data, repeats)
    if not options.quick:
        path = RESULTS / ("training.json" if on_cpu else "training_cuda.json")
        write_json(path, {"machine": machine(), "turns": repeats, **found})


if __name__ == "__main__":
    main()
