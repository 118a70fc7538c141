"""Fit a teacher of scikit-learn's interface, and make embeddings with it."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import TransformerMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import InvalidParameterError

from lelp_sklearn import _validation
from lelp_sklearn._training.inputs import mean_over_members
from lelp_sklearn._typing import BoolArray


@dataclass(frozen=True)
class OmittedTeacher:
    """Stands for the teacher in a fitted student that was pickled."""

    name: str

    @classmethod
    def of(cls, teacher: Any) -> Any:
        """Return what stands for a teacher; None and what stands for one stay."""
        if teacher is None or isinstance(teacher, cls):
            return teacher
        return cls(type(teacher).__name__)


def check_teacher(teacher: Any) -> None:
    """Raise unless a teacher can make embeddings."""
    if all(callable(getattr(teacher, name, None)) for name in ("fit", "transform")):
        return
    wrapped = " Wrap a torch module, EmbeddingExtractor(module)."
    raise InvalidParameterError(
        "The 'teacher' parameter of LELPStudentClassifier must be a transformer with "
        "fit and transform, such as EmbeddingExtractor, or None. Got "
        f"{type(teacher).__name__}.{wrapped if hasattr(teacher, 'forward') else ''}"
    )


def present(teacher: Any) -> Any:
    """Return a teacher; raise where it was left out of a pickle."""
    if isinstance(teacher, OmittedTeacher):
        raise ValueError(
            f"teacher ({teacher.name}) was left out when the fitted student was "
            "pickled: set it again with set_params(teacher=...), or pass "
            "teacher_embeddings."
        )
    return teacher


def transformed(teacher: Any, X: Any, n_samples: int) -> Any:
    """Return the embeddings (n, d) that a fitted teacher makes of rows."""
    return _checked(present(teacher).transform(X), n_samples, "teacher.transform(X)")


def fitted(teacher: Any, X: Any, y: Any, used: BoolArray) -> Any:
    """Return a clone of the teacher, fitted on rows `used`; a frozen one as it is."""
    if isinstance(present(teacher), FrozenEstimator):
        return teacher
    return clone(teacher).fit(*_select(X, y, used))


def fit_transformed(teacher: Any, X: Any, y: Any, used: BoolArray) -> tuple[Any, Any]:
    """Return what `fitted` returns, and embeddings (n, d) of all rows.

    Those of the rows that it is fitted on come from its `fit_transform` where it has
    one of its own, since its `transform` may have seen their labels: that of an
    out-of-fold transformer has.
    """
    if not makes_training_embeddings(teacher):
        teacher = fitted(teacher, X, y, used)
        return teacher, transformed(teacher, X, len(used))
    teacher = clone(teacher)
    rows, others = np.flatnonzero(used), np.flatnonzero(~used)
    embeddings = teacher.fit_transform(*_select(X, y, used))
    embeddings = _checked(embeddings, len(rows), "teacher.fit_transform(X, y)")
    if not others.size:
        return teacher, embeddings
    of_others = transformed(teacher, _safe_indexing(X, others), len(others))
    # NumPy, torch, pandas and polars have it under the same name.
    concat = sys.modules[type(embeddings).__module__.partition(".")[0]].concat
    order = np.argsort(np.concatenate([rows, others]))
    return teacher, _safe_indexing(concat([embeddings, of_others]), order)


def makes_training_embeddings(teacher: Any) -> bool:
    """Return whether a teacher has a `fit_transform` that is not fit and transform."""
    if isinstance(teacher, FrozenEstimator):
        return False
    method = getattr(teacher, "fit_transform", None)
    inherited = TransformerMixin.fit_transform
    return method is not None and getattr(method, "__func__", None) is not inherited


def _checked(embeddings: Any, n_samples: int, name: str) -> Any:
    """Return what a teacher made of rows as embeddings (n, d)."""
    if issparse(embeddings):
        raise TypeError(
            f"Sparse data was passed: {name} is sparse, and embeddings must be dense. "
            "End the teacher in a step that makes them dense, such as TruncatedSVD."
        )
    if isinstance(embeddings, np.ndarray) or not hasattr(embeddings, "shape"):
        # A plain array, also of a class of the user's.
        embeddings = np.asarray(embeddings)
    embeddings = mean_over_members(embeddings, n_samples, name)
    _validation.check_length(embeddings, n_samples, name)
    return embeddings


def _select(X: Any, y: Any, used: BoolArray) -> tuple[Any, Any]:
    """Return the rows and labels that are used; X itself where all are."""
    if used.all():
        return X, y
    rows = np.flatnonzero(used)
    return _safe_indexing(X, rows), None if y is None else y[rows]
