"""Epochs and steps of training on subclass targets."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from lelp_sklearn import _training_validation as validation
from lelp_sklearn._training.batches import (
    TrainingTensors,
    batched_outputs,
    shuffled_batches,
)
from lelp_sklearn._training.cuda_graphs import (
    GraphedSteps,
    Step,
    can_capture,
)
from lelp_sklearn._training.device import (
    denormals_are_zero,
    derive_seed,
    seeded,
    torch_lock,
)
from lelp_sklearn._training.objective import Objective
from lelp_sklearn._training.precision import Precision
from lelp_sklearn._training.process_group import Ranks
from lelp_sklearn._training.schedules import Schedule

Optimizer = torch.optim.Optimizer


def make_optimizer(
    optimizer: str | Callable[..., Optimizer],
    module: nn.Module,
    learning_rate: float,
    weight_decay: float,
) -> Optimizer:
    """Give the optimizer of a module's trainable parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    validation.check_trainable(len(parameters))
    with torch_lock.held():
        if callable(optimizer):
            made = optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)
            _check_optimizer(made)
            return made
        return torch.optim.AdamW(
            parameters,
            lr=learning_rate,
            weight_decay=weight_decay,
            fused=all(p.is_floating_point() for p in parameters),
        )


def try_optimizer(
    optimizer: str | Callable[..., Optimizer], learning_rate: float, weight_decay: float
) -> None:
    """Raise, before work starts, where a callable is seen to make no usable optimizer.

    It is called for one parameter of no module.
    """
    if not callable(optimizer):
        return
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        validation.check_step(optimizer)
    validation.check_optimizer_arguments(optimizer)
    try:
        parameters = [nn.Parameter(torch.zeros(1, 1))]
        with torch_lock.held():
            made = optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)
    except TypeError as reason:
        raise validation.failing_optimizer(optimizer, reason) from reason
    # It may count on the parameters of the module.
    except Exception:
        return
    _check_optimizer(made)


def _check_optimizer(made: Any) -> None:
    validation.check_optimizer(isinstance(made, Optimizer), made)
    validation.check_step(type(made))


