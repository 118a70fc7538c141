"""Passes over rows of embeddings that are dask arrays, on their workers.

Dask is imported with the first dask array. A chunk that has to be loaded or computed is
made in each task that reads it, and released before the next; a chunk that is already
on the cluster is read there. Only the results of a pass cross the network, and their
size does not depend on the number of rows.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context, get_config

from lelp_sklearn import _validation
from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.inputs import CheckedRows, Findings
from lelp_sklearn._subclasses.rows import Data, LabelledRows
from lelp_sklearn._subclasses.soft_labels import class_sums
from lelp_sklearn._typing import IntArray

if TYPE_CHECKING:
    from dask.array import Array
    from dask.delayed import Delayed

_FLOATING = np.float64, np.float32, np.float16

Result = TypeVar("Result")
# For each class the indices of rows, and the rows, chunk by chunk.
Taken = list[list[tuple[IntArray, NDArray[Any]]]]


def is_dask_array(array: object) -> bool:
    """Return whether `array` is a dask array."""
    dask_array = sys.modules.get("dask.array")
    return dask_array is not None and isinstance(array, dask_array.Array)


def as_rows(X: "Array") -> "Array":
    """Return X checked, floating, and chunked by rows alone."""
    _check_embeddings(X)
    if X.dtype not in _FLOATING:
        X = X.astype(np.float64)
    return _chunked_by_rows(X, X.chunks[0])


def beside(values: Any, X: "Array", name: str) -> "Array":
    """Return `values`, with an entry for each row of X, chunked as X is."""
    import dask.array as da

    if not is_dask_array(values):
        values = da.from_array(np.asarray(torch_backend.to_array(values)))
    _check_chunk_sizes(values, name)
    _validation.check_length(values, X.shape[0], name)
    return _chunked_by_rows(values, X.chunks[0])


def map_rows(
    function: Callable[..., NDArray[Any]],
    X: "Array",
    logits: "Array | None",
    n_columns: int,
    dtype: np.dtype[Any],
) -> "Array":
    """Return a lazy array (n, n_columns) of the results of `function` for each chunk.

    `function` takes rows, logits or None, and the index of the first row.
    """
    import dask
    import dask.array as da

    sizes = X.chunks[0]
    first_rows = da.from_array(_first_rows(X)[:, None], chunks=1)
    # A task of its own, which goes to each worker once and not with each chunk.
    shared = dask.delayed(function, pure=True, traverse=False)
    arrays = [X, first_rows] if logits is None else [X, first_rows, logits]
    soft_labels: Array = da.map_blocks(
        _call_with_first_row,
        *arrays,
        function=shared,
        chunks=(sizes, (n_columns,)),
        dtype=dtype,
        meta=np.empty((0, 0), dtype),
    )
    return soft_labels


def sum_subclasses(soft_labels: "Array", shape: tuple[int, int]) -> "Array":
    """Return a lazy array of the sums over the subclasses; `shape` is (C, S)."""
    dtype = soft_labels.dtype if soft_labels.dtype.kind == "f" else np.dtype(float)
    by_row = soft_labels.rechunk({1: -1})
    sums: Array = by_row.map_blocks(
        _checked_class_sums,
        shape,
        chunks=(by_row.chunks[0], (shape[0],)),
        dtype=dtype,
        meta=np.empty((0, 0), dtype),
    )
    return sums


@dataclass(frozen=True)
class DaskRows(Data):
    """Labelled rows in chunks, on the workers of a cluster."""

    X: Any  # the dask array (n, d)
    # Persisted `CheckedRows` or `LabelledRows`, computed again if their worker dies.
    # Their X is a `_LazyPart`, or None if it is among the `rows`.
    chunks: "list[Delayed]"
    # The rows of each chunk if they are on the cluster already, else None.
    rows: list[Any]
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
        """Check rows, labels, weights and logits on the workers."""
        import dask

        along = {
            "y": y,
            "sample_weight": sample_weight,
            "teacher_logits": teacher_logits,
        }
        n_chunks = len(X.chunks[0])
        columns = [
            _parts(beside(values, X, name)) if np.ndim(values) else [values] * n_chunks
            for name, values in along.items()
        ]
        check = dask.delayed(_check_chunk, pure=False)
        is_on_cluster = _is_on_cluster(X)
        chunks, rows_on_cluster = [], []
        for size, first_row, rows, *values in zip(
            X.chunks[0], _first_rows(X).tolist(), _parts(X), *columns, strict=True
        ):
            if size:
                chunks.append(check(rows, *values, unlabeled, first_row))
                rows_on_cluster.append(rows if is_on_cluster else None)
        return cls(X, _persist(chunks), rows_on_cluster)

    def map_reduce(
        self,
        function: Callable[..., Result],
        merge: Callable[[Result, Result], Result],
        *arguments: Any,
    ) -> Result:
        """Call `function` on each chunk, then merge the results by pairs."""
        import dask

        results = self._on_each_chunk(_call_on_chunk, function, arguments)
        while len(results) > 1:
            pairs = [results[k : k + 2] for k in range(0, len(results), 2)]
            results = [
                dask.delayed(_merge)(merge, *pair) if len(pair) == 2 else pair[0]
                for pair in pairs
            ]
        result: Result = results[0].compute(scheduler=_scheduler())
        return result

    def map(self, function: Callable[..., Any], *arguments: Any) -> "DaskRows":
        """Relabel the rows of each chunk on its worker."""
        chunks = self._on_each_chunk(_relabel_chunk, function, arguments)
        return replace(self, chunks=_persist(chunks))

    def take(self, places: Sequence[IntArray]) -> Iterator[NDArray[Any]]:
        """Fetch the rows of all lists of indices in one pass."""
        for found in self.map_reduce(_rows_at, _with_rows, places):
            order = np.concatenate([index for index, _ in found]).argsort()
            yield np.concatenate([rows for _, rows in found])[order]

    def _on_each_chunk(
        self,
        call: Callable[..., Any],
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
    ) -> "list[Delayed]":
        import dask

        work = function, arguments, get_config()["working_memory"]
        # A task of its own, which goes to each worker once and not with each chunk.
        shared = dask.delayed(work, pure=False, traverse=False)
        return [
            dask.delayed(call)(chunk, rows, shared)
            for chunk, rows in zip(self.chunks, self.rows, strict=True)
        ]


@dataclass(frozen=True)
class _LazyPart:
    """A chunk of a dask array, computed in the thread that first reads it."""

    task: "Delayed"
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        part: NDArray[Any] = self._array[rows]
        return part

    def __sizeof__(self) -> int:
        """Return the size in bytes, by which dask places a chunk."""
        from dask.sizeof import sizeof

        return int(sizeof(dict(self.task.__dask_graph__())))

    @cached_property
    def _array(self) -> NDArray[Any]:
        return np.asarray(self.task.compute(scheduler="synchronous"), self.dtype)


@dataclass(frozen=True)
class _Refused:
    """A chunk that failed a check."""

    X: Any
    first_row: int
    error: Exception

    def findings(self) -> Findings:
        return Findings(np.empty(0), refusal=(self.first_row, self.error))


def _check_embeddings(X: Any) -> None:
    """Raise unless a dask array has rows and real features, in dense chunks."""
    _check_chunk_sizes(X, "X")
    if X.dtype.kind == "c":
        raise ValueError(
            "Complex data not supported: X is a dask array of dtype complex."
        )
    if X.dtype.kind not in "biuf":
        raise ValueError(f"X is a dask array of dtype {X.dtype}: pass numbers.")
    if X.ndim != 2:
        raise ValueError(
            f"Expected 2D dask array X, got shape {X.shape}: embeddings are "
            "(n_samples, n_features)."
        )
    if 0 in X.shape:
        raise ValueError(
            f"Found dask array X of shape {X.shape}: at least one sample and one "
            "feature are needed."
        )
    if not isinstance(X._meta, np.ndarray):
        raise TypeError(
            f"X is a dask array with chunks of {type(X._meta).__name__}; pass dense "
            "NumPy ones, as from X.map_blocks(lambda chunk: chunk.toarray())."
        )


def _check_chunk_sizes(array: Any, name: str) -> None:
    """Raise if the number of rows of a dask array is unknown."""
    if any(np.isnan(size) for sizes in array.chunks for size in sizes):
        raise ValueError(
            f"{name} is a dask array with chunks of unknown size; call "
            f"{name}.compute_chunk_sizes() first, so that the number of rows is known."
        )


def _chunked_by_rows(array: "Array", sizes: tuple[int, ...]) -> "Array":
    """Return an array whose chunks have `sizes` rows and all columns."""
    columns = (-1,) * (array.ndim - 1)
    rechunked: Array = array.rechunk((sizes, *columns))
    return rechunked


def _first_rows(X: "Array") -> IntArray:
    """Return the index of the first row of each chunk."""
    return np.cumsum((0, *X.chunks[0][:-1]))


def _is_on_cluster(array: "Array") -> bool:
    """Return whether an array depends on data that is on a cluster already."""
    distributed = sys.modules.get("distributed")
    graph: Mapping[Any, Any] = array.__dask_graph__()
    return distributed is not None and any(
        isinstance(value, distributed.Future) for value in graph.values()
    )


def _parts(array: "Array") -> "list[Delayed]":
    """Return the chunks of rows as tasks, as `_LazyPart` if they are not computed."""
    import dask

    tasks = array.to_delayed().ravel().tolist()
    if _is_on_cluster(array):
        return list(tasks)
    parts = []
    for task, size in zip(tasks, array.chunks[0], strict=True):
        # Optimizing removes the other chunks from the graph.
        (own,) = dask.optimize(task)
        part = _LazyPart(own, (size, *array.shape[1:]), array.dtype)
        parts.append(dask.delayed(part, pure=False, traverse=False))
    return parts


def _check_chunk(
    rows: Any, y: Any, weight: Any, logits: Any, unlabeled: object, first_row: int
) -> CheckedRows | _Refused:
    is_lazy = isinstance(rows, _LazyPart)
    # A part is copied, so that what is read of it is released.
    X, y, weight, logits = (
        replace(each) if isinstance(each, _LazyPart) else each
        for each in (rows, y, weight, logits)
    )
    y, weight, logits = (
        each[:] if isinstance(each, _LazyPart) else each for each in (y, weight, logits)
    )
    lazy_rows: Any = rows if is_lazy else None
    try:
        checked = CheckedRows.check(X, y, weight, logits, unlabeled, first_row)
    except (TypeError, ValueError) as error:
        return _Refused(lazy_rows, first_row, error)
    return replace(checked, X=lazy_rows)


def _call_on_chunk(chunk: Any, rows: Any, work: tuple[Any, Any, int]) -> Any:
    function, arguments, working_memory = work
    # A part is copied, so that what is read of it is released.
    X = replace(chunk.X) if rows is None else rows
    with config_context(working_memory=working_memory):
        return function(replace(chunk, X=X), *arguments)


def _relabel_chunk(chunk: Any, rows: Any, work: tuple[Any, Any, int]) -> Any:
    return replace(_call_on_chunk(chunk, rows, work), X=chunk.X)


def _persist(tasks: "list[Delayed]") -> "list[Delayed]":
    """Compute tasks, and keep their results on the workers."""
    import dask

    return list(dask.persist(*tasks, scheduler=_scheduler()))


def _scheduler() -> str | None:
    """Return None if dask's configuration names a cluster.

    Without a cluster one chunk at a time is in memory, and the threads of this process
    share its blocks.
    """
    import dask

    scheduler = dask.config.get("scheduler", None)
    is_cluster = scheduler in ("dask.distributed", "distributed")
    return None if is_cluster else "synchronous"


def _merge(merge: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    # Copied: the result of a chunk is needed again if a worker dies.
    return merge(copy.deepcopy(left), right)


def _rows_at(rows: LabelledRows, places: Sequence[IntArray]) -> Taken:
    """Return the `places` that are in a chunk, with their rows."""
    found: Taken = []
    ends = rows.first_row, rows.first_row + rows.shape[0]
    for index in places:
        start, stop = np.searchsorted(index, ends)
        mine = index[start:stop]
        # A chunk without any is not computed.
        found.append([(mine, rows.X[mine - rows.first_row])] if mine.size else [])
    return found


def _with_rows(left: Taken, right: Taken) -> Taken:
    return [first + second for first, second in zip(left, right, strict=True)]


def _call_with_first_row(
    rows: NDArray[Any],
    first_row: NDArray[np.intp],
    logits: NDArray[Any] | None = None,
    *,
    function: Callable[..., NDArray[Any]],
) -> NDArray[Any]:
    return function(rows, logits, int(first_row[0, 0]))


def _checked_class_sums(
    soft_labels: NDArray[Any], shape: tuple[int, int]
) -> NDArray[Any]:
    soft_labels = _validation.check_soft_labels(soft_labels, shape[0] * shape[1])
    return class_sums(soft_labels, shape)
