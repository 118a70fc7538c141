"""Training: `EpochLoop` runs epochs of `Trainer`, which runs steps, and stops early."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from lelp_sklearn._callers import warn_user
from lelp_sklearn._sklearn import NO_TASK, FitTask
from lelp_sklearn._training.batches import (
    TrainingTensors,
    batched_outputs,
    shuffled_batches,
)
from lelp_sklearn._training.checkpoint import Checkpoint
from lelp_sklearn._training.cuda_graphs import GraphedSteps, Step, can_capture
from lelp_sklearn._training.device import (
    Precision,
    denormals_are_zero,
    derive_seed,
    seeded,
    torch_lock,
)
from lelp_sklearn._training.objective import Objective, Schedule, schedule_value
from lelp_sklearn._training.optimizer import Optimizer, SparseAdamW
from lelp_sklearn._training.process_group import Ranks

# Relative rise of a validation score that is more than the end of every schedule adds.
_CLEAR_RISE = 0.02


@dataclass(frozen=True)
class Curves:
    """The mean losses and validation scores of the complete epochs.

    The lists never change. A score is NaN for an epoch without one; `scores` is None
    if no epoch has one.
    """

    loss: list[float] = field(default_factory=list)
    scores: list[float] | None = None

    def extended(self, loss: list[float], scores: list[float] | None) -> "Curves":
        """Return the curves with more epochs, whose `scores` may be None."""
        if self.scores is None and scores is None:
            return Curves(self.loss + loss)
        before = [math.nan] * len(self.loss) if self.scores is None else self.scores
        after = [math.nan] * len(loss) if scores is None else scores
        return Curves(self.loss + loss, before + after)


@dataclass(frozen=True)
class ValidationData:
    """Rows for early stopping, and the temperature of their class targets."""

    rows: TrainingTensors
    temperature: float


@dataclass(frozen=True)
class Trainer:
    """Trains a module in place, an epoch at a time.

    It trains on the rows at `train_index`; all `ranks` have the same rows and share
    each batch. Schedules are functions of progress, which goes from 0 to 1 over
    `max_epochs`; without a `learning_rate_schedule` the rate is constant. The seed
    fixes the order of rows, and what the module draws, epoch by epoch.
    """

    module: nn.Module
    optimizer: Optimizer
    objective: Objective
    rows: TrainingTensors
    train_index: Tensor
    subclass_weight_schedule: Schedule
    learning_rate_schedule: Schedule | None
    max_epochs: int
    batch_size: int
    max_grad_norm: float | None
    augment: Callable[[Tensor], Tensor] | None
    precision: Precision
    ranks: Ranks
    seed: int

    def run_epoch(self, curve_epoch: int, progress_epoch: int) -> float:
        """Train for one epoch and return its mean loss.

        Both count from 0. `curve_epoch`, the position in the curves of all fits, fixes
        the random numbers; `progress_epoch` is the position in the schedules.
        """
        device = self.rows.X.device
        self.module.train()
        losses, batch_weights, rates = [], [], []
        with denormals_are_zero(), torch.enable_grad(), ExitStack() as contexts:
            contexts.enter_context(seeded(derive_seed(self.seed, curve_epoch), device))
            batches = shuffled_batches(self.train_index, self.batch_size)
            if self.ranks.size > 1:
                # All shuffle alike; each draws its own numbers for its part of a batch.
                rank_seed = derive_seed(self.seed, curve_epoch, self.ranks.rank)
                contexts.enter_context(seeded(rank_seed, device))
            steps: AbstractContextManager[Step] = nullcontext(self._step)
            if self._graphed_steps is not None:
                steps = self._graphed_steps.epoch()
            take_step = contexts.enter_context(steps)
            for step, index in enumerate(batches):
                epochs = progress_epoch + step / len(batches)
                progress = min(epochs / self.max_epochs, 1.0)
                at = curve_epoch, step
                rates.append(self._set_learning_rates(progress, at))
                weight = schedule_value(
                    self.subclass_weight_schedule, "subclass_weight", progress, at
                )
                loss, batch_weight = take_step(index, weight)
                losses.append(loss)
                batch_weights.append(batch_weight)
            if isinstance(self.optimizer, SparseAdamW):
                self.optimizer.complete_rows()
        # The only time in an epoch at which the host waits for the device.
        total = self.ranks.sum(torch.stack(losses))
        # The largest is NaN if any number is. Unlike isfinite, a norm takes no memory.
        largest = [
            torch.linalg.vector_norm(p.detach(), torch.inf).isfinite()
            for p in self._parameters()
            if p.numel()
        ]
        all_finite = torch.stack(largest).all().to(total.dtype).view(1)
        *step_losses, weights_finite = torch.cat([total, all_finite]).tolist()
        _check_finite(step_losses, bool(weights_finite), rates, curve_epoch)
        return _weighted_mean(step_losses, batch_weights)

    def score(self, validation_data: ValidationData) -> float:
        r"""Return the negative cross-entropy to the class targets: larger is better.

        .. math::

            \sum_i w_i \sum_c p_{i,c} \log \mathrm{softmax}_c(A_i / \tau)
            \, / \sum_i w_i
        """
        rows = validation_data.rows
        outputs = batched_outputs(self.module, rows.X, self.batch_size, rows.X.dtype)
        A = torch.cat([self.objective.class_logits(logits) for logits in outputs])
        class_targets = rows.soft_targets.reshape(*A.shape, -1).sum(dim=2)
        log_p = log_softmax(A / validation_data.temperature, 1)
        scores = (class_targets * log_p).sum(dim=1)
        if rows.weight is None:
            return float(scores.mean())
        return float(torch.dot(scores, rows.weight) / rows.weight.sum())

    def end(self) -> None:
        """Leave the module as it predicts; free the captured steps."""
        self.module.zero_grad()
        self.module.eval()
        if self._graphed_steps is not None:
            # While no other thread captures.
            with torch_lock.held():
                self._graphed_steps.release()

    def optimizer_state(self) -> dict[str, Any]:
        """Return the state of the optimizer and of the loss scaler."""
        scaler = self.precision.scaler
        return {"optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict()}

    @cached_property
    def _graphed_steps(self) -> GraphedSteps | None:
        """Steps that are captured and replayed; None if all run plainly."""
        device = self.rows.X.device
        is_scaled = self.precision.scaler.is_enabled()
        is_plain = self.ranks.size > 1 or self.augment or is_scaled
        # The number of stored entries differs from batch to batch.
        is_sparse = self.rows.X.layout == torch.sparse_csr
        if device.type != "cuda" or is_plain or is_sparse:
            return None
        if not can_capture(self.module, self.optimizer):
            return None
        return GraphedSteps(self._step, self.optimizer, device)

    def _step(
        self, index: Tensor, subclass_weight: float | Tensor
    ) -> tuple[Tensor, Any]:
        """Update the weights; return this process's part of the loss, and Σ w."""
        batch_weight: Any = len(index)
        if self.rows.weight is not None:
            batch_weight = self.rows.weight.index_select(0, index).sum()
        self.optimizer.zero_grad()
        own_index = self.ranks.share(index)
        if len(own_index):
            batch = self.rows.select(own_index)
            loss = self._backward(batch, batch_weight, subclass_weight)
        else:
            loss = self.rows.soft_targets.new_zeros(())
        # The optimizer neither follows nor resets the gradients of other parameters.
        parameters = self._parameters()
        self.ranks.sum_gradients(parameters)
        self.precision.step(self.optimizer, parameters, self.max_grad_norm)
        return loss, batch_weight

    def _backward(
        self, batch: TrainingTensors, batch_weight: Any, subclass_weight: float | Tensor
    ) -> Tensor:
        """Compute the gradients of Σ w loss / Σ w, and return that loss."""
        X = batch.X if self.augment is None else self.augment(batch.X)
        # A module may compute in a precision of its own.
        logits = self.precision.outputs(self.module, X).to(batch.soft_targets.dtype)
        losses = self.objective.losses(logits, batch, subclass_weight)
        loss: Tensor
        if batch.weight is None:
            loss = losses.sum() / batch_weight
        else:
            loss = torch.dot(losses, batch.weight / batch_weight)
        self.precision.scaler.scale(loss).backward()
        return loss.detach()

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _set_learning_rates(self, progress: float, at: tuple[int, int]) -> float:
        """Follow the schedule; return the learning rate of the first group."""
        groups, schedule = self.optimizer.param_groups, self.learning_rate_schedule
        factor = 1.0
        if schedule is not None:
            factor = schedule_value(schedule, "learning_rate_schedule", progress, at)
            for group in groups:
                rate = group["initial_lr"] * factor
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        return float(groups[0]["initial_lr"] * factor)


