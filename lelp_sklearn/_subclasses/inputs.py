"""Check the arguments of a fit, and give each row its class and weight."""

from dataclasses import dataclass, replace
from operator import itemgetter, methodcaller
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn import _validation
from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._subclasses.head import (
    Head,
    discriminant_head,
    fit_head,
    least_squares_head,
    resolve_head,
)
from lelp_sklearn._subclasses.moments import (
    ClassMoments,
    Covariance,
    ExplicitCovariance,
    MultipassCovariance,
    class_weights,
    exact_moments,
    moments_of_unlabelled,
    quick_moments,
    weight_range,
)
from lelp_sklearn._subclasses.rows import (
    Data,
    Digests,
    LabelledRows,
    Rows,
    are_unequal,
    hash_rows,
    sum_dtype,
)
from lelp_sklearn._subclasses.subsample import (
    class_samples,
    class_sketches,
    initial_subspace_from_sample,
    samples_of,
)
from lelp_sklearn._typing import BoolArray, FloatArray
from lelp_sklearn._validation import check_dense


@dataclass(frozen=True)
class ProjectorInputs:
    """Labelled rows, their classes, and the head of the teacher."""

    data: Data
    classes: NDArray[Any]  # (C,)
    head: Head | None  # None if it is to be estimated
    has_logits: bool  # whether the teacher's logits are among the data
    any_unlabelled: bool  # whether a row of positive weight has no class yet

    @classmethod
    def read(
        cls,
        rows: Any,
        y: Any,
        teacher_logits: Any,
        sample_weight: Any,
        *,
        head: Any,
        unlabeled: object,
        classes: NDArray[Any] | None,
        is_stream: bool,
    ) -> "ProjectorInputs":
        """Check the arguments, fit a classifier given as head, label each row.

        `head` and `unlabeled` are the projector's; `classes` come from a stream.
        """
        # Imported here: `dask_backend` imports this module.
        from lelp_sklearn._subclasses.dask_backend import DaskRows, is_dask_array

        is_dask = is_dask_array(rows)
        known_head, head_classes = resolve_head(head, rows.shape[1])
        if known_head is None and head is not None and (is_stream or is_dask):
            raise ValueError(
                f"head is {type(head).__name__}, not fitted, and partial_fit and dask "
                "arrays cannot fit it: fit it first, or pass head=(coef, "
                "intercept) or None."
            )
        if known_head is None and teacher_logits is None and y is None:
            raise _validation.missing_head_error()
        checked_type: Any = DaskRows if is_dask else CheckedRows
        checked = checked_type.check(rows, y, sample_weight, teacher_logits, unlabeled)
        findings = checked.map_reduce(methodcaller("findings"), Findings.merge)
        findings.check()
        n_outputs = None if findings.n_logits is None else max(2, findings.n_logits)
        if known_head is not None:
            n_outputs = len(known_head.coef)
        given = classes if head_classes is None else head_classes
        owner = "the first call of partial_fit" if head_classes is None else "head"
        classes = _validation.check_classes(findings.labels, given, n_outputs, owner)
        if known_head is None and head is not None:
            known_head = fit_head(
                head,
                checked.X,
                checked.labels,
                checked.weight,
                checked.is_labelled,
                classes,
            )
        if known_head is not None and len(known_head.coef) != len(classes):
            raise ValueError(
                f"head has {len(known_head.coef)} rows and there are {len(classes)} "
                f"classes, {classes.tolist()}: pass one row per class, in the order of "
                "classes_ (or one row of a sigmoid head)."
            )
        has_logits = findings.n_logits is not None
        if findings.n_logits is not None:
            _validation.check_logit_columns(findings.n_logits, len(classes))
        data = checked.map(CheckedRows.encode, classes)
        if isinstance(data, LabelledRows):
            _compare_with_labels(data, known_head, classes)
        inputs = cls(data, classes, known_head, has_logits, findings.any_unlabelled)
        return inputs.completed()

    @property
    def n_columns(self) -> int:
        """Columns that moments need: the logits too if the head is fitted to them."""
        fits_logits = self.head is None and self.has_logits
        return self.data.shape[1] + len(self.classes) * fits_logits

    def completed(self) -> "ProjectorInputs":
        """Give unlabelled rows the teacher's class, if a head or logits give one."""
        if not self.any_unlabelled or (self.head is None and not self.has_logits):
            return self
        data = self.data.map(LabelledRows.completed, self.head)
        return replace(self, data=data, any_unlabelled=False)

    def moments(self) -> ClassMoments:
        """Return moments of the rows that have a class."""
        with_logits = self.n_columns > self.data.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            moments = self.data.map_reduce(
                exact_moments, ClassMoments.merge, len(self.classes), with_logits
            )
        _validation.check_no_overflow(moments.scatter, moments.scatter.dtype)
        return moments

    def with_head(
        self, moments: ClassMoments
    ) -> tuple["ProjectorInputs", ClassMoments]:
        """Estimate the head from moments, if none is given.

        Return the inputs with it, and the moments with the rows that it labels.
        """
        _validation.check_every_class(moments.weight, self.classes)
        if self.head is not None:
            return self, moments
        n_samples, (mean, within, total) = moments.weight.sum(), moments.pooled()
        n_features = self.data.shape[1]
        variance = np.diag(within)[:n_features] / n_samples
        _validation.check_no_underflow(mean[:n_features], variance, within.dtype)
        if self.has_logits:
            head = least_squares_head(n_samples, mean, total, n_features)
            return replace(self, head=head), moments
        head = discriminant_head(moments.weight, moments.mean, moments.scatter)
        if self.any_unlabelled:
            unlabelled = self.data.map_reduce(
                moments_of_unlabelled, ClassMoments.merge, len(self.classes), head
            )
            moments = unlabelled.merge(moments)
        return replace(self, head=head).completed(), moments

    def teacher_margin(self) -> float:
        """Return the weighted mean difference of a row's two largest logits.

        Without the teacher's logits it is that of the head on a sample of each class.
        """
        if self.has_logits:
            total, weight = self.data.map_reduce(_margin_sums, np.add)
            return float(total / weight)
        assert self.head is not None
        n_classes, seed = len(self.classes), np.uint64(0)
        weights = class_weights(self.data, n_classes)
        sketches = class_sketches(self.data, n_classes, seed)
        # The block of a stream may lack a class.
        present = [c for c in range(n_classes) if weights[c] > 0]
        samples = samples_of(self.data, [sketches[c] for c in present], seed)
        means = []
        for sample in samples:
            coef = self.head.coef.astype(sample.rows.dtype)
            logits = sample.rows @ coef.T + self.head(sample.mean)
            means.append(sample.weight @ _margins(logits))
        return float(np.average(means, weights=weights[present]))

    def quick_covariance(self, row_space: FloatArray) -> Covariance:
        """Return class covariances, summed quickly unless weights are very unequal."""
        n_classes = len(self.classes)
        if are_unequal(*weight_range(self.data)):
            # Sums about a centre far from a heavy row lose what light rows add.
            moments, dtype = self.moments(), np.dtype(np.float64)
        else:
            dtype = np.result_type(self.data.dtype, np.float32)
            moments = self.data.map_reduce(
                quick_moments, ClassMoments.merge, n_classes, dtype
            )
        _validation.check_every_class(moments.weight, self.classes)
        return ExplicitCovariance.from_moments(moments, row_space, dtype)

    def multipass_covariance(
        self,
        row_space: FloatArray,
        n_vectors: int,
        random_state: np.random.RandomState,
    ) -> Covariance:
        """Return class covariances that are never formed.

        The first pass over the rows multiplies `n_vectors` a class, found in a sample.
        """
        data, n_classes = self.data, len(self.classes)
        weight = class_weights(data, n_classes)
        _validation.check_every_class(weight, self.classes)
        dtype = sum_dtype(data.dtype, *weight_range(data))
        centres, starts = [], []
        for sample in class_samples(data, n_classes, random_state):
            centres.append(sample.mean)
            starts.append(
                initial_subspace_from_sample(sample, row_space, n_vectors, random_state)
            )
        return MultipassCovariance.measure(
            data,
            weight,
            centres=np.stack(centres).astype(dtype),
            row_space=row_space,
            starts=starts,
        )


