"""The loss that a student is trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lelp_sklearn._training.batches import TrainingTensors
from lelp_sklearn.losses import _soft_cross_entropy, _subclass_losses, class_logits


@dataclass(frozen=True)
class Objective:
    """The loss on subclass targets, and on labels at their weight α."""

    n_classes: int
    temperature: float
    within_class_temperature: float
    label_weight: float

    def losses(
        self, logits: Tensor, batch: TrainingTensors, subclass_weight: float | Tensor
    ) -> Tensor:
        """Return the loss (n,) of each row, at the weight λ of the subclasses."""
        by_class = logits.unflatten(1, (self.n_classes, -1))
        scaled_class_logits = torch.logsumexp(by_class / self.temperature, dim=2)
        losses = _subclass_losses(
            by_class,
            scaled_class_logits,
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
