"""What a fit is given, checked before work starts: each row its class and weight."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from lelp_sklearn import _validation
from lelp_sklearn._subclasses import dask_arrays
from lelp_sklearn._subclasses.head import (
    Head,
    check_fitted_head,
    check_head_rows,
    check_one_vs_rest,
    discriminant_head,
    least_squares_head,
    resolve_head,
    unfitted_head,
    unknown_head,
)
from lelp_sklearn._subclasses.inputs import CheckedRows
from lelp_sklearn._subclasses.moments import (
    ClassMoments,
    ExplicitCovariance,
    class_moments,
    has_unequal_weights,
    moments_of_unlabelled,
    scatter_moments,
)
from lelp_sklearn._subclasses.rows import Data, LabelledRows
from lelp_sklearn._typing import FloatArray


@dataclass(frozen=True)
class Sample:
    """Labelled rows, and what is known of them and of the teacher.

    Parameters
    ----------
    data : Data
    classes : ndarray of shape (C,)
    head : Head or None
        None where it is to be estimated.
    has_logits : bool
        Whether the teacher's logits are among the data.
    any_unlabelled : bool
        Whether a row that has weight has no class yet.
    """

    data: Data
    classes: NDArray[Any]
    head: Head | None
    has_logits: bool
    any_unlabelled: bool

    @property
    def n_columns(self) -> int:
        """Columns whose moments are wanted: the logits too where they give the head."""
        fits_logits = self.head is None and self.has_logits
        return self.data.shape[1] + len(self.classes) * fits_logits

    def moments(self) -> ClassMoments:
        """Moments of the rows that have a class."""
        with_logits = self.n_columns > self.data.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            moments = self.data.map_reduce(
                class_moments, ClassMoments.merge, len(self.classes), with_logits
            )
        _validation.check_no_overflow(moments.scatter, moments.scatter.dtype)
        return moments

    def scatters(self, row_space: FloatArray) -> ExplicitCovariance:
        """Class covariances, summed quickly where weights are alike."""
        n_classes = len(self.classes)
        if has_unequal_weights(self.data, n_classes):
            # Sums about a centre that is far from a heavy row lose what light ones add.
            moments, dtype = self.moments(), np.dtype(np.float64)
        else:
            dtype = np.result_type(self.data.dtype, np.float32)
            moments = self.data.map_reduce(
                scatter_moments, ClassMoments.merge, n_classes, dtype
            )
        _validation.check_every_class(moments.weight, self.classes)
        return ExplicitCovariance(moments, row_space, dtype)

    def completed(self) -> "Sample":
        """Give unlabelled rows the teacher's class, where there is a teacher."""
        if not self.any_unlabelled or (self.head is None and not self.has_logits):
            return self
        data = self.data.map(LabelledRows.completed, self.head)
        return replace(self, data=data, any_unlabelled=False)

    def with_head(self, moments: ClassMoments) -> "Sample":
        """Estimate the head from moments, where none is given.

        `moments` gain the rows that it gives a class.
        """
        _validation.check_every_class(moments.weight, self.classes)
        if self.head is not None:
            return self
        n_samples, (mean, within, total) = moments.weight.sum(), moments.pooled()
        n_features = self.data.shape[1]
        variance = np.diag(within)[:n_features] / n_samples
        _validation.check_no_underflow(mean[:n_features], variance, within.dtype)
        if self.has_logits:
            head = least_squares_head(n_samples, mean, total, n_features)
            return replace(self, head=head)
        head = discriminant_head(moments.weight, moments.mean, moments.scatter)
        if self.any_unlabelled:
            n_classes = len(self.classes)
            moments.merge(
                self.data.map_reduce(
                    moments_of_unlabelled, ClassMoments.merge, n_classes, head
                )
            )
        return replace(self, head=head).completed()


def read_sample(
    rows: Any,
    y: Any,
    teacher_logits: Any,
    sample_weight: Any,
    *,
    head: Any,
    unlabeled: object,
    classes: NDArray[Any] | None,
    streaming: bool,
) -> Sample:
    """Check everything, and give each row its class.

    `head` and `unlabeled` are the projector's; `classes` is that of `partial_fit`, None
    in `fit`; `streaming` says which of the two it is.
    """
    is_dask = dask_arrays.is_dask_array(rows)
    known_head, head_classes = resolve_head(head, rows.shape[1])
    can_fit_head = not (streaming or is_dask)
    check_fitted_head(known_head is not None, head, can_fit_head)
    if known_head is None and teacher_logits is None and y is None:
        raise _validation.head_is_missing()
    checked: Any = CheckedRows
    if is_dask:
        # Imported with the first dask array.
        from lelp_sklearn._subclasses.dask_rows import DaskRows

        checked = DaskRows
    checked = checked.check(rows, y, sample_weight, teacher_logits, unlabeled)
    found = checked.findings()
    found.check()
    if found.only_probabilities:
        _validation.warn_of_probabilities()
    n_outputs = None if found.n_logits is None else max(2, found.n_logits)
    if known_head is not None:
        n_outputs = len(known_head.coef)
    given = classes if head_classes is None else head_classes
    classes = _validation.check_classes(found.labels, given, n_outputs)
    if known_head is None and head is not None:
        known_head = _fit_head(head, checked, classes)
    if known_head is not None:
        check_head_rows(len(known_head.coef), classes)
    if found.n_logits is not None:
        _validation.check_logit_columns(found.n_logits, len(classes))
    data = checked.map(CheckedRows.encode, classes)
    has_logits = found.n_logits is not None
    sample = Sample(data, classes, known_head, has_logits, found.any_unlabelled)
    if isinstance(data, LabelledRows):
        _compare_with_labels(data, known_head, classes)
    return sample.completed()


def _compare_with_labels(
    rows: LabelledRows, head: Head | None, classes: NDArray[Any]
) -> None:
    """Warn where the teacher seems to have the classes in another order.

    Looks at a few of the labelled rows.
    """
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


def _fit_head(head: Any, checked: CheckedRows, classes: NDArray[Any]) -> Head:
    """Fit a clone of the linear classifier on the labelled rows."""
    used = np.flatnonzero(checked.labelled & (checked.weight > 0))
    if not used.size:
        raise unfitted_head(head)
    _validation.check_several_classes(classes)
    check_one_vs_rest(head, classes)
    classifier = clone(head)
    options = {}
    if has_fit_parameter(classifier, "sample_weight"):
        options["sample_weight"] = checked.weight[used]
    # A slice is no copy, unlike an index of all rows.
    rows = slice(None) if used.size == len(checked.labels) else used
    classifier.fit(np.asarray(checked.X[rows]), checked.labels[rows], **options)
    fitted, _ = resolve_head(classifier, checked.X.shape[1])
    if fitted is None:
        raise unknown_head(head)
    return fitted
