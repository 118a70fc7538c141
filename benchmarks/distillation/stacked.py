"""Students of FitNet and of the peers, side by side, with losses of their own.

Students of one hidden layer that differ in setting, in data or in both share each step:
a few batched matrix products. Those of a peer draw the initial weights and the order of
rows that the library draws from the seed, so that they are paired with its students.

Parameters have the shape (G, M, out, in), of G data sets and M settings, and what a
student makes of a batch the shape (G, M, units, b).
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods import TERMS
from benchmarks.distillation.methods.base import (
    Batch,
    DistillationData,
    Method,
    Peer,
    Setting,
    Term,
)
from benchmarks.distillation.methods.fitnet import TERM as FITNET_TERM
from benchmarks.distillation.methods.fitnet import scaled_embeddings
from benchmarks.distillation.methods.losses import class_logits as summed_logits
from benchmarks.distillation.methods.subclass_distillation import NAME as SUBCLASS

# Returns the order of the rows in an epoch.
Order = Callable[[int], Tensor]


class StackedAdamW:
    """AdamW with a learning rate for each setting."""

    def __init__(self, parameters: list[Tensor], rates: Tensor, decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.rates = rates.view(1, -1, 1, 1)
        self.averages = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.n_steps = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move all weights, the learning rates times `factor`."""
        self.n_steps += 1
        rates = self.rates * factor
        by_mean = rates / (1 - 0.9**self.n_steps)
        root = (1 - 0.999**self.n_steps) ** 0.5
        for p, (mean, square) in zip(self.parameters, self.averages, strict=True):
            mean.lerp_(p.grad, 0.1)
            square.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            p.mul_(1 - rates * self.decay)
            scale = square.sqrt().mul_(1 / root).add_(1e-8)
            p.sub_(torch.div(mean, scale, out=scale).mul_(by_mean))


@dataclass(frozen=True)
class Objective:
    """The loss of all students, a term beside that of the classes.

    `logits` are (G, n, K), `embeddings` (G, n, e) and `labels` (G, n); what is a number
    for each setting has shape (M,). `term_weight`, a function of progress, multiplies
    the term.
    """

    term: Term
    logits: Tensor
    embeddings: Tensor
    labels: Tensor
    n_classes: int
    temperatures: Tensor
    own_weights: Tensor
    term_weight: Callable[[float], float]

    @property
    def n_outputs(self) -> int:
        """As many as the teacher's."""
        return self.logits.shape[2]

    def backward(
        self, hidden: Tensor, outputs: Tensor, own: list[Tensor], rows: Tensor, weight
    ) -> None:
        """Find the gradients of the mean loss of a batch, rows (G, b)."""
        batch = Batch(
            hidden=hidden.mT,
            outputs=outputs.mT,
            logits=pick(self.logits, rows).unsqueeze(1),
            embeddings=pick(self.embeddings, rows).unsqueeze(1),
            labels=pick(self.labels, rows).unsqueeze(1),
            temperatures=self.temperatures.unsqueeze(0),
            n_classes=self.n_classes,
        )
        is_beside_labels = self.term.is_beside_labels
        loss = batch.label_loss() if is_beside_labels else batch.distillation()
        if weight:
            loss = loss + weight * self.own_weights * self.term.loss(batch, *own)
        loss.sum().backward()

    def class_logits(self, outputs: Tensor) -> Tensor:
        """Return the class logits of outputs, (G, M, n, C)."""
        return summed_logits(outputs.mT, self.n_classes)


