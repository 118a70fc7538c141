"""DIST: correlations within rows and columns (Huang et al., arXiv:2205.10536)."""

import torch
from torch import Tensor

from benchmarks.distillation.methods import losses
from benchmarks.distillation.methods.base import CONSTANT, Batch, Peer, Term


def correlations(
    outputs: Tensor, teacher: Tensor, temperature: float | Tensor
) -> Tensor:
    """DIST (Huang et al., arXiv:2205.10536): τ² [1 − mean ρ of rows + 1 − of columns].

    ρ is Pearson's correlation of the student's and the teacher's probabilities at τ:
    within a row over the classes, and within a class over the rows. Two numbers are
    always correlated by ±1: with two classes the first term has no gradient, which
    would be noise of rounding, and is left out.
    """
    tau = losses.column(temperature)
    student = torch.softmax(outputs / tau, -1)
    target = torch.softmax(teacher / tau, -1)
    found = 1 - pearson(student.mT, target.mT).mean(-1)
    if outputs.shape[-1] > 2:
        found = found + 1 - pearson(student, target).mean(-1)
    return temperature**2 * found


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation along the last dimension."""
    one, other = (part - part.mean(-1, keepdim=True) for part in (one, other))
    norms = one.norm(dim=-1) * other.norm(dim=-1)
    return (one * other).sum(-1) / (norms + 1e-8)


def loss(batch: Batch) -> Tensor:
    """Return DIST between outputs."""
    return correlations(batch.outputs, batch.logits, batch.temperatures)


TERM = Term(loss, own_weight=2.0, is_beside_labels=True)
METHODS = {"DIST": Peer(term="DIST", training=CONSTANT)}
