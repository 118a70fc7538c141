"""The rows of dask arrays: folded where they lie, then reduced.

The chunks are divided into runs, one for each thread of the cluster. A run is folded in
one task, chunk after chunk: a chunk that has to be loaded or computed is so within that
task, and gone before the next. What a fold makes of a run crosses the network, rows do
not: nothing that crosses it grows with their number.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import dask
import numpy as np
from dask.delayed import Delayed
from dask.sizeof import sizeof
from numpy.typing import NDArray
from sklearn import config_context, get_config

from lelp_sklearn._subclasses.dask_arrays import beside
from lelp_sklearn._subclasses.dask_chunks import (
    Key,
    LazyRows,
    Piece,
    divide,
    given,
    pieces,
)
from lelp_sklearn._subclasses.inputs import CheckedRows, Findings
from lelp_sklearn._subclasses.rows import LabelledRows
from lelp_sklearn._typing import IntArray

if TYPE_CHECKING:
    from dask.array import Array
    from distributed import Future

Result = TypeVar("Result")
# For each class the places of rows, and the rows, as they are found chunk by chunk.
Taken = list[list[tuple[IntArray, NDArray[Any]]]]


@dataclass(frozen=True)
class DaskRows:
    """Labelled rows in runs of chunks, on the workers of a cluster.

    Parameters
    ----------
    runs : list of Delayed
        A `_Run` each, persisted: it lies on a worker, and is made anew should that die.
    futures : list of lists of futures
        What the rows of each run are made from and lies on the cluster already.
    shape : (n, d)
    dtype : dtype of the rows
    """

    runs: list[Delayed]
    futures: list[list["Future[Any]"]]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_in_memory = False

    @classmethod
    def check(
        cls,
        X: "Array",
        y: Any,
        sample_weight: Any,
        teacher_logits: Any,
        unlabeled: object,
    ) -> "DaskRows":
        """Check rows and what comes with them, on the workers.

        Each chunk is then `CheckedRows`, or `_Refused`, as `findings` tells.
        """
        sources, futures = _sources(
            X,
            ("y", y),
            ("sample_weight", sample_weight),
            ("teacher_logits", teacher_logits),
        )
        runs, futures_of_rows = [], []
        for members in divide([source.X for source in sources], futures):
            reading = _Reading([sources[member] for member in members], unlabeled)
            needed = [futures[key] for key in given(reading.pieces)]
            runs.append(dask.delayed(_read_run)(_as_task(reading), needed))
            rows = [source.X.piece for source in reading.sources]
            futures_of_rows.append([futures[key] for key in given(rows)])
        return cls(list(dask.persist(*runs)), futures_of_rows, X.shape, X.dtype)

    def findings(self) -> Findings:
        """What has to be known of all rows before each gets a class."""
        found = [dask.delayed(_find_in_run)(run) for run in self.runs]
        merged: Findings = _merged(found, Findings.merge)
        return merged

    def map_reduce(
        self,
        function: Callable[..., Result],
        merge: Callable[[Result, Result], Result],
        *arguments: Any,
    ) -> Result:
        """Fold each run by itself, then merge the results of neighbours, by pairs."""
        states = self._on_each_run(_fold_run, _Pass(function, arguments), merge)
        result: Result = _merged(states, merge)
        return result

    def map(self, function: Callable[..., Any], *arguments: Any) -> "DaskRows":
        """Change what is known of each row, where it lies."""
        runs = self._on_each_run(_map_run, _Pass(function, arguments))
        return replace(self, runs=list(dask.persist(*runs)))

    def take(self, places: Sequence[IntArray]) -> Iterator[NDArray[Any]]:
        """Fetch rows, those of all lists of places in one pass."""
        for found in self.map_reduce(_rows_at, _with_rows, places):
            order = np.concatenate([index for index, _ in found]).argsort()
            yield np.concatenate([rows for _, rows in found])[order]

    def _on_each_run(
        self, function: Callable[..., Any], work: "_Pass", *arguments: Any
    ) -> list[Delayed]:
        shared = _as_task(work)
        return [
            dask.delayed(function)(run, futures, shared, *arguments)
            for run, futures in zip(self.runs, self.futures, strict=True)
        ]


@dataclass(frozen=True)
class _Source:
    """A chunk of rows and what comes along with them, nothing of it made yet."""

    X: LazyRows
    along: tuple[Any, ...]
    first_row: int

    def check(self, known: Mapping[Key, Any], unlabeled: object) -> Any:
        """Make the chunk; give `CheckedRows`, or `_Refused` where it is wrong."""
        y, weight, logits = (
            each.make(known) if isinstance(each, Piece) else each for each in self.along
        )
        rows = self.X.from_known(known)
        try:
            checked = CheckedRows.check(
                rows, y, weight, logits, unlabeled, self.first_row
            )
        except (TypeError, ValueError) as error:
            return _Refused(self.first_row, error)
        return replace(checked, X=self.X)


@dataclass(frozen=True)
class _Refused:
    """A chunk in which something is wrong."""

    first_row: int
    error: Exception

    def findings(self) -> Findings:
        return Findings(np.empty(0), refusal=(self.first_row, self.error))


@dataclass(frozen=True)
class _Reading:
    """Chunks that are to be made and checked together."""

    sources: list[_Source]
    unlabeled: object

    @property
    def pieces(self) -> list[Piece]:
        """What has to be made for it: rows, and what comes with them."""
        parts = ((source.X.piece, *source.along) for source in self.sources)
        return [each for each in chain(*parts) if isinstance(each, Piece)]


@dataclass(frozen=True)
class _Run:
    """Chunks that are folded together."""

    chunks: list[Any]

    def __sizeof__(self) -> int:
        """Bytes, so that the scheduler knows what it would cost to move the run."""
        return sum(sizeof(vars(chunk)) for chunk in self.chunks)


@dataclass(frozen=True)
class _Pass:
    """What is to be done with each chunk, within the caller's limit of memory."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    working_memory: int = field(default_factory=lambda: get_config()["working_memory"])

    def results(self, run: _Run, values: list[Any]) -> Iterator[Any]:
        """Give what the function makes of each chunk, one chunk being made at a time.

        `values` are what lies on the cluster already of what the chunks are made from.
        """
        keys = given(chunk.X.piece for chunk in run.chunks)
        known = dict(zip(keys, values, strict=True))
        with config_context(working_memory=self.working_memory):
            for chunk in run.chunks:
                rows = replace(chunk, X=chunk.X.from_known(known))
                yield self.function(rows, *self.arguments)


