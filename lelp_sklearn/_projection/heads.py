"""The teacher's linear head: where it comes from when it is not given."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from sklearn.base import is_classifier

from lelp_sklearn._common import teacher_validation, validation
from lelp_sklearn._common.typing import FloatArray
from lelp_sklearn._projection import tensors


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
    if isinstance(head, tuple | list) and len(head) == 2:
        coef, intercept = head
    elif hasattr(head, "coef_") and hasattr(head, "classes_"):
        teacher_validation.check_one_vs_rest(head, head.classes_)
        coef, intercept, classes = head.coef_, head.intercept_, head.classes_
    elif hasattr(head, "weight") and hasattr(head, "out_features"):
        coef, intercept = head.weight, head.bias
    elif hasattr(head, "steps"):
        raise teacher_validation.composed_head(head)
    elif is_unfitted_classifier(head):
        return None, None
    else:
        raise teacher_validation.unknown_head(head)
    # A layer without bias has None for it.
    intercept = 0.0 if intercept is None else tensors.to_array(intercept)
    arrays = tensors.to_array(coef), intercept
    return Head(*validation.check_head(*arrays, n_features)), classes


def is_unfitted_classifier(head: Any) -> bool:
    """Whether a head is a classifier that is still to be fitted."""
    is_classifying = hasattr(head, "__sklearn_tags__") and is_classifier(head)
    return is_classifying and not hasattr(head, "classes_")


def least_squares_head(mean: FloatArray, scatter: FloatArray, n_features: int) -> Head:
    """Linear map from embeddings to logits by weighted least squares.

    `mean` (d + C,) and `scatter` (d + C, d + C) are those of all joint rows (embedding,
    logits). The smallest map is taken where several fit alike; exact where the logits
    are linear.
    """
    inputs, logits = slice(n_features), slice(n_features, None)
    coef = (linalg.pinvh(scatter[inputs, inputs]) @ scatter[inputs, logits]).T
    return Head(coef, mean[logits] - coef @ mean[inputs])


def discriminant_head(
    weight: FloatArray, class_means: FloatArray, scatter: FloatArray
) -> Head:
    r"""Linear discriminant from class weights, means and the scatter within classes.

    .. math:: w_c = \Sigma^{-1} (\mu_c - \bar\mu), \quad
              b_c = -\tfrac12 (\mu_c - \bar\mu) \cdot w_c - w_c \cdot \bar\mu
                    + \log \pi_c

    Measured from the mean of all rows, so that moving the embeddings moves nothing and
    the rows of w span C - 1 dimensions. The shrinkage is the oracle approximating one
    (Chen, Wiesel, Eldar and Hero, 2010), a function of the scatter alone: exact under
    weights and streams.
    """
    n_samples = weight.sum()
    mean = weight @ class_means / n_samples
    steps = class_means - mean
    coef = steps @ linalg.pinvh(shrink(scatter / n_samples, n_samples))
    quadratic = np.einsum("cd,cd->c", steps, coef) / 2
    return Head(coef, np.log(weight / n_samples) - quadratic - coef @ mean)


def shrink(covariance: FloatArray, n_samples: float) -> FloatArray:
    """Shrink a covariance (d, d) towards a multiple of the identity.

    The oracle approximating shrinkage of Chen et al. (2010), as in
    :func:`sklearn.covariance.oas`.
    """
    n_features = covariance.shape[0]
    # Without units, since squares may be more or less than a number can be.
    unit = math.ldexp(1.0, math.frexp(np.trace(covariance))[1] - 1)
    covariance = covariance / unit
    target = np.trace(covariance) / n_features
    squares = np.mean(covariance**2)
    distance = (n_samples + 1) * (squares - target**2 / n_features)
    weight = 1.0 if distance == 0 else min(1.0, (squares + target**2) / distance)
    shrunk = (1 - weight) * covariance
    shrunk.flat[:: n_features + 1] += weight * target
    shrunk *= unit
    return shrunk
