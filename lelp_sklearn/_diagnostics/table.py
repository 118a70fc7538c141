"""A table of the subclasses of a fitted projector, and the data behind it."""

from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from lelp_sklearn import _validation
from lelp_sklearn._subclasses.moments import row_space_basis, to_null_space
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray


def subclass_table(
    projector: Any,
    X: Any,
    y: Any,
    samples: Any = None,
    *,
    n_samples: int = 3,
    teacher_logits: Any = None,
    fine_labels: Any = None,
) -> Any:
    r"""Describe each subclass: its mass, how coherent it is and its typical samples.

    Parameters
    ----------
    projector : LELPProjector
        Fitted; that of a student is ``student.projector_``.
    X : array-like of shape (n_rows, n_features)
        Embeddings.
    y : array-like of shape (n_rows,)
        Class labels.
    samples : sequence, array, Series or DataFrame of length n_rows, default=None
        The samples that the rows of X are embeddings of, such as texts, in the order of
        X; an index is ignored. The rows of a DataFrame are shown as dicts. If None, no
        samples are shown.
    n_samples : int, default=3
        Number of typical samples of each subclass, at least 1.
    teacher_logits : array-like of shape (n_rows, n_classes), default=None
        As in :meth:`LELPProjector.transform`.
    fine_labels : array-like of shape (n_rows,), default=None
        Known groups inside the classes.

    Returns
    -------
    pandas.DataFrame
        Indexed by class and subclass, with the columns

        ``mass``
            The share of the class that the subclass has, by the soft labels.
        ``entropy``
            Mean entropy (nats) of the soft labels within the class, over the rows whose
            most likely subclass it is: 0 if these rows belong to it alone.
        ``cohesion``
            Mean cosine similarity, in the null space and about the class mean, of two
            of these rows, minus that of one of them and another row of the class.
        ``margin_correlation``
            Correlation over the class of the score z with the teacher's margin, the
            logit of the class minus the largest other: near 1 or -1, the subclass
            reflects the teacher's confidence.
        ``samples``
            Only with `samples`. The typical ones: those of these rows that are most
            similar to their mean.
        ``fine_label``, ``fine_share``
            Only with `fine_labels`: the most common one among these rows, and its
            share.

    Raises
    ------
    TypeError
        If `projector` is not a projector, or `n_samples` is not an integer.
    ImportError
        If pandas is not installed.
    ValueError
        If the lengths or labels do not match, if a class of the projector has no row,
        or if `n_samples` is less than 1.

    See Also
    --------
    SubclassDisplay : Plots of the subclasses.
    """
    try:
        import pandas
    except ImportError as reason:
        raise ImportError(
            "subclass_table needs pandas, which the extra 'plot' brings: "
            "python -m pip install 'lelp-sklearn[plot]'"
        ) from reason

    check_at_least(n_samples, 1, "n_samples")
    if samples is not None:
        _validation.check_length(samples, len(X), "samples")
    if fine_labels is not None:
        _validation.check_length(fine_labels, len(X), "fine_labels")
        fine_labels = np.asarray(fine_labels)
    lines, index = [], []
    for class_data in read_classes(projector, X, y, teacher_logits):
        for s in range(projector.n_subclasses_):
            line = class_data.describe(s)
            if samples is not None:
                shown = _safe_indexing(samples, class_data.typical_rows(s, n_samples))
                is_table = isinstance(shown, pandas.DataFrame)
                line["samples"] = shown.to_dict("records") if is_table else list(shown)
            if fine_labels is not None:
                members = class_data.most_likely == s
                line |= _most_common(fine_labels[class_data.rows[members]])
            lines.append(line)
            index.append((class_data.label, s))
    names = ["class", "subclass"]
    return pandas.DataFrame(
        lines, index=pandas.MultiIndex.from_tuples(index, names=names)
    )