@dataclass(frozen=True)
class Findings:
    """Summary of all rows, needed before each gets a class."""

    labels: NDArray[Any]  # (k,) distinct and sorted
    n_logits: int | None = None  # columns of the logits
    any_weight: bool = False  # whether a row has weight
    any_unlabelled: bool = False  # whether one with weight has no label
    only_probabilities: bool = False  # whether all logits are probabilities
    # The first chunk that was refused, by its first row, and why.
    refusal: tuple[int, Exception] | None = None

    def merge(self, other: "Findings") -> "Findings":
        """Return the findings of both."""
        # An empty array of labels may have another dtype.
        labels = [each.labels for each in (self, other) if len(each.labels)]
        refusals = filter(None, (self.refusal, other.refusal))
        return Findings(
            np.unique(np.concatenate(labels)) if labels else self.labels,
            self.n_logits or other.n_logits,
            self.any_weight or other.any_weight,
            self.any_unlabelled or other.any_unlabelled,
            self.only_probabilities and other.only_probabilities,
            min(refusals, key=itemgetter(0), default=None),
        )

    def check(self) -> None:
        """Raise if a row was refused or none has weight; warn of probabilities."""
        if self.refusal is not None:
            raise self.refusal[1]
        _validation.check_some_weight(self.any_weight)
        if self.only_probabilities:
            _validation.warn_of_probabilities()


