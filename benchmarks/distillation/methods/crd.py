"""CRD: contrast with rows of other classes (Tian et al., arXiv:1910.10699)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.distillation.methods.base import CONSTANT, Batch, Peer, Term


def contrast(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 0.07
) -> Tensor:
    """CRD (Tian et al., arXiv:1910.10699), with the negatives of a batch.

    Both sides are of unit length and of equal width. The dot product of a row with the
    teacher's same row is to exceed those with its rows of other classes, and the other
    way round: the sum of two cross-entropies. The paper keeps thousands of negatives in
    memory; these are the rows of other classes in the batch, which are contrasted by a
    softmax.
    """
    products = normalize(student, dim=-1) @ normalize(teacher, dim=-1).mT / temperature
    other_class = labels.unsqueeze(-1) != labels.unsqueeze(-2)
    is_seen = other_class | torch.eye(labels.shape[-1], dtype=torch.bool)
    # Cosines are at most 1, so nothing overflows at such a temperature.
    seen = products.exp() * is_seen
    both = seen.sum(-1).log() + seen.sum(-2).log()
    return (both - 2 * products.diagonal(dim1=-2, dim2=-1)).mean(-1)


def modules(n_units: int, n_embedding: int) -> list[nn.Module]:
    """A linear head on either side.

    They are as wide as the student's layer: a wider one would have no higher rank.
    """
    return [nn.Linear(n_units, n_units), nn.Linear(n_embedding, n_units)]


def loss(batch: Batch, *parameters: Tensor) -> Tensor:
    """Return CRD between the heads."""
    weight, bias, teacher_weight, teacher_bias = parameters
    student = batch.hidden @ weight.mT + bias
    teacher = batch.embeddings @ teacher_weight.mT + teacher_bias
    return contrast(student, teacher, batch.labels)


TERM = Term(loss, own_weight=0.8, modules=modules)
METHODS = {
    "CRD, annealed": Peer(term="CRD"),
    "CRD, constant": Peer(term="CRD", training=CONSTANT),
}
