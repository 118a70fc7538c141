"""What changes during training, as functions of its progress from 0 to 1."""

import math
from collections.abc import Callable

from lelp_sklearn._common import training_validation as validation

Schedule = Callable[[float], float]


def subclass_weight_schedule(subclass_weight: float | str | Schedule) -> Schedule:
    """Give the subclass weight: a number, a function, or "anneal".

    "anneal" falls linearly from 1 to 0 over the first half of training.
    """
    if subclass_weight == "anneal":
        return lambda progress: max(0.0, 1.0 - 2.0 * progress)
    if callable(subclass_weight):
        return subclass_weight
    constant = float(subclass_weight)
    return lambda progress: constant


def learning_rate_schedule(
    name: str | Schedule, *, endless: bool = False
) -> Schedule | None:
    """Give the factor of the learning rate; None where it is constant.

    Where training is `endless` "cosine" is constant: there is no end to fall to.
    """
    if name == "cosine" and not endless:
        return lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress))
    return name if callable(name) else None


def check_schedule(schedule: Schedule | None, name: str, max_epochs: int) -> None:
    """Raise unless a schedule gives numbers, none negative, throughout training."""
    if schedule is not None:
        for epoch in range(max_epochs + 1):
            progress = epoch / max_epochs
            validation.check_schedule_value(schedule(progress), name, progress)


def first_final_epoch(schedule: Schedule, max_epochs: int) -> int:
    """Give the first epoch from which on a schedule keeps its final value."""
    final = schedule(1.0)
    epoch = max_epochs
    while epoch and schedule((epoch - 1) / max_epochs) == final:
        epoch -= 1
    return epoch
