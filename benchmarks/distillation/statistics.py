"""Paired differences, their intervals, and p-values corrected for several tests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t
from sklearn.metrics import adjusted_mutual_info_score

from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods.base import DistillationData

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


def level(values: Iterable[float]) -> str:
    """Return a mean with its standard error."""
    values = np.array(list(values))
    return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def interval(estimate: Estimate) -> str:
    """Return a mean with its confidence interval."""
    return f"{estimate.mean:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def agreement(data: DistillationData, within: Array) -> float:
    """Return how well subclasses agree with the hidden groups, a mean over classes.

    It is the adjusted mutual information within a class of the groups and of each row's
    most likely subclass, by `within` (n, C, S): 0 is chance, 1 the same partition.
    """
    subclass = within[np.arange(len(data.y)), data.y].argmax(1)
    classes = (data.y == label for label in np.unique(data.y))
    found = [
        adjusted_mutual_info_score(data.groups[rows], subclass[rows])
        for rows in classes
    ]
    return float(np.mean(found))
