"""What an accelerator makes of embeddings in its memory.

Soft labels of half precision embeddings beside torch's operations written by hand and
compiled, as a share of what copying memory takes; fits beside `torch.pca_lowrank` of
each class; the device memory that they take beside the embeddings. Contestants take
turns, and the median counts.

    python benchmarks/speed/gpu.py [--quick] [--device cpu] [--results FILE]
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import torch
from torch import Tensor

from benchmarks import files
from benchmarks.files import markdown, write_json
from benchmarks.speed.peers import finish, numpy_soft_labels, soft_label_columns
from benchmarks.timing import machine
from lelp_sklearn import LELPProjector

RESULTS = files.RESULTS / "gpu.json"
N_CLASSES = 2
N_SUBCLASSES = 10
# Rows whose soft labels are computed in double precision too.
N_CHECKED = 20_000
# Spreads from the origin of the embeddings' mean.
MEANS = 0.0, 1.0, 30.0


@dataclass(frozen=True)
class Size:
    """Rows and features, and how often everything is measured."""

    n_rows: int
    n_features: int
    repeats: int


FULL = Size(4_000_000, 768, 15)
QUICK = Size(20_000, 64, 3)


class Clock:
    """Milliseconds of a call, by the device's own events where it has them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def once(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    def medians(
        self, contestants: dict[str, Callable[[], object]], repeats: int
    ) -> dict[str, float]:
        """Medians over rounds in which each has its turn, after one to warm up."""
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(repeats + 1):
            for name, call in contestants.items():
                ms = self.once(call)
                if turn:
                    taken[name].append(ms)
        return {name: statistics.median(values) for name, values in taken.items()}

    def peak_above(self, call: Callable[[], object]) -> float | None:
        """MiB of device memory that a call takes at most, what it gives included."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def embeddings(
    size: Size, device: torch.device, dtype: torch.dtype, mean: float
) -> tuple[Tensor, Tensor]:
    """Classes of hidden groups along few axes, in noise; the labels."""
    generator = torch.Generator(device).manual_seed(0)
    d = size.n_features
    options = {"generator": generator, "device": device}
    groups = 2 * torch.randn(2 * N_SUBCLASSES, d, **options)
    scales = 0.995 ** torch.arange(d, device=device)
    X = torch.empty(size.n_rows, d, dtype=dtype, device=device)
    group = torch.randint(2 * N_SUBCLASSES, (size.n_rows,), **options)
    step = max(1, 2**26 // d)
    for start in range(0, size.n_rows, step):
        rows = groups[group[start : start + step]] * scales
        rows += torch.randn(len(rows), d, **options) * scales
        X[start : start + step] = rows + mean * scales
    return X, group % N_CLASSES


def head_of(X: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A linear teacher along the difference of the class means."""
    first = X[: 2**16].double()
    means = torch.stack(
        [first[y[: len(first)] == c].mean(dim=0) for c in range(N_CLASSES)]
    )
    coef = (means - means.mean(dim=0)) / first.var(dim=0).sum().sqrt()
    return coef.cpu().numpy(), -(coef @ means.mean(dim=0)).cpu().numpy()


