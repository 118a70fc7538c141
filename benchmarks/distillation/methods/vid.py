"""VID: a Gaussian whose mean is a network (Ahn et al., arXiv:1904.05835)."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from benchmarks.distillation.methods.base import CONSTANT, Batch, Peer, Term

# The variances at the start, and what is added to them.
FIRST_VARIANCE, LEAST_VARIANCE = 5.0, 1e-5


def variational_information(
    predicted: Tensor, embeddings: Tensor, variances: Tensor
) -> Tensor:
    """VID (Ahn et al., arXiv:1904.05835): the mean of ½ [(μ − h)² / σ² + log σ²].

    μ, of the shape of the embeddings h, is what a network predicts from the student's
    hidden units; σ² is learned, one for each column.
    """
    errors = (predicted - embeddings).square() / variances
    return 0.5 * (errors + variances.log()).mean((-2, -1))


class Variances(nn.Module):
    """The variances, before softplus."""

    def __init__(self, n_embedding: int) -> None:
        super().__init__()
        start = math.log(math.expm1(FIRST_VARIANCE - LEAST_VARIANCE))
        self.raw = nn.Parameter(torch.full((n_embedding,), start))


def modules(n_units: int, n_embedding: int) -> list[nn.Module]:
    """Three layers that predict embeddings, and the variances."""
    widths = (n_units, n_embedding, n_embedding, n_embedding)
    layers = [nn.Linear(*pair) for pair in pairwise(widths)]
    return [*layers, Variances(n_embedding)]


def loss(batch: Batch, *parameters: Tensor) -> Tensor:
    """Return VID, whose three layers have ReLUs between them."""
    *layers, raw = parameters
    predicted = batch.hidden @ layers[0].mT + layers[1]
    for weight, bias in (layers[2:4], layers[4:6]):
        predicted = torch.relu(predicted) @ weight.mT + bias
    variances = softplus(raw) + LEAST_VARIANCE
    return variational_information(predicted, batch.embeddings, variances)


TERM = Term(loss, own_weight=1.0, modules=modules)
METHODS = {
    "VID, annealed": Peer(term="VID"),
    "VID, constant": Peer(term="VID", training=CONSTANT),
}