def continue_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give a new optimizer the state of a former one, but for what it was made with.

    Learning rates and weight decays stay its own. Where the parameters are others, as
    after some were frozen, it starts again.
    """
    groups = optimizer.param_groups
    former = state["param_groups"]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in former]:
        return
    for group, own in zip(former, groups, strict=True):
        for name in ("lr", "initial_lr", "weight_decay"):
            group.pop(name, None)
            if name in own:
                group[name] = own[name]
    optimizer.load_state_dict(state)


@dataclass(frozen=True)
class Validation:
    """Rows that are held out, and the temperature of their class targets."""

    rows: TrainingTensors
    temperature: float


@dataclass(frozen=True)
class Trainer:
    """Trains a module in place, an epoch at a time.

    Parameters
    ----------
    module, optimizer, objective
        What is trained, how, and on what loss.
    rows : TrainingTensors
        All rows, on the training device.
    used : Tensor of shape (n_used,)
        Indices of the rows to train on.
    subclass_weight, learning_rate : callable
        Functions of progress; None is a constant learning rate.
    max_epochs, batch_size : int
        Number of epochs over which progress goes from 0 to 1; rows a step.
    max_grad_norm : float or None
        Norm to which gradients are clipped.
    augment : callable or None
        Changes the inputs of a batch.
    precision : Precision
        How a step multiplies.
    ranks : Ranks
        The processes that share each batch; all have the same rows.
    seed : int
        Fixes the order of rows and what the module draws, epoch by epoch.
    """

    module: nn.Module
    optimizer: Optimizer
    objective: Objective
    rows: TrainingTensors
    used: Tensor
    subclass_weight: Schedule
    learning_rate: Schedule | None
    max_epochs: int
    batch_size: int
    max_grad_norm: float | None
    augment: Callable[[Tensor], Tensor] | None
    precision: Precision
    ranks: Ranks
    seed: int

    def run_epoch(self, number: int, done: int) -> float:
        """Train for one epoch and give its mean loss.

        Parameters
        ----------
        number : int
            Number of the epoch, which fixes what is drawn at random.
        done : int
            Number of epochs by which training has progressed.

        Raises
        ------
        FloatingPointError
            If the loss of a step was not finite, or the weights after the last.
        ValueError
            If a schedule gives what is no finite number, or negative.
        """
        device = self.rows.X.device
        self.module.train()
        losses, masses, rates = [], [], []
        base_rates = self._base_learning_rates()
        with denormals_are_zero(), torch.enable_grad(), ExitStack() as contexts:
            contexts.enter_context(seeded(derive_seed(self.seed, number), device))
            batches = shuffled_batches(self.used, self.batch_size)
            if self.ranks.size > 1:
                # All shuffle alike, and each draws its own for its part of a batch.
                own = derive_seed(self.seed, number, self.ranks.rank)
                contexts.enter_context(seeded(own, device))
            take_step = contexts.enter_context(self._steps())
            for step, index in enumerate(batches):
                progress = min((done + step / len(batches)) / self.max_epochs, 1.0)
                at = number, step
                rates.append(self._set_learning_rates(base_rates, progress, at))
                weight = self.subclass_weight(progress)
                validation.check_schedule_value(weight, "subclass_weight", progress, at)
                loss, mass = take_step(index, weight)
                losses.append(loss)
                masses.append(mass)
        # The one time in an epoch at which the host waits for the device.
        total = self.ranks.sum(torch.stack(losses))
        finite = self._weights_finite().to(total.dtype).view(1)
        *by_step, weights_finite = torch.cat([total, finite]).tolist()
        validation.check_losses(by_step, rates, number)
        validation.check_weights(bool(weights_finite), rates[-1], number)
        return _weighted_mean(by_step, masses)

    def score(self, held_out: Validation) -> float:
        r"""Give the negative cross-entropy to the class targets: larger is better.

        .. math::

            \sum_i w_i \sum_c p_{i,c} \log \mathrm{softmax}_c(A_i / \tau)
            \, / \sum_i w_i
        """
        rows = held_out.rows
        made = batched_outputs(self.module, rows.X, self.batch_size, rows.X.dtype)
        A = torch.cat([self.objective.class_logits(logits) for logits in made])
        class_targets = rows.soft_targets.reshape(*A.shape, -1).sum(dim=2)
        scores = (class_targets * log_softmax(A / held_out.temperature, 1)).sum(dim=1)
        if rows.weight is None:
            return float(scores.mean())
        return float(torch.dot(scores, rows.weight) / rows.weight.sum())

    @cached_property
    def _recorded(self) -> GraphedSteps | None:
        """Steps to be replayed, None where they cannot be."""
        device = self.rows.X.device
        alone = self.ranks.size == 1 and self.augment is None
        scaled = self.precision.scaler is not None
        if device.type != "cuda" or scaled or not alone:
            return None
        if not can_capture(self.module, self.optimizer):
            return None
        return GraphedSteps(self._step, self.optimizer, device)

    def _steps(self) -> AbstractContextManager[Step]:
        """Give what takes the steps of an epoch."""
        if self._recorded is None:
            return nullcontext(self._step)
        return self._recorded.epoch()

    def _step(
        self, index: Tensor, subclass_weight: float | Tensor
    ) -> tuple[Tensor, Any]:
        """Move the weights; give this process's part of the loss, and the mass."""
        mass: Any = len(index)
        if self.rows.weight is not None:
            mass = self.rows.weight.index_select(0, index).sum()
        self.optimizer.zero_grad()
        own = self.ranks.share(index)
        if len(own):
            loss = self._backward(self.rows.select(own), mass, subclass_weight)
        else:
            loss = self.rows.soft_targets.new_zeros(())
        # Others have gradients that nobody follows or resets.
        trained = self._trained()
        self.ranks.sum_gradients(trained)
        self.precision.step(self.optimizer, trained, self.max_grad_norm)
        return loss, mass

    def _backward(
        self, rows: TrainingTensors, mass: Any, subclass_weight: float | Tensor
    ) -> Tensor:
        """Find the gradients of the summed loss over the mass, and give that loss."""
        X = rows.X if self.augment is None else self.augment(rows.X)
        # A module may compute in a precision of its own.
        logits = self.precision.outputs(self.module, X).to(rows.soft_targets.dtype)
        losses = self.objective.losses(logits, rows, subclass_weight)
        loss: Tensor
        if rows.weight is None:
            loss = losses.sum() / mass
        else:
            loss = torch.dot(losses, rows.weight / mass)
        self.precision.backward(loss)
        return loss.detach()

    def _weights_finite(self) -> Tensor:
        return torch.stack([p.detach().isfinite().all() for p in self._trained()]).all()

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _base_learning_rates(self) -> list[float]:
        """Give what the schedule multiplies, for each group of parameters."""
        groups = self.optimizer.param_groups
        if self.learning_rate is None:
            return [float(group["lr"]) for group in groups]
        return [
            float(group.setdefault("initial_lr", float(group["lr"])))
            for group in groups
        ]

    def _set_learning_rates(
        self, base_rates: list[float], progress: float, at: tuple[int, int]
    ) -> float:
        """Follow the schedule; give the learning rate of the first group."""
        if self.learning_rate is None:
            return base_rates[0]
        factor = self.learning_rate(progress)
        name = "learning_rate_schedule"
        validation.check_schedule_value(factor, name, progress, at)
        factor = float(factor)
        for group, base in zip(self.optimizer.param_groups, base_rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor
        return base_rates[0] * factor


def _weighted_mean(values: list[float], masses: list[Any]) -> float:
    if isinstance(masses[0], Tensor):
        masses = torch.stack(masses).tolist()
    total = sum(masses)
    return float(sum(v * m for v, m in zip(values, masses, strict=True)) / total)


@dataclass
class EarlyStopping:
    """Keeps the best weights and tells when they have not changed for long enough.

    Parameters
    ----------
    patience : int
        Number of epochs without a better score after which to stop.
    first_epoch : int
        Epochs before this one do not count.
    """

    patience: int
    first_epoch: int
    best_score: float = field(default=-torch.inf, init=False)
    best_weights: dict[str, Any] | None = field(default=None, init=False)
    n_idle: int = field(default=0, init=False)
    _seen: ClassVar = "best_score", "best_weights", "n_idle"

    def update(self, epoch: int, score: float, module: nn.Module) -> bool:
        """Take the score of an epoch in, and tell whether to stop."""
        if score > self.best_score:
            self.best_score, self.n_idle = score, 0
            self.best_weights = copy_tensors(module.state_dict().items())
        elif epoch >= self.first_epoch:
            self.n_idle += 1
        return self.n_idle >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Give what it has seen."""
        return {name: getattr(self, name) for name in self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what another has seen."""
        for name in self._seen:
            setattr(self, name, state[name])


def copy_tensors(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Copy what a state dict refers to."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in items}