def by_hand(projector: LELPProjector, X: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return soft labels in torch's operations, as one would write them."""
    columns, offsets = soft_label_columns(projector, np.float32)
    columns, offsets = (torch.from_numpy(a).to(X.device) for a in (columns, offsets))
    narrow, shape = columns.to(X.dtype), projector.offsets_.shape

    def in_half() -> Tensor:
        return finish((X @ narrow.T).float() - offsets, shape)

    contestants = {
        "torch, X.float() @ U": lambda: finish(X.float() @ columns.T - offsets, shape),
        "torch, X @ U.half()": in_half,
    }
    # The compiler of torch needs one of Triton's or of C++.
    if X.device.type == "cuda" and find_spec("triton") is not None:
        contestants["torch.compile of the latter"] = torch.compile(in_half)
    return contestants


def exact(projector: LELPProjector, X: Tensor) -> np.ndarray:
    """Return soft labels of a few rows in double precision."""
    columns = soft_label_columns(projector, np.float64)
    return numpy_soft_labels(
        X.double().cpu().numpy(), *columns, projector.offsets_.shape
    )


def copy_bandwidth(clock: Clock, X: Tensor, repeats: int) -> float:
    """Bytes read and written in a second where half of X is copied to the other."""
    half = len(X) // 2
    source, target = X[:half].clone(), torch.empty_like(X[:half])
    taken = clock.medians({"copy": lambda: target.copy_(source)}, repeats)
    return 2 * source.nbytes / taken["copy"] * 1e3


def unfitted(X: Tensor, y: Tensor, splitter: str) -> LELPProjector:
    return LELPProjector(
        N_SUBCLASSES, splitter=splitter, head=head_of(X, y), random_state=0
    )


def measure_transform(
    size: Size, clock: Clock, dtype: torch.dtype, mean: float
) -> list[dict[str, object]]:
    X, y = embeddings(size, clock.device, dtype, mean)
    bandwidth = copy_bandwidth(clock, X, size.repeats)
    few = slice(max(1, size.n_rows // 10))
    projector = unfitted(X, y, "kmeans").fit(X[few], y[few])
    first = clock.once(lambda: projector.transform(X))
    contestants = {"ours": lambda: projector.transform(X)} | by_hand(projector, X)
    index = torch.arange(0, size.n_rows, -(-size.n_rows // N_CHECKED), device=X.device)
    expected = exact(projector, X[index])
    rows, taken = [], clock.medians(contestants, size.repeats)
    moved = X.nbytes + 4 * size.n_rows * N_CLASSES * N_SUBCLASSES
    for name, call in contestants.items():
        found = call()[index].double().cpu().numpy()
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "mean": mean,
                "name": name,
                "ms": taken[name],
                "GB/s": moved / taken[name] / 1e6,
                "share of copy": moved / taken[name] * 1e3 / bandwidth,
                "largest error": float(np.abs(found - expected).max()),
                "MiB above X": clock.peak_above(call),
                "first call ms": first if name == "ours" else None,
            }
        )
    return rows


def measure_fit(size: Size, clock: Clock) -> list[dict[str, object]]:
    X, y = embeddings(size, clock.device, torch.float16, 1.0)

    def low_rank() -> list[Tensor]:
        return [
            torch.pca_lowrank(X[y == c].float(), q=N_SUBCLASSES + 10, niter=2)[2]
            for c in range(N_CLASSES)
        ]

    pca, kmeans = (unfitted(X, y, splitter) for splitter in ("pca", "kmeans"))
    contestants = {
        "ours, pca": lambda: pca.fit(X, y),
        "ours, kmeans": lambda: kmeans.fit(X, y),
        "torch.pca_lowrank, each class": low_rank,
    }
    taken = clock.medians(contestants, max(1, size.repeats // 5))
    return [
        {"name": name, "ms": taken[name], "MiB above X": clock.peak_above(call)}
        for name, call in contestants.items()
    ]


def table(rows: list[dict[str, object]]) -> str:
    """Return results as a table."""
    names = list(rows[0])
    return markdown(names, [[_cell(name, row[name]) for name in names] for row in rows])


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if name == "largest error" else f"{value:,.2f}"


def facts(device: torch.device) -> dict[str, object]:
    """Describe the machine, and what drives the device."""
    known = machine()
    if device.type == "cuda":
        known |= {
            "device": torch.cuda.get_device_name(device),
            "CUDA": torch.version.cuda,
            "driver": _driver(),
        }
    if find_spec("triton") is not None:
        import triton

        known["triton"] = triton.__version__
    return known


def _driver() -> str:
    """Version of the NVIDIA driver, where the system tells."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\d+\.\d+(\.\d+)*", path.read_text()) if path.exists() else None
    return found.group() if found else "unknown"


def keep(path: Path, part: str, entry: object, known: dict[str, object]) -> None:
    """Put a part into the file of results; others stay if the machine is the same."""
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("machine") != known:
        before = {}
    write_json(path, before | {"machine": known, part: entry})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few and short rows")
    parser.add_argument("--device", default="cuda", help="where the rows are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("No accelerator: torch finds no CUDA device. Nothing is measured.")
        return
    size = QUICK if arguments.quick else FULL
    clock = Clock(device)
    X = torch.zeros(size.n_rows, size.n_features, dtype=torch.float16, device=device)
    bandwidth = copy_bandwidth(clock, X, size.repeats)
    del X
    print(f"{size.n_rows:,} × {size.n_features}, {N_CLASSES} × {N_SUBCLASSES}")
    print(f"Copy: {bandwidth / 1e9:,.0f} GB/s, read and written.\n")
    transforms = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for mean in MEANS if dtype == torch.float16 else MEANS[1:2]:
            transforms += measure_transform(size, clock, dtype, mean)
    print(table(transforms), end="\n\n")
    fits = measure_fit(size, clock)
    print(table(fits))
    if not arguments.quick:
        entry = {
            "size": vars(size),
            "copy GB/s": bandwidth / 1e9,
            "transform": transforms,
            "fit": fits,
        }
        keep(arguments.results, "projector", entry, facts(device))


if __name__ == "__main__":
    main()