def _weighted_mean(values: list[float], weights: list[Any]) -> float:
    if isinstance(weights[0], Tensor):
        weights = torch.stack(weights).tolist()
    weighted_sum = sum(v * w for v, w in zip(values, weights, strict=True))
    return float(weighted_sum / sum(weights))


def _check_finite(
    losses: list[float], weights_finite: bool, rates: list[float], epoch: int
) -> None:
    """Raise if the loss of a step, or a weight after the last step, is not finite."""
    step = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if step is not None:
        found = f"the loss was {losses[step]} in step {step + 1} of epoch {epoch + 1}"
    elif weights_finite:
        return
    else:
        found = f"weights of the module were not finite after epoch {epoch + 1}"
    raise FloatingPointError(
        f"{found}, at learning rate {rates[-1 if step is None else step]:g}: lower "
        "learning_rate, set max_grad_norm or standardise X."
    )


@dataclass
class EarlyStopping:
    """Keeps the best weights, and stops after `patience` epochs without a better score.

    Any epoch can be the best. Only epochs from `first_epoch` on, which
    `first_final_epoch` returns, count for the patience: before, the loss itself changes
    with the weight of the subclasses.
    """

    patience: int
    first_epoch: int
    best_score: float = -math.inf
    best_weights: dict[str, Any] | None = None
    n_idle: int = 0

    def update(self, epoch: int, score: float, module: nn.Module) -> bool:
        """Record the score of an epoch, and return whether to stop."""
        if score > self.best_score:
            self.best_score, self.n_idle = score, 0
            self.best_weights = _copy_weights(module)
        elif epoch >= self.first_epoch:
            self.n_idle += 1
        return self.n_idle >= self.patience


