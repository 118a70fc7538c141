"""Many students at once, which is what makes the searches of these benchmarks cheap.

Students of one hidden layer that differ in setting, in lesson or in both are trained
side by side, each step a few batched matrix products and a gradient in closed form, on
the loss of `LELPStudentClassifier` and with its optimizer. They draw the initial
weights and the order of rows that the library draws from the lesson's seed, so that
each is the student that the public API trains, but for rounding; a test holds the two
together. The demo itself trains every student by the public API.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fitnet import scaled_embeddings
from methods import Lesson, Method, Setting, subclasses
from tasks import Array

# Gives the order of the rows in an epoch.
Order = Callable[[int], Tensor]


class StackedLinear:
    """A linear layer for each student: weights (G, M, out, in) of G lessons.

    The M students of a lesson, one for each setting, have the same initial weights.
    """

    def __init__(self, layers: Sequence[nn.Linear], n_settings: int) -> None:
        def stack(parts: list[Tensor]) -> Tensor:
            return torch.stack(parts).unsqueeze(1).repeat(1, n_settings, 1, 1)

        self.weight = stack([layer.weight.detach() for layer in layers])
        self.bias = stack([layer.bias.detach().unsqueeze(1) for layer in layers])
        self.weight_grad = torch.zeros_like(self.weight)
        self.bias_grad = torch.zeros_like(self.bias)

    def shared(self, X: Tensor) -> Tensor:
        """Apply to rows that the students of a lesson share, (G, b, in)."""
        G, M, n_out, n_in = self.weight.shape
        found = torch.bmm(self.weight.view(G, M * n_out, n_in), X.mT)
        return found.view(G, M, n_out, -1).add_(self.bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Apply to what each student has, (G, M, in, b)."""
        found = torch.baddbmm(
            self.bias.flatten(0, 1), self.weight.flatten(0, 1), hidden.flatten(0, 1)
        )
        return found.unflatten(0, hidden.shape[:2])

    def backward_shared(self, X: Tensor, grad: Tensor) -> None:
        """Keep the gradients of weights that saw (G, b, in)."""
        found = torch.bmm(grad.flatten(1, 2), X)
        self.weight_grad = found.view_as(self.weight)
        self.bias_grad = grad.sum(3, keepdim=True)

    def backward(self, hidden: Tensor, grad: Tensor) -> Tensor:
        """Keep the gradients of the weights; return that of what they saw."""
        flat = grad.flatten(0, 1)
        found = torch.bmm(flat, hidden.flatten(0, 1).mT)
        self.weight_grad = found.view_as(self.weight)
        self.bias_grad = grad.sum(3, keepdim=True)
        return torch.bmm(self.weight.flatten(0, 1).mT, flat).view_as(hidden)


class StackedAdamW:
    """AdamW with a learning rate for each setting."""

    def __init__(
        self, layers: list[StackedLinear], rates: Tensor, decay: float
    ) -> None:
        self.layers, self.rates, self.decay = layers, rates.view(1, -1, 1, 1), decay
        self.averages = [
            (torch.zeros_like(p), torch.zeros_like(p)) for p, _ in self._parameters()
        ]
        self.n_steps = 0

    def _parameters(self) -> Iterator[tuple[Tensor, Tensor]]:
        for layer in self.layers:
            yield layer.weight, layer.weight_grad
            yield layer.bias, layer.bias_grad

    def step(self, factor: float) -> None:
        """Move all weights, the learning rates times `factor`."""
        self.n_steps += 1
        rates = self.rates * factor
        by_mean = rates / (1 - 0.9**self.n_steps)
        root = (1 - 0.999**self.n_steps) ** 0.5
        for (p, grad), (mean, square) in zip(
            self._parameters(), self.averages, strict=True
        ):
            mean.lerp_(grad, 0.1)
            square.mul_(0.999).addcmul_(grad, grad, value=0.001)
            p.mul_(1 - rates * self.decay)
            scale = square.sqrt().mul_(1 / root).add_(1e-8)
            p.sub_(torch.div(mean, scale, out=scale).mul_(by_mean))


