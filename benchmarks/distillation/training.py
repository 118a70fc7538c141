"""Students of every method, by the public API wherever it has the method's loss."""

from collections.abc import Sequence

import numpy as np

from benchmarks.distillation import stacked
from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods import fit
from benchmarks.distillation.methods.base import (
    DistillationData,
    Method,
    Peer,
    Setting,
)


def class_logits(
    method: Method, data_sets: Sequence[DistillationData], settings: list[Setting]
) -> list[list[Array]]:
    """Train a student of a method on each data set at each setting.

    FitNet and the peers are trained side by side, others one by one. So is FitNet with
    a module, or if data are `one_by_one`; a `Peer` is refused there with a ValueError.
    Returns, for each data set and each setting, the class logits of the rows to score,
    (n, C).
    """
    has_own_loss = method.is_fitnet or isinstance(method, Peer)
    if has_own_loss and not is_one_by_one(data_sets[0]):
        return stacked.class_logits(method, data_sets, settings)
    if isinstance(method, Peer):
        raise ValueError(
            f"method has the loss {method.term!r}, which is written for students "
            "of one hidden layer that are trained side by side, but the data have "
            "a module or are one_by_one: leave out the method"
        )
    return [
        [fit.scored_logits(method, data, setting) for setting in settings]
        for data in data_sets
    ]


def accuracies(
    method: Method, data_sets: Sequence[DistillationData], settings: list[Setting]
) -> list[list[float]]:
    """Return the accuracies on each data set at each setting.

    Students that `class_logits` trains one by one are trained by a search of the
    library, together if they have one hidden layer.
    """
    has_own_loss = method.is_fitnet or isinstance(method, Peer)
    if has_own_loss or is_one_by_one(data_sets[0]):
        found = class_logits(method, data_sets, settings)
        return [
            [float(np.mean(rows.argmax(1) == data.y_score)) for rows in by_setting]
            for data, by_setting in zip(data_sets, found, strict=True)
        ]
    return [fit.accuracies(method, data, settings) for data in data_sets]


def is_one_by_one(data: DistillationData) -> bool:
    """Return whether students are trained one after the other."""
    return data.module is not None or data.one_by_one
