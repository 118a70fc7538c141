"""Checks of arguments that several files share."""

import math
import numbers
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from lelp_sklearn._callers import encoding_caller, warn_user
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray
from lelp_sklearn.exceptions import ClassOrderWarning, ProbabilitiesAsLogitsWarning

FEATURES = "n_features_in_", "feature_names_in_"


class NotFiniteError(ValueError):
    """Input `name` has NaN or infinity; `rest` gives the row and the fix."""

    def __init__(self, name: str, rest: str) -> None:
        super().__init__(name, rest)
        self.name, self.rest = name, rest

    def __str__(self) -> str:
        return f"Input {self.name} {self.rest}"


class TooFewRowsError(ValueError):
    """A class has too few rows, which further blocks of a stream may add."""


# --- numbers --------------------------------------------------------------------------


def check_dense(values: Any, name: str) -> None:
    """Raise if values are a sparse matrix, array or tensor."""
    layout = repr(getattr(values, "layout", "torch.strided"))
    # SciPy has no dense arrays.
    if hasattr(values, "toarray") or "sparse" in layout:
        method = "toarray" if hasattr(values, "toarray") else "to_dense"
        raise TypeError(
            f"Sparse data was passed: {name} is a {type(values).__name__}; pass a "
            f"dense array, {name}.{method}()."
        )


def check_numbers(values: Any, name: str) -> None:
    """Raise if a table (pandas, polars), a column or an array is not numeric.

    As in scikit-learn, texts and categories may be numbers.
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
                "imaginary parts separately."
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
                    f"{what} (dtype {dtype}) is not numeric ({reason}): encode it, "
                    "as with sklearn.preprocessing.OneHotEncoder, or leave it out."
                ) from reason


def as_numbers(values: Any, name: str) -> NDArray[Any]:
    """Return an array of numbers; raise an error that names rows of unequal length."""
    check_dense(values, name)
    check_numbers(values, name)
    try:
        array = np.asarray(values)
        return array if array.dtype.kind in "biuf" else array.astype(np.float64)
    except (TypeError, ValueError) as reason:
        raise ValueError(
            f"{name} is not an array of numbers, {_odd_row(values) or reason}: pass "
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
    is_array = isinstance(values, np.ndarray) or issparse(values)
    if is_column or (is_array and values.dtype.kind in "cmM"):
        yield values, values.dtype, name


def _kind(dtype: Any) -> str:
    """Return NumPy's letter for a dtype, which those of polars lack."""
    if hasattr(dtype, "kind"):
        return str(dtype.kind)
    if dtype.is_temporal():
        return "M"
    return "f" if dtype.is_numeric() or str(dtype) == "Boolean" else "O"


def _odd_row(values: Any) -> str:
    """Describe the first row whose length differs from that of row 0, if any."""
    lengths = [len(row) if hasattr(row, "__len__") else 1 for row in values]
    for row, length in enumerate(lengths):
        if length != lengths[0]:
            return f"row 0 has {lengths[0]} entries and row {row} has {length}"
    return ""


@contextmanager
def features_kept_on_error(estimator: Any, fitted: str) -> Iterator[None]:
    """Restore the features if an error ends a fit before it replaces `fitted`."""
    attributes, features = estimator.__dict__, seen_features(estimator)
    before = attributes.get(fitted)
    try:
        yield
    except BaseException:
        if attributes.get(fitted) is before:
            for name in FEATURES:
                attributes.pop(name, None)
            attributes.update(features)
        raise


def seen_features(estimator: Any) -> dict[str, Any]:
    """Return the number and the names of features that an estimator has seen."""
    return {n: value for n, value in vars(estimator).items() if n in FEATURES}


# --- arrays ---------------------------------------------------------------------------


