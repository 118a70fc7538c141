"""What changes during training, as functions of its progress from 0 to 1."""

import math
from collections.abc import Callable

from lelp_sklearn import _training_validation as validation

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

    Where training is `endless` the named ones are constant: there is no end to fall to.
    """
    if callable(name):
        return name
    return None if endless else _NAMED[name]


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _one_cycle(progress: float) -> float:
    """Rise from a 25th over the first three tenths, then fall to nearly nothing."""
    if progress < _SUMMIT:
        return 1.0 - (1.0 - _FIRST) * _cosine(progress / _SUMMIT)
    return _LAST + (1.0 - _LAST) * _cosine((progress - _SUMMIT) / (1.0 - _SUMMIT))


# As in torch.optim.lr_scheduler.OneCycleLR (Smith and Topin, 2018).
_SUMMIT, _FIRST = 0.3, 1 / 25
_LAST = _FIRST / 1e4

_NAMED = {"constant": None, "cosine": _cosine, "one_cycle": _one_cycle}


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
