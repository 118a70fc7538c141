"""From embeddings to soft labels, a block of rows at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._common import validation
from lelp_sklearn._common.typing import FloatArray
from lelp_sklearn._projection.blocks import Rows, row_slices
from lelp_sklearn._projection.threads import map_parts


@dataclass(frozen=True)
class SoftLabeller:
    """What a fitted projector knows: a small object that goes wherever rows are.

    Parameters
    ----------
    components : (C, S, d)
    offsets : (C, S)
    coef, intercept : (C, d), (C,)
        The head.
    centre : (d,)
        A point amid the embeddings. Taking it out first keeps single precision exact
        where they lie far from zero.
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
    ) -> FloatArray:
        """Soft labels (n, C*S) of rows, at least in single precision."""
        dtype = np.result_type(rows.dtype, np.float32)
        soft_labels = np.empty((rows.shape[0], self.offsets.size), dtype)
        self.write(rows, logits, soft_labels, first_row)
        return soft_labels

    def of_chunk(self, rows: Rows, teacher_logits: Any, first_row: int) -> FloatArray:
        """Soft labels of a chunk of more rows, whose logits are to be checked yet."""
        logits = teacher_logits
        if logits is not None:
            logits = validation.check_logits(logits, rows.shape[0], first_row)
            logits = validation.logits_of_classes(logits)
        return self(rows, logits, first_row)

    def write(
        self,
        rows: Rows,
        logits: FloatArray | None,
        target: FloatArray,
        first_row: int = 0,
    ) -> None:
        """Fill `target` (n, C*S) with soft labels, computed in its precision.

        Raises
        ------
        ValueError
            If a row, counted from `first_row`, holds NaN or infinity: found on the way,
            since looking for it beforehand would read the rows twice.
        """
        # A plain array even where it maps a file.
        target = np.asarray(target)
        # What overflows is found, and computed in double precision.
        with np.errstate(over="ignore", invalid="ignore"):
            write_block = self._block_writer(rows, logits, target.dtype)

        def write(block: slice) -> tuple[slice, bool]:
            return block, write_block(block, target[block])

        for block, finite in map_parts(write, row_slices(rows)):
            if not finite:
                start = first_row + block.start
                validation.check_finite_block(rows[block], start, "X")
                target[block] = self._in_double(rows, logits, block)

    def _in_double(
        self, rows: Rows, logits: FloatArray | None, block: slice
    ) -> FloatArray:
        """Soft labels of a block whose scores overflow single precision."""
        soft_labels = np.empty((block.stop - block.start, self.offsets.size))
        write_block = self._block_writer(rows, logits, soft_labels.dtype)
        if not write_block(block, soft_labels):
            raise validation.too_large(soft_labels.dtype)
        return soft_labels

    def _block_writer(
        self, rows: Rows, logits: FloatArray | None, dtype: np.dtype[Any]
    ) -> Callable[[slice, FloatArray], bool]:
        """Give a function that writes a block's soft labels, computed in `dtype`.

        It says whether all scores are finite.
        """
        # Imported at the first call: numba would slow the import of the package.
        from lelp_sklearn._projection import kernels, tiles

        centre, packed, offsets = self._projections(dtype, logits is not None)
        no_logits = np.empty((0, len(self.coef)), dtype)
        # The kernel multiplies by them; 0 stands for no temperature.
        per_temperature, per_subclass_temperature = (
            dtype.type(1 / value if value else 0)
            for value in (self.temperature, self.subclass_temperature)
        )

        def write(block: slice, target: FloatArray) -> bool:
            with np.errstate(over="ignore"):
                given = no_logits if logits is None else logits[block].astype(dtype)
            return kernels.soft_labels(
                tiles.readable(rows[block], dtype),
                centre,
                packed,
                offsets,
                tiles.readable(given, dtype),
                per_temperature,
                per_subclass_temperature,
                target,
            )

        return write

    def _projections(
        self, dtype: np.dtype[Any], with_logits: bool
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Centre, packed columns and offsets of the projections and of the logits."""
        from lelp_sklearn._projection import tiles

        centre = self.centre.astype(dtype)
        columns = self.components.reshape(self.offsets.size, -1)
        offsets = self.offsets.ravel() - columns @ centre
        if not with_logits:
            columns = np.vstack([columns, self.coef])
            offsets = np.append(offsets, -self.intercept - self.coef @ centre)
        packed = tiles.pack([columns], dtype)[0]
        return (
            tiles.readable(centre, dtype),
            packed,
            tiles.readable(offsets, dtype),
        )


def class_sums(soft_labels: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Sums (n, C) of soft labels (n, C*S) over the subclasses; `shape` is (C, S)."""
    sums: FloatArray = soft_labels.reshape(-1, *shape).sum(axis=2)
    return sums