def check_finite_block(
    block: NDArray[Any],
    first_row: int,
    name: str,
    fix: str = "remove or impute such rows",
) -> None:
    """Raise if a block of rows, which starts at `first_row`, has NaN or infinity."""
    # A finite sum means finite entries and costs no mask of the block's size. float16
    # would overflow in the sum of finite entries.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(block.sum(dtype=np.float64)):
            return
    finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
    if finite.all():
        return
    row = int(np.argmin(finite))
    found = "NaN" if np.isnan(block[row]).any() else "infinity (inf)"
    raise NotFiniteError(
        name, f"contains {found}, first in row {first_row + row}; {fix}."
    )


def check_no_overflow(sums: ArrayLike, dtype: np.dtype[Any]) -> None:
    """Raise if sums over finite embeddings are not finite."""
    if not np.all(np.isfinite(sums)):
        raise overflow_error(dtype)


def overflow_error(dtype: np.dtype[Any]) -> ValueError:
    """Return the error for embeddings whose sums or scores overflow."""
    return ValueError(
        f"Input X holds numbers so large that sums over them overflow {dtype}: divide "
        "X by a constant, and multiply the head's coef by it."
    )


def check_no_underflow(
    mean: FloatArray, variance: FloatArray, dtype: np.dtype[Any]
) -> None:
    """Raise if squares of embeddings of these means and variances underflow."""
    size = np.abs(mean).max(initial=0), np.sqrt(np.max(variance, initial=0))
    if 0 < max(size) < np.sqrt(np.finfo(dtype).tiny):
        raise ValueError(
            f"Input X holds numbers so small that {dtype} cannot hold their squares: "
            "multiply X by a constant, and divide the head's coef by it."
        )


def check_tensor(X: Any, max_ndim: float = math.inf) -> None:
    """Raise unless a tensor is dense and real, with rows and features."""
    if repr(X.layout) != "torch.strided":
        raise TypeError(
            f"Sparse data was passed: X is a tensor of layout {X.layout}; pass a real "
            "and dense one (X.to_dense())."
        )
    if X.is_complex():
        raise ValueError(
            f"Complex data not supported: X is a tensor of dtype {X.dtype}; pass a "
            "real one."
        )
    if not 2 <= X.ndim <= max_ndim or 0 in X.shape:
        expected = "2D" if max_ndim == 2 else "2D or more"
        raise ValueError(
            f"X is a tensor of shape {tuple(X.shape)}: Expected {expected}, with at "
            "least one sample and one feature."
        )


def check_tensor_rows(X: Any) -> None:
    """Raise unless `check_tensor` accepts a tensor and its entries are finite."""
    check_tensor(X)
    finite = X.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        row = int(finite.logical_not().nonzero()[0])
        raise ValueError(
            f"Input X contains NaN or infinity (inf), first in row {row}; remove or "
            "impute such rows."
        )


def check_length(array: Any, n_samples: int, name: str) -> None:
    """Raise unless `array` has one entry for each row of X."""
    length = len(array)
    if length != n_samples:
        raise ValueError(
            f"{name} has {length} rows and X has {n_samples}: they must be of equal "
            "length, with one entry per sample."
        )


def check_sample_weight(
    sample_weight: ArrayLike | None, n_samples: int, first_row: int = 0
) -> FloatArray:
    """Return weights (n,) as float64, ones for None; raise if one is negative."""
    if sample_weight is None:
        return np.ones(n_samples)
    if isinstance(sample_weight, numbers.Number):
        sample_weight = np.full(n_samples, sample_weight)
    if hasattr(sample_weight, "detach"):
        # A tensor, on any device and of any dtype.
        check_dense(sample_weight, "sample_weight")
        sample_weight = sample_weight.detach().cpu().double()
    weight = as_numbers(sample_weight, "sample_weight").astype(np.float64, copy=False)
    if weight.ndim != 1:
        raise ValueError(
            f"Sample weights must be 1D array or scalar, got {weight.ndim} dimensions."
        )
    check_length(weight, n_samples, "sample_weight")
    check_finite_block(weight, first_row, "sample_weight")
    if np.any(weight < 0):
        row = int(np.argmax(weight < 0))
        raise ValueError(
            f"sample_weight is negative in row {first_row + row} ({weight[row]:g}); "
            "a weight counts repetitions of a row."
        )
    return weight


