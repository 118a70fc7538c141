"""Subclass Distillation: a teacher retrained for subclasses (arXiv:2002.03936)."""

import math

import torch
from torch import Tensor

from benchmarks.distillation.methods import losses
from benchmarks.distillation.methods.base import CONSTANT, Batch, Peer, Term

# As many as the library's default.
N_SUBCLASSES = 20
NAME = "Subclass"


def alike_subclasses(outputs: Tensor, temperature: float = 1.0) -> Tensor:
    """The auxiliary loss of Subclass Distillation's teacher (arXiv:2002.03936).

    With v a row's K outputs less their mean and over their standard deviation,
    mean_i log Σ_j exp(v_i·v_j / (K τ)) − 1/τ − log n: at most 0, and 0 where all rows
    are alike. A teacher that lessens it spreads rows over the subclasses.
    """
    v = outputs - outputs.mean(-1, keepdim=True)
    v = v / (v.square().mean(-1, keepdim=True) + 1e-9).sqrt()
    products = v @ v.mT / (temperature * v.shape[-1])
    found = torch.logsumexp(products, -1).mean(-1)
    return found - 1 / temperature - math.log(v.shape[-2])


def teacher_loss(outputs: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """Return the teacher's loss: the labels' and, of the same weight, the auxiliary."""
    return losses.label_loss(outputs, y, n_classes) + alike_subclasses(outputs)


TERM = Term(Batch.distillation, own_weight=1.0, is_beside_labels=True)
METHODS = {"Subclass Distillation": Peer(term=NAME, training=CONSTANT)}
