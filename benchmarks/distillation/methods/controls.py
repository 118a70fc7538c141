"""Controls: more outputs alone, shuffled subclasses, and the true groups."""

import numpy as np

from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods.base import DistillationData, Method, subclasses


def shuffled_subclasses(data: DistillationData) -> Array:
    """Return the library's subclasses, shuffled among the rows of each class."""
    within = subclasses(data)
    rng = np.random.default_rng(data.seed)
    for label in np.unique(data.y):
        rows = np.flatnonzero(data.y == label)
        within[rows] = within[rng.permutation(rows)]
    return within


def true_groups(data: DistillationData) -> Array:
    """Return one-hot groups in a row's own class; in the others, all groups alike.

    Its own class is the true one.
    """
    # Not that of a teacher that errs: a class would then be split into groups of the
    # others too. What the teacher takes for another class is no group of that.
    y = data.y if data.true_y is None else data.true_y
    groups = data.groups
    members = [np.unique(groups[y == label]) for label in np.unique(y)]
    within = np.zeros((len(y), len(members), max(map(len, members))), np.float32)
    for label, of_class in enumerate(members):
        within[y != label, label, : len(of_class)] = 1 / len(of_class)
        rows = np.flatnonzero(y == label)
        within[rows, label, np.searchsorted(of_class, groups[rows])] = 1
    return within


METHODS = {
    "same outputs, λ = 0": Method(training={"subclass_weight": 0.0}),
    "shuffled subclasses": Method(within=shuffled_subclasses),
    "oracle": Method(
        {"subclass_temperature": 0.0},
        {"within_class_temperature": 1.0},
        within=true_groups,
    ),
}
