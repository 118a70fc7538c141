"""Check the rows, labels and teacher data that a user passes to a student.

Nothing here imports torch: a tensor is known by its methods.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.validation import _num_samples, validate_data

from lelp_sklearn import _validation
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray
from lelp_sklearn._validation import as_numbers, check_dense, check_numbers

# Entries of bfloat16 add up to one no better than this.
_SUM_TOLERANCE = 5e-3


class RowFormat(NamedTuple):
    """The shape of the rows that a module takes, and whether they hold token ids."""

    shape: tuple[int, ...]
    is_token_ids: bool


@dataclass(frozen=True)
class StudentInputs:
    """Checked rows, with the targets or teacher data that are given."""

    # The rows as they were passed (to the student, sparse rows in CSR format).
    X: Any
    # The rows as an array, a CSR matrix or a tensor; as they were passed, if only a
    # teacher and an estimator of scikit-learn read them.
    X_array: Any
    # y (n,) as a column, and which rows have a label; in others y has no meaning.
    labels: NDArray[Any]
    is_labelled: BoolArray
    sample_weight: FloatArray
    # The labels as they were passed, marks of unlabeled rows included, for projector
    # and teacher; None if no row has a label.
    y: NDArray[Any] | None = None
    teacher_embeddings: Any = None
    teacher_logits: Any = None
    soft_targets: Any = None
    # The end of the argument names in errors.
    suffix: str = ""

    @classmethod
    def from_user(
        cls,
        student: Any,
        X: Any,
        y: Any,
        *,
        row_format: RowFormat | None = None,
        teacher_embeddings: Any = None,
        teacher_logits: Any = None,
        soft_targets: Any = None,
        sample_weight: Any = None,
        suffix: str = "",
    ) -> "StudentInputs":
        """Check the arguments of `fit` before work starts.

        `row_format` is the format that the module of the student takes; None in a
        first fit, which sets the features, and for a LELPMetaClassifier, whose
        estimator checks the rows itself.
        """
        replacing = teacher_embeddings, soft_targets, student.teacher
        if hasattr(student, "module"):
            X_array = check_rows(student, X, row_format)
            # Not every sparse format can be indexed.
            X = X_array if issparse(X) else X
        elif all(each is None for each in replacing):
            X_array = _as_embeddings(X)
        else:
            X_array = X
        n_samples = _num_samples(X_array)
        if y is not None:
            y = as_array(y) if hasattr(y, "detach") else _validation.label_array(y)
        labels, is_labelled = _validation.check_labels(
            y, n_samples, unlabeled_mark(student)
        )
        weights = _validation.check_sample_weight(sample_weight, n_samples)
        _validation.check_some_weight(bool(np.any(weights > 0)))
        teacher_embeddings, teacher_logits, soft_targets = (
            None if values is None else _check_teacher_array(values, n_samples, name)
            for values, name in (
                (teacher_embeddings, f"teacher_embeddings{suffix}"),
                (teacher_logits, "teacher_logits"),
                (soft_targets, "soft_targets"),
            )
        )
        if soft_targets is not None:
            soft_targets = _check_soft_targets(soft_targets)
        return cls(
            X,
            X_array,
            labels,
            is_labelled,
            weights,
            y=np.ravel(y) if is_labelled.any() else None,
            teacher_embeddings=teacher_embeddings,
            teacher_logits=teacher_logits,
            soft_targets=soft_targets,
            suffix=suffix,
        )

    def validation_from_user(
        self,
        student: Any,
        X_val: Any,
        y_val: Any,
        teacher_embeddings_val: Any,
        row_format: RowFormat | None,
    ) -> "StudentInputs | None":
        """Check the validation rows; return None if none are given."""
        others = {"y_val": y_val, "teacher_embeddings_val": teacher_embeddings_val}
        for name, value in others.items():
            if X_val is None and value is not None:
                raise ValueError(
                    f"{name} is given without X_val: pass both or neither."
                )
        if X_val is None:
            return None
        if not student.early_stopping:
            raise ValueError(
                "X_val is given and early_stopping is False, which has no use for it: "
                "set early_stopping=True."
            )
        with add_note_on_error(
            "(Raised for the validation rows: X and y are X_val and y_val here.)"
        ):
            return StudentInputs.from_user(
                student,
                X_val,
                y_val,
                row_format=row_format or self.row_format(student.module),
                teacher_embeddings=teacher_embeddings_val,
                suffix="_val",
            )

    def __len__(self) -> int:
        return len(self.labels)

    def row_format(self, module: Any) -> RowFormat:
        """Return the format of these rows; integers may be token ids to a `module`."""
        X = self.X_array
        may_be_ids = module is not None and is_integer(X) and not issparse(X)
        return RowFormat(tuple(X.shape[1:]), may_be_ids)

    def arguments(self) -> dict[str, Any]:
        """Return the data by argument name."""
        is_weighted = bool((self.sample_weight != 1).any())
        return {
            "X": (self.X, self.X_array),
            "y": self.y,
            "sample_weight": self.sample_weight if is_weighted else None,
            "teacher_embeddings": self.teacher_embeddings,
            "teacher_logits": self.teacher_logits,
            "soft_targets": self.soft_targets,
        }

    def select(self, rows: IntArray) -> "StudentInputs":
        """Return some of the rows, by their indices."""
        parts = {
            name: _safe_indexing(value, rows)
            for name, value in vars(self).items()
            if value is not None and name != "suffix"
        }
        return replace(self, **parts)

    def class_index(self, classes: NDArray[Any]) -> IntArray:
        """Return the index of each label, -1 for rows without one."""
        labels, is_labelled = self.labels, self.is_labelled
        _validation.check_classes(
            labels[is_labelled], classes, None, "the student's targets"
        )
        return _validation.encode(labels, is_labelled, classes)

    def class_indicator(self, classes: NDArray[Any]) -> BoolArray:
        """Return (n, n_classes) the class of each label, all False without one."""
        indicator: BoolArray = self.class_index(classes)[:, None] == np.arange(
            len(classes)
        )
        return indicator

    def check_several_labels(self) -> None:
        """Raise if all labels are the same."""
        if self.is_labelled.any():
            labels = np.unique(self.labels[self.is_labelled])
            _validation.check_several_classes(labels, "y")

    def check_some_label(self, needed_by: str, fix: str) -> None:
        """Raise if no row has a label; `needed_by` says why labels are needed."""
        if not self.is_labelled.any():
            raise ValueError(
                "The student requires y to be passed, but the target y is None or has "
                f"no labels, and {needed_by}: pass y, or {fix}."
            )

    def strata(self) -> IntArray:
        """Return the number of each label, -1 for rows without one."""
        strata = np.full(len(self), -1)
        labels = self.labels[self.is_labelled]
        strata[self.is_labelled] = np.unique(labels, return_inverse=True)[1]
        return strata

    def draw(self, is_usable: BoolArray, fraction: float, seed: int) -> IntArray:
        """Draw the indices of some usable rows, stratified by label.

        Of each label with two rows or more, at least one row is drawn and one is left.
        Rows without a label are a stratum of their own.
        """
        strata = self.strata()
        random_state = np.random.RandomState(seed)
        drawn = []
        for stratum in np.unique(strata):
            rows = np.flatnonzero(is_usable & (strata == stratum))
            rows = random_state.permutation(rows)
            n_drawn = max(1, round(fraction * len(rows)))
            drawn.append(rows[: min(n_drawn, len(rows) - 1)] if len(rows) else rows)
        return np.concatenate(drawn)

    def hold_out(
        self, student: Any, is_usable: BoolArray, seed: int
    ) -> tuple[BoolArray, IntArray | None]:
        """Return the mask of training rows, and the indices of rows to stop by.

        Without `early_stopping` all usable rows are for training.
        """
        if not student.early_stopping:
            return is_usable, None
        fraction = float(student.validation_fraction)
        held_out_index = self.draw(is_usable, fraction, seed)
        if not len(held_out_index):
            raise ValueError(
                f"validation_fraction={fraction} of {is_usable.sum()} rows holds out "
                "none: no label occurs twice. Give more rows, or pass X_val and y_val."
            )
        is_train = is_usable.copy()
        is_train[held_out_index] = False
        return is_train, held_out_index

    def for_callbacks(self, y: Any, sample_weight: Any) -> dict[str, Any]:
        """Return the arguments of `fit` for callbacks that score: the labelled rows."""
        X = self.X
        if y is not None and not self.is_labelled.all():
            rows = np.flatnonzero(self.is_labelled)
            # Functions, which scikit-learn calls if a callback asks for the data.
            X, y = partial(_safe_indexing, X, rows), partial(_safe_indexing, y, rows)
            if sample_weight is not None:
                sample_weight = _safe_indexing(sample_weight, rows)
        return {"X": X, "y": y, "sample_weight": sample_weight}

    def row_weights(
        self,
        is_train: BoolArray,
        soft_targets: FloatArray,
        classes: NDArray[Any],
        class_weight: Mapping[Any, float] | str | None,
    ) -> tuple[BoolArray, FloatArray]:
        """Return which rows are learnt from, and sample weights times class weights.

        For `class_weight` a row without a label has the most likely class of its
        soft targets; "balanced" makes the total weights of the classes equal.
        """
        weights = self.sample_weight
        if class_weight is None:
            return is_train, weights
        index = self.most_likely_class(soft_targets, classes)
        totals: Any = np.bincount(index, weights * is_train, minlength=len(classes))
        factors: Any = _class_factors(class_weight, classes, totals)
        weights = weights * factors[index]
        is_train = is_train & (weights > 0)
        if not is_train.any():
            raise ValueError(
                f"class_weight={class_weight!r} gives every row of positive weight "
                "the weight 0: give a class that has rows a positive weight."
            )
        return is_train, weights

    def most_likely_class(
        self, soft_targets: FloatArray, classes: NDArray[Any]
    ) -> IntArray:
        """Return the index of each label, else of the class with the largest target."""
        index = self.class_index(classes)
        mass = soft_targets.reshape(len(self), len(classes), -1).sum(axis=2)
        return np.where(index >= 0, index, mass.argmax(axis=1))


def unlabeled_mark(student: Any) -> Any:
    """Return what marks rows without a label: of the student, else its projector."""
    if student.unlabeled is not None:
        return student.unlabeled
    return getattr(student.projector, "unlabeled", None)


def _as_embeddings(X: Any) -> Any:
    """Return X as embeddings, with 0 for NaN; a sparse X must be finite."""
    check_numbers(X, "X")
    if issparse(X):
        return check_array(X, accept_sparse="csr", input_name="X")
    return np.nan_to_num(check_array(X, ensure_all_finite="allow-nan", input_name="X"))


def check_rows(student: Any, X: Any, row_format: RowFormat | None) -> Any:
    """Return X as an array or a tensor of finite numbers, two dimensions or more.

    A sparse X is returned in CSR format, with sorted columns and no duplicates. The
    features are compared with the features of the student. In a first fit, with
    `row_format` None, they are set.
    """
    reset = row_format is None
    if hasattr(X, "detach"):
        _validation.check_tensor_rows(X)
        validate_data(student, X, reset=reset, skip_check_array=True)
    else:
        is_column = isinstance(X, list) or getattr(X, "ndim", 2) == 1
        if is_column and any(isinstance(row, str) for row in X[:1]):
            raise TypeError(
                "X holds texts, and the student reads numbers: put a vectorizer before "
                "it, as in make_pipeline(TfidfVectorizer(), student), and pass "
                "teacher_embeddings to fit."
            )
        check_numbers(X, "X")
        if issparse(X) and dtype_name(X) == "object":
            raise TypeError(
                "X is a sparse matrix of dtype object: convert it to numbers, "
                "X.astype(np.float32)."
            )
        X = validate_data(
            student,
            X,
            reset=reset,
            accept_sparse="csr",
            allow_nd=True,
            ensure_all_finite=False,
        )
        # An object array is a table of unlike columns that all hold numbers.
        # torch has no wider numbers than double precision.
        if X.dtype.kind == "O" or (X.dtype.kind == "f" and X.dtype.itemsize > 8):
            X = X.astype(np.float64)
        if issparse(X):
            X = _canonical(X)
        elif X.dtype.kind == "f":
            _validation.check_finite_block(X, 0, "X")
    if row_format is None:
        return X
    if tuple(X.shape[1:]) != row_format.shape:
        raise ValueError(
            f"X has rows of shape {tuple(X.shape[1:])} and the student was fitted on "
            f"rows of shape {row_format.shape}: pass rows of that shape."
        )
    if row_format.is_token_ids and (issparse(X) or not is_integer(X)):
        kind = "sparse" if issparse(X) else X.dtype
        raise ValueError(
            f"X is {kind} and the student was fitted on integers, which its module "
            "takes as token ids: pass a dense array of integers."
        )
    return X


def _canonical(X: Any) -> Any:
    """Return a CSR matrix of finite entries with sorted columns and no duplicates."""
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    is_finite = np.isfinite(X.data)
    if not is_finite.all():
        entry = int(np.argmin(is_finite))
        row = int(np.searchsorted(X.indptr, entry, side="right")) - 1
        found = "NaN" if np.isnan(X.data[entry]) else "infinity (inf)"
        raise _validation.NotFiniteError(
            "X",
            f"contains {found}, first in row {row}, column {X.indices[entry]}; remove "
            "or impute such entries.",
        )
    return X


def is_integer(X: Any) -> bool:
    """Return whether an array or a tensor holds integers."""
    return dtype_name(X).startswith(("int", "uint"))


def dtype_name(X: Any) -> str:
    """Return NumPy's name of the dtype of an array or a tensor."""
    return str(getattr(X.dtype, "name", X.dtype)).removeprefix("torch.")