@dataclass(frozen=True)
class Stack:
    """G lessons of n rows at M settings.

    `classes` (G, n, M * C) are each student's class targets, at its temperature, and
    `labels` (G, n, C) those of the share `label_weight` of the loss. `within`
    (G, n, C * S) and FitNet's `embeddings` (G, n, e) are shared by the settings. What
    is a number for each setting has shape (M,). `subclass_weight`, a
    function of progress, multiplies what is taught beyond the classes.
    """

    X: Tensor
    classes: Tensor
    labels: Tensor
    within: Tensor
    n_classes: int
    learning_rates: Tensor
    temperatures: Tensor
    within_temperatures: Tensor
    subclass_weight: Callable[[float], float]
    label_weight: float
    embeddings: Tensor | None
    regression_weights: Tensor
    batch_size: int
    weight_decay: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Settings, classes and subclasses."""
        S = self.within.shape[2] // self.n_classes
        return len(self.learning_rates), self.n_classes, S

    def train(
        self, initial: list[list[nn.Linear]], orders: list[Order], max_epochs: int
    ) -> list[StackedLinear]:
        """Train from initial layers of each lesson: hidden, output, FitNet's regressor.

        `orders` give the order of each lesson's rows in an epoch.
        """
        M = self.shape[0]
        layers = [
            StackedLinear(of_lessons, M) for of_lessons in zip(*initial, strict=True)
        ]
        optimizer = StackedAdamW(layers, self.learning_rates, self.weight_decay)
        n = self.X.shape[1]
        starts = n * torch.arange(len(self.X)).unsqueeze(1)
        with denormals_are_zero():
            for epoch in range(max_epochs):
                order = torch.stack([order(epoch) for order in orders]) + starts
                batches = split(order, self.batch_size)
                for step, rows in enumerate(batches):
                    progress = (epoch + step / len(batches)) / max_epochs
                    self.backward(layers, rows, self.subclass_weight(progress))
                    optimizer.step(0.5 * (1 + math.cos(math.pi * progress)))
        return layers

    def backward(
        self, layers: list[StackedLinear], rows: Tensor, weight: float
    ) -> None:
        """Find the gradients of the mean loss of a batch, rows (G, b)."""
        X = pick(self.X, rows)
        hidden = layers[0].shared(X).relu_()
        grad = self.class_gradient(layers[1](hidden), rows, weight)
        hidden_grad = layers[1].backward(hidden, grad.div_(rows.shape[1]))
        if self.embeddings is not None:
            errors = layers[2](hidden).sub_(pick(self.embeddings, rows).mT.unsqueeze(1))
            factor = 2 * weight / errors[0, 0].numel()
            errors.mul_(factor * self.regression_weights.view(-1, 1, 1))
            hidden_grad.add_(layers[2].backward(hidden, errors))
        layers[0].backward_shared(X, hidden_grad.mul_(hidden > 0))

    def class_gradient(self, outputs: Tensor, rows: Tensor, weight: float) -> Tensor:
        """Return the gradient of each row's loss, in the shape of (G, M, C * S, b)."""
        (G, b), (M, C, S) = rows.shape, self.shape
        tau = self.temperatures.view(M, 1, 1)
        classes = pick(self.classes, rows).mT.view(G, M, C, b)
        if S == 1:
            return self.class_error(outputs / tau, classes, rows)
        outputs = outputs.unflatten(2, (C, S))
        scaled = outputs / tau.unsqueeze(3)
        log_within = torch.log_softmax(scaled, 3)
        # A log-softmax differs from its logits by their logsumexp.
        folded = scaled.select(3, 0) - log_within.select(3, 0)
        error = self.class_error(folded, classes, rows)
        weight = weight * (1 - self.label_weight)
        if not weight:
            return log_within.exp_().mul_(error.unsqueeze(3)).flatten(2, 3)
        within = pick(self.within, rows).mT.reshape(G, 1, C, S, b)
        tau_within = self.within_temperatures.view(M, 1, 1)
        mass = (classes * (weight * tau_within)).unsqueeze(3)
        if torch.equal(self.temperatures, self.within_temperatures):
            grad = log_within.exp_().mul_(error.unsqueeze(3) + mass)
            return grad.sub_(within * mass).flatten(2, 3)
        inner = torch.softmax(outputs / tau_within.unsqueeze(3), 3).sub_(within)
        grad = log_within.exp_().mul_(error.unsqueeze(3))
        return grad.add_(inner.mul_(mass)).flatten(2, 3)

    def class_error(self, folded: Tensor, classes: Tensor, rows: Tensor) -> Tensor:
        """Return the gradient by class logits; `folded` are those over τ."""
        tau = self.temperatures.view(-1, 1, 1)
        error = torch.softmax(folded, 2).sub_(classes).mul_(tau)
        if not self.label_weight:
            return error
        labels = pick(self.labels, rows).mT.unsqueeze(1)
        on_labels = torch.softmax(folded * tau, 2).sub_(labels)
        return error.lerp_(on_labels, self.label_weight)

    def class_logits(self, X: Tensor, layers: list[StackedLinear]) -> Tensor:
        """Return the class logits of each lesson's rows (G, n, d): (G, M, n, C)."""
        outputs = layers[1](layers[0].shared(X).relu_())
        tau = self.temperatures.view(-1, 1, 1, 1)
        scaled = outputs.unflatten(2, self.shape[1:]) / tau
        return (tau[..., 0] * torch.logsumexp(scaled, 3)).mT


