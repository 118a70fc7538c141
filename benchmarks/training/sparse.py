"""Sparse rows: the seconds and the memory of training, and what its optimizers reach.

    python benchmarks/training/sparse.py [speed] [memory] [--quick]
    python benchmarks/training/sparse.py banking77 newsgroups20 imdb --data-dir FOLDER

Rows of 2¹⁸ columns with 50 stored entries in single precision, towards 2 × 20 subclass
targets; 32 hidden units, batches of 256, a learning rate of 0.01 and τ_w = 1, which the
loop by hand has too; the other parameters are the defaults.

speed
    An epoch on 100 000 rows (``--rows``), in three turns (``--turns``), by the default
    optimizer and by "sparse_adam", beside a loop written by hand
    (``torch.nn.EmbeddingBag`` as the first layer, batches sliced from the three arrays,
    fused AdamW, the same loss and schedules) and beside scikit-learn's
    ``MLPClassifier`` of the same size on the labels. An epoch is the difference between
    fits of one and of two epochs; of ``MLPClassifier``, of which nearly nothing comes
    once a fit, it is a fit of one. ``predict_proba`` stands beside the module by itself
    under ``torch.inference_mode``. One thread, seconds of the processor; medians over
    the turns, and of the ratios with their quartiles.
memory
    The peak of a process that fits one epoch on 1 000 000 such rows, rows included.
banking77, newsgroups20, imdb
    The test accuracy of both optimizers on TF-IDF rows of the data set, 10 epochs, five
    seeds, and the paired difference with its 95 % interval. The targets, which both
    share, are the labels and subclasses of a TruncatedSVD: those of a fit without a
    teacher.

Writes ``results/sparse.json``.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import torch
from scipy import sparse, stats
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import LabelBinarizer
from torch import Tensor, nn

from benchmarks import files
from benchmarks.files import markdown, write_json
from benchmarks.text.data import read_table
from benchmarks.timing import machine, one_thread, ratio, take_turns
from lelp_sklearn import LELPProjector, LELPStudentClassifier
from lelp_sklearn.losses import subclass_cross_entropy

RESULTS = files.RESULTS
N_FEATURES, N_ENTRIES, N_CLASSES, N_SUBCLASSES = 2**18, 50, 2, 20
N_HIDDEN, BATCH_SIZE, LEARNING_RATE = 32, 256, 0.01
N_ROWS, N_ROWS_IN_MEMORY = 100_000, 1_000_000
# Ours may take so many times the seconds of the other.
BARS = {"bare loop": 1.1, "MLPClassifier": 0.5, "adamw": 0.5, "forward pass": 1.5}
LARGEST_PEAK = 2.0
OPTIMIZERS = ("adamw", "sparse_adam")
N_TURNS, N_EPOCHS, N_SEEDS = 3, 10, 5
# Texts have so many rows only, of which a word has to be in two.
N_ROWS_QUICK, MIN_DF = 2_000, 2
# What the student takes for embeddings of sparse rows.
N_COMPONENTS = 100

Array = np.ndarray


def make_data(n_rows: int) -> tuple[sparse.csr_array, Array, Array]:
    """Draw rows, labels and soft targets, without intermediate arrays of their size."""
    rng = np.random.default_rng(0)
    columns = rng.integers(0, N_FEATURES, (n_rows, N_ENTRIES), dtype=np.int32)
    columns.sort(axis=1)
    values = rng.random(n_rows * N_ENTRIES, dtype=np.float32)
    offsets = np.arange(0, n_rows * N_ENTRIES + 1, N_ENTRIES, dtype=np.int32)
    X = sparse.csr_array((values, columns.ravel(), offsets), shape=(n_rows, N_FEATURES))
    X.sum_duplicates()
    soft = rng.standard_exponential(
        (n_rows, N_CLASSES * N_SUBCLASSES), dtype=np.float32
    )
    soft /= soft.sum(axis=1, keepdims=True)
    y = soft.reshape(n_rows, N_CLASSES, N_SUBCLASSES).sum(axis=2).argmax(axis=1)
    return X, y, soft


def make_student(optimizer: str, n_epochs: int) -> LELPStudentClassifier:
    """Return the student of the library."""
    return LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (N_HIDDEN,)},
        optimizer=optimizer,
        learning_rate=LEARNING_RATE,
        within_class_temperature=1.0,
        max_epochs=n_epochs,
        batch_size=BATCH_SIZE,
        device="cpu",
        random_state=0,
    )


class BareModule(nn.Module):
    """The same module as a user would write it for entries of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(
            N_FEATURES, N_HIDDEN, mode="sum", include_last_offset=True
        )
        nn.init.uniform_(self.bag.weight, -(N_FEATURES**-0.5), N_FEATURES**-0.5)
        self.bias = nn.Parameter(torch.zeros(N_HIDDEN))
        self.top = nn.Linear(N_HIDDEN, N_CLASSES * N_SUBCLASSES)

    def forward(self, columns: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
        """Return the outputs of rows, given as three arrays."""
        sums = self.bag(columns, offsets, per_sample_weights=values)
        return self.top(torch.relu(sums + self.bias))


def entries_of_rows(X: tuple[Tensor, Tensor, Tensor], index: Tensor) -> tuple:
    """Slice some rows from the three arrays."""
    columns, offsets, values = X
    starts = offsets[index]
    lengths = offsets[index + 1] - starts
    new = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=lengths.dtype)])
    shift = (starts - new[:-1]).repeat_interleave(lengths)
    entries = torch.arange(len(shift), dtype=shift.dtype) + shift
    return columns.index_select(0, entries), new, values.index_select(0, entries)


