"""Schedules of weights and learning rates, by the progress of training (0 to 1)."""

import math
import numbers
from collections.abc import Callable
from typing import Any

Schedule = Callable[[float], float]

# The learning rate "auto".
_RATE_PER_TEMPERATURE, _LARGEST_RATE = 0.015, 0.06
_MODULE_RATE = 0.01

# As in torch.optim.lr_scheduler.OneCycleLR (Smith and Topin, 2018).
_PEAK, _FIRST = 0.3, 1 / 25
_LAST = _FIRST / 1e4


def subclass_weight_schedule(
    subclass_weight: float | str | Schedule, first_weight: float = 1.0
) -> Schedule:
    """Return the schedule of λ: a number, a function, or "anneal".

    "anneal" falls linearly from `first_weight` to 0 over the first half of training.
    """
    if subclass_weight == "anneal":
        return lambda progress: first_weight * max(0.0, 1.0 - 2.0 * progress)
    if callable(subclass_weight):
        return subclass_weight
    constant = float(subclass_weight)
    return lambda progress: constant


def auto_learning_rate(module: Any, temperature: float) -> float:
    """Return the learning rate "auto", which a schedule multiplies.

    It follows the temperature, by which the outputs are divided in the loss; a `module`
    of the caller, about which nothing is known, has a low one.
    """
    if module is not None:
        return _MODULE_RATE
    return min(_RATE_PER_TEMPERATURE * temperature, _LARGEST_RATE)


def learning_rate_schedule(
    name: str | Schedule, *, endless: bool = False
) -> Schedule | None:
    """Return the factor of the learning rate; None if it is constant.

    With `endless` training the named schedules are constant: no end is known.
    """
    if callable(name):
        return name
    named = {"constant": None, "cosine": _cosine, "one_cycle": _one_cycle}
    return None if endless else named[name]


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _one_cycle(progress: float) -> float:
    """Rise from a 25th over the first three tenths, then fall to nearly nothing."""
    if progress < _PEAK:
        return 1.0 - (1.0 - _FIRST) * _cosine(progress / _PEAK)
    return _LAST + (1.0 - _LAST) * _cosine((progress - _PEAK) / (1.0 - _PEAK))


def check_schedule(schedule: Schedule, name: str, max_epochs: int) -> None:
    """Raise unless a schedule returns finite numbers >= 0 throughout training."""
    for epoch in range(max_epochs + 1):
        progress = epoch / max_epochs
        check_schedule_value(schedule(progress), name, progress)


def check_schedule_value(
    value: Any, name: str, progress: float, at: tuple[int, int] | None = None
) -> None:
    """Raise unless a value of a schedule is finite and >= 0.

    `at` are the epoch and the step that training has reached.
    """
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        where = f", step {at[1] + 1} of epoch {at[0] + 1}" if at else ""
        raise ValueError(
            f"{name} gives {value!r} at progress {progress:g}{where}; it must give "
            "finite numbers that are not negative."
        )