def check_some_weight(any_weight: bool) -> None:
    """Raise if no row has positive weight."""
    if not any_weight:
        raise ValueError("sample_weight is zero for every row; nothing to fit.")


# --- labels ---------------------------------------------------------------------------


def check_labels(
    y: ArrayLike | None, n_samples: int, unlabeled: object, first_row: int = 0
) -> tuple[NDArray[Any], BoolArray]:
    """Return labels (n,), and which rows (n,) have one: none of them if y is None."""
    caller = None if unlabeled is None else encoding_caller()
    if caller is not None:
        raise ValueError(
            f"unlabeled={unlabeled!r} cannot be used inside {caller}, which encodes y "
            "as 0 to n_classes - 1: the rows that it marks become one more class. "
            "Fit the student by itself, or leave these rows out and set unlabeled=None."
        )
    if y is None:
        return np.zeros(n_samples), np.zeros(n_samples, dtype=bool)
    labels = column_or_1d(label_array(y), warn=True)
    check_length(labels, n_samples, "y")
    is_labelled = ~_equals(labels, unlabeled)
    unusable = is_labelled & _missing(labels)
    if labels.dtype.kind == "f":
        unusable |= is_labelled & np.isinf(labels)
    if unusable.any():
        row = int(np.argmax(unusable))
        marker = np.nan if _missing(labels)[row] else labels[row]
        raise ValueError(
            f"Input y contains NaN, infinity or None, first in row {first_row + row} "
            f"({labels[row]}); if it marks rows without a label, pass "
            f"unlabeled={marker}."
        )
    labels = _of_natural_dtype(labels, is_labelled)
    if is_labelled.any():
        check_classification_targets(labels[is_labelled])
    return labels, is_labelled


def label_array(y: Any) -> NDArray[Any]:
    """Return labels as an array; nullable integers and booleans keep their type."""
    if hasattr(y, "detach"):
        y = y.detach().cpu()
    missing = getattr(getattr(y, "dtype", None), "na_value", None)
    is_nullable = _is_missing_of_pandas(missing)
    return np.asarray(y, dtype=object if is_nullable else None)


def _of_natural_dtype(labels: NDArray[Any], is_labelled: BoolArray) -> NDArray[Any]:
    """Return numbers in an object array, as with None or NA, in their own dtype."""
    if labels.dtype.kind != "O" or not is_labelled.any():
        return labels
    natural = np.array(labels[is_labelled].tolist())
    if natural.dtype.kind not in "biuf":
        return labels
    filled = np.zeros(len(labels), dtype=natural.dtype)
    filled[is_labelled] = natural
    return filled


def _equals(labels: NDArray[Any], marker: object) -> BoolArray:
    if marker is None:
        return np.zeros(len(labels), dtype=bool)
    missing = _missing(labels)
    if _is_missing(marker):
        return missing
    # One at a time: NumPy compares arrays of numbers with a string as a whole, and
    # pandas' NA has no truth value.
    found = [bool(label == marker) for label in labels[~missing]]
    equal = np.zeros(len(labels), dtype=bool)
    equal[~missing] = found
    return equal


def _missing(labels: NDArray[Any]) -> BoolArray:
    """Return which labels are NaN, None or pandas' NA."""
    if labels.dtype.kind == "f":
        return np.asarray(np.isnan(labels))
    if labels.dtype.kind != "O":
        return np.zeros(len(labels), dtype=bool)
    return np.array([_is_missing(label) for label in labels], dtype=bool)


def _is_missing(value: object) -> bool:
    if value is None or _is_missing_of_pandas(value):
        return True
    return isinstance(value, numbers.Real) and math.isnan(value)


def _is_missing_of_pandas(value: object) -> bool:
    # If there is a value of pandas, pandas is imported.
    pandas = sys.modules.get("pandas")
    return pandas is not None and value is pandas.NA


