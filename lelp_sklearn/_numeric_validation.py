"""Checks that tables, lists and arrays hold numbers, and which column does not."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_dense(values: Any, name: str) -> None:
    """Raise for a sparse matrix, array or tensor."""
    layout = repr(getattr(values, "layout", "torch.strided"))
    # Dense arrays of SciPy do not exist.
    if hasattr(values, "toarray") or "sparse" in layout:
        method = "toarray" if hasattr(values, "toarray") else "to_dense"
        raise TypeError(
            f"Sparse data was passed: {name} is a {type(values).__name__}; pass a "
            f"dense array, {name}.{method}()."
        )


def check_numbers(values: Any, name: str) -> None:
    """Raise where a table, one of its columns or an array holds other than numbers.

    Tables are those of pandas and polars. Texts and categories that read as numbers
    count as numbers, as in scikit-learn.
    """
    for column, dtype, what in _columns(values, name):
        kind = _kind(dtype)
        if kind in "mM":
            raise TypeError(
                f"{what} holds dates or times (dtype {dtype}): turn it into numbers, "
                "such as the days since a date, or leave it out."
            )
        if kind == "c":
            raise ValueError(
                f"Complex data not supported: {what} has dtype {dtype}; pass real and "
                "imaginary parts by themselves."
            )
        if isinstance(dtype, np.dtype) and kind != "O":
            continue
        missing = column.isna() if hasattr(column, "isna") else column.is_null()
        missing = np.asarray(missing)
        if missing.any():
            row = int(np.argmax(missing))
            raise ValueError(
                f"{what} (dtype {dtype}) contains NaN or a missing value, first in row "
                f"{row}: impute it, as with sklearn.impute.SimpleImputer, or leave the "
                "row out."
            )
        if kind == "O":
            try:
                np.asarray(column, dtype=np.float64)
            except (TypeError, ValueError) as reason:
                raise TypeError(
                    f"{what} (dtype {dtype}) holds no numbers ({reason}): encode it, "
                    "as with sklearn.preprocessing.OneHotEncoder, or leave it out."
                ) from reason


def as_numbers(values: Any, name: str) -> NDArray[Any]:
    """Return an array of numbers, or raise an error that says which rows are none."""
    check_dense(values, name)
    check_numbers(values, name)
    try:
        array = np.asarray(values)
        return array if array.dtype.kind in "biuf" else array.astype(np.float64)
    except (TypeError, ValueError) as reason:
        raise ValueError(
            f"{name} is no array of numbers, {_odd_row(values) or reason}: pass "
            "numbers, in rows of equal length."
        ) from reason


def _columns(values: Any, name: str) -> Iterator[tuple[Any, Any, str]]:
    """Yield the columns that may hold other than numbers, their dtypes and names."""
    if hasattr(values, "columns") and hasattr(values, "dtypes"):
        of_pandas = hasattr(values, "iloc")
        pairs = zip(values.columns, values.dtypes, strict=True)
        for place, (label, dtype) in enumerate(pairs):
            if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
                continue
            column = values.iloc[:, place] if of_pandas else values[:, place]
            yield column, dtype, f"Column {label!r} of {name}"
        return
    is_column = hasattr(values, "isna") or hasattr(values, "is_null")
    if is_column or (isinstance(values, np.ndarray) and values.dtype.kind in "cmM"):
        yield values, values.dtype, name


def _kind(dtype: Any) -> str:
    """Return NumPy's letter for a dtype, which those of polars lack."""
    if hasattr(dtype, "kind"):
        return str(dtype.kind)
    if dtype.is_temporal():
        return "M"
    return "f" if dtype.is_numeric() or str(dtype) == "Boolean" else "O"


def _odd_row(values: Any) -> str:
    """Say which row has another length than the first; nothing where all have one."""
    lengths = [len(row) if hasattr(row, "__len__") else 1 for row in values]
    for row, length in enumerate(lengths):
        if length != lengths[0]:
            return f"row 0 has {lengths[0]} entries and row {row} has {length}"
    return ""
