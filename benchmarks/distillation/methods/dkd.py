"""DKD: the row's class apart from the others (Zhao et al., arXiv:2203.08679)."""

import torch
from torch import Tensor

from benchmarks.distillation.methods import losses
from benchmarks.distillation.methods.base import Batch, Peer, Term


def decoupled(
    outputs: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    other_weight: float = 8.0,
) -> Tensor:
    """DKD (Zhao et al., arXiv:2203.08679): τ² [KL of target or not + β KL of others].

    The first KL is between the probabilities of the row's class and of all others
    together, the second between the others' among themselves, β times. With two classes
    there is one other: the second is zero, and the first is vanilla distillation.
    """
    tau = losses.column(temperature)
    n_classes = outputs.shape[-1]
    order = (labels.unsqueeze(-1) + torch.arange(n_classes)) % n_classes
    logs = []
    for logits in (teacher, outputs):
        own_first = torch.take_along_dim(logits / tau, order, -1)
        rest = own_first[..., 1:]
        pair = torch.stack([own_first[..., 0], torch.logsumexp(rest, -1)], -1)
        logs.append((torch.log_softmax(pair, -1), torch.log_softmax(rest, -1)))
    (pair_t, rest_t), (pair_s, rest_s) = logs
    found = losses.kl(pair_t, pair_s) + other_weight * losses.kl(rest_t, rest_s)
    return temperature**2 * found


def warm_up(progress: float) -> float:
    """Rise to 1 over a twelfth of the training: DKD's 20 of 240 epochs."""
    return min(1.0, 12 * progress)


def loss(batch: Batch) -> Tensor:
    """Return DKD between outputs."""
    return decoupled(batch.outputs, batch.logits, batch.labels, batch.temperatures)


TERM = Term(loss, own_weight=1.0, is_beside_labels=True)
METHODS = {"DKD": Peer(term="DKD", training={"subclass_weight": warm_up})}
