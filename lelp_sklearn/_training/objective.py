"""The loss that a student is trained on, and schedules by the progress of training.

The progress goes from 0 to 1.
"""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lelp_sklearn._training.batches import TrainingTensors
from lelp_sklearn._typing import FloatArray
from lelp_sklearn.losses import _soft_cross_entropy, _subclass_losses, class_logits

Schedule = Callable[[float], float]

# The margin of the teacher's logits, in units of τ, from which on the subclasses have
# the temperature and the weight of the classes.
_MARGIN_PER_TEMPERATURE = 5
# Of a teacher that tells no class apart; temperatures have to be positive.
_SMALLEST_SCALE = 1e-3

# The learning rate "auto".
_RATE_PER_TEMPERATURE, _LARGEST_RATE = 0.015, 0.06
_MODULE_RATE = 0.01

# As in torch.optim.lr_scheduler.OneCycleLR (Smith and Topin, 2018).
_PEAK, _FIRST = 0.3, 1 / 25
_LAST = _FIRST / 1e4


@dataclass(frozen=True)
class Objective:
    """The loss on subclass targets, and on labels at their weight α.

    What "auto" means is decided by the targets of the first fit: `subclass_scale` is
    the result of `subclass_scale`, and `has_hard_subclasses` tells whether each class
    has all its mass on one subclass.

    Of students that are stacked, temperatures and weights are (n_students, 1), logits
    and targets (n_students, n_outputs, n_rows), and labels (n_classes, n_rows).
    """

    n_classes: int
    temperature: Any
    within_class_temperature: Any
    label_weight: Any
    subclass_scale: float = 1.0
    has_hard_subclasses: bool = False

    def losses(
        self, logits: Tensor, batch: TrainingTensors, subclass_weight: float | Tensor
    ) -> Tensor:
        """Return the loss (n,) of each row, at the weight λ of the subclasses."""
        by_class = logits.unflatten(1, (self.n_classes, -1))
        tau, tau_within = self.temperature, self.within_class_temperature
        scaled_class_logits = torch.logsumexp(by_class / _of_rows(tau, by_class), dim=2)
        losses = _subclass_losses(
            scaled_class_logits,
            by_class / _of_rows(tau_within, by_class),
            batch.soft_targets.unflatten(1, (self.n_classes, -1)),
            temperature=tau,
            subclass_weight=subclass_weight,
            within_class_temperature=tau_within,
        )
        if batch.label_targets is None:
            return losses
        class_logits = scaled_class_logits * _of_rows(tau, scaled_class_logits)
        on_labels = _soft_cross_entropy(class_logits, batch.label_targets)
        return torch.lerp(losses, on_labels, self.label_weight)

    def class_logits(self, logits: Tensor) -> Tensor:
        """Return the class logits (n, C)."""
        return class_logits(logits, self.n_classes, temperature=self.temperature)


def _of_rows(number: Any, values: Tensor) -> Any:
    """Return a number; one for each student with as many axes as `values`."""
    if isinstance(number, Tensor):
        return number.view(-1, *[1] * (values.ndim - 1))
    return number


def subclass_scale(class_targets: FloatArray, weight: FloatArray) -> float:
    """Return a fifth of the mean log-ratio of the two largest targets, at most 1.

    For targets (n, C) at the temperature τ it is m / (5 τ), where m is the mean margin
    of the teacher's logits. `weight` (n,) weighs the rows.
    """
    second, first = np.partition(class_targets, -2, axis=1)[:, -2:].T.astype(np.float64)
    # The target of a class that is out of the question may be 0.
    ratio = np.log(first) - np.log(np.maximum(second, np.finfo(np.float32).tiny))
    mean = float(np.average(ratio, weights=weight))
    return min(1.0, max(_SMALLEST_SCALE, mean / _MARGIN_PER_TEMPERATURE))


# --- schedules ------------------------------------------------------------------------


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


def schedule_value(
    schedule: Schedule, name: str, progress: float, at: tuple[int, int] | None = None
) -> float:
    """Return the value of a schedule, or raise unless it is finite and >= 0.

    `at` are the epoch and the step that training has reached.
    """
    value: Any = schedule(progress)
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        where = f", step {at[1] + 1} of epoch {at[0] + 1}" if at else ""
        raise ValueError(
            f"{name} gives {value!r} at progress {progress:g}{where}; it must give "
            "finite numbers that are not negative."
        )
    return float(value)
