"""Checks of a teacher's head and outputs, and their messages."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import InvalidParameterError

from lelp_sklearn._callers import warn_user
from lelp_sklearn._typing import FloatArray, IntArray
from lelp_sklearn.exceptions import ClassOrderWarning, ProbabilitiesAsLogitsWarning

# Rows that say enough of the order of classes, and the share of them that another order
# must explain beyond the given one: of two classes, that 30 % or less are right.
CLASS_ORDER_ROWS = 128
_FEWEST_ROWS = 50
_EXPLAINED = 0.4


def are_probabilities(logits: FloatArray) -> bool:
    """Whether logits (n, C) are probabilities, whose logarithms are not."""
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
    likeliest: IntArray, codes: IntArray, classes: NDArray[Any]
) -> None:
    """Warn where another order of the teacher's classes explains the labels better.

    Parameters
    ----------
    likeliest : (n,) class that the teacher finds likeliest
    codes : (n,) class of the label
    classes : (C,)
    """
    if len(codes) < _FEWEST_ROWS:
        return
    # Imported here, since a fit with a well ordered teacher needs it rarely.
    from scipy.optimize import linear_sum_assignment

    agreed = np.zeros((len(classes),) * 2, dtype=np.intp)
    np.add.at(agreed, (codes, likeliest), 1)
    own = int(np.trace(agreed))
    if len(codes) - own < _EXPLAINED * len(codes):
        return
    rows, columns = linear_sum_assignment(agreed, maximize=True)
    best = int(agreed[rows, columns].sum())
    if best - own >= _EXPLAINED * len(codes):
        warn_user(
            f"The teacher's likeliest class is the label of {own} of {len(codes)} "
            f"rows, and of {best} were its classes in another order: column "
            f"{columns.tolist()} for {classes.tolist()}. Rows of head and columns of "
            "teacher_logits or soft_targets must be in the order of the sorted labels.",
            ClassOrderWarning,
        )


def check_one_vs_rest(head: Any, classes: Any) -> None:
    """Raise for a support vector machine of more than two classes."""
    if hasattr(head, "decision_function_shape") and len(classes) > 2:
        raise ValueError(
            f"head is {type(head).__name__} of {len(classes)} classes, whose rows of "
            "coef_ tell pairs of classes apart: use LinearSVC or LogisticRegression, "
            "which have a row for each class."
        )


def composed_head(head: object) -> TypeError:
    """A classifier behind other steps, which has no coefficients of the embeddings."""
    return TypeError(
        f"head is {type(head).__name__}, whose steps are no single linear map: give "
        "(coef, intercept) in units of the embeddings, or the classifier itself with "
        "embeddings that went through the other steps."
    )


def other_than_its_weights(head: object) -> ValueError:
    """A layer with a forward of its own, whose output its weights do not make."""
    return ValueError(
        f"head is {type(head).__name__}, whose output is not its weights times its "
        "input plus its bias: pass head=None, and the logits of the model as "
        "teacher_logits."
    )


def unknown_head(head: object) -> TypeError:
    """Nothing that gives a linear map."""
    return TypeError(
        f"head is {type(head).__name__}; it must be None, a pair (coef, intercept), a "
        "linear classifier with coef_ and intercept_ (fitted or not) or a "
        "torch.nn.Linear."
    )


def unfitted_head(head: object) -> ValueError:
    """A classifier that is not fitted, and nothing to fit it on."""
    return ValueError(
        f"head is a {type(head).__name__} that is not fitted, and y has no label to "
        "fit it on: fit the head first, or pass y with labels."
    )


def check_head_rows(n_rows: int, classes: NDArray[Any]) -> None:
    """Raise unless the head has a row for each class."""
    if n_rows != len(classes):
        raise ValueError(
            f"head has {n_rows} rows and there are {len(classes)} classes, "
            f"{classes.tolist()}: give one row a class, in the order of classes_ (or "
            "one row of a sigmoid head)."
        )


def check_fitted_head(head_is_known: bool, head: object, whole: bool) -> None:
    """Raise where a classifier would have to be fitted, and the rows are in parts."""
    if head is not None and not head_is_known and not whole:
        raise ValueError(
            f"head is {type(head).__name__}, not fitted, and neither a stream nor dask "
            "arrays can fit it: fit it beforehand, or pass head=(coef, intercept) or "
            "None."
        )


# --- the student ----------------------------------------------------------------------


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


def check_is_array(values: Any, name: str) -> None:
    """Raise where a model is given in the place of what it makes."""
    if not hasattr(values, "__len__") and not hasattr(values, "shape"):
        raise TypeError(
            f"{name} is {type(values).__name__}; it must be an array, one row a "
            "sample. A model that makes it is passed as teacher=, or its "
            ".transform(X) here."
        )


def check_member_rows(shape: tuple[int, ...], n_samples: int, name: str) -> None:
    """Raise unless embeddings of several members have a row for each of X."""
    if shape[1] != n_samples:
        raise ValueError(
            f"{name} has shape {shape} and X has {n_samples} rows: three-dimensional "
            "embeddings must be (n_members, n_samples, n_features), and are averaged "
            "over the members. Cross-validation slices the first axis: there pass "
            "embeddings.mean(axis=0)."
        )


def check_dense_embeddings(is_sparse: bool, name: str) -> None:
    """Raise where a teacher makes sparse embeddings."""
    if is_sparse:
        raise TypeError(
            f"Sparse data was passed: {name} is sparse, and embeddings must be dense. "
            "End the teacher in a step that makes them dense, such as TruncatedSVD."
        )


def check_embedding_width(
    n_features: int, expected: int, name: str, *, is_given: bool
) -> None:
    """Raise unless the projector can read embeddings of this width."""
    if n_features == expected:
        return
    if not is_given:
        raise ValueError(
            f"teacher_embeddings are missing: X would take their place, and has "
            f"{n_features} features, but the head or the fitted projector reads "
            f"{expected}. Pass teacher_embeddings of shape (n_samples, {expected}), or "
            "a teacher that makes them."
        )
    raise ValueError(
        f"{name} has {n_features} features, but the head or the fitted projector reads "
        f"{expected}: pass embeddings of shape (n_samples, {expected})."
    )
