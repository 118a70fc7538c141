"""Losses that several methods share, as pure functions of torch tensors.

Rows are the last dimension but one; all dimensions before it are students that are
trained side by side, or of length one. Every function returns one number for each
student, of the shape of those dimensions. A tensor of the teacher needs no gradient.
`temperature` is a number or has the shape of the result.
"""

import torch
from torch import Tensor


def distillation(
    outputs: Tensor, teacher: Tensor, temperature: float | Tensor
) -> Tensor:
    """Vanilla distillation (Hinton et al., arXiv:1503.02531): τ² KL(teacher ‖ student).

    Both softmaxes are at the temperature τ; the mean is over rows.
    """
    tau = column(temperature)
    target = torch.log_softmax(teacher / tau, -1)
    return temperature**2 * kl(target, torch.log_softmax(outputs / tau, -1))


def label_loss(outputs: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Cross-entropy to labels (..., n); a class of several outputs has their sum.

    The outputs of a class are side by side, and its logit is their logsumexp.
    """
    logits = class_logits(outputs, n_classes)
    chosen = torch.take_along_dim(logits, labels.unsqueeze(-1), -1)
    return (torch.logsumexp(logits, -1, keepdim=True) - chosen).mean((-2, -1))


def class_logits(outputs: Tensor, n_classes: int) -> Tensor:
    """Logsumexp of the outputs of each class, as Subclass Distillation predicts."""
    return torch.logsumexp(outputs.unflatten(-1, (n_classes, -1)), -1)


def column(temperature: float | Tensor) -> float | Tensor:
    """A temperature for each student beside its rows and columns."""
    if isinstance(temperature, Tensor):
        return temperature.unsqueeze(-1).unsqueeze(-1)
    return temperature


def kl(target: Tensor, found: Tensor) -> Tensor:
    """Mean over rows of the divergence of log-probabilities."""
    return (target.exp() * (target - found)).sum(-1).mean(-1)
