"""What a fit has come to: what a student predicts with, pickles and goes on from."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_random_state

from lelp_sklearn._callbacks import FitTask
from lelp_sklearn._training import schedules
from lelp_sklearn._training.batches import as_tensor, make_training_tensors
from lelp_sklearn._training.checkpoint import Checkpoint
from lelp_sklearn._training.device import resolve_device, warm_up_backward
from lelp_sklearn._training.early_stopping import EarlyStopping
from lelp_sklearn._training.inputs import RowFormat, StudentInputs
from lelp_sklearn._training.loop import Curves, Trainer, ValidationData, train_epochs
from lelp_sklearn._training.modules import (
    StudentModule,
    build_student,
    to_arrays,
    to_tensors,
)
from lelp_sklearn._training.objective import Objective
from lelp_sklearn._training.optimizer import continue_optimizer, make_optimizer
from lelp_sklearn._training.precision import Precision
from lelp_sklearn._training.process_group import Ranks
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray


class Seeds(NamedTuple):
    """What a fit draws from its random state."""

    projector: int
    split: int
    training: int

    @classmethod
    def of(cls, student: Any, previous: "TrainingState | None") -> "Seeds":
        """Draw seeds, or keep them, so that rows that are held out stay held out."""
        if previous is not None:
            return previous.seeds
        drawn = check_random_state(student.random_state).randint(2**31 - 1, size=3)
        return cls(*map(int, drawn))


class Placement(NamedTuple):
    """Where a module is trained, in which precision and by which processes."""

    device: torch.device
    precision: Precision
    ranks: Ranks

    @classmethod
    def resolve(cls, student: Any, inputs: StudentInputs, ranks: Ranks) -> "Placement":
        """Return what the parameters of the student ask for, or raise."""
        index = ranks.device_index
        device = resolve_device(student.device, inputs.X_array, index)
        return cls(device, Precision(student.precision, device), ranks)


@dataclass
class TrainingState:
    """What a fit has come to, and what the next one goes on from.

    Parameters
    ----------
    source : TargetSource
        Where targets come from.
    module : StudentModule
        The module.
    objective : Objective
        The loss.
    seeds : Seeds
        Those of the first fit.
    curves : Curves
        What the epochs came to.
    stop_reason : str or None
        What ended it.
    optimizer_state : dict or None
        What the next `partial_fit` goes on from: what made the optimizer, its state and
        that of the loss scaler. None after `fit`.
    """

    source: Any
    module: StudentModule
    objective: Objective
    seeds: Seeds
    curves: Curves = field(default_factory=Curves)
    stop_reason: str | None = None
    optimizer_state: dict[str, Any] | None = None

    @classmethod
    def start(
        cls,
        student: Any,
        inputs: StudentInputs,
        source: Any,
        soft_targets: FloatArray,
        seeds: Seeds,
        previous: "TrainingState | None",
        placement: Placement,
    ) -> "TrainingState":
        """Return the state before the first epoch: a module and the loss.

        The module is that of `previous`, if there is one, else it is built.
        """
        n_outputs, device = soft_targets.shape[1], placement.device
        objective = _make_objective(student, source, soft_targets)
        if previous is None:
            row_format = inputs.row_format(student)
            module = build_student(
                student.module,
                student.module_params,
                inputs.X_array,
                n_outputs,
                device,
                seeds.training,
                may_take_token_ids=row_format.is_token_ids,
                precision=student.precision,
            )
            state = cls(source, module, objective, seeds)
        else:
            state = replace(previous, objective=objective)
        module = state.module
        if n_outputs != module.n_outputs:
            raise ValueError(
                f"the targets have {n_outputs} columns and the fitted module "
                f"{module.n_outputs} outputs: keep n_subclasses, or fit anew with "
                "warm_start=False."
            )
        module.net.to(device)
        warm_up_backward(device)
        placement.ranks.broadcast_module(module.net)
        if student.augment is not None:
            module.check_augmented(
                student.augment, inputs.X_array, device, seeds.training
            )
        return state

    @property
    def row_format(self) -> RowFormat:
        """What the module takes."""
        return RowFormat(self.module.row_shape, self.module.takes_token_ids)

    def snapshot(self) -> "TrainingState":
        """Return a copy that stays as it is while training goes on."""
        return replace(self, module=self.module.snapshot())

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the estimator with which it predicts."""
        return {
            "module_": self.module.net,
            "projector_": self.source.projector,
            "classes_": self.source.classes,
            "n_epochs_": len(self.curves.loss),
            "loss_curve_": self.curves.loss,
            "validation_scores_": self.curves.scores,
            "stop_reason_": self.stop_reason,
            "_state": self,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "optimizer_state": to_arrays(self.optimizer_state)}


def optimizer_state(made_by: str | Callable[..., Any], trainer: Trainer) -> Any:
    """Return what a stream keeps of a trainer's optimizer, which `made_by` made."""
    scaler = trainer.precision.scaler
    return {
        "made_by": made_by,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }


