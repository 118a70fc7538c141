"""Paired differences, their intervals, and p-values corrected for several tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from tasks import Array

# The scores of each method on each task, by seed: scores[task][method][seed].
Scores = dict[str, dict[str, dict[int, float]]]


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error, 95 % confidence interval and two-sided p-value."""

    mean: float
    error: float
    low: float
    high: float
    p: float


def difference(of_task: dict[str, dict[int, float]], one: str, other: str) -> Array:
    """Return one method's lead over another, for each seed that both have."""
    a, b = of_task[one], of_task[other]
    return np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def paired(differences: Array) -> Estimate:
    """Return the mean of differences paired by seed (Student's t)."""
    return mean_over_tasks([differences])


def mean_over_tasks(differences: Sequence[Array]) -> Estimate:
    """Return the mean over tasks of the mean difference of each, (n_seeds,).

    The tasks are taken as they are: the interval is about other seeds, that is other
    teachers, rows and initial weights. Tasks may differ in spread and number of seeds;
    the degrees of freedom are Welch's and Satterthwaite's.
    """
    sizes = np.array([len(values) for values in differences])
    mean = float(np.mean([values.mean() for values in differences]))
    variances = np.array([v.var(ddof=1) for v in differences]) / sizes
    error = float(np.sqrt(variances.sum()) / len(differences))
    if not error:
        return Estimate(mean, 0.0, mean, mean, float(mean == 0))
    freedom = variances.sum() ** 2 / np.sum(variances**2 / (sizes - 1))
    half = float(t.ppf(0.975, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom))
    return Estimate(mean, error, mean - half, mean + half, p)


def holm(p_values: Sequence[float]) -> Array:
    """Return p-values corrected for all tests of a family (Holm, 1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected
