"""The losses of other methods of distillation, as pure functions of torch tensors.

Rows are the last dimension but one; all dimensions before it are students that are
trained side by side, or of length one. Every function returns one number for each
student, of the shape of those dimensions. Where a tensor is the teacher's no gradient
is wanted for it. `temperature` is a number or has the shape of the result.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

# Squared distances below this count as none.
SMALLEST = 1e-12


def distillation(outputs: Tensor, teacher: Tensor, temperature: float | Tensor):
    """Vanilla distillation (Hinton et al., arXiv:1503.02531): τ² KL(teacher ‖ student).

    Both softmaxes are at the temperature τ; the mean is over rows.
    """
    tau = _column(temperature)
    target = torch.log_softmax(teacher / tau, -1)
    return _squared(temperature) * _kl(target, torch.log_softmax(outputs / tau, -1))


def label_loss(outputs: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Cross-entropy to labels (..., n); a class of several outputs has their sum.

    The outputs of a class lie side by side, and its logit is their logsumexp.
    """
    logits = class_logits(outputs, n_classes)
    chosen = torch.take_along_dim(logits, labels.unsqueeze(-1), -1)
    return (torch.logsumexp(logits, -1, keepdim=True) - chosen).mean((-2, -1))


def class_logits(outputs: Tensor, n_classes: int) -> Tensor:
    """Logsumexp of the outputs of each class, as Subclass Distillation predicts."""
    return torch.logsumexp(outputs.unflatten(-1, (n_classes, -1)), -1)


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
    tau = _column(temperature)
    n_classes = outputs.shape[-1]
    order = (labels.unsqueeze(-1) + torch.arange(n_classes)) % n_classes
    logs = []
    for logits in (teacher, outputs):
        own_first = torch.take_along_dim(logits / tau, order, -1)
        rest = own_first[..., 1:]
        pair = torch.stack([own_first[..., 0], torch.logsumexp(rest, -1)], -1)
        logs.append((torch.log_softmax(pair, -1), torch.log_softmax(rest, -1)))
    (pair_t, rest_t), (pair_s, rest_s) = logs
    found = _kl(pair_t, pair_s) + other_weight * _kl(rest_t, rest_s)
    return _squared(temperature) * found


def correlations(
    outputs: Tensor, teacher: Tensor, temperature: float | Tensor
) -> Tensor:
    """DIST (Huang et al., arXiv:2205.10536): τ² [1 − mean ρ of rows + 1 − of columns].

    ρ is Pearson's correlation of the student's and the teacher's probabilities at τ:
    within a row over the classes, and within a class over the rows. Two numbers are
    always correlated by ±1: with two classes the first term has no gradient, which
    would be noise of rounding, and is left out.
    """
    tau = _column(temperature)
    student = torch.softmax(outputs / tau, -1)
    target = torch.softmax(teacher / tau, -1)
    found = 1 - pearson(student.mT, target.mT).mean(-1)
    if outputs.shape[-1] > 2:
        found = found + 1 - pearson(student, target).mean(-1)
    return _squared(temperature) * found


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation along the last dimension."""
    one, other = (part - part.mean(-1, keepdim=True) for part in (one, other))
    norms = one.norm(dim=-1) * other.norm(dim=-1)
    return (one * other).sum(-1) / (norms + 1e-8)


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


def variational_information(
    predicted: Tensor, embeddings: Tensor, variances: Tensor
) -> Tensor:
    """VID (Ahn et al., arXiv:1904.05835): the mean of ½ [(μ − h)² / σ² + log σ²].

    μ, of the shape of the embeddings h, is what a network predicts from the student's
    hidden units; σ² is learned, one for each column.
    """
    errors = (predicted - embeddings).square() / variances
    return 0.5 * (errors + variances.log()).mean((-2, -1))


def contrast(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 0.07
) -> Tensor:
    """CRD (Tian et al., arXiv:1910.10699), with the negatives of a batch.

    Both sides are of unit length and of equal width. A row of the student is to be
    told by its dot product from the teacher's rows of other classes, and the other way
    round: the sum of two cross-entropies. The paper keeps thousands of negatives in
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


def _column(temperature: float | Tensor) -> float | Tensor:
    """A temperature for each student beside its rows and columns."""
    if isinstance(temperature, Tensor):
        return temperature.unsqueeze(-1).unsqueeze(-1)
    return temperature


def _squared(temperature: float | Tensor) -> float | Tensor:
    return temperature**2


def _kl(target: Tensor, found: Tensor) -> Tensor:
    """Mean over rows of the divergence of log-probabilities."""
    return (target.exp() * (target - found)).sum(-1).mean(-1)


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