@dataclass(frozen=True)
class Stack:
    """Students on G data sets of n rows, X (G, n, d), at M learning rates."""

    X: Tensor
    objective: Objective
    learning_rates: Tensor
    batch_size: int
    weight_decay: float

    def train(
        self, initial: list[list[nn.Module]], orders: list[Order], max_epochs: int
    ) -> list[Tensor]:
        """Train hidden and output layers, the first of the modules of each data set.

        `orders` give the order of each data set's rows in an epoch. The others are the
        term's own, which rest once it weighs nothing.
        """
        n, parameters = self.X.shape[1], stack_parameters(initial, self.learning_rates)
        student, own = parameters[:4], parameters[4:]
        optimizers = [
            StackedAdamW(part, self.learning_rates, self.weight_decay)
            for part in (student, own)
        ]
        starts = n * torch.arange(len(self.X)).unsqueeze(1)
        with denormals_are_zero():
            for epoch in range(max_epochs):
                order = torch.stack([order(epoch) for order in orders]) + starts
                batches = split(order, self.batch_size)
                for step, rows in enumerate(batches):
                    progress = (epoch + step / len(batches)) / max_epochs
                    weight = self.objective.term_weight(progress)
                    for p in parameters:
                        p.grad = None
                    hidden, outputs = apply(student, pick(self.X, rows))
                    self.objective.backward(hidden, outputs, own, rows, weight)
                    factor = 0.5 * (1 + math.cos(math.pi * progress))
                    for optimizer in optimizers if weight else optimizers[:1]:
                        optimizer.step(factor)
        return [p.detach() for p in student]

    def class_logits(self, X: Tensor, student: list[Tensor]) -> Tensor:
        """Return the class logits of rows (G, n, d): (G, M, n, C)."""
        return self.objective.class_logits(apply(student, X)[1])


def apply(student: list[Tensor], X: Tensor) -> tuple[Tensor, Tensor]:
    """Return hidden units and outputs, (G, M, units, b), of rows (G, b, d)."""
    weight, bias, output_weight, output_bias = student
    G, M, n_units, n_features = weight.shape
    hidden = torch.bmm(weight.view(G, M * n_units, n_features), X.mT)
    hidden = hidden.view(G, M, n_units, -1).add_(bias.mT).relu_()
    outputs = torch.baddbmm(
        output_bias.mT.flatten(0, 1), output_weight.flatten(0, 1), hidden.flatten(0, 1)
    )
    return hidden, outputs.unflatten(0, (G, M))


def class_logits(
    method: Method, data_sets: Sequence[DistillationData], settings: list[Setting]
) -> list[list[Array]]:
    """Train a student on each data set at each setting, by FitNet or a `Peer`.

    Returns, for each data set and each setting, the class logits of the rows to score,
    (n, C).
    """
    found = [[np.empty(0)] * len(settings) for _ in data_sets]
    data_sets = [method.select_layer(data) for data in data_sets]
    shapes = [(data.X.shape, data.X_score.shape) for data in data_sets]
    epochs = [setting["max_epochs"] for setting in settings]
    for shape in dict.fromkeys(shapes):
        alike = [i for i, other in enumerate(shapes) if other == shape]
        for max_epochs in dict.fromkeys(epochs):
            columns = [j for j, other in enumerate(epochs) if other == max_epochs]
            logits = train_alike(
                method,
                [data_sets[i] for i in alike],
                [settings[j] for j in columns],
            )
            for i, of_data in zip(alike, logits, strict=True):
                for j, rows in zip(columns, of_data, strict=True):
                    found[i][j] = rows
    return found


def train_alike(
    method: Method, data_sets: list[DistillationData], settings: list[Setting]
) -> Array:
    """Train students of equal shapes and epochs; return logits (G, M, n, C)."""
    objective = make_objective(method, data_sets, settings)
    training = data_sets[0].training
    stack = Stack(
        X=stacked([data.X for data in data_sets]),
        objective=objective,
        learning_rates=column(settings, "learning_rate"),
        batch_size=training["batch_size"],
        weight_decay=training["weight_decay"],
    )
    drawn = [draws(method, data, objective.n_outputs) for data in data_sets]
    initial, orders = zip(*drawn, strict=True)
    student = stack.train(initial, orders, settings[0]["max_epochs"])
    X_score = stacked([data.X_score for data in data_sets])
    return stack.class_logits(X_score, student).numpy()


