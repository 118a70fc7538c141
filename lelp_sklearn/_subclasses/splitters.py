"""From class covariances to the directions that split each class."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from lelp_sklearn._subclasses.directions import Solver, row_space_basis, to_null_space
from lelp_sklearn._subclasses.moments import Covariance
from lelp_sklearn._typing import FloatArray
from lelp_sklearn._validation import check_n_subclasses, check_no_overflow

# What "auto" stands for; benchmarks/defaults.py compares it with other choices. Too
# many subclasses cost little, too few lose the gain.
AUTO_N_SUBCLASSES = 20
# In root mean squares of z, by splitter; an array of directions counts as "pca".
AUTO_SUBCLASS_TEMPERATURE = {"pca": 0.3, "random": 0.3, "kmeans": 0.1}


@dataclass(frozen=True)
class Split:
    """Subclass scores z = h . components - offsets.

    Parameters
    ----------
    components : ndarray of shape (C, S, d)
    offsets : ndarray of shape (C, S)
    spectrum : ndarray of shape (C, S) or None
        Principal variances before rotation, for principal directions.
    variance : ndarray of shape (C, S) or None
        Variance of z over the rows of the class, where it is known.
    """

    components: FloatArray
    offsets: FloatArray
    spectrum: FloatArray | None = None
    variance: FloatArray | None = None


def null_space_rows(coef: FloatArray, *, null_space: bool) -> FloatArray:
    """Basis (d, r) of what is taken out of the embeddings; r = 0 takes out nothing."""
    return row_space_basis(coef) if null_space else np.empty((coef.shape[1], 0))


def single_split(covariance: Covariance) -> Split:
    """One subclass a class, vanilla distillation: no direction is needed."""
    n_classes, n_features = covariance.mean.shape
    zeros = np.zeros((n_classes, 1))
    return Split(np.zeros((n_classes, 1, n_features)), zeros, zeros, zeros)


def principal_split(
    solve: Solver,
    covariance: Covariance,
    classes: np.ndarray,
    n_subclasses: int | None,
    *,
    rotation: str | None,
    random_state: np.random.RandomState,
) -> Split:
    """Split along the top principal directions, rotated to share their variance."""
    found = solve(n_subclasses or AUTO_N_SUBCLASSES)
    n_subclasses = check_n_subclasses(
        n_subclasses,
        AUTO_N_SUBCLASSES,
        [directions.variances.size for directions in found],
        classes,
        "directions along which it varies in the null space of the head",
    )
    if n_subclasses == 1:
        return single_split(covariance)
    spectrum = np.stack([each.variances[:n_subclasses] for each in found])
    principal = np.stack([each.vectors[:, :n_subclasses].T for each in found])
    turns = np.stack([draw_rotation(rotation, v, random_state) for v in spectrum])
    split = _about_means(turns @ principal, covariance)
    variance = np.einsum("cst,ct->cs", turns**2, spectrum)
    return replace(split, spectrum=spectrum, variance=variance)


def random_split(
    covariance: Covariance,
    rows: FloatArray,
    classes: np.ndarray,
    n_subclasses: int | None,
    random_state: np.random.RandomState,
) -> Split:
    """Split along random orthonormal directions in the null space."""
    n_features, rank = rows.shape
    n_subclasses = check_n_subclasses(
        n_subclasses,
        AUTO_N_SUBCLASSES,
        [n_features - rank] * len(classes),
        classes,
        "dimensions in the null space of the head",
    )
    if n_subclasses == 1:
        return single_split(covariance)
    components = []
    for _ in classes:
        draw = random_state.standard_normal((n_features, n_subclasses))
        components.append(np.linalg.qr(to_null_space(draw, rows))[0].T)
    split = _about_means(np.stack(components), covariance)
    # What a class that does not vary makes of its directions would be rounding.
    variance = _variances(split.components, covariance)
    still = variance <= covariance.noise[:, None]
    return Split(
        np.where(still[:, :, None], 0, split.components),
        np.where(still, 0, split.offsets),
        variance=np.where(still, 0, variance),
    )


def given_split(components: FloatArray, covariance: Covariance) -> Split:
    """Split along the caller's own directions (C, S, d), used as they are."""
    if components.shape[1] == 1:
        return single_split(covariance)
    return _about_means(components, covariance)