def train_by_hand(X: sparse.csr_array, soft: Array, n_epochs: int) -> list[float]:
    """Train the same module by a loop of one's own; return the loss of each epoch."""
    defaults = LELPStudentClassifier()
    columns, offsets, values = map(torch.from_numpy, (X.indices, X.indptr, X.data))
    targets, module = torch.from_numpy(soft), BareModule()
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=LEARNING_RATE,
        weight_decay=defaults.weight_decay,
        fused=True,
    )
    n_steps, curve = -(-len(soft) // BATCH_SIZE), []
    for epoch in range(n_epochs):
        total = torch.zeros(())
        for step, index in enumerate(torch.randperm(len(soft)).split(BATCH_SIZE)):
            progress = (epoch + step / n_steps) / n_epochs
            rate = 0.5 * (1 + math.cos(math.pi * progress)) * LEARNING_RATE
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = subclass_cross_entropy(
                module(*entries_of_rows((columns, offsets, values), index)),
                targets.index_select(0, index),
                N_CLASSES,
                subclass_weight=max(0.0, 1 - 2 * progress),
            ).mean()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        curve.append(float(total) / n_steps)
    return curve


def train_mlp(X: sparse.csr_array, y: Array, n_epochs: int) -> MLPClassifier:
    """Train scikit-learn's perceptron of the same size on the labels."""
    mlp = MLPClassifier(
        (N_HIDDEN,), batch_size=BATCH_SIZE, max_iter=n_epochs, random_state=0
    )
    with warnings.catch_warnings():
        # So few epochs are not enough for it.
        warnings.simplefilter("ignore")
        return mlp.fit(X, y)


def make_trainers(data: tuple) -> dict[str, Callable[[int], object]]:
    """Return functions of the number of epochs, by name."""
    X, y, soft = data
    return {
        "adamw": lambda n: make_student("adamw", n).fit(X, y, soft_targets=soft),
        "sparse_adam": lambda n: make_student("sparse_adam", n).fit(
            X, y, soft_targets=soft
        ),
        "bare loop": lambda n: train_by_hand(X, soft, n),
        "MLPClassifier": lambda n: train_mlp(X, y, n),
    }


def time_epochs(data: tuple, repeats: int) -> dict[str, Array]:
    """Return the seconds of an epoch of each trainer in each turn."""
    for train in make_trainers(make_data(N_ROWS_QUICK)).values():
        # What comes once a process.
        train(1)
    trainers = make_trainers(data)
    fits = {
        (name, n): (lambda train=train, n=n: train(n))
        for name, train in trainers.items()
        for n in ((1, 2) if name != "MLPClassifier" else (1,))
    }
    seconds = take_turns(fits, repeats, warm=True, clock=time.process_time)
    epochs = {name: seconds[name, 1] for name in trainers}
    return epochs | {name: seconds[name, n] - epochs[name] for name, n in fits if n > 1}


def time_prediction(data: tuple, repeats: int) -> dict[str, Array]:
    """Return the seconds of a prediction of all rows in each turn."""
    X, y, soft = data
    student = make_student("sparse_adam", 1).fit(X, y, soft_targets=soft)
    module = student.module_.eval()
    rows = torch.sparse_csr_tensor(
        *map(torch.from_numpy, (X.indptr, X.indices, X.data)),
        X.shape,
        check_invariants=False,
    )

    def forward() -> Tensor:
        with torch.inference_mode():
            return module(rows)

    contestants = {"ours": lambda: student.predict_proba(X), "forward pass": forward}
    return take_turns(contestants, 3 * repeats, clock=time.process_time)


def compare(seconds: dict[str, Array], ours: str, others: list[str]) -> dict:
    """Return the medians and how many times the seconds of each other ours takes."""
    found = {}
    for name in others:
        found[f"{ours} / {name}"] = {
            "seconds": float(np.median(seconds[ours])),
            "seconds of the other": float(np.median(seconds[name])),
            "ratio": ratio(seconds[name], seconds[ours]),
            "bar": BARS[name],
        }
    return found


def measure_speed(options: argparse.Namespace) -> dict:
    """Time training and prediction on one thread, and print the ratios."""
    data = make_data(N_ROWS_QUICK if options.quick else options.rows)
    repeats = 1 if options.quick else options.turns
    with one_thread():
        seconds = time_epochs(data, repeats)
        prediction = time_prediction(data, repeats)
    found = compare(seconds, "adamw", ["bare loop", "MLPClassifier"])
    found |= compare(seconds, "sparse_adam", ["adamw"])
    found |= compare(prediction, "ours", ["forward pass"])
    titles = ["", "s", "s of the other", "ratio", "bar"]
    rows = []
    for name, each in found.items():
        middle, low, high = each["ratio"]
        ratios = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        times = f"{each['seconds']:.3f}", f"{each['seconds of the other']:.3f}"
        rows.append([name, *times, ratios, f"{each['bar']:.2g}"])
    print(markdown(titles, rows))
    return {"rows": len(data[1]), "turns": repeats, **found}


def measure_memory(quick: bool) -> dict:
    """Fit in a process of its own, and print its peak."""
    n_rows = N_ROWS_QUICK if quick else N_ROWS_IN_MEMORY
    child = subprocess.run(
        [sys.executable, __file__, "child", str(n_rows)],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(child.stdout)
    print(
        f"{n_rows} rows: peak {found['GB']:.2f} GB, bar {LARGEST_PEAK:.2g}, an epoch "
        f"{found['seconds']:.0f} s"
    )
    return found


def fit_in_child(n_rows: int) -> None:
    """Fit one epoch, and print the peak of this process as JSON."""
    X, y, soft = make_data(n_rows)
    start = time.process_time()
    with one_thread():
        make_student("adamw", 1).fit(X, y, soft_targets=soft)
    seconds = time.process_time() - start
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps({"rows": n_rows, "GB": 1024 * kibibytes / 1e9, "seconds": seconds})
    )


def read_texts(folder: Path, quick: bool) -> tuple:
    """Return TF-IDF rows and labels, to train on and to test on."""
    train, test = (read_table(folder / f"{part}.tsv.gz") for part in ("train", "test"))
    if quick:
        train = train.sample(N_ROWS_QUICK, random_state=0)
    tfidf = TfidfVectorizer(dtype=np.float32, min_df=MIN_DF)
    X = tfidf.fit_transform(train["text"])
    labels = train["label"].to_numpy(), test["label"].to_numpy()
    return X, labels[0], tfidf.transform(test["text"]), labels[1]


def make_targets(X: sparse.csr_array, y: Array, seed: int) -> Array:
    """Return the soft targets of a fit without a teacher: labels, with subclasses."""
    embeddings = TruncatedSVD(N_COMPONENTS, random_state=seed).fit_transform(X)
    projector = LELPProjector(temperature=1.0, random_state=seed)
    # So far apart that the softmax is the label itself.
    logits = LabelBinarizer(neg_label=-10_000, pos_label=10_000).fit_transform(y)
    return projector.fit(embeddings, y).transform(embeddings, teacher_logits=logits)


def accuracies(data: tuple, n_epochs: int, seed: int) -> dict[str, float]:
    """Return the accuracy of each optimizer on the test texts, in points."""
    X, y, X_test, y_test = data
    soft = make_targets(X, y, seed)
    found = {}
    for name in OPTIMIZERS:
        student = LELPStudentClassifier(
            module_params={"hidden_layer_sizes": (N_HIDDEN,)},
            optimizer=name,
            learning_rate=LEARNING_RATE,
            batch_size=128,
            max_epochs=n_epochs,
            random_state=seed,
        )
        student.fit(X, y, soft_targets=soft)
        found[name] = 100 * float(student.score(X_test, y_test))
    return found


def measure_accuracy(folder: Path, options: argparse.Namespace) -> None:
    """Compare both optimizers seed by seed; seeds in the results are not repeated."""
    n_epochs, n_seeds = (2, 2) if options.quick else (N_EPOCHS, N_SEEDS)
    data = read_texts(folder, options.quick)
    found = {} if options.quick else read_results().get(folder.name, {})
    scores = {name: found.get(name, []) for name in OPTIMIZERS}
    for seed in range(len(scores[OPTIMIZERS[-1]]), n_seeds):
        pair = accuracies(data, n_epochs, seed)
        for name, score in pair.items():
            scores[name].append(score)
        print(f"{folder.name}, seed {seed}: {pair}", flush=True)
        keep(folder.name, {"shape": list(data[0].shape), **scores}, options)
    dense, touched = (np.array(scores[name]) for name in OPTIMIZERS)
    gains = touched - dense
    half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
    titles = [f"{folder.name}, accuracy in %", *OPTIMIZERS, "difference"]
    means = f"{dense.mean():.2f}", f"{touched.mean():.2f}"
    difference = f"{gains.mean():+.2f} ± {half:.2f}"
    print(markdown(titles, [[f"{data[0].shape[1]} words", *means, difference]]))


def read_results() -> dict:
    """Return the results of earlier runs, by part."""
    path = RESULTS / "sparse.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def keep(part: str, found: dict, options: argparse.Namespace) -> None:
    """Write the result of a part beside those of the others, unless it is quick."""
    if not options.quick:
        results = {**read_results(), part: {"machine": machine(), **found}}
        write_json(RESULTS / "sparse.json", results)


def measure(part: str, options: argparse.Namespace) -> None:
    """Measure a part and keep the result; print why if it cannot be measured."""
    folder = options.data_dir
    if part == "speed":
        keep(part, measure_speed(options), options)
    elif part == "memory":
        keep(part, measure_memory(options.quick), options)
    elif folder is None or not (folder / part).exists():
        print(f"Skipped: {part}, which is not in --data-dir.")
    else:
        measure_accuracy(folder / part, options)


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts that are named, and keep the result of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="by default speed and memory")
    parser.add_argument("--data-dir", type=Path, help="holds the texts")
    parser.add_argument("--rows", type=int, default=N_ROWS, help="of the part speed")
    parser.add_argument("--turns", type=int, default=N_TURNS, help="of the part speed")
    parser.add_argument("--quick", action="store_true", help="seconds, not a result")
    options = parser.parse_args(arguments)
    if options.parts[:1] == ["child"]:
        fit_in_child(int(options.parts[1]))
        return
    for part in options.parts or ["speed", "memory"]:
        measure(part, options)


if __name__ == "__main__":
    main()