@dataclass(frozen=True)
class CheckedRows(Data):
    """Rows of finite embeddings with their labels, before classes have an index."""

    X: Rows  # (n, d)
    labels: NDArray[Any]  # (n,)
    is_labelled: BoolArray  # (n,)
    weight: FloatArray  # (n,)
    digests: Digests  # (n,)
    logits: FloatArray | None  # (n, C or 1)
    first_row: int = 0  # its index in the array that these are a chunk of

    @classmethod
    def check(
        cls,
        X: Rows,
        y: Any,
        sample_weight: Any,
        teacher_logits: Any,
        unlabeled: object,
        first_row: int = 0,
    ) -> "CheckedRows":
        """Check rows, labels, weights and logits; messages count from `first_row`."""
        n_rows = X.shape[0]
        # Raises if X holds NaN or infinity.
        digests = hash_rows(X, first_row)
        weight = _validation.check_sample_weight(sample_weight, n_rows, first_row)
        check_dense(teacher_logits, "teacher_logits")
        logits = torch_backend.to_array(teacher_logits)
        if logits is not None:
            logits = _validation.check_logits(logits, n_rows, first_row)
        labels, is_labelled = _validation.check_labels(y, n_rows, unlabeled, first_row)
        return cls(X, labels, is_labelled, weight, digests, logits, first_row)

    def findings(self) -> Findings:
        """Return the findings of these rows."""
        return Findings(
            np.unique(self.labels[self.is_labelled]),
            None if self.logits is None else self.logits.shape[1],
            bool(np.any(self.weight > 0)),
            bool(np.any(~self.is_labelled & (self.weight > 0))),
            self.logits is not None and _validation.are_probabilities(self.logits),
        )

    def encode(self, classes: NDArray[Any]) -> LabelledRows:
        """Return the rows with class indices, and logits with a column a class."""
        class_index = _validation.encode(self.labels, self.is_labelled, classes)
        logits = self.logits
        if logits is not None:
            logits = _validation.logits_of_classes(logits)
        return LabelledRows(
            self.X,
            # Rows without weight belong to no class.
            np.where(self.weight > 0, class_index, -1),
            self.weight,
            self.digests,
            logits,
            self.first_row,
        )


def _margin_sums(rows: LabelledRows) -> FloatArray:
    """Return the weighted sum of the margins of the teacher's logits, and Σ w."""
    assert rows.logits is not None
    return np.array([rows.weight @ _margins(rows.logits), rows.weight.sum()])


def _margins(logits: FloatArray) -> FloatArray:
    """Return the largest of each row's logits (n, C) minus the second largest (n,)."""
    if logits.shape[1] == 1:
        return np.full(len(logits), np.inf)
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    margins: FloatArray = first.astype(np.float64) - second
    return margins


def _compare_with_labels(
    rows: LabelledRows, head: Head | None, classes: NDArray[Any]
) -> None:
    """Warn if a few labelled rows show the teacher's classes in another order."""
    labelled = np.flatnonzero(rows.class_index >= 0)
    step = max(1, -(-labelled.size // _validation.CLASS_ORDER_ROWS))
    index = labelled[::step]
    if rows.logits is not None:
        logits = rows.logits[index]
    elif head is not None:
        logits = head(np.asarray(rows.X[index], dtype=np.float64))
    else:
        return
    likeliest = logits.argmax(axis=1)
    _validation.warn_of_class_order(likeliest, rows.class_index[index], classes)
