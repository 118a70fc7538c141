"""Compute soft labels of embeddings, a block of rows at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lelp_sklearn import _validation
from lelp_sklearn._subclasses import torch_backend, torch_soft_labels
from lelp_sklearn._subclasses.rows import Rows, row_slices
from lelp_sklearn._subclasses.threads import map_parts
from lelp_sklearn._subclasses.torch_backend import (
    TensorRows,
    is_on_device,
    is_tensor,
    like,
)
from lelp_sklearn._typing import FloatArray


@dataclass(frozen=True)
class SoftLabeller:
    """The arrays of a fitted projector: small, so that they are sent to the rows.

    Parameters
    ----------
    components : (C, S, d)
    offsets : (C, S)
    coef, intercept : (C, d), (C,)
        The head.
    centre : (d,)
        A point among the embeddings. It is subtracted first, which keeps precision if
        they are far from zero.
    temperature, subclass_temperature : float
    """

    components: FloatArray
    offsets: FloatArray
    coef: FloatArray
    intercept: FloatArray
    centre: FloatArray
    temperature: float
    subclass_temperature: float

    def __call__(
        self, rows: Rows, logits: FloatArray | None = None, first_row: int = 0
    ) -> Any:
        """Return soft labels (n, C*S) of rows, at least in single precision.

        The result is a tensor on the device of `rows` if these are a tensor there.
        """
        shape = rows.shape[0], self.offsets.size
        if is_on_device(rows):
            soft_labels: Any = rows.empty(shape)
        else:
            soft_labels = np.empty(shape, np.result_type(rows.dtype, np.float32))
        self.write(rows, logits, soft_labels, first_row)
        return soft_labels

    def of_chunk(self, rows: Rows, teacher_logits: Any, first_row: int) -> FloatArray:
        """Return soft labels of a chunk of rows, and check its logits."""
        logits = teacher_logits
        if logits is not None:
            logits = _validation.check_logits(logits, rows.shape[0], first_row)
            logits = _validation.logits_of_classes(logits)
        soft_labels: FloatArray = self(rows, logits, first_row)
        return soft_labels

    def write(
        self,
        rows: Rows,
        logits: FloatArray | None,
        target: Any,
        first_row: int = 0,
    ) -> None:
        """Fill `target` (n, C*S) with soft labels, computed in its precision.

        `target` is an array, or a tensor on the device of the rows.

        Raises
        ------
        ValueError
            If a row, counted from `first_row`, holds NaN or infinity. This is found on
            the way, since a separate check would read the rows twice.
        """
        if is_on_device(rows):
            self._write_on_device(rows, logits, target, first_row)
            return
        # A plain array also for a memory map.
        target = np.asarray(target)
        # Scores that overflow are found below, and computed in double precision.
        with np.errstate(over="ignore", invalid="ignore"):
            write_block = self._block_writer(rows, logits, target.dtype)

        def write(block: slice) -> tuple[slice, bool]:
            own = target[block]
            if own.strides[1] == own.itemsize:
                return block, write_block(block, own)
            # The kernel needs rows whose entries are contiguous.
            own = np.empty(own.shape, own.dtype)
            finite = write_block(block, own)
            target[block] = own
            return block, finite

        for block, finite in map_parts(write, row_slices(rows)):
            if not finite:
                start = first_row + block.start
                _validation.check_finite_block(rows[block], start, "X")
                target[block] = self._in_double(rows, logits, block)

    def _write_on_device(
        self,
        rows: TensorRows,
        logits: FloatArray | None,
        target: Any,
        first_row: int,
    ) -> None:
        """Fill `target` on the device of the rows."""
        centre = self.centre.astype(rows.dtype)
        projection = torch_soft_labels.Projection(
            centre,
            *self._columns(centre, logits is not None),
            self.offsets.size,
            len(self.coef),
            *self._factors(),
        )
        if torch_soft_labels.write(projection, rows, logits, target):
            return
        row = torch_backend.first_nonfinite_row(rows)
        if row is not None:
            _validation.check_finite_block(rows[row : row + 1], first_row + row, "X")
        # Overflow is rare: compute on the host, which always has double precision.
        for block in row_slices(rows):
            block_logits = None if logits is None else logits[block]
            soft_labels = self(rows[block], block_logits)
            target[block] = (
                like(soft_labels, target) if is_tensor(target) else soft_labels
            )

    def _in_double(
        self, rows: Rows, logits: FloatArray | None, block: slice
    ) -> FloatArray:
        """Return soft labels of a block whose scores overflow single precision."""
        soft_labels = np.empty((block.stop - block.start, self.offsets.size))
        write_block = self._block_writer(rows, logits, soft_labels.dtype)
        if not write_block(block, soft_labels):
            raise _validation.overflow_error(soft_labels.dtype)
        return soft_labels

    def _block_writer(
        self, rows: Rows, logits: FloatArray | None, dtype: np.dtype[Any]
    ) -> Callable[[slice, FloatArray], bool]:
        """Return a function that writes a block's soft labels, computed in `dtype`.

        It returns whether all scores are finite.
        """
        # Imported at the first call: numba would slow the import of the package.
        from lelp_sklearn._subclasses.kernels import soft_labels, tiles

        columns, offsets = self._columns(self.centre.astype(dtype), logits is not None)
        projection = tiles.Projection(
            tiles.readable(self.centre[None], dtype),
            tiles.pack([columns], dtype)[0],
            tiles.readable(offsets, dtype),
            *map(dtype.type, self._factors()),
        )
        no_logits = np.empty((0, len(self.coef)), dtype)

        def write(block: slice, target: FloatArray) -> bool:
            with np.errstate(over="ignore"):
                own = no_logits if logits is None else logits[block].astype(dtype)
            X, block_logits = (tiles.readable(a, dtype) for a in (rows[block], own))
            return soft_labels.soft_labels(X, block_logits, projection, target)

        return write

    def _columns(
        self, centre: FloatArray, with_logits: bool
    ) -> tuple[FloatArray, FloatArray]:
        """Return columns of the projections and logits, and offsets about a centre."""
        columns = self.components.reshape(self.offsets.size, -1)
        offsets = self.offsets.ravel() - columns @ centre
        if not with_logits:
            columns = np.vstack([columns, self.coef])
            offsets = np.append(offsets, -self.intercept - self.coef @ centre)
        return columns, offsets

    def _factors(self) -> list[float]:
        """Return the reciprocals of both temperatures; 0 stands for no temperature."""
        temperatures = self.temperature, self.subclass_temperature
        return [1 / value if value else 0 for value in temperatures]


def class_sums(soft_labels: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Return sums (n, C) of soft labels (n, C*S) over subclasses; `shape` is (C, S)."""
    sums: FloatArray = soft_labels.reshape(-1, *shape).sum(axis=2)
    return sums