def centroid_split(
    centroids: list[FloatArray],
    covariance: Covariance,
    classes: np.ndarray,
    n_subclasses: int | None,
) -> Split:
    r"""Split by the nearest of the centroids (S, d), which are relative to the mean.

    .. math:: -\tfrac12 \|h - \mu - m\|^2
              = m \cdot (h - \mu) - \tfrac12 \|m\|^2 + \mathrm{const}
    """
    n_subclasses = check_n_subclasses(
        n_subclasses,
        AUTO_N_SUBCLASSES,
        [len(each) for each in centroids],
        classes,
        "distinct rows in the null space of the head",
    )
    if n_subclasses == 1:
        return single_split(covariance)
    split = _about_means(np.stack(centroids), covariance)
    half_squares = np.einsum("csd,csd->cs", split.components, split.components) / 2
    return replace(split, offsets=split.offsets + half_squares)


def without_directions(split: Split) -> Split:
    """Split of the same shape that gives every subclass the same share."""
    return Split(
        np.zeros_like(split.components),
        np.zeros_like(split.offsets),
        split.spectrum,
        np.zeros_like(split.offsets),
    )


def draw_rotation(
    kind: str | None, spectrum: FloatArray, random_state: np.random.RandomState
) -> FloatArray:
    r"""Draw Q (S, S) orthonormal; its rows turn principal directions into subclasses.

    ``"equal"`` makes the diagonal of :math:`Q \Lambda Q^\top` constant: its columns are
    the eigenvectors of a random correlation matrix whose spectrum is that of Lambda,
    scaled to sum to S.
    """
    n = spectrum.size
    if kind is None or n == 1:
        return np.eye(n)
    if kind == "random":
        haar: FloatArray = stats.ortho_group.rvs(n, random_state=random_state)
        return haar
    scaled = spectrum * (n / spectrum.sum())
    # Rounding of the sum grows with the number of terms.
    correlation = stats.random_correlation.rvs(
        scaled, random_state=random_state, tol=1e-13 * n
    )
    # eigh gives ascending eigenvalues, the spectrum descends.
    turn: FloatArray = np.linalg.eigh(correlation)[1][:, ::-1]
    # Rounding may turn the sign of an eigenvector.
    return turn * np.where(turn[0] < 0, -1, 1)


def score_moments(split: Split, covariance: Covariance) -> tuple[FloatArray, float]:
    """What the scores do over the rows of their own class.

    Returns
    -------
    variance : ndarray of shape (C, S)
        Variance of z.
    scale : float
        Root mean square of z over all rows and subclasses: one unit of
        ``subclass_temperature``. 0 where nothing varies along any direction.
    """
    # Centroids have the unit of X, and the squares of z its fourth power, which may be
    # more or less than a number can be: here they have no unit.
    unit = math.ldexp(1.0, math.frexp(np.abs(split.components).max(initial=0))[1] - 1)
    components, offsets = split.components / unit, split.offsets / unit
    if split.variance is None:
        variance = _variances(components, covariance)
    else:
        variance = split.variance / unit**2
    mean = np.einsum("csd,cd->cs", components, covariance.mean) - offsets
    square = (variance + mean**2).mean(axis=1)
    scale = float(np.sqrt(np.average(square, weights=covariance.weight)))
    lengths = np.einsum("csd,csd->cs", components, components)
    if np.all(variance <= covariance.noise[:, None] * lengths):
        return np.zeros_like(variance), 0.0
    with np.errstate(over="ignore", under="ignore"):
        variance = variance * unit**2
    check_no_overflow(variance, variance.dtype)
    return variance, unit * scale


def resolve_subclass_temperature(
    value: float | str, scale: float, splitter: str
) -> float:
    """Absolute beta from its value in units of `scale`, or "auto"."""
    if value == "auto":
        value = AUTO_SUBCLASS_TEMPERATURE[splitter]
    # Without a scale all scores are 0, whatever divides them.
    return float(value) * (scale or 1.0)


def _variances(components: FloatArray, covariance: Covariance) -> FloatArray:
    """Variance (C, S) of the class along each of its directions (C, S, d)."""
    bases = [each.T for each in components]
    products = zip(bases, covariance.apply(bases), strict=True)
    variance: FloatArray = np.stack([np.einsum("dk,dk->k", b, p) for b, p in products])
    return np.maximum(variance, 0)


def _about_means(components: FloatArray, covariance: Covariance) -> Split:
    offsets = np.einsum("csd,cd->cs", components, covariance.mean)
    return Split(components, offsets)