@dataclass(frozen=True)
class ClassData:
    """The rows of one class, and what a fitted projector makes of them."""

    label: Any
    # Indices (n,).
    rows: IntArray
    # (n, d), in the null space, about the mean of the class.
    embeddings: FloatArray
    # Soft labels (n, S) within the class: each row sums to one.
    shares: FloatArray
    # (n, S).
    scores: FloatArray
    # (n,), the logit of the class minus the largest other.
    margins: FloatArray

    @cached_property
    def most_likely(self) -> IntArray:
        """The most likely subclass (n,) of each row."""
        most_likely: IntArray = self.shares.argmax(axis=1)
        return most_likely

    @cached_property
    def unit_embeddings(self) -> FloatArray:
        """The embeddings (n, d), scaled to length 1."""
        lengths = np.linalg.norm(self.embeddings, axis=1, keepdims=True)
        units: FloatArray = self.embeddings / np.where(lengths > 0, lengths, 1)
        return units

    def masses(self) -> FloatArray:
        """Return the share of the class that each subclass has (S,)."""
        masses: FloatArray = self.shares.mean(axis=0)
        return masses

    def describe(self, s: int) -> dict[str, Any]:
        """Return what the table says of a subclass with any data."""
        members = self.most_likely == s
        shares, scores = self.shares[members], self.scores[:, s]
        entropies = -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=1)
        correlation = np.nan
        if scores.std() > 0 and self.margins.std() > 0:
            correlation = np.corrcoef(scores, self.margins)[0, 1]
        return {
            "mass": self.masses()[s],
            "entropy": entropies.mean() if members.any() else np.nan,
            "cohesion": self._cohesion(members),
            "margin_correlation": correlation,
        }

    def typical_rows(self, s: int, n_samples: int) -> IntArray:
        """Return the rows of a subclass that are most similar to their mean."""
        members = np.flatnonzero(self.most_likely == s)
        units = self.unit_embeddings[members]
        order = np.argsort(-(units @ units.sum(axis=0)), kind="stable")
        return self.rows[members[order[:n_samples]]]

    def _cohesion(self, members: BoolArray) -> float:
        units, others = self.unit_embeddings[members], self.unit_embeddings[~members]
        if len(units) < 2 or not len(others):
            return np.nan
        total = units.sum(axis=0)
        # The similarity of each row to itself does not count.
        n_pairs = len(units) * (len(units) - 1)
        within = (total @ total - np.sum(units**2)) / n_pairs
        between = total @ others.sum(axis=0) / (len(units) * len(others))
        return float(within - between)


def read_classes(
    projector: Any, X: Any, y: Any, teacher_logits: Any
) -> list[ClassData]:
    """Check the arguments, apply the projector and return the rows of each class."""
    _check_is_projector(projector)
    check_is_fitted(projector)
    options = {} if teacher_logits is None else {"teacher_logits": teacher_logits}
    soft = np.asarray(projector.transform(X, **options), dtype=np.float64)
    _validation.check_length(y, len(soft), "y")
    classes = projector.classes_
    class_index = _index_of_labels(y, classes)
    X = np.asarray(X, dtype=np.float64)
    soft = soft.reshape(len(X), len(classes), -1)
    logits = class_logits(projector, X, teacher_logits)
    row_space, data = row_space_basis(projector.coef_), []
    for c, label in enumerate(classes):
        rows = np.flatnonzero(class_index == c)
        mass = np.maximum(soft[rows, c].sum(axis=1), np.finfo(float).tiny)
        centred = X[rows] - projector.mean_[c]
        others = np.delete(logits[rows], c, axis=1)
        of_class = ClassData(
            label=label,
            rows=rows,
            embeddings=to_null_space(centred.T, row_space).T,
            shares=soft[rows, c] / mass[:, None],
            scores=X[rows] @ projector.components_[c].T - projector.offsets_[c],
            margins=logits[rows, c] - others.max(axis=1),
        )
        data.append(of_class)
    return data


def class_logits(projector: Any, embeddings: Any, teacher_logits: Any) -> FloatArray:
    """Return the teacher's logits (n, C): those given, else those of the head."""
    if teacher_logits is None:
        logits: FloatArray = embeddings @ projector.coef_.T + projector.intercept_
        return logits
    logits = _validation.check_logits(teacher_logits, len(embeddings))
    return _validation.logits_of_classes(logits)


def _index_of_labels(y: Any, classes: NDArray[Any]) -> IntArray:
    """Return the index of each label among the classes, each of which needs a row."""
    labels, labelled = _validation.check_labels(y, len(y), None)
    _validation.check_classes(np.unique(labels), classes, None, "the projector")
    class_index = _validation.encode(labels, labelled, classes)
    missing = np.setdiff1d(np.arange(len(classes)), class_index)
    if missing.size:
        raise ValueError(
            f"y has no row of class {', '.join(map(str, classes[missing]))}, of which "
            "the projector has subclasses: pass rows of every class."
        )
    return class_index


def _check_is_projector(projector: object) -> None:
    if hasattr(projector, "transform") and hasattr(projector, "n_subclasses"):
        return
    fix = "pass a fitted LELPProjector"
    if hasattr(projector, "projector_"):
        fix = "pass the projector that it fitted, student.projector_"
    elif hasattr(projector, "projector"):
        fix = "fit the student and pass its projector, student.projector_"
    raise TypeError(f"projector is of type {type(projector).__name__}: {fix}.")


def check_at_least(value: object, least: int, name: str) -> None:
    """Raise unless an argument is an integer of at least some size."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} must be an integer.")
    if int(value) < least:
        raise ValueError(f"{name}={value!r} must be at least {least}.")


def _most_common(labels: NDArray[Any]) -> dict[str, Any]:
    if not len(labels):
        return {"fine_label": None, "fine_share": np.nan}
    values, counts = np.unique(labels, return_counts=True)
    first = counts.argmax()
    return {"fine_label": values[first], "fine_share": counts[first] / len(labels)}
