"""Students that learn by the losses of other methods, many side by side.

As in ``stacked.py`` students of one hidden layer that differ in setting, in lesson or
in both share each step, from the initial weights and in the order of rows that the
library draws from the lesson's seed; but the gradients are autograd's, so that a method
is no more than its loss. Parameters have the shape (G, M, out, in), of G lessons and M
settings; rows are the last dimension but one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import methods
import peer_losses as losses
import stacked
from fitnet import scaled_embeddings
from methods import Lesson, Method, Setting
from peer_methods import SUBCLASS, Peer
from tasks import Array

# VID's variances at the start, and what is added to them.
FIRST_VARIANCE, LEAST_VARIANCE = 5.0, 1e-5


@dataclass(frozen=True)
class Batch:
    """Rows of G lessons at M settings: what M share is of length 1 there.

    `hidden` (G, M, b, units) and `outputs` (G, M, b, K) are the students', `logits`
    (G, 1, b, K) and `embeddings` (G, 1, b, e) the teachers'. `labels` are (G, 1, b),
    `temperatures` (1, M).
    """

    hidden: Tensor
    outputs: Tensor
    logits: Tensor
    embeddings: Tensor
    labels: Tensor
    temperatures: Tensor
    n_classes: int

    def distillation(self) -> Tensor:
        """Vanilla distillation over all outputs."""
        return losses.distillation(self.outputs, self.logits, self.temperatures)

    def label_loss(self) -> Tensor:
        """Cross-entropy to the labels."""
        return losses.label_loss(self.outputs, self.labels, self.n_classes)


@dataclass(frozen=True)
class Term:
    """What a method adds, and to what.

    `loss` takes a batch and the method's own parameters, which are those of `modules`,
    called with the numbers of hidden units and of the teacher's embeddings.
    `is_beside_labels` says that it is added to the labels' cross-entropy, else it is to
    vanilla distillation.
    """

    loss: Callable[..., Tensor]
    modules: Callable[[int, int], list[nn.Module]] = lambda n_units, n_embedding: []
    is_beside_labels: bool = False


class Variances(nn.Module):
    """What VID's variances are made of by softplus."""

    def __init__(self, n_embedding: int) -> None:
        super().__init__()
        start = math.log(math.expm1(FIRST_VARIANCE - LEAST_VARIANCE))
        self.raw = nn.Parameter(torch.full((n_embedding,), start))


def vid_modules(n_units: int, n_embedding: int) -> list[nn.Module]:
    """Three layers that predict embeddings, and the variances."""
    widths = (n_units, n_embedding, n_embedding, n_embedding)
    layers = [nn.Linear(*pair) for pair in pairwise(widths)]
    return [*layers, Variances(n_embedding)]


def vid(batch: Batch, *parameters: Tensor) -> Tensor:
    """VID, whose three layers have ReLUs between them."""
    *layers, raw = parameters
    found = affine(batch.hidden, *layers[:2])
    for start in (2, 4):
        found = affine(torch.relu(found), *layers[start : start + 2])
    variances = softplus(raw) + LEAST_VARIANCE
    return losses.variational_information(found, batch.embeddings, variances)


def crd_modules(n_units: int, n_embedding: int) -> list[nn.Module]:
    """A linear head on either side.

    They are as wide as the student's layer: a wider one would have no higher rank.
    """
    return [nn.Linear(n_units, n_units), nn.Linear(n_embedding, n_units)]


def crd(batch: Batch, *parameters: Tensor) -> Tensor:
    """CRD between the heads."""
    student = affine(batch.hidden, *parameters[:2])
    teacher = shared_affine(batch.embeddings[:, 0], *parameters[2:])
    return losses.contrast(student, teacher, batch.labels)


def rkd(batch: Batch) -> Tensor:
    """RKD between hidden units and embeddings."""
    return losses.relations(batch.hidden, batch.embeddings)