def _sources(
    X: "Array", *along: tuple[str, Any]
) -> tuple[list[_Source], dict[Key, "Future[Any]"]]:
    """Each chunk that has rows, and the futures from which the chunks are made."""
    n_chunks = X.numblocks[0]
    rows, futures = pieces(X)
    columns: list[Sequence[Any]] = []
    for name, values in along:
        if np.ndim(values):
            column, further = pieces(beside(values, X, name))
            futures |= further
            columns.append(column)
        else:
            columns.append([values] * n_chunks)
    sizes = X.chunks[0]
    first_rows = np.cumsum((0, *sizes[:-1])).tolist()
    sources = [
        _Source(LazyRows(piece, (size, X.shape[1]), X.dtype), parts, first_row)
        for piece, size, parts, first_row in zip(
            rows, sizes, zip(*columns, strict=True), first_rows, strict=True
        )
        if size
    ]
    return sources, futures


def _as_task(value: Any) -> Delayed:
    """Give a value that goes to each worker once, however many tasks take it."""
    task: Delayed = dask.delayed(value, pure=False, traverse=False)
    return task


def _read_run(reading: _Reading, values: list[Any]) -> _Run:
    known = dict(zip(given(reading.pieces), values, strict=True))
    chunks = []
    for source in reading.sources:
        chunks.append(source.check(known, reading.unlabeled))
        if isinstance(chunks[-1], _Refused):
            break
    return _Run(chunks)


def _find_in_run(run: _Run) -> Findings:
    each: Iterator[Findings] = (chunk.findings() for chunk in run.chunks)
    return reduce(Findings.merge, each)


def _fold_run(
    run: _Run, values: list[Any], work: _Pass, merge: Callable[[Any, Any], Any]
) -> Any:
    return reduce(merge, work.results(run, values))


def _map_run(run: _Run, values: list[Any], work: _Pass) -> _Run:
    results = work.results(run, values)
    chunks = [
        replace(result, X=chunk.X)
        for chunk, result in zip(run.chunks, results, strict=True)
    ]
    return _Run(chunks)


def _merged(states: list[Delayed], merge: Callable[[Any, Any], Any]) -> Any:
    """Merge by pairs of neighbours: threads of a worker first, then workers."""
    while len(states) > 1:
        states = [
            dask.delayed(_merge)(merge, *states[k : k + 2])
            for k in range(0, len(states), 2)
        ]
    return states[0].compute()


def _merge(merge: Callable[[Any, Any], Any], left: Any, right: Any = None) -> Any:
    if right is None:
        return left
    # What a run gave may be needed again, should a worker die.
    return merge(copy.deepcopy(left), right)


def _rows_at(rows: LabelledRows, places: Sequence[IntArray]) -> Taken:
    """Find those of the places that lie in a chunk."""
    found: Taken = []
    ends = rows.first_row, rows.first_row + rows.shape[0]
    for index in places:
        start, stop = np.searchsorted(index, ends)
        mine = index[start:stop]
        # A chunk that holds none need not be made.
        found.append([(mine, rows.X[mine - rows.first_row])] if mine.size else [])
    return found


def _with_rows(left: Taken, right: Taken) -> Taken:
    return [mine + further for mine, further in zip(left, right, strict=True)]
