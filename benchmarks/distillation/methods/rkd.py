"""RKD: distances of pairs and angles of triples (Park et al., arXiv:1904.05068)."""

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from benchmarks.distillation.methods.base import CONSTANT, Batch, Peer, Term

# Squared distances below this count as none.
SMALLEST = 1e-12


def relations(hidden: Tensor, embeddings: Tensor, n_angle_rows: int = 12) -> Tensor:
    """RKD (Park et al., arXiv:1904.05068): 25 times distances, 50 times angles.

    The angles, n³ of them, are those among the first `n_angle_rows` rows of a batch.
    """
    rows = (..., slice(n_angle_rows), slice(None))
    angles = angle_relations(hidden[rows], embeddings[rows])
    return 25 * distance_relations(hidden, embeddings) + 50 * angles


def distance_relations(hidden: Tensor, embeddings: Tensor) -> Tensor:
    """Smooth L1 between distances of pairs, each side's in units of its own mean."""
    student, target = _relative_distances(hidden), _relative_distances(embeddings)
    return _smooth_l1(student, target).mean((-2, -1))


def angle_relations(hidden: Tensor, embeddings: Tensor) -> Tensor:
    """Smooth L1 between the cosines of the angles of triples of rows."""
    return _smooth_l1(_cosines(hidden), _cosines(embeddings)).mean((-3, -2, -1))


def _smooth_l1(found: Tensor, target: Tensor) -> Tensor:
    return smooth_l1_loss(*torch.broadcast_tensors(found, target), reduction="none")


def _relative_distances(rows: Tensor) -> Tensor:
    n = rows.shape[-2]
    squares = rows.square().sum(-1)
    products = rows @ rows.mT
    squared = squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * products
    others = 1 - torch.eye(n, dtype=rows.dtype)
    distances = squared.clamp(min=SMALLEST).sqrt() * others
    return distances / (distances.sum((-2, -1), keepdim=True) / (n * (n - 1)))


def _cosines(rows: Tensor) -> Tensor:
    """Cosines at row i between the directions to rows j and k, (..., n, n, n).

    Rows that coincide have no direction: zero, and no gradient.
    """
    differences = rows.unsqueeze(-3) - rows.unsqueeze(-2)
    squared = differences.square().sum(-1, keepdim=True)
    lengths = squared.clamp(min=SMALLEST).sqrt()
    unit = torch.where(squared > SMALLEST, differences / lengths, 0.0)
    return unit @ unit.mT


def loss(batch: Batch) -> Tensor:
    """Return RKD between hidden units and embeddings."""
    return relations(batch.hidden, batch.embeddings)


TERM = Term(loss, own_weight=1.0)
METHODS = {
    "RKD, annealed": Peer(term="RKD"),
    "RKD, constant": Peer(term="RKD", training=CONSTANT),
}
