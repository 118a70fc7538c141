"""The loss that a student is trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lelp_sklearn._training.batches import TrainingTensors
from lelp_sklearn._typing import FloatArray
from lelp_sklearn.losses import _soft_cross_entropy, _subclass_losses, class_logits

# The margin of the teacher's logits, in units of τ, from which on the subclasses have
# the temperature and the weight of the classes.
_MARGIN_PER_TEMPERATURE = 5
# Of a teacher that tells no class apart; temperatures have to be positive.
_SMALLEST_SCALE = 1e-3


@dataclass(frozen=True)
class Objective:
    """The loss on subclass targets, and on labels at their weight α.

    What "auto" means is decided by the targets of the first fit: `subclass_scale` is
    the result of `subclass_scale`, and `has_hard_subclasses` tells whether each class
    has all its mass on one subclass.
    """

    n_classes: int
    temperature: float
    within_class_temperature: float
    label_weight: float
    subclass_scale: float = 1.0
    has_hard_subclasses: bool = False

    def losses(
        self, logits: Tensor, batch: TrainingTensors, subclass_weight: float | Tensor
    ) -> Tensor:
        """Return the loss (n,) of each row, at the weight λ of the subclasses."""
        by_class = logits.unflatten(1, (self.n_classes, -1))
        scaled_class_logits = torch.logsumexp(by_class / self.temperature, dim=2)
        losses = _subclass_losses(
            scaled_class_logits,
            by_class / self.within_class_temperature,
            batch.soft_targets.unflatten(1, (self.n_classes, -1)),
            temperature=self.temperature,
            subclass_weight=subclass_weight,
            within_class_temperature=self.within_class_temperature,
        )
        if batch.label_targets is None:
            return losses
        class_logits = scaled_class_logits * self.temperature
        on_labels = _soft_cross_entropy(class_logits, batch.label_targets)
        return torch.lerp(losses, on_labels, self.label_weight)

    def class_logits(self, logits: Tensor) -> Tensor:
        """Return the class logits (n, C)."""
        return class_logits(logits, self.n_classes, temperature=self.temperature)


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
