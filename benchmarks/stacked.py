"""Many students at once, which is what makes the searches of these benchmarks cheap.

Students of one hidden layer that differ in learning rate and temperature are trained
side by side, each step one batched matrix product, on the loss of
`LELPStudentClassifier` and with its optimizer. A test holds the two to the same
predictions; the demo itself trains every student by the public API.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fitnet import scaled_embeddings
from methods import TRAINING, Lesson, Method, Setting, subclasses


class StackedLinear(nn.Module):
    """A linear layer for each student, all with the same initial weights."""

    def __init__(self, n_students: int, initial: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial.weight.detach().T.repeat(n_students, 1, 1))
        self.bias = nn.Parameter(initial.bias.detach().repeat(n_students, 1, 1))

    def forward(self, X: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, X.expand(len(self.weight), -1, -1), self.weight)


class StackedAdamW:
    """AdamW with a learning rate for each student."""

    def __init__(self, parameters: list[Tensor], rates: Tensor, decay: float) -> None:
        self.parameters, self.rates, self.decay = parameters, rates, decay
        self.means = [torch.zeros_like(p) for p in parameters]
        self.squares = [torch.zeros_like(p) for p in parameters]
        self.n_steps = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move all weights, the learning rates times `factor`."""
        self.n_steps += 1
        rates = self.rates.view(-1, 1, 1) * factor
        by_mean = rates / (1 - 0.9**self.n_steps)
        root = (1 - 0.999**self.n_steps) ** 0.5
        for p, mean, square in zip(
            self.parameters, self.means, self.squares, strict=True
        ):
            mean.lerp_(p.grad, 0.1)
            square.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            p.mul_(1 - rates * self.decay)
            p.sub_(by_mean * mean / (square.sqrt() / root + 1e-8))
            p.grad = None


@dataclass(frozen=True)
class Stack:
    """Students side by side; every tensor of settings has shape (n_students, 1, 1, 1).

    `class_targets` (n_students, n, C) are each student's own, at its temperature;
    `within` (n, C, S) and FitNet's `embeddings` (n, d) are shared. `subclass_weight`,
    a function of progress, multiplies what is taught beyond the classes.
    """

    learning_rates: Tensor
    temperatures: Tensor
    within_temperatures: Tensor
    class_targets: Tensor
    within: Tensor
    subclass_weight: Callable[[float], float]
    embeddings: Tensor | None = None
    regression_weights: Tensor | None = None

    def train(
        self, X: Tensor, layers: list[nn.Linear], max_epochs: int, batch_size: int
    ) -> list[StackedLinear]:
        """Train copies of initial layers: hidden, output and FitNet's regressor."""
        stacked = [StackedLinear(len(self.learning_rates), layer) for layer in layers]
        optimizer = StackedAdamW(
            [p for layer in stacked for p in layer.parameters()],
            self.learning_rates[..., 0],
            TRAINING["weight_decay"],
        )
        n_batches = -(-len(X) // batch_size)
        for epoch in range(max_epochs):
            for step, rows in enumerate(torch.randperm(len(X)).split(batch_size)):
                progress = (epoch + step / n_batches) / max_epochs
                self.loss(X, rows, stacked, progress).backward()
                optimizer.step(0.5 * (1 + math.cos(math.pi * progress)))
        return stacked

    def loss(
        self, X: Tensor, rows: Tensor, layers: list[StackedLinear], progress: float
    ) -> Tensor:
        """Return the sum over the students of the mean loss of some rows."""
        hidden = torch.relu(layers[0](X[rows]))
        outputs = layers[1](hidden).unflatten(2, self.within.shape[1:])
        classes, weight = self.class_targets[:, rows], self.subclass_weight(progress)
        scaled = outputs / self.temperatures
        log_classes = torch.log_softmax(torch.logsumexp(scaled, 3), 2)
        loss = -(self.temperatures[..., 0] ** 2 * classes * log_classes).sum()
        if weight and self.within.shape[2] > 1:
            targets = classes.unsqueeze(3) * self.within[rows]
            log_within = torch.log_softmax(outputs / self.within_temperatures, 3)
            squares = self.within_temperatures**2
            loss = loss - weight * (squares * targets * log_within).sum()
        loss = loss / len(rows)
        if self.embeddings is not None:
            errors = (layers[2](hidden) - self.embeddings[rows]).square()
            errors = self.regression_weights[:, 0, 0, 0] * errors.mean((1, 2))
            loss = loss + weight * errors.sum()
        return loss

    @torch.no_grad()
    def class_logits(self, X: Tensor, layers: list[StackedLinear]) -> Tensor:
        """Return each student's class logits, (n_students, n, C)."""
        outputs = layers[1](torch.relu(layers[0](X)))
        scaled = outputs.unflatten(2, self.within.shape[1:]) / self.temperatures
        return self.temperatures[..., 0] * torch.logsumexp(scaled, 3)


def accuracies(method: Method, lesson: Lesson, settings: list[Setting]) -> list[float]:
    """Return the accuracy that a method reaches at each setting."""
    found = {}
    for max_epochs in {setting["max_epochs"] for setting in settings}:
        places = [i for i, s in enumerate(settings) if s["max_epochs"] == max_epochs]
        stack = make_stack(method, lesson, [settings[i] for i in places])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(lesson.seed)
            sizes = [lesson.X.shape[1], lesson.n_units, stack.within[0].numel()]
            layers = [nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:])]
            if method.is_fitnet:
                layers.append(nn.Linear(lesson.n_units, lesson.embeddings.shape[1]))
            X = torch.tensor(lesson.X)
            trained = stack.train(X, layers, max_epochs, TRAINING["batch_size"])
        logits = stack.class_logits(torch.tensor(lesson.X_score), trained)
        right = (logits.argmax(2).numpy() == lesson.y_score).mean(axis=1).tolist()
        found.update(zip(places, right, strict=True))
    return [found[i] for i in range(len(settings))]


def make_stack(method: Method, lesson: Lesson, settings: list[Setting]) -> Stack:
    """Return the students of one method at several settings."""
    temperatures = _column(settings, "temperature")
    logits = torch.from_numpy(lesson.logits)
    classes = torch.softmax(logits / temperatures[..., 0], 2)
    if method.labels_only:
        classes = torch.eye(classes.shape[2])[lesson.y].expand_as(classes)
    if method.within is None:
        within = subclasses(lesson, **method.splitting)
    else:
        within = method.within(lesson)
    tau_within = method.training.get("within_class_temperature", "auto")
    # "auto" is 1 where each row has one subclass, else the temperature.
    if tau_within == "auto" and not np.isin(within, (0, 1)).all():
        within_temperatures = temperatures
    else:
        number = 1.0 if tau_within == "auto" else tau_within
        within_temperatures = torch.full_like(temperatures, number)
    weight = method.training.get("subclass_weight", "anneal")
    return Stack(
        learning_rates=_column(settings, "learning_rate"),
        temperatures=temperatures,
        within_temperatures=within_temperatures,
        class_targets=classes,
        within=torch.from_numpy(within),
        subclass_weight=_schedule(weight),
        embeddings=scaled_embeddings(lesson.embeddings) if method.is_fitnet else None,
        regression_weights=_column(settings, "regression_weight"),
    )


def _column(settings: list[Setting], name: str) -> Tensor:
    values = [setting.get(name, 1.0) for setting in settings]
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def _schedule(weight: float | str | Callable) -> Callable[[float], float]:
    if weight == "anneal":
        return lambda progress: max(0.0, 1 - 2 * progress)
    return weight if callable(weight) else lambda progress: weight
