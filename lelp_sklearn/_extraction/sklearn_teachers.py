"""Fit a teacher with the methods of scikit-learn, and make embeddings with it.

A new kind of torch model belongs in runner.py, of classifier in fitted_sklearn.py.
"""

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
from lelp_sklearn._extraction.fitted_sklearn import (
    ClassifierTeacher,
    is_classifier_teacher,
    is_fitted,
)
from lelp_sklearn._training.inputs import mean_over_members
from lelp_sklearn._typing import BoolArray


@dataclass(frozen=True)
class OmittedTeacher:
    """Stands for the teacher in a fitted student that was pickled."""

    name: str

    @classmethod
    def of(cls, teacher: Any) -> Any:
        """Return the stand-in for a teacher; None and a stand-in stay."""
        if teacher is None or isinstance(teacher, cls):
            return teacher
        if isinstance(teacher, ClassifierTeacher):
            teacher = teacher.model
        return cls(type(teacher).__name__)


def check_teacher(teacher: Any) -> None:
    """Raise unless a teacher can make embeddings."""
    if is_classifier_teacher(teacher):
        if isinstance(teacher, FrozenEstimator) or not is_fitted(teacher):
            return
        name = type(teacher).__name__
        raise ValueError(
            f"teacher is a fitted {name}, which would be cloned and fitted again: pass "
            f"FrozenEstimator(teacher) or EmbeddingExtractor(teacher) to use it as it "
            f"is, or an unfitted one."
        )
    if all(callable(getattr(teacher, name, None)) for name in ("fit", "transform")):
        return
    wrapped = " Wrap a torch module, EmbeddingExtractor(module)."
    raise InvalidParameterError(
        "The 'teacher' parameter must be a transformer with fit and transform, such as "
        "EmbeddingExtractor, a classifier of scikit-learn, or None. Got "
        f"{type(teacher).__name__}.{wrapped if hasattr(teacher, 'forward') else ''}"
    )


def require_teacher(teacher: Any) -> Any:
    """Return a teacher; raise if it was left out of a pickle."""
    if isinstance(teacher, OmittedTeacher):
        raise ValueError(
            f"teacher ({teacher.name}) was left out when the fitted student was "
            "pickled: set it again with set_params(teacher=...), or pass "
            "teacher_embeddings."
        )
    return teacher


def transform_teacher(teacher: Any, X: Any, n_samples: int) -> Any:
    """Return the embeddings (n, d) of rows by a fitted teacher."""
    embeddings = require_teacher(teacher).transform(X)
    return _check_embeddings(embeddings, n_samples, "teacher.transform(X)")


def fit_teacher(teacher: Any, X: Any, y: Any, is_train: BoolArray) -> Any:
    """Return a clone of the teacher, fitted on some rows; a frozen one as it is."""
    if isinstance(require_teacher(teacher), FrozenEstimator | ClassifierTeacher):
        return teacher
    return clone(teacher).fit(*_select(X, y, is_train))


def fit_transform_teacher(
    teacher: Any, X: Any, y: Any, is_train: BoolArray
) -> tuple[Any, Any]:
    """Return what `fit_teacher` returns, and embeddings (n, d) of all rows.

    A teacher with a `fit_transform` of its own makes the embeddings of its training
    rows by it, because its `transform` may have seen their labels, as in an out-of-fold
    transformer.
    """
    if not has_own_fit_transform(teacher):
        teacher = fit_teacher(teacher, X, y, is_train)
        return teacher, transform_teacher(teacher, X, len(is_train))
    teacher = clone(teacher)
    train_index, other_index = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    embeddings = teacher.fit_transform(*_select(X, y, is_train))
    embeddings = _check_embeddings(
        embeddings, len(train_index), "teacher.fit_transform(X, y)"
    )
    if not other_index.size:
        return teacher, embeddings
    other_rows = _safe_indexing(X, other_index)
    other_embeddings = transform_teacher(teacher, other_rows, len(other_index))
    # NumPy, torch, pandas and polars have it under the same name.
    concat = sys.modules[type(embeddings).__module__.partition(".")[0]].concat
    order = np.argsort(np.concatenate([train_index, other_index]))
    return teacher, _safe_indexing(concat([embeddings, other_embeddings]), order)


def has_own_fit_transform(teacher: Any) -> bool:
    """Return whether a teacher has a `fit_transform` that is not fit and transform."""
    if isinstance(teacher, FrozenEstimator):
        return False
    method = getattr(teacher, "fit_transform", None)
    inherited = TransformerMixin.fit_transform
    return method is not None and getattr(method, "__func__", None) is not inherited


def _check_embeddings(embeddings: Any, n_samples: int, name: str) -> Any:
    """Return the output of a teacher as embeddings (n, d), or raise."""
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


def _select(X: Any, y: Any, is_train: BoolArray) -> tuple[Any, Any]:
    """Return the training rows and their labels; X itself if these are all rows."""
    if is_train.all():
        return X, y
    rows = np.flatnonzero(is_train)
    return _safe_indexing(X, rows), None if y is None else y[rows]