def first_final_epoch(schedule: Schedule, max_epochs: int) -> int:
    """Return the first epoch from which on a schedule keeps its final value."""
    final = schedule(1.0)
    epoch = max_epochs
    while epoch and schedule((epoch - 1) / max_epochs) == final:
        epoch -= 1
    return epoch


def judge_length(scores: list[float], n_scores: int) -> tuple[str | None, str]:
    """Return whether training was "too long" or "too short", and what shows it.

    It was too long if the best of the scores is in the first tenth of `n_scores`, the
    number without an early end, and too short if they clearly rose in the last tenth.
    """
    n_tenth = n_scores // 10
    best = max(range(len(scores)), key=scores.__getitem__)
    if best < n_tenth:
        return "too long", (
            f"the best validation score is that of epoch {best + 1} of {n_scores}, in "
            "the first tenth of training: lower learning_rate, or max_epochs."
        )
    if best >= n_scores - n_tenth:
        before = max(scores[: n_scores - n_tenth])
        rise = (scores[best] - before) / max(abs(before), torch.finfo().tiny)
        if rise > _CLEAR_RISE:
            return "too short", (
                f"the validation score rose by {rise:.0%} in the last tenth of "
                f"{n_scores} epochs: raise max_epochs, or learning_rate."
            )
    return None, ""


def _copy_weights(module: nn.Module) -> dict[str, Any]:
    """Return a copy of the state of a module that shares no tensor with it."""
    state = module.state_dict().items()
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state}