def class_logits(
    method: Method, lessons: Sequence[Lesson], settings: list[Setting]
) -> list[list[Array]]:
    """Train a student on each lesson at each setting.

    Returns, for each lesson and each setting, the class logits of the lesson's
    `X_score`, (n, C).
    """
    found = [[np.empty(0)] * len(settings) for _ in lessons]
    lessons = [method.taught(lesson) for lesson in lessons]
    taught = [taught_within(method, lesson) for lesson in lessons]
    shapes = [
        (within.shape, lesson.X.shape, lesson.X_score.shape)
        for within, lesson in zip(taught, lessons, strict=True)
    ]
    for shape in dict.fromkeys(shapes):
        alike = [i for i, other in enumerate(shapes) if other == shape]
        for max_epochs in dict.fromkeys(s["max_epochs"] for s in settings):
            places = [
                i for i, s in enumerate(settings) if s["max_epochs"] == max_epochs
            ]
            logits = _train_alike(
                method,
                [lessons[i] for i in alike],
                [taught[i] for i in alike],
                [settings[i] for i in places],
            )
            for i, of_lesson in zip(alike, logits, strict=True):
                for place, rows in zip(places, of_lesson, strict=True):
                    found[i][place] = rows
    return found


def accuracies(method: Method, lesson: Lesson, settings: list[Setting]) -> list[float]:
    """Return the accuracy that a method reaches at each setting."""
    (by_setting,) = class_logits(method, [lesson], settings)
    return [float(np.mean(rows.argmax(1) == lesson.y_score)) for rows in by_setting]


def _train_alike(
    method: Method, lessons: list[Lesson], taught: list[Array], settings: list[Setting]
) -> Array:
    stack = make_stack(method, lessons, taught, settings)
    drawn = [draws(method, le, stack.within.shape[2]) for le in lessons]
    layers = stack.train(
        [initial for initial, _ in drawn],
        [order for _, order in drawn],
        settings[0]["max_epochs"],
    )
    X_score = torch.from_numpy(np.stack([lesson.X_score for lesson in lessons]))
    return stack.class_logits(X_score, layers).numpy()


