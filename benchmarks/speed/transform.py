"""Soft labels of arrays in memory, the logits from the head."""

import numpy as np

from benchmarks.speed.comparison import (
    compare,
    milliseconds,
    over_shapes,
    table_of,
    times_as_fast,
)
from benchmarks.speed.peers import products_alone, soft_label_peers
from benchmarks.speed.problems import Options, Shape, Teacher
from benchmarks.timing import peak_flops, read_bandwidth
from lelp_sklearn import LELPProjector


def measure(options: Options) -> dict:
    """Time single precision beside the peers, and half precision beside single.

    The product of rows and columns stands beside them. Who has this product and takes
    no time for the rest is as many times as fast as the fastest peer as "at most" says.
    """
    bandwidth, flops = read_bandwidth(), peak_flops()
    measured = over_shapes(
        options, lambda shape, repeats: _measure(shape, repeats, bandwidth, flops)
    )
    return {
        "bytes read a second": bandwidth,
        "multiply-adds a second, counted twice": flops,
    } | measured


def _measure(shape: Shape, repeats: int, bandwidth: float, flops: float) -> dict:
    teacher = Teacher(shape)
    X, y = teacher.draw(shape.n_rows)
    projector = LELPProjector(
        shape.n_subclasses, splitter="pca", head=teacher.head, random_state=0
    ).fit(X[:5000], y[:5000])
    half = X.astype(np.float16)
    peers = soft_label_peers(X, projector)
    ours = projector.transform(X)
    for name, peer in peers.items():
        # Both round; the sums of thousands of features lose some digits.
        np.testing.assert_allclose(peer(), ours, rtol=0, atol=1e-4, err_msg=name)
    products = products_alone(X, projector)
    runs = {
        "ours": lambda: projector.transform(X),
        **peers,
        **products,
        "ours, float16": lambda: projector.transform(half),
    }
    line = compare(runs, repeats, peers)
    seconds = line["seconds"]
    n_outputs = shape.n_classes * (shape.n_subclasses + 1)
    # At the least the array is read and multiplied once.
    bound = max(X.nbytes / bandwidth, 2 * X.size * n_outputs / flops)
    return line | {
        "at most by the product alone": seconds[line["fastest peer"]]
        / min(seconds[name] for name in products),
        "share of the roofline": bound / seconds["ours"],
        "float16 gain": seconds["ours"] / seconds["ours, float16"],
    }


def table(entry: dict) -> str:
    """One line a shape, milliseconds."""
    rows = [
        {"transform, ms": shape}
        | {name: milliseconds(value) for name, value in line["seconds"].items()}
        | {
            "times the fastest peer": times_as_fast(line),
            "at most": f"{line['at most by the product alone']:.2f}",
            "of the roofline": f"{line['share of the roofline']:.0%}",
            "float16 over float32": f"{line['float16 gain']:.2f}",
        }
        for shape, line in entry["shapes"].items()
    ]
    read = entry["bytes read a second"] / 1e9
    flops = entry["multiply-adds a second, counted twice"] / 1e9
    return (
        f"{table_of(rows)}\n\nGeometric mean {entry['geometric mean']:.2f}. "
        f"The roofline: {read:.1f} GB/s read, {flops:.0f} GFLOP/s multiplied."
    )