@dataclass
class EpochLoop:
    """Runs `n_epochs` epochs, of which a checkpoint may hold the first.

    However training ends, the module has the weights of the last complete epoch, or
    with early stopping of the best, and `state` has the curves of all fits. The stop
    reason is "max_epochs", "early_stopping", "callback", "interrupted", "not_finite" (a
    `FloatingPointError`) or "error". The position in the schedules starts at
    `first_progress_epoch`. Only the first process has validation data and a checkpoint.

    Each epoch is a step of `task` and, if `verbose`, printed in a line.

    An exception may come at any moment. An epoch is complete once `_reached`, the
    curves with the weights to keep, is set.
    """

    # A TrainingState.
    state: Any
    trainer: Trainer
    n_epochs: int
    validation_data: ValidationData | None = None
    checkpoint: Checkpoint | None = None
    early_stopping: EarlyStopping | None = None
    task: FitTask = NO_TASK
    verbose: bool = False
    first_progress_epoch: int = 0
    stop_reason: str = field(default="", init=False)
    # Of the epochs that ran here, without those of a checkpoint.
    _begin_times: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._n_earlier_epochs = len(self.state.curves.loss)
        self._reached = self.state.curves, _copy_weights(self.trainer.module)

    @property
    def curves(self) -> Curves:
        """The epochs of earlier fits and the complete ones of this fit."""
        curves: Curves = self._reached[0]
        return curves

    @property
    def n_complete_epochs(self) -> int:
        """Number of complete epochs of this fit."""
        return len(self.curves.loss) - self._n_earlier_epochs

    def run(self) -> None:
        """Run the epochs."""
        trainer = self.trainer
        try:
            self._resume()
            while not self.stop_reason:
                self._run_epoch()
            if self.early_stopping is not None:
                self._restore()
                if trainer.ranks.is_rank0 and self.stop_reason != "callback":
                    judgement, found = judge_length(self._own_scores(), self.n_epochs)
                    if judgement is not None:
                        warn_user(found, ConvergenceWarning)
            trainer.ranks.broadcast_module(trainer.module)
            # Already here, so that an interrupt below finds it done.
            self._end()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                self.stop_reason = "interrupted"
            else:
                diverged = isinstance(error, FloatingPointError)
                self.stop_reason = "not_finite" if diverged else "error"
            self._restore()
            raise
        finally:
            self._end()

    def _end(self) -> None:
        self.state.curves, self.state.stop_reason = self.curves, self.stop_reason
        self.trainer.end()

    def _run_epoch(self) -> None:
        self._begin_times.append(time.perf_counter())
        task = self.task.begin("epoch")
        loss = self.trainer.run_epoch(
            curve_epoch=len(self.curves.loss),
            progress_epoch=self.first_progress_epoch + self.n_complete_epochs,
        )
        stops_early = self._complete_epoch(loss)
        if self.trainer.ranks.broadcast_from_rank0(lambda: self._report(task)):
            self.stop_reason = "callback"
        elif stops_early:
            self.stop_reason = "early_stopping"
        elif self.n_complete_epochs >= self.n_epochs:
            self.stop_reason = "max_epochs"
        if self.checkpoint is not None and (
            self.stop_reason or self.n_complete_epochs % self.checkpoint.interval == 0
        ):
            self.checkpoint.save(self._checkpoint_state())

    def _report(self, task: FitTask) -> bool:
        """End the task of an epoch; return whether a callback asks to stop."""
        if self.verbose:
            print(self._describe_epoch())
        return task.end(lambda: self.state.snapshot().attributes())

    def _describe_epoch(self) -> str:
        now, n_complete = time.perf_counter(), len(self.curves.loss)
        n_epochs = self._n_earlier_epochs + self.n_epochs
        line = f"Epoch {n_complete}/{n_epochs}: loss {self.curves.loss[-1]:.6f}"
        if self.curves.scores and not math.isnan(self.curves.scores[-1]):
            line += f", validation score {self.curves.scores[-1]:.6f}"
        mean = (now - self._begin_times[0]) / len(self._begin_times)
        remaining = mean * (n_epochs - n_complete)
        return f"{line}, {now - self._begin_times[-1]:.2f} s, {remaining:.0f} s left"

    def _own_scores(self) -> list[float]:
        """Return the validation scores of this fit."""
        return (self.curves.scores or [])[self._n_earlier_epochs :]

    def _restore(self) -> None:
        """Load the weights of the last complete epoch, or of the best."""
        self.trainer.module.load_state_dict(self._reached[1])

    def _complete_epoch(self, loss: float) -> bool:
        """Score an epoch and let it count; return whether to stop early."""
        trainer, stopping = self.trainer, self.early_stopping
        if stopping is None:
            self._reach([loss], None)
            return False
        # The first process has them, and it alone scores.
        data = cast(ValidationData, self.validation_data)
        score = trainer.ranks.broadcast_from_rank0(lambda: trainer.score(data))
        stops = stopping.update(self.n_complete_epochs, score, trainer.module)
        self._reach([loss], [score])
        return stops

    def _reach(self, loss: list[float], scores: list[float] | None) -> None:
        """Let more epochs count, and keep the best weights, else the last."""
        best = None if self.early_stopping is None else self.early_stopping.best_weights
        weights = _copy_weights(self.trainer.module) if best is None else best
        self._reached = self.curves.extended(loss, scores), weights
        self.state.curves = self.curves

    def _resume(self) -> None:
        """Continue from the checkpoint."""
        trainer = self.trainer
        state = trainer.ranks.broadcast_from_rank0(self._load_checkpoint)
        if state is None:
            return
        trainer.module.load_state_dict(state["module"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.precision.scaler.load_state_dict(state["scaler"])
        scores = None
        if self.early_stopping is not None:
            vars(self.early_stopping).update(state["stopping"])
            scores = state["validation_scores"]
        self._reach(state["loss_curve"], scores)
        self.stop_reason = state["stop_reason"]

    def _load_checkpoint(self) -> dict[str, Any] | None:
        """Return the saved state; if there is none, check that one can be saved."""
        if self.checkpoint is None:
            return None
        state = self.checkpoint.load(self.trainer.rows.X.device)
        if state is None:
            self.checkpoint.check(self._checkpoint_state())
        return state

    def _checkpoint_state(self) -> dict[str, Any]:
        """Return what a checkpoint saves."""
        return {
            "module": self.trainer.module.state_dict(),
            **self.trainer.optimizer_state(),
            "stopping": self.early_stopping and vars(self.early_stopping),
            "loss_curve": self.curves.loss[self._n_earlier_epochs :],
            "validation_scores": self._own_scores(),
            "stop_reason": self.stop_reason,
        }