def has_head(projector: Any) -> bool:
    """Return whether a projector, None for the default, has the teacher's head."""
    is_frozen = isinstance(projector, FrozenEstimator)
    return is_frozen or getattr(projector, "head", None) is not None


@contextmanager
def add_note_on_error(note: str) -> Iterator[None]:
    """Add a note to the errors of a block."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


def as_array(values: Any) -> Any:
    """Return a NumPy array; tensors of half precision become float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.itemsize == 2 else values
    return np.asarray(values)


def mean_over_members(embeddings: Any, n_samples: int, name: str) -> Any:
    """Return embeddings (n, d): of several members, (n_members, n, d), the mean."""
    if getattr(embeddings, "ndim", 2) != 3:
        return embeddings
    if embeddings.shape[1] != n_samples:
        raise ValueError(
            f"{name} has shape {tuple(embeddings.shape)} and X has {n_samples} rows: "
            "three-dimensional embeddings must be (n_members, n_samples, n_features), "
            "and are averaged over the members. Cross-validation slices the first "
            "axis: there pass embeddings.mean(axis=0)."
        )
    return embeddings.mean(axis=0)


def _check_teacher_array(values: Any, n_samples: int, name: str) -> Any:
    """Return teacher data with one row per row of X, or raise."""
    if not hasattr(values, "__len__") and not hasattr(values, "shape"):
        raise TypeError(
            f"{name} is {type(values).__name__}; it must be an array with one row per "
            f"sample. Pass a model as teacher=, or the result of its transform(X) as "
            f"{name}."
        )
    check_dense(values, name)
    check_numbers(values, name)
    if isinstance(values, list | tuple):
        values = as_numbers(values, name)
    if name.startswith("teacher_embeddings"):
        values = mean_over_members(values, n_samples, name)
    _validation.check_length(values, n_samples, name)
    return values


