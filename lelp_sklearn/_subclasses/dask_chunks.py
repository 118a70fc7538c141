"""The chunks of dask arrays: what each is made from, and which go together."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import dask
import numpy as np
from dask.base import get_scheduler
from dask.optimization import cull
from dask.sizeof import sizeof
from dask.utils import ensure_dict
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dask.array import Array
    from distributed import Client, Future

Key = Any
Item = TypeVar("Item")


@dataclass(frozen=True)
class Piece:
    """A chunk of a dask array, to be made from a graph of its own.

    Parameters
    ----------
    graph : dict
        The part of the array's graph that the chunk needs.
    key : key of the chunk in it
    given : tuple of keys
        What is not in the graph, since it lies on the cluster already.
    """

    graph: Mapping[Key, Any]
    key: Key
    given: tuple[Key, ...]

    def make(self, known: Mapping[Key, Any]) -> Any:
        """Make the chunk in this thread, from what is given."""
        # A call without arguments: what is known is no part of the graph, whatever it
        # looks like.
        leaves = {key: (partial(_same, known[key]),) for key in self.given}
        return dask.get({**self.graph, **leaves}, self.key)


def _same(value: Item) -> Item:
    return value


@dataclass(frozen=True)
class LazyRows:
    """Rows of a chunk that is made when the first of them is read.

    Parameters
    ----------
    piece : Piece
    shape : (n, d)
    dtype : dtype of the rows
    known : mapping of keys to what is given
    """

    piece: Piece
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    known: Mapping[Key, Any] = field(default_factory=dict)

    def from_known(self, known: Mapping[Key, Any]) -> "LazyRows":
        """Give the rows to be made from what is known."""
        return replace(self, known=known)

    def __sizeof__(self) -> int:
        """Bytes, as dask asks for them."""
        return int(sizeof(self.piece.graph))

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        chosen: NDArray[Any] = self._array[rows]
        return chosen

    @cached_property
    def _array(self) -> NDArray[Any]:
        return np.asarray(self.piece.make(self.known), dtype=self.dtype)


def pieces(array: "Array") -> tuple[list[Piece], dict[Key, "Future[Any]"]]:
    """Each chunk of rows of an array, and the futures from which they are made."""
    futures = {
        key: value
        for key, value in ensure_dict(array.__dask_graph__()).items()
        if _is_future(value)
    }
    (optimized,) = dask.optimize(array)
    # Optimizing drops the futures, and `cull` wants every key.
    graph = dict.fromkeys(futures) | ensure_dict(optimized.__dask_graph__())
    found = []
    for key in _keys(array):
        needed, _ = cull(graph, [key])
        there = tuple(each for each, task in needed.items() if task is None)
        own = {each: task for each, task in needed.items() if task is not None}
        found.append(Piece(own, key, there))
    return found, futures


def given(chunks: Iterable[Piece]) -> list[Key]:
    """The keys of what chunks are made from and lies on the cluster already."""
    return list(dict.fromkeys(key for chunk in chunks for key in chunk.given))


def _keys(array: "Array") -> list[Key]:
    nested: list[Any] = array.__dask_keys__()
    return nested if array.ndim == 1 else [row[0] for row in nested]


def _is_future(value: object) -> bool:
    distributed = sys.modules.get("distributed")
    return distributed is not None and isinstance(value, distributed.Future)


def divide(
    chunks: Sequence[LazyRows], futures: Mapping[Key, "Future[Any]"]
) -> list[list[int]]:
    """Divide chunks into runs, one for each thread of the cluster.

    Chunks that lie on a worker are divided among its threads. Without a cluster there
    is one run, whose blocks go over the threads of this process.
    """
    client = _client()
    if client is None:
        return [list(range(len(chunks)))]
    threads = client.nthreads()
    at_home: dict[str | None, list[int]] = {}
    for index, home in enumerate(_homes(client, chunks, futures)):
        at_home.setdefault(home, []).append(index)
    return [
        run
        for home, mine in at_home.items()
        for run in _parts(chunks, mine, threads.get(home) or sum(threads.values()))
    ]


def _client() -> "Client | None":
    """The client through which dask computes now, if through one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    client = getattr(get_scheduler(), "__self__", None)
    return client if isinstance(client, distributed.Client) else None


def _homes(
    client: "Client", chunks: Sequence[LazyRows], futures: Mapping[Key, "Future[Any]"]
) -> list[str | None]:
    """The worker on which each chunk lies; None where it is still to be made."""
    if not all(chunk.piece.given for chunk in chunks):
        return [None] * len(chunks)
    from distributed import wait

    needed = [futures[chunk.piece.given[0]] for chunk in chunks]
    wait(needed)
    where = client.who_has(needed)
    return [next(iter(where[future.key]), None) for future in needed]


def _parts(
    chunks: Sequence[LazyRows], mine: list[int], n_parts: int
) -> list[list[int]]:
    """Divide some chunks, in their order, into at most so many parts of equal size."""
    sizes = np.array([chunks[index].shape[0] for index in mine])
    middles = np.cumsum(sizes) - sizes / 2
    part = (middles * max(1, n_parts) // sizes.sum()).astype(int)
    parts: dict[int, list[int]] = {}
    for index, number in zip(mine, part.tolist(), strict=True):
        parts.setdefault(number, []).append(index)
    return list(parts.values())
