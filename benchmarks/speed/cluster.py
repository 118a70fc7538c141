"""Dask: seconds beside the fit in memory, and the bytes that cross the network.

A cluster of one process for each core, on this machine, holds the rows. The bytes are
all that the processes send over their connections, the scheduler's and the client's
together. They are counted at a quarter of the rows too, enough for the largest sample.
On one machine nothing is gained over the fit in memory; the table shows what a cluster
costs.
"""

import os

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, wait
from distributed.comm import tcp

from benchmarks.speed.comparison import Run, table_of
from benchmarks.speed.problems import Array, Options, Shape, Teacher
from benchmarks.timing import take_turns
from lelp_sklearn import LELPProjector

QUICK = Shape(960_000, 64, 2, 5)
FULL = Shape(1_600_000, 384, 2, 10)
CHUNKS = 16
SPLITTERS = ["kmeans", "pca"]


def measure(options: Options) -> dict:
    """Measure the fit with either splitter and the transform."""
    shape = FULL if options.full else QUICK
    n_workers = len(os.sched_getaffinity(0))
    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        count_bytes()
        client.run(count_bytes)
        quarter = shape._replace(n_rows=shape.n_rows // 4)
        sizes = {
            str(each): _measure(each, options.repeats, client)
            for each in (quarter, shape)
        }
    return {"workers": n_workers, "sizes": sizes}


def _measure(shape: Shape, repeats: int, client: Client) -> dict:
    X, y = rows(shape)
    X, y = dask.persist(X, y)
    wait([X, y])
    in_memory = dask.compute(X, y)
    works = {}
    for splitter in SPLITTERS:
        projector = LELPProjector(
            shape.n_subclasses,
            splitter=splitter,
            head=Teacher(shape).head,
            random_state=0,
        )
        runs = {
            "in memory": lambda p=projector: p.fit(*in_memory),
            "dask": lambda p=projector: p.fit(X, y),
        }
        works[f"fit, {splitter}"] = _compare(runs, repeats, client)
    runs = {
        "in memory": lambda: projector.transform(in_memory[0]),
        "dask": lambda: wait(projector.transform(X).persist()),
    }
    works["transform"] = _compare(runs, repeats, client)
    return works


def _compare(runs: dict[str, Run], repeats: int, client: Client) -> dict:
    """Median seconds of both, and the bytes that one run of dask's sends."""
    seconds = take_turns(runs, repeats)
    before = bytes_sent(), client.run(bytes_sent)
    runs["dask"]()
    after = bytes_sent(), client.run(bytes_sent)
    by_workers = [after[1][name] - before[1][name] for name in before[1]]
    return {
        "seconds": {name: float(np.median(each)) for name, each in seconds.items()},
        "sent by a worker": float(np.mean(by_workers)),
        "sent by scheduler and client": after[0] - before[0],
    }


def rows(shape: Shape) -> tuple[da.Array, da.Array]:
    """Rows and labels, drawn chunk by chunk where they are needed."""
    size = shape.n_rows // CHUNKS
    drawn = [
        dask.delayed(draw, nout=2)(shape, size, seed, pure=True)
        for seed in range(CHUNKS)
    ]
    X = [da.from_delayed(X, (size, shape.n_features), np.float32) for X, _ in drawn]
    y = [da.from_delayed(y, (size,), np.int64) for _, y in drawn]
    return da.concatenate(X), da.concatenate(y)


def draw(shape: Shape, n_rows: int, seed: int) -> tuple[Array, Array]:
    """Draw rows and labels of a chunk."""
    return Teacher(shape).draw(n_rows, seed)


def count_bytes() -> None:
    """Count from now on what this process sends over its connections."""
    write = tcp.TCP.write

    async def counting(self: tcp.TCP, *args: object, **kwargs: object) -> int:
        n_bytes = await write(self, *args, **kwargs)
        tcp.TCP.sent += n_bytes
        return n_bytes

    tcp.TCP.sent = 0
    tcp.TCP.write = counting


def bytes_sent() -> int:
    """Return the bytes sent so far."""
    return tcp.TCP.sent


def table(entry: dict) -> str:
    """One line a size and work."""
    lines = [
        {
            "float32 on the workers": size,
            "work": work,
            "in memory, s": f"{found['seconds']['in memory']:.2f}",
            "dask, s": f"{found['seconds']['dask']:.2f}",
            "MB sent by a worker": f"{found['sent by a worker'] / 1e6:.1f}",
            "MB sent by scheduler and client": (
                f"{found['sent by scheduler and client'] / 1e6:.1f}"
            ),
        }
        for size, works in entry["sizes"].items()
        for work, found in works.items()
    ]
    return f"{table_of(lines)}\n\n{entry['workers']} workers of one thread each."