def make_objective(
    method: Method, data_sets: list[DistillationData], settings: list[Setting]
) -> Objective:
    """Return the objective of FitNet or a `Peer`."""
    is_subclass = isinstance(method, Peer) and method.term == SUBCLASS
    logits = [d.subclass_teacher.logits if is_subclass else d.logits for d in data_sets]
    return Objective(
        term=FITNET_TERM if method.is_fitnet else TERMS[method.term],
        logits=stacked(logits),
        embeddings=torch.stack([scaled_embeddings(d.embeddings) for d in data_sets]),
        labels=stacked([data.y for data in data_sets]),
        n_classes=data_sets[0].logits.shape[1],
        temperatures=column(settings, "temperature"),
        own_weights=column(settings, "regression_weight"),
        term_weight=schedule(method.training.get("subclass_weight", "anneal")),
    )


def draws(
    method: Method, data: DistillationData, n_outputs: int
) -> tuple[list[nn.Module], Order]:
    """Return the initial modules of a student and the order of its rows by epoch.

    They are those that the library draws from the seed, or `FitNetClassifier`; the
    modules of a term come last.
    """
    n, seed = len(data.X), data.seed
    if not method.is_fitnet:
        seed = int(np.random.RandomState(seed).randint(2**31 - 1, size=3)[2])
    sizes = data.n_units, data.embeddings.shape[1]
    generator = torch.Generator()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [
            nn.Linear(data.X.shape[1], data.n_units),
            nn.Linear(data.n_units, n_outputs),
        ]
        if method.is_fitnet:
            layers += FITNET_TERM.modules(*sizes)
            generator.set_state(torch.get_rng_state())
            return layers, lambda epoch: torch.randperm(n, generator=generator)
        if isinstance(method, Peer):
            torch.manual_seed(data.seed)
            layers += TERMS[method.term].modules(*sizes)

    def order(epoch: int) -> Tensor:
        state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
        generator.manual_seed(int(state[0] >> 1))
        return torch.randperm(n, generator=generator)

    return layers, order


def stack_parameters(initial: list[list[nn.Module]], rates: Tensor) -> list[Tensor]:
    """Return the modules' parameters as (G, M, out, in), a vector as (G, M, 1, out)."""
    of_data = [[p for m in modules for p in m.parameters()] for modules in initial]
    stacks = [torch.stack(parts).detach() for parts in zip(*of_data, strict=True)]
    return [
        stack.view(len(stack), 1, -1, stack.shape[-1])
        .repeat(1, len(rates), 1, 1)
        .requires_grad_()
        for stack in stacks
    ]


def split(order: Tensor, batch_size: int) -> list[Tensor]:
    """Split rows (G, n) into batches; a last one of one row joins the one before."""
    batches = list(order.split(batch_size, 1))
    if len(batches) > 1 and batches[-1].shape[1] == 1:
        batches[-2:] = [torch.cat(batches[-2:], 1)]
    return batches


def pick(arrays: Tensor, rows: Tensor) -> Tensor:
    """Return rows (G, b) of (G, n, ...); they count on from one to the next."""
    return (
        arrays.flatten(0, 1).index_select(0, rows.reshape(-1)).unflatten(0, rows.shape)
    )


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Take the smallest numbers for zero, as the library does: they are slow."""
    before = sys.float_info.min / 2 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def stacked(parts: Sequence[Array]) -> Tensor:
    """Return arrays of one shape as one tensor."""
    return torch.from_numpy(np.stack(parts))


def column(settings: list[Setting], name: str) -> Tensor:
    """Return one value of each setting, 1 where it has none."""
    values = [setting.get(name, 1.0) for setting in settings]
    return torch.tensor(values, dtype=torch.float32)


def schedule(weight: float | str | Callable) -> Callable[[float], float]:
    """Return a subclass weight as a function of progress."""
    if weight == "anneal":
        return lambda progress: max(0.0, 1 - 2 * progress)
    return weight if callable(weight) else lambda progress: weight