def _check_soft_targets(soft_targets: Any) -> NDArray[Any]:
    """Return soft targets (n, C*S) as a floating array; each row is a distribution."""
    soft = as_numbers(as_array(soft_targets), "soft_targets")
    if soft.dtype.kind != "f":
        soft = soft.astype(np.float64)
    if soft.ndim != 2 or 0 in soft.shape:
        raise ValueError(
            f"soft_targets has shape {soft.shape}; it must be (n_samples, n_classes * "
            "n_subclasses), as LELPProjector.transform makes it."
        )
    _validation.check_finite_block(soft, 0, "soft_targets")
    if soft.min() < 0:
        row = int(np.argmax((soft < 0).any(axis=1)))
        raise ValueError(
            f"soft_targets is negative in row {row}: they must be probabilities, not "
            "logits."
        )
    sums = soft.sum(axis=1, dtype=np.float64)
    is_wrong = np.abs(sums - 1) > _SUM_TOLERANCE
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        raise ValueError(
            f"soft_targets does not sum to one in row {row} (sum {sums[row]:.4g}): "
            "divide each row by its sum."
        )
    return soft


def _class_factors(
    class_weight: Mapping[Any, float] | str, classes: NDArray[Any], totals: FloatArray
) -> FloatArray:
    """Return the factor of each class; `totals` are the weights of their rows."""
    if isinstance(class_weight, str):
        factors: FloatArray = np.zeros(len(classes))
        np.divide(totals.mean(), totals, out=factors, where=totals > 0)
        return factors
    labels = classes.tolist()
    unknown = [label for label in class_weight if label not in labels]
    without = [label for label in labels if label not in class_weight]
    # As in scikit-learn, a key that is no class is ignored if all classes have a key: a
    # fold may lack a class.
    if unknown and without:
        raise ValueError(
            f"class_weight has weights for {unknown}, which are not among the classes "
            f"{labels}, and none for {without}: the keys must be labels of y."
        )
    return np.array([float(class_weight.get(label, 1)) for label in labels])