def make_trainer(
    student: Any,
    state: TrainingState,
    inputs: StudentInputs,
    is_train: BoolArray,
    soft_targets: FloatArray,
    placement: Placement,
    *,
    endless: bool = False,
) -> Trainer:
    """Put the rows on the device and make what trains the module on them."""
    device, precision, ranks = placement
    module, classes = state.module, state.source.classes
    labels = inputs.class_indicator(classes) if student.label_weight else None
    in_loss, weights = inputs.loss_weights(
        is_train, soft_targets, classes, student.class_weight
    )
    rows = make_training_tensors(
        inputs.X_array, soft_targets, labels, weights, device, module.dtype
    )
    train_index = as_tensor(np.flatnonzero(in_loss), device)
    if rows.weight is not None:
        # A batch of none but smaller ones would have the weight zero.
        tiny = torch.finfo(rows.weight.dtype).tiny
        train_index = train_index[rows.weight[train_index] >= tiny]
    # torch's and fixed-width NumPy numbers do not mix.
    optimizer = make_optimizer(
        student.optimizer,
        module.net,
        float(student.learning_rate),
        float(student.weight_decay),
    )
    _continue(state.optimizer_state, student.optimizer, optimizer, precision)
    return Trainer(
        module=module.net,
        optimizer=optimizer,
        objective=state.objective,
        rows=rows,
        train_index=train_index,
        subclass_weight=schedules.subclass_weight_schedule(student.subclass_weight),
        learning_rate=schedules.learning_rate_schedule(
            student.learning_rate_schedule, endless=endless
        ),
        max_epochs=int(student.max_epochs),
        batch_size=int(student.batch_size),
        max_grad_norm=student.max_grad_norm,
        augment=student.augment,
        precision=precision,
        ranks=ranks,
        seed=state.seeds.training,
    )


def make_validation(
    state: TrainingState,
    trainer: Trainer,
    inputs: StudentInputs,
    held_out: IntArray | None,
    validation_inputs: StudentInputs | None,
) -> ValidationData | None:
    """Return the rows of early stopping: held out, or the user's; None without it."""
    source, device = state.source, trainer.rows.X.device
    if held_out is not None:
        rows = trainer.rows.select(as_tensor(held_out, device))
        has_teacher = source.has_teacher(inputs)
        return ValidationData(rows, source.temperature if has_teacher else 1.0)
    if validation_inputs is None:
        return None
    temperature, weights = source.temperature, None
    if source.can_embed(validation_inputs) and not source.labels_only:
        targets = source.soft_targets(validation_inputs)
    else:
        # The labels take the place of the teacher's class probabilities.
        targets = validation_inputs.class_indicator(source.classes)
        temperature, weights = 1.0, validation_inputs.is_labelled
        if validation_inputs.teacher_embeddings is not None:
            raise ValueError(
                "teacher_embeddings_val is given and there is no projector that was "
                "fitted on embeddings of the teacher: with soft_targets give "
                "projector=FrozenEstimator(...), or leave it out and pass y_val."
            )
        if not weights.any():
            raise ValueError(
                "X_val is given and nothing says its classes: pass y_val, or "
                "teacher_embeddings_val."
            )
    rows = make_training_tensors(
        validation_inputs.X_array, targets, None, weights, device, state.module.dtype
    )
    return ValidationData(rows, temperature)


def run_epochs(
    student: Any,
    state: TrainingState,
    trainer: Trainer,
    task: FitTask,
    validation_data: ValidationData | None,
    checkpoint: Checkpoint | None,
) -> None:
    """Train for all epochs, and report each to the callbacks and in a line."""
    early_stopping, n_epochs = None, trainer.max_epochs
    if student.early_stopping:
        first_epoch = schedules.first_final_epoch(trainer.subclass_weight, n_epochs)
        early_stopping = EarlyStopping(student.n_iter_no_change, first_epoch)
    last = len(state.curves.loss) + n_epochs
    # A resumed fit measures its own epochs only.
    begin_times: list[float] = []

    def begin_epoch() -> Callable[[], bool]:
        step = task.begin("epoch")
        begin_times.append(time.perf_counter())

        def end() -> bool:
            if student.verbose:
                now = time.perf_counter()
                mean = (now - begin_times[0]) / len(begin_times)
                remaining = mean * (last - len(state.curves.loss))
                seconds = now - begin_times[-1]
                print(state.curves.describe_epoch(last, seconds, remaining))
            return step.end(lambda: state.snapshot().attributes())

        return end

    train_epochs(
        state,
        trainer,
        validation_data,
        checkpoint,
        n_epochs=n_epochs,
        begin_epoch=begin_epoch,
        early_stopping=early_stopping,
    )


def _make_objective(student: Any, source: Any, soft_targets: FloatArray) -> Objective:
    n_classes, within = len(source.classes), student.within_class_temperature
    if within == "auto":
        by_class = soft_targets.reshape(len(soft_targets), n_classes, -1)
        is_hard = (by_class.max(axis=2) == by_class.sum(axis=2)).all()
        within = 1.0 if is_hard else source.temperature
    label_weight = float(student.label_weight)
    return Objective(n_classes, source.temperature, float(within), label_weight)


def _continue(
    kept: dict[str, Any] | None,
    made_by: str | Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    precision: Precision,
) -> None:
    """Let a new optimizer go on where a stream has had one that the same thing made."""
    if kept is None:
        return
    if kept["made_by"] == made_by:
        continue_optimizer(optimizer, to_tensors(kept["optimizer"]))
    if kept["scaler"] is not None and precision.scaler is not None:
        precision.scaler.load_state_dict(kept["scaler"])
