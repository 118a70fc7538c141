"""The teacher's linear head: given, fitted, or estimated from moments.

Without a head `least_squares_head` fits it to the teacher's logits if these are given,
else `discriminant_head` to the labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from sklearn.base import clone, is_classifier
from sklearn.utils.validation import has_fit_parameter

from lelp_sklearn._subclasses import torch_backend
from lelp_sklearn._typing import BoolArray, FloatArray
from lelp_sklearn._validation import (
    as_numbers,
    check_finite_block,
    check_several_classes,
)

# Lower bound on the share of a column's variance that is within the classes: it keeps
# the head finite if a column is constant in each class.
_LEAST_WITHIN = 1e-4
_LEAST_SHRINKAGE = 1e-8
# Smallest eigenvalue of a correlation matrix, relative to the largest, that is not a
# rounding error of embeddings in single precision.
_LEAST_EIGENVALUE = 1e-12
# Relative rounding error of a sum over the rows of a constant column.
_ROUNDING = 1e3 * np.finfo(np.float64).eps


@dataclass(frozen=True)
class Head:
    """Logits X coef.T + intercept: coef (C, d) and intercept (C,), both float64."""

    coef: FloatArray
    intercept: FloatArray

    def __call__(self, rows: Any) -> Any:
        """Return logits (m, C) of rows (m, d), an array or a tensor."""
        coef, intercept = torch_backend.alongside(rows, self.coef, self.intercept)
        return rows @ coef.T + intercept


def resolve_head(head: Any, n_features: int) -> tuple[Head | None, NDArray[Any] | None]:
    """Return a head given in any of its forms, and its classes if it has them.

    The head is None for None and for a classifier that is not fitted yet.
    """
    if head is None:
        return None, None
    kind, classes = type(head).__name__, None
    is_layer = hasattr(head, "weight") and hasattr(head, "out_features")
    if isinstance(head, tuple | list) and len(head) == 2:
        coef, intercept = head
    elif hasattr(head, "coef_") and hasattr(head, "classes_"):
        _check_one_vs_rest(head, head.classes_)
        coef, intercept, classes = head.coef_, head.intercept_, head.classes_
    elif is_layer:
        coef, intercept = head.weight, getattr(head, "bias", None)
    elif hasattr(head, "steps"):
        raise TypeError(
            f"head is {kind}, whose steps are not a single linear map: pass (coef, "
            "intercept) in units of the embeddings, or the classifier itself with "
            "embeddings that went through the other steps."
        )
    elif (
        hasattr(head, "__sklearn_tags__")
        and is_classifier(head)
        and not hasattr(head, "classes_")
    ):
        return None, None
    else:
        raise TypeError(
            f"head is {kind}; it must be None, a pair (coef, intercept), a linear "
            "classifier with coef_ and intercept_ (fitted or not) or a torch.nn.Linear."
        )
    # The bias of a layer may be None.
    intercept = 0.0 if intercept is None else torch_backend.to_array(intercept)
    arrays = torch_backend.to_array(coef), intercept
    resolved = _check_arrays(*arrays, n_features)
    if is_layer and not _is_linear(head, *arrays):
        raise ValueError(
            f"head is {kind}, whose output is not its weights times its input plus its "
            "bias: pass head=None, and the logits of the model as teacher_logits."
        )
    return resolved, classes


def fit_head(
    head: Any,
    X: Any,
    labels: NDArray[Any],
    weight: FloatArray,
    is_labelled: BoolArray,
    classes: NDArray[Any],
) -> Head:
    """Fit a clone of the linear classifier on the labelled rows."""
    used = np.flatnonzero(is_labelled & (weight > 0))
    if not used.size:
        raise ValueError(
            f"head is a {type(head).__name__} that is not fitted, and y has no label "
            "to fit it on: fit the head first, or pass y with labels."
        )
    check_several_classes(classes, "y")
    _check_one_vs_rest(head, classes)
    classifier = clone(head)
    options = {}
    if has_fit_parameter(classifier, "sample_weight"):
        options["sample_weight"] = weight[used]
    # A slice does not copy all rows, an index does.
    rows = slice(None) if used.size == len(labels) else used
    classifier.fit(np.asarray(X[rows]), labels[rows], **options)
    fitted, _ = resolve_head(classifier, X.shape[1])
    assert fitted is not None
    return fitted


def _check_arrays(coef: Any, intercept: Any, n_features: int) -> Head:
    """Return the head of these arrays, with at least two rows.

    The one row of a sigmoid head, w, becomes the two rows -w/2 and w/2 of a softmax.
    """
    # Copies, so that changing the head later does not change a fitted projector.
    weights = np.array(as_numbers(coef, "head coef"), dtype=np.float64, ndmin=2)
    bias = as_numbers(intercept, "head intercept")
    bias = np.array(bias, dtype=np.float64, ndmin=1).ravel()
    if weights.ndim != 2 or weights.shape[1] != n_features:
        raise ValueError(
            f"head has a coef of shape {weights.shape}, X {n_features} features: "
            "coef must be (n_classes, n_features), as in torch.nn.Linear.weight."
        )
    if bias.size == 1:
        bias = np.repeat(bias, len(weights))
    if bias.size != len(weights):
        raise ValueError(
            f"head has {len(weights)} rows of coef and {bias.size} intercepts: give "
            "one intercept a row."
        )
    check_finite_block(weights, 0, "head coef")
    check_finite_block(bias, 0, "head intercept")
    if len(weights) == 1:
        weights = np.vstack([-weights / 2, weights / 2])
        bias = np.concatenate([-bias / 2, bias / 2])
    return Head(weights, bias)


def _check_one_vs_rest(head: Any, classes: Any) -> None:
    """Raise for a support vector machine of more than two classes."""
    if hasattr(head, "decision_function_shape") and len(classes) > 2:
        raise ValueError(
            f"head is {type(head).__name__} of {len(classes)} classes, whose rows of "
            "coef_ tell pairs of classes apart: use LinearSVC or LogisticRegression, "
            "which have a row for each class."
        )


def least_squares_head(
    n_samples: float, mean: FloatArray, scatter: FloatArray, n_features: int
) -> Head:
    """Fit the linear map from embeddings to the teacher's logits by least squares.

    `mean` (d + C,) and `scatter` (d + C, d + C) describe `n_samples` joint rows
    (embedding, logits). If several maps fit equally, the one with the smallest
    coefficients of standardized columns is returned. Linear logits are fitted exactly.
    """
    inputs, logits = slice(n_features), slice(n_features, None)
    unit = _deviations(np.diag(scatter)[inputs] / n_samples, mean[inputs])
    correlation = scatter[inputs, inputs] / n_samples / unit / unit[:, None]
    products = scatter[inputs, logits] / n_samples / unit[:, None]
    inverse = linalg.pinvh(correlation, rtol=_LEAST_EIGENVALUE)
    coef = (inverse @ products).T / unit
    return Head(coef, mean[logits] - coef @ mean[inputs])


def discriminant_head(
    weight: FloatArray, class_means: FloatArray, scatters: FloatArray
) -> Head:
    r"""Return the linear discriminant of the labels, for a teacher without logits.

    .. math:: w_c = \Sigma^{-1} (\mu_c - \bar\mu), \quad
              b_c = -\tfrac12 (\mu_c - \bar\mu) \cdot w_c - w_c \cdot \bar\mu
                    + \log \pi_c

    The weight, mean and scatter of each class determine it, so that weights and
    streams are exact. Class means are relative to the mean of all rows: a shift of the
    embeddings has no effect, and the rows of w span C - 1 dimensions. :math:`\Sigma` is
    the mean class covariance, with correlations that are shrunk; as in scikit-learn's
    ``LinearDiscriminantAnalysis``, the unit of a column has no effect.
    """
    n_samples = weight.sum()
    mean = weight @ class_means / n_samples
    largest = np.abs(class_means).max(axis=0)
    steps = class_means - mean
    # Differences of means that may be rounding errors count as 0.
    steps[np.abs(steps) <= _ROUNDING * largest] = 0
    covariance = np.zeros_like(scatters[0])
    for own_weight, own_mean, scatter in zip(
        weight, class_means, scatters, strict=True
    ):
        share = own_weight / n_samples
        covariance += share * shrink(scatter / own_weight, own_weight, own_mean)
    within = np.diag(covariance)
    total = within + weight @ steps**2 / n_samples
    unit = _deviations(np.maximum(within, _LEAST_WITHIN * total), largest)
    correlation = covariance / unit / unit[:, None]
    np.fill_diagonal(correlation, 1)
    coef = linalg.solve(correlation, (steps / unit).T, assume_a="pos").T / unit
    quadratic = np.einsum("cd,cd->c", steps, coef) / 2
    return Head(coef, np.log(weight / n_samples) - quadratic - coef @ mean)


def shrink(covariance: FloatArray, n_samples: float, mean: FloatArray) -> FloatArray:
    """Shrink the correlations of a covariance (d, d) and keep its variances.

    Oracle approximating shrinkage of the correlation matrix towards the identity (Chen,
    Wiesel, Eldar and Hero, 2010), as in :func:`sklearn.covariance.oas`. Constant
    columns, which have the value `mean` (d,), do not count.
    """
    variance = np.diag(covariance)
    unit = _deviations(variance, mean)
    n_features = np.isfinite(unit).sum()
    squares = np.sum((covariance / unit / unit[:, None]) ** 2) / max(1, n_features**2)
    distance = (n_samples + 1) * (squares - 1 / max(1, n_features))
    weight = min(1.0, (squares + 1) / distance) if distance > 0 else 1.0
    # Shrinkage above 0 keeps the matrix of collinear columns invertible.
    shrunk = (1 - max(weight, _LEAST_SHRINKAGE)) * covariance
    np.fill_diagonal(shrunk, variance)
    return shrunk


def _deviations(variance: FloatArray, mean: FloatArray) -> FloatArray:
    """Return standard deviations (d,), infinite for a constant column.

    Division by infinity removes the column. A column counts as constant if its variance
    may be the rounding error of a constant of the size of `mean` (d,).
    """
    rounding = (_ROUNDING * mean) ** 2
    varies = variance > np.maximum(rounding, np.finfo(np.float64).tiny)
    return np.sqrt(np.where(varies, variance, np.inf))


def _is_linear(layer: Any, coef: NDArray[Any], intercept: Any) -> bool:
    """Return whether a layer returns coef (C, d) times its input plus the intercept."""
    import torch

    rows = np.random.RandomState(0).normal(size=(4, coef.shape[1]))
    weight = layer.weight
    try:
        with torch.no_grad():
            inputs = torch.from_numpy(rows).to(weight.dtype).to(weight.device)
            returned = torch_backend.to_array(layer(inputs))
    # A layer of the user's may do anything, such as ask for labels beside the rows.
    except Exception:
        return False
    rows = torch_backend.to_array(inputs)
    products = rows @ coef.T + intercept
    # Rounding errors add up like squares. Single precision may be multiplied with fewer
    # digits (TF32).
    size = np.sqrt(rows**2 @ coef.T**2 + intercept**2)
    slack = 8 * max(torch.finfo(weight.dtype).eps, 2.0**-11) * size
    same_shape = np.shape(returned) == products.shape
    return same_shape and bool((np.abs(returned - products) <= slack).all())