def check_classes(
    labels: NDArray[Any], given: ArrayLike | None, n_outputs: int | None, owner: str
) -> NDArray[Any]:
    """Return the classes, at least two: those given by `owner`, else of the labels.

    Without labels they are 0 to C - 1 for a teacher of C outputs.
    """
    if given is None and len(labels):
        return check_several_classes(np.unique(labels), "y")
    if given is None:
        if n_outputs is None:
            raise missing_head_error()
        return np.arange(n_outputs)
    classes = np.array(given)
    unknown = np.setdiff1d(labels, classes)
    if unknown.size:
        fix = "leave these rows out, or fit again with all classes"
        caller = encoding_caller()
        if caller is not None:
            fix = (
                f"{caller} encodes y as 0 to n_classes - 1, so inside it pass head="
                "(coef_, intercept_), with rows in the order of the sorted labels, or "
                "fit what is frozen on the encoded y"
            )
        raise ValueError(
            f"y has labels {unknown.tolist()} that are not among the classes "
            f"{classes.tolist()} of {owner}: {fix}."
        )
    return check_several_classes(classes, owner)


def sorted_classes(classes: Any) -> NDArray[Any]:
    """Return the distinct classes of `partial_fit`, sorted."""
    listed = classes.tolist() if hasattr(classes, "tolist") else list(classes)
    texts = {isinstance(label, str) for label in listed}
    try:
        if len(texts) < 2:
            return np.unique(np.asarray(listed))
    except TypeError:  # None beside numbers
        pass
    raise TypeError(
        f"classes={listed} are of several types, which have no order: pass labels of "
        "one type, as in y."
    )


def check_several_classes(classes: NDArray[Any], source: str) -> NDArray[Any]:
    """Raise if there is one class only; the error names the source."""
    if len(classes) < 2:
        raise ValueError(
            f"{source} has one class only ({classes.tolist()}): at least two are "
            "required."
        )
    return classes


def encode(
    labels: NDArray[Any], is_labelled: BoolArray, classes: NDArray[Any]
) -> IntArray:
    """Return the index (n,) in `classes` of each label, -1 for rows without one."""
    class_index = np.full(len(labels), -1, dtype=np.intp)
    order = np.argsort(classes)
    rank = np.searchsorted(classes, labels[is_labelled], sorter=order)
    class_index[is_labelled] = order[rank]
    return class_index


def check_class_weight(class_weight: object) -> None:
    """Raise if a dict of class weights has a value that is no weight."""
    if not isinstance(class_weight, dict):
        return
    for label, value in class_weight.items():
        if not isinstance(value, numbers.Real) or not 0 <= float(value) < np.inf:
            raise ValueError(
                f"class_weight[{label!r}]={value!r}: weights must be finite numbers "
                "that are not negative."
            )


def check_every_class(weight: FloatArray, classes: NDArray[Any]) -> None:
    """Raise if a class has no row of positive weight."""
    if np.any(weight == 0):
        missing = classes.tolist()[int(np.argmax(weight == 0))]
        raise TooFewRowsError(
            f"class {missing!r} has no samples: no row of positive weight is labelled "
            "with it, or assigned to it by the teacher. Add such rows, or remove the "
            "class from the teacher's outputs."
        )


# --- the teacher ----------------------------------------------------------------------


def check_logits(teacher_logits: Any, n_samples: int, first_row: int = 0) -> FloatArray:
    """Return the teacher's logits (n, C) as float64, (n, 1) for those of a sigmoid."""
    logits = as_numbers(teacher_logits, "teacher_logits")
    logits = logits.astype(np.float64, copy=False)
    check_logit_dimensions(logits.shape)
    if logits.ndim == 1:
        logits = logits[:, None]
    check_length(logits, n_samples, "teacher_logits")
    fix = "for probabilities pass the logarithm, with zeros clipped"
    check_finite_block(logits, first_row, "teacher_logits", fix)
    return logits