def make_stack(
    method: Method, lessons: list[Lesson], taught: list[Array], settings: list[Setting]
) -> Stack:
    """Return the students of one method; `taught` has each lesson's (n, C, S)."""
    n, n_classes, _ = taught[0].shape
    temperatures = column(settings, "temperature")
    labels = torch.stack([torch.eye(n_classes)[torch.tensor(le.y)] for le in lessons])
    classes = []
    for lesson, of_lesson in zip(lessons, labels, strict=True):
        logits = torch.from_numpy(lesson.logits).unsqueeze(1)
        soft = torch.softmax(logits / temperatures.view(1, -1, 1), 2)
        if method.labels_only:
            soft = of_lesson.unsqueeze(1).expand_as(soft)
        classes.append(soft.reshape(n, -1))
    tau_within = method.training.get("within_class_temperature", "auto")
    # "auto" is 1 where each row has one subclass, else the temperature.
    if tau_within == "auto" and not all(np.isin(w, (0, 1)).all() for w in taught):
        within_temperatures = temperatures
    else:
        number = 1.0 if tau_within == "auto" else tau_within
        within_temperatures = torch.full_like(temperatures, number)
    embeddings = None
    if method.is_fitnet:
        embeddings = torch.stack([scaled_embeddings(le.embeddings) for le in lessons])
    return Stack(
        X=torch.from_numpy(np.stack([lesson.X for lesson in lessons])),
        classes=torch.stack(classes),
        labels=labels,
        within=torch.from_numpy(np.stack(taught)).flatten(2),
        n_classes=n_classes,
        learning_rates=column(settings, "learning_rate"),
        temperatures=temperatures,
        within_temperatures=within_temperatures,
        subclass_weight=schedule(method.training.get("subclass_weight", "anneal")),
        label_weight=method.training.get("label_weight", 0.0),
        embeddings=embeddings,
        regression_weights=column(settings, "regression_weight"),
        batch_size=lessons[0].training["batch_size"],
        weight_decay=lessons[0].training["weight_decay"],
    )


def draws(
    method: Method, lesson: Lesson, n_outputs: int
) -> tuple[list[nn.Linear], Order]:
    """Return the initial layers of a student and the order of its rows by epoch.

    They are those that the library draws from the seed, or `FitNetClassifier`.
    """
    n = len(lesson.X)
    seed = lesson.seed
    if not method.is_fitnet:
        seed = int(np.random.RandomState(seed).randint(2**31 - 1, size=3)[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            nn.Linear(lesson.X.shape[1], lesson.n_units),
            nn.Linear(lesson.n_units, n_outputs),
        ]
        generator = torch.Generator()
        if method.is_fitnet:
            layers.append(nn.Linear(lesson.n_units, lesson.embeddings.shape[1]))
            generator.set_state(torch.get_rng_state())
            return layers, lambda epoch: torch.randperm(n, generator=generator)

    def order(epoch: int) -> Tensor:
        state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
        generator.manual_seed(int(state[0] >> 1))
        return torch.randperm(n, generator=generator)

    return layers, order


def split(order: Tensor, batch_size: int) -> list[Tensor]:
    """Split rows (G, n) into batches; a last one of one row joins the one before."""
    batches = list(order.split(batch_size, 1))
    if len(batches) > 1 and batches[-1].shape[1] == 1:
        batches[-2:] = [torch.cat(batches[-2:], 1)]
    return batches


def pick(rows_of_lessons: Tensor, rows: Tensor) -> Tensor:
    """Return rows (G, b) of (G, n, ...); they count on from lesson to lesson."""
    flat = rows_of_lessons.flatten(0, 1).index_select(0, rows.reshape(-1))
    return flat.unflatten(0, rows.shape)


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Take the smallest numbers for zero, as the library does: they are slow."""
    before = sys.float_info.min / 2 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def taught_within(method: Method, lesson: Lesson) -> Array:
    """Return what a method teaches within the classes, (n, C, S)."""
    if method.within is not None:
        return method.within(lesson)
    return subclasses(lesson, **method.splitting)


def column(settings: list[Setting], name: str) -> Tensor:
    """Return one value of each setting, 1 where it has none."""
    values = [setting.get(name, 1.0) for setting in settings]
    return torch.tensor(values, dtype=torch.float32)


def schedule(weight: float | str | Callable) -> Callable[[float], float]:
    """Return a subclass weight as a function of progress."""
    if weight == "anneal":
        return lambda progress: max(0.0, 1 - 2 * progress)
    return weight if callable(weight) else lambda progress: weight