def dkd(batch: Batch) -> Tensor:
    """DKD between outputs."""
    return losses.decoupled(
        batch.outputs, batch.logits, batch.labels, batch.temperatures
    )


def dist(batch: Batch) -> Tensor:
    """DIST between outputs."""
    return losses.correlations(batch.outputs, batch.logits, batch.temperatures)


TERMS = {
    "VID": Term(vid, vid_modules),
    "RKD": Term(rkd),
    "CRD": Term(crd, crd_modules),
    "DKD": Term(dkd, is_beside_labels=True),
    "DIST": Term(dist, is_beside_labels=True),
    SUBCLASS: Term(Batch.distillation, is_beside_labels=True),
}


class AutogradAdamW(stacked.StackedAdamW):
    """The same on tensors whose gradients autograd has found."""

    def _parameters(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((p, p.grad) for p in self.layers)


@dataclass(frozen=True)
class PeerStack:
    """G lessons of n rows at M settings, and the term of a method.

    `X` (G, n, d), `logits` (G, n, K), `embeddings` (G, n, e) and `labels` (G, n); what
    is a number for each setting has shape (M,). `weight` is a function of progress.
    """

    X: Tensor
    logits: Tensor
    embeddings: Tensor
    labels: Tensor
    n_classes: int
    term: Term
    learning_rates: Tensor
    temperatures: Tensor
    own_weights: Tensor
    weight: Callable[[float], float]
    batch_size: int
    weight_decay: float

    def train(
        self,
        initial: list[list[nn.Module]],
        orders: list[stacked.Order],
        max_epochs: int,
    ) -> list[Tensor]:
        """Train hidden and output layers, the first of each lesson's modules."""
        M, n = len(self.learning_rates), self.X.shape[1]
        parameters = stack_parameters(initial, M)
        student, own = parameters[:4], parameters[4:]
        # The term's own rest once it weighs nothing.
        optimizers = [
            AutogradAdamW(part, self.learning_rates, self.weight_decay)
            for part in (student, own)
        ]
        starts = n * torch.arange(len(self.X)).unsqueeze(1)
        with stacked.denormals_are_zero():
            for epoch in range(max_epochs):
                order = torch.stack([order(epoch) for order in orders]) + starts
                batches = stacked.split(order, self.batch_size)
                for step, rows in enumerate(batches):
                    progress = (epoch + step / len(batches)) / max_epochs
                    weight = self.weight(progress)
                    for p in parameters:
                        p.grad = None
                    self.loss(parameters, rows, weight).sum().backward()
                    factor = 0.5 * (1 + math.cos(math.pi * progress))
                    with torch.no_grad():
                        for optimizer in optimizers if weight else optimizers[:1]:
                            optimizer.step(factor)
        return [p.detach() for p in student]

    def loss(self, parameters: list[Tensor], rows: Tensor, weight: float) -> Tensor:
        """Return the loss of each student, (G, M), on a batch of rows (G, b)."""
        pick = partial(stacked.pick, rows=rows)
        hidden = torch.relu(shared_affine(pick(self.X), *parameters[:2]))
        batch = Batch(
            hidden=hidden,
            outputs=affine(hidden, *parameters[2:4]),
            logits=pick(self.logits).unsqueeze(1),
            embeddings=pick(self.embeddings).unsqueeze(1),
            labels=pick(self.labels).unsqueeze(1),
            temperatures=self.temperatures.unsqueeze(0),
            n_classes=self.n_classes,
        )
        if self.term.is_beside_labels:
            found = batch.label_loss()
        else:
            found = batch.distillation()
        if weight:
            added = self.term.loss(batch, *parameters[4:])
            found = found + weight * self.own_weights * added
        return found

    def class_logits(self, X: Tensor, parameters: list[Tensor]) -> Tensor:
        """Return the class logits of each lesson's rows (G, n, d): (G, M, n, C)."""
        hidden = torch.relu(shared_affine(X, *parameters[:2]))
        return losses.class_logits(affine(hidden, *parameters[2:4]), self.n_classes)


def affine(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply the layers of all students, each to its own rows (G, M, b, in)."""
    return rows @ weight.mT + bias


def shared_affine(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply the layers of all students to rows that those of a lesson share."""
    G, M, n_out, n_in = weight.shape
    found = torch.bmm(weight.view(G, M * n_out, n_in), rows.mT)
    return found.view(G, M, n_out, -1).mT + bias


def stack_parameters(initial: list[list[nn.Module]], n_settings: int) -> list[Tensor]:
    """Return the modules' parameters as (G, M, out, in), a vector as (G, M, 1, out)."""
    of_lessons = [[p for module in le for p in module.parameters()] for le in initial]
    stacks = [torch.stack(parts).detach() for parts in zip(*of_lessons, strict=True)]
    return [
        stack.view(len(stack), 1, -1, stack.shape[-1])
        .repeat(1, n_settings, 1, 1)
        .requires_grad_()
        for stack in stacks
    ]


def class_logits(
    method: Method, lessons: Sequence[Lesson], settings: list[Setting]
) -> list[list[Array]]:
    """Train a student of any method on each lesson at each setting.

    Where the lessons have a module it is one student after the other, and a `Peer` is
    refused with a ValueError. The lessons of a `Peer` are of one shape, its settings of
    equally many epochs.
    Returns, for each lesson and each setting, the class logits of the lesson's
    `X_score`, (n, C).
    """
    if lessons[0].module is not None:
        if isinstance(method, Peer):
            raise ValueError(
                f"method has the loss {method.term!r}, which is written for students "
                "of one hidden layer, but the lessons have a module: leave out the "
                "method or the module"
            )
        return [
            [methods.scored_logits(method, lesson, setting) for setting in settings]
            for lesson in lessons
        ]
    if not isinstance(method, Peer):
        return stacked.class_logits(method, lessons, settings)
    stack = make_stack(method, lessons, settings)
    drawn = [draws(stack, method, lesson) for lesson in lessons]
    parameters = stack.train(
        [initial for initial, _ in drawn],
        [order for _, order in drawn],
        settings[0]["max_epochs"],
    )
    X_score = torch.from_numpy(np.stack([lesson.X_score for lesson in lessons]))
    found = stack.class_logits(X_score, parameters)
    return [list(of_lesson) for of_lesson in found.numpy()]


def make_stack(
    method: Peer, lessons: Sequence[Lesson], settings: list[Setting]
) -> PeerStack:
    """Return the students of one method."""

    def stack(parts: list[Array]) -> Tensor:
        return torch.from_numpy(np.stack(parts))

    is_subclass = method.term == SUBCLASS
    column = partial(stacked.column, settings)
    return PeerStack(
        X=stack([lesson.X for lesson in lessons]),
        logits=stack(
            [le.subclass_teacher.logits if is_subclass else le.logits for le in lessons]
        ),
        embeddings=torch.stack([scaled_embeddings(le.embeddings) for le in lessons]),
        labels=stack([lesson.y for lesson in lessons]),
        n_classes=lessons[0].logits.shape[1],
        term=TERMS[method.term],
        learning_rates=column("learning_rate"),
        temperatures=column("temperature"),
        own_weights=column("regression_weight"),
        weight=stacked.schedule(method.training.get("subclass_weight", "anneal")),
        batch_size=lessons[0].training["batch_size"],
        weight_decay=lessons[0].training["weight_decay"],
    )


def draws(
    stack: PeerStack, method: Peer, lesson: Lesson
) -> tuple[list[nn.Module], stacked.Order]:
    """Return initial modules, the term's own last, and the order of rows by epoch."""
    layers, order = stacked.draws(method, lesson, stack.logits.shape[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.seed)
        own = stack.term.modules(lesson.n_units, lesson.embeddings.shape[1])
    return [*layers, *own], order