def check_logit_dimensions(shape: tuple[int, ...]) -> None:
    """Raise unless logits have one or two dimensions."""
    if len(shape) not in (1, 2):
        raise ValueError(
            f"teacher_logits has shape {shape}; it must be (n_samples, n_classes), or "
            "the one column of a sigmoid teacher."
        )


def check_logit_columns(n_columns: int, n_classes: int) -> None:
    """Raise unless there is a column of logits for each class, or a sigmoid's one."""
    if n_columns != n_classes and (n_columns, n_classes) != (1, 2):
        raise ValueError(
            f"teacher_logits has {n_columns} columns for {n_classes} classes: pass one "
            "column per class, in the order of classes_; a single column is that of a "
            "sigmoid teacher of two classes."
        )


def logits_of_classes(logits: FloatArray) -> FloatArray:
    """Return one column per class; a sigmoid's column l becomes -l/2 and l/2."""
    return np.hstack([-logits / 2, logits / 2]) if logits.shape[1] == 1 else logits


def missing_head_error() -> ValueError:
    """Return the error for a fit without labels, head and logits."""
    return ValueError(
        "LELPProjector requires y to be passed, but the target y is None or marks "
        "every row as unlabeled, and head and teacher_logits are None: pass labels, "
        "head=(coef, intercept) or teacher_logits."
    )


# --- subclasses -----------------------------------------------------------------------


def check_soft_labels(soft: ArrayLike, n_columns: int) -> FloatArray:
    """Give soft labels (n, C*S) as a floating array."""
    array = as_numbers(soft, "X")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    check_soft_label_shape(array.shape, n_columns)
    return array


def check_soft_label_shape(shape: tuple[int, ...], n_columns: int) -> None:
    """Raise unless soft labels have a column for each subclass."""
    if len(shape) != 2 or shape[1] != n_columns:
        raise ValueError(
            f"X has shape {tuple(shape)}; soft labels must have {n_columns} columns, "
            "n_classes * n_subclasses_."
        )


# --- what a teacher gives -------------------------------------------------------------

# Rows that are enough to compare orders of classes, and the share of them by which
# another order must agree better: with two classes, 30 % or less agree with the given.
CLASS_ORDER_ROWS = 128
_FEWEST_ROWS = 50
_EXPLAINED = 0.4


def are_probabilities(logits: FloatArray) -> bool:
    """Return whether logits (n, C) are probabilities."""
    if logits.shape[1] < 2 or logits.min() < 0:
        return False
    return bool(np.all(np.abs(logits.sum(axis=1) - 1) < 1e-3))


def warn_of_probabilities() -> None:
    """Warn of logits that are probabilities."""
    warn_user(
        "teacher_logits are probabilities: no entry is negative and each row sums to "
        "one. Pass their logarithm, zeros clipped, as in np.log(np.maximum(p, 1e-7)).",
        ProbabilitiesAsLogitsWarning,
    )


def warn_of_class_order(
    likeliest: IntArray, class_index: IntArray, classes: NDArray[Any]
) -> None:
    """Warn if another order of the teacher's classes agrees far better with the labels.

    `likeliest` (n,) is the most likely class of the teacher, `class_index` (n,) that of
    the label.
    """
    n_rows = len(class_index)
    if n_rows < _FEWEST_ROWS:
        return
    # Imported here, because it is rarely needed.
    from scipy.optimize import linear_sum_assignment

    agreed = np.zeros((len(classes),) * 2, dtype=np.intp)
    np.add.at(agreed, (class_index, likeliest), 1)
    own = int(np.trace(agreed))
    if n_rows - own < _EXPLAINED * n_rows:
        return
    rows, columns = linear_sum_assignment(agreed, maximize=True)
    best = int(agreed[rows, columns].sum())
    if best - own >= _EXPLAINED * n_rows:
        warn_user(
            f"The teacher agrees with y on {own} of {n_rows} rows; with its "
            f"classes in the order {columns.tolist()} it would agree on {best}. Rows "
            "of head and columns of teacher_logits or soft_targets must be in the "
            f"order of the sorted labels, {classes.tolist()}.",
            ClassOrderWarning,
        )
