"""What serving a student costs: a row through `to_module`, the size of ONNX files.

The module of class probabilities and the bare module inside it take turns, some calls
each, on one thread, whose processor time is taken: others may use the machine. The
ratio is the median over the rounds.

    python benchmarks/serving/run.py
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks import files
from benchmarks.files import write_json
from benchmarks.timing import machine
from lelp_sklearn import LELPProjector, LELPStudentClassifier

RESULTS = files.RESULTS / "serving.json"

CALLS = 30
N_TOKENS = 2_000
N_CLASSES = 2
ALLOWED_RATIO = 2.0
ALLOWED_OVERHEAD = 12_000


class ConvNet(nn.Sequential):
    """A small student of images."""

    def __init__(self, n_channels: int, n_outputs: int) -> None:
        super().__init__(
            nn.Conv2d(n_channels, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, n_outputs),
        )


class TokenNet(nn.Sequential):
    """A student of texts: the mean of the embeddings of their tokens."""

    def __init__(self, n_tokens: int, n_outputs: int) -> None:
        super().__init__(
            nn.EmbeddingBag(N_TOKENS, 64),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, n_outputs),
        )


def students(
    n_subclasses: int, temperature: float
) -> Iterator[tuple[str, LELPStudentClassifier, np.ndarray]]:
    """Yield each student, fitted for one epoch, and its rows."""
    rng = np.random.RandomState(0)
    rows = {
        "MLP": (None, rng.normal(size=(64, 64)).astype(np.float32)),
        "CNN": (ConvNet, rng.normal(size=(64, 3, 32, 32)).astype(np.float32)),
        "token ids": (TokenNet, rng.randint(N_TOKENS, size=(64, 32))),
    }
    soft = rng.dirichlet(np.ones(N_CLASSES * n_subclasses), size=64)
    for name, (module, X) in rows.items():
        projector = LELPProjector(n_subclasses, temperature=temperature)
        student = LELPStudentClassifier(
            module, projector=projector, max_epochs=1, random_state=0
        )
        yield name, student.fit(X, np.arange(64) % N_CLASSES, soft_targets=soft), X


def microseconds(call: Callable[[Tensor], Tensor], row: Tensor, n_calls: int) -> float:
    """Time a call on one row, without what other programs take from the thread."""
    start = time.thread_time()
    for _ in range(n_calls):
        call(row)
    return (time.thread_time() - start) / n_calls * 1e6


def latency(
    student: LELPStudentClassifier, X: np.ndarray, n_rounds: int
) -> dict[str, float]:
    """Compare the module of probabilities with the bare module, in turns."""
    module, row = student.to_module(), torch.from_numpy(X[:1])
    bare = module.net
    with torch.inference_mode():
        microseconds(module, row, 10 * CALLS)
        rounds = [
            (microseconds(bare, row, CALLS), microseconds(module, row, CALLS))
            for _ in range(n_rounds)
        ]
    of_bare, of_module = np.array(rounds).T
    low, middle, high = np.quantile(of_module / of_bare, [0.25, 0.5, 0.75])
    return {
        "bare_us": float(np.median(of_bare)),
        "module_us": float(np.median(of_module)),
        "ratio": float(middle),
        "ratio_quartiles": [float(low), float(high)],
    }


def onnx_file(student: LELPStudentClassifier, X: np.ndarray) -> dict[str, float]:
    """Write the file; tell its size and how far its probabilities are from ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        student.to_onnx(path)
        n_bytes = path.stat().st_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path.read_bytes(), options)
    found = session.run(["probabilities"], {"X": X})[0]
    n_parameters = sum(p.numel() for p in student.module_.parameters())
    return {
        "bytes": n_bytes,
        "parameters": n_parameters,
        "overhead": n_bytes - 4 * n_parameters,
        "largest_difference": float(np.abs(found - student.predict_proba(X)).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=301)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'student':10} {'S':>3} {'τ':>2}  {'bare µs':>8} {'module µs':>9}  "
        f"{'ratio [quartiles]':18}  {'ONNX bytes':>10} {'- 4 x parameters':>16}  "
        "largest difference"
    )
    rows = []
    for n_subclasses, temperature in product((1, 20), (1.0, 4.0)):
        for name, student, X in students(n_subclasses, temperature):
            row = {"student": name, "S": n_subclasses, "temperature": temperature}
            row |= latency(student, X, arguments.rounds) | onnx_file(student, X)
            low, high = row["ratio_quartiles"]
            print(
                f"{name:10} {n_subclasses:3} {temperature:2.0f}  "
                f"{row['bare_us']:8.1f} {row['module_us']:9.1f}  "
                f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]  "
                f"{row['bytes']:10,} {row['overhead']:16,}  "
                f"{row['largest_difference']:.1e}"
            )
            rows.append(row)
    write_json(RESULTS, {"machine": machine(), "rows": rows})
    slowest = max(row["ratio"] for row in rows)
    largest = max(row["overhead"] for row in rows)
    print(f"Slowest: {slowest:.2f} times the bare module (allowed {ALLOWED_RATIO}).")
    print(f"Largest: 4 bytes a parameter + {largest:,} (allowed {ALLOWED_OVERHEAD:,}).")


if __name__ == "__main__":
    main()
