"""The teacher's linear head: where it comes from when it is not given."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from sklearn.base import is_classifier

from lelp_sklearn import _validation
from lelp_sklearn._subclasses import tensors
from lelp_sklearn._typing import FloatArray

# A column varies within the classes by at least this share of its variance: where a
# class has one value, the head stays finite.
_LEAST_WITHIN = 1e-4
_LEAST_SHRINKAGE = 1e-8
# Of a correlation matrix, relative to the largest. Embeddings that were rounded to
# single precision vary by less in directions in which they do not vary.
_LEAST_EIGENVALUE = 1e-12
# Sums over rows leave so much of a constant.
_ROUNDING = 1e3 * np.finfo(np.float64).eps


@dataclass(frozen=True)
class Head:
    """Logits X coef.T + intercept: coef (C, d) and intercept (C,), both float64."""

    coef: FloatArray
    intercept: FloatArray

    def __call__(self, rows: FloatArray) -> FloatArray:
        """Logits (m, C) of rows (m, d)."""
        logits: FloatArray = rows @ self.coef.T + self.intercept
        return logits


def resolve_head(head: Any, n_features: int) -> tuple[Head | None, NDArray[Any] | None]:
    """Read a head in any of its forms; its classes too, where it knows them.

    Gives None for no head and for a classifier that is not fitted yet.
    """
    if head is None:
        return None, None
    classes = None
    is_layer = hasattr(head, "weight") and hasattr(head, "out_features")
    if isinstance(head, tuple | list) and len(head) == 2:
        coef, intercept = head
    elif hasattr(head, "coef_") and hasattr(head, "classes_"):
        check_one_vs_rest(head, head.classes_)
        coef, intercept, classes = head.coef_, head.intercept_, head.classes_
    elif is_layer:
        coef, intercept = head.weight, getattr(head, "bias", None)
    elif hasattr(head, "steps"):
        raise _composed_head(head)
    elif is_unfitted_classifier(head):
        return None, None
    else:
        raise unknown_head(head)
    # A layer without bias has None for it.
    intercept = 0.0 if intercept is None else tensors.to_array(intercept)
    arrays = tensors.to_array(coef), intercept
    resolved = Head(*_validation.check_head(*arrays, n_features))
    if is_layer and not tensors.is_linear(head, *arrays):
        raise _other_than_its_weights(head)
    return resolved, classes


def is_unfitted_classifier(head: Any) -> bool:
    """Whether a head is a classifier that is still to be fitted."""
    is_classifying = hasattr(head, "__sklearn_tags__") and is_classifier(head)
    return is_classifying and not hasattr(head, "classes_")


def least_squares_head(
    n_samples: float, mean: FloatArray, scatter: FloatArray, n_features: int
) -> Head:
    """Linear map from embeddings to logits by weighted least squares.

    `n_samples`, `mean` (d + C,) and `scatter` (d + C, d + C) are those of all joint
    rows (embedding, logits). The map whose coefficients are smallest, in standard
    deviations of the columns, is taken where several fit alike; it is exact where the
    logits are linear.
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
    r"""Linear discriminant from the weight, mean and scatter of each class.

    .. math:: w_c = \Sigma^{-1} (\mu_c - \bar\mu), \quad
              b_c = -\tfrac12 (\mu_c - \bar\mu) \cdot w_c - w_c \cdot \bar\mu
                    + \log \pi_c

    Measured from the mean of all rows, so that moving the embeddings moves nothing and
    the rows of w span C - 1 dimensions. :math:`\Sigma` is the mean of the covariances
    of the classes, whose correlations are shrunk: as in scikit-learn's
    ``LinearDiscriminantAnalysis``, the unit of a column changes nothing. Everything is
    a function of the sums alone: exact under weights and streams.
    """
    n_samples = weight.sum()
    mean = weight @ class_means / n_samples
    largest = np.abs(class_means).max(axis=0)
    steps = class_means - mean
    # Means that are equal but for rounding tell nothing.
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
    """Shrink the correlations of a covariance (d, d); its variances stay.

    The oracle approximating shrinkage of the correlation matrix towards the identity
    (Chen, Wiesel, Eldar and Hero, 2010), as in :func:`sklearn.covariance.oas`. Columns
    that are constant, at `mean` (d,), are left out.
    """
    variance = np.diag(covariance)
    unit = _deviations(variance, mean)
    n_features = np.isfinite(unit).sum()
    squares = np.sum((covariance / unit / unit[:, None]) ** 2) / max(1, n_features**2)
    distance = (n_samples + 1) * (squares - 1 / max(1, n_features))
    weight = min(1.0, (squares + 1) / distance) if distance > 0 else 1.0
    # Collinear columns of very many rows have an inverse too.
    shrunk = (1 - max(weight, _LEAST_SHRINKAGE)) * covariance
    np.fill_diagonal(shrunk, variance)
    return shrunk


def _deviations(variance: FloatArray, mean: FloatArray) -> FloatArray:
    """Standard deviations (d,); infinity, which takes a column out, for a constant.

    What is less than rounding leaves of a constant as large as `mean` (d,) is one.
    """
    rounding = (_ROUNDING * mean) ** 2
    varies = variance > np.maximum(rounding, np.finfo(np.float64).tiny)
    return np.sqrt(np.where(varies, variance, np.inf))


def check_one_vs_rest(head: Any, classes: Any) -> None:
    """Raise for a support vector machine of more than two classes."""
    if hasattr(head, "decision_function_shape") and len(classes) > 2:
        raise ValueError(
            f"head is {type(head).__name__} of {len(classes)} classes, whose rows of "
            "coef_ tell pairs of classes apart: use LinearSVC or LogisticRegression, "
            "which have a row for each class."
        )


def _composed_head(head: object) -> TypeError:
    """A classifier behind other steps, which has no coefficients of the embeddings."""
    return TypeError(
        f"head is {type(head).__name__}, whose steps are no single linear map: give "
        "(coef, intercept) in units of the embeddings, or the classifier itself with "
        "embeddings that went through the other steps."
    )


def _other_than_its_weights(head: object) -> ValueError:
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
