"""The state of a fit: what a student predicts with, pickles and continues from.

`LELPStudentClassifier.__getstate__` says what a pickle drops, keeps and moves.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from sklearn.utils import check_random_state

from lelp_sklearn._sklearn import FitTask
from lelp_sklearn._training import schedules
from lelp_sklearn._training.batches import as_tensor, make_training_tensors
from lelp_sklearn._training.checkpoint import Checkpoint
from lelp_sklearn._training.device import (
    Precision,
    resolve_device,
    warm_up_backward,
)
from lelp_sklearn._training.early_stopping import EarlyStopping, first_final_epoch
from lelp_sklearn._training.inputs import RowFormat, StudentInputs
from lelp_sklearn._training.loop import (
    Curves,
    EpochLoop,
    EpochReporter,
    Trainer,
    ValidationData,
)
from lelp_sklearn._training.modules import (
    StudentModule,
    build_student,
    to_arrays,
    to_tensors,
)
from lelp_sklearn._training.objective import Objective, subclass_scale
from lelp_sklearn._training.optimizer import continue_optimizer, make_optimizer
from lelp_sklearn._training.process_group import Ranks
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray, StudentParams


class Seeds(NamedTuple):
    """Seeds that a fit draws from its random state."""

    projector: int
    hold_out: int
    training: int

    @classmethod
    def of(cls, random_state: Any, previous: "TrainingState | None") -> "Seeds":
        """Draw the seeds, or keep them, so that the same rows are held out again."""
        if previous is not None:
            return previous.seeds
        drawn = check_random_state(random_state).randint(2**31 - 1, size=3)
        return cls(*map(int, drawn))


class Placement(NamedTuple):
    """Where a module is trained, in which precision and by which processes."""

    device: torch.device
    precision: Precision
    ranks: Ranks

    @classmethod
    def resolve(
        cls, params: StudentParams, inputs: StudentInputs, ranks: Ranks
    ) -> "Placement":
        """Return the placement that the parameters ask for, or raise."""
        device = resolve_device(params.device, inputs.X_array, ranks.device_index)
        return cls(device, Precision(params.precision, device), ranks)


@dataclass
class TrainingState:
    """The state of a fit, from which the next fit continues.

    Parameters
    ----------
    source : TargetSource
        Makes the targets.
    module : StudentModule
        The module.
    objective : Objective
        The loss.
    seeds : Seeds
        The seeds of the first fit.
    auto_learning_rate : float
        The learning rate "auto", decided in the first fit.
    learning_rate : float
        The learning rate of the last fit, which its schedule multiplies.
    curves : Curves
        Losses and scores of the complete epochs.
    stop_reason : str or None
        Why the fit ended.
    optimizer_state : dict or None
        The result of `optimizer_state`, from which the next `partial_fit` continues.
        None after `fit`.
    """

    source: Any
    module: StudentModule
    objective: Objective
    seeds: Seeds
    auto_learning_rate: float
    learning_rate: float
    curves: Curves = field(default_factory=Curves)
    stop_reason: str | None = None
    optimizer_state: dict[str, Any] | None = None

    @classmethod
    def start(
        cls,
        params: StudentParams,
        inputs: StudentInputs,
        is_train: BoolArray,
        source: Any,
        soft_targets: FloatArray,
        seeds: Seeds,
        previous: "TrainingState | None",
        placement: Placement,
    ) -> "TrainingState":
        """Return the state before the first epoch: a module and the loss.

        The module of `previous` is kept; without `previous` it is built.
        """
        n_outputs, device = soft_targets.shape[1], placement.device
        in_loss, weights = inputs.row_weights(
            is_train, soft_targets, source.classes, params.class_weight
        )
        objective = _make_objective(
            params,
            source,
            soft_targets,
            weights * in_loss,
            previous.objective if previous else None,
        )
        if previous is None:
            module = build_student(
                params.module,
                params.module_params,
                inputs.X_array,
                n_outputs,
                device,
                seeds.training,
                may_take_token_ids=inputs.row_format(params.module).is_token_ids,
                precision=params.precision,
            )
            auto = schedules.auto_learning_rate(params.module, objective.temperature)
            state = cls(source, module, objective, seeds, auto, auto)
        else:
            state = replace(previous, objective=objective)
            state.module.check_layout(inputs.X_array)
        rate = params.learning_rate
        # torch's and fixed-width NumPy numbers do not mix.
        state.learning_rate = (
            state.auto_learning_rate if rate == "auto" else float(rate)
        )
        module = state.module
        if n_outputs != module.n_outputs:
            raise ValueError(
                f"the targets have {n_outputs} columns and the fitted module "
                f"{module.n_outputs} outputs: keep n_subclasses, or fit again with "
                "warm_start=False."
            )
        module.net.to(device)
        warm_up_backward(device)
        placement.ranks.broadcast_module(module.net)
        if params.augment is not None:
            module.check_augmented(
                params.augment, inputs.X_array, device, seeds.training
            )
        return state

    @property
    def row_format(self) -> RowFormat:
        """What the module takes."""
        return RowFormat(self.module.row_shape, self.module.takes_token_ids)

    def snapshot(self) -> "TrainingState":
        """Return a copy that later epochs do not change."""
        return replace(self, module=self.module.snapshot())

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the estimator with which it predicts."""
        return {
            "module_": self.module.net,
            "projector_": self.source.projector,
            "classes_": self.source.classes,
            "n_epochs_": len(self.curves.loss),
            "learning_rate_": self.learning_rate,
            "loss_curve_": self.curves.loss,
            "validation_scores_": self.curves.scores,
            "stop_reason_": self.stop_reason,
            "_state": self,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "optimizer_state": to_arrays(self.optimizer_state)}


def optimizer_state(made_by: str | Callable[..., Any], trainer: Trainer) -> Any:
    """Return what `partial_fit` keeps of the optimizer and the loss scaler.

    `made_by` is the parameter `optimizer` of the student.
    """
    scaler = trainer.precision.scaler
    return {
        "made_by": made_by,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }


def start_training(
    params: StudentParams,
    inputs: StudentInputs,
    is_train: BoolArray,
    source: Any,
    soft_targets: FloatArray,
    seeds: Seeds,
    previous: TrainingState | None,
    placement: Placement,
    *,
    endless: bool = False,
) -> tuple[TrainingState, Trainer]:
    """Return module, loss and optimizer before the first epoch of a fit.

    The module of `previous` is kept. With `endless` training no end is known, on which
    a schedule could depend.
    """
    state = TrainingState.start(
        params, inputs, is_train, source, soft_targets, seeds, previous, placement
    )
    trainer = _make_trainer(
        params, state, inputs, is_train, soft_targets, placement, endless=endless
    )
    return state, trainer


def _make_trainer(
    params: StudentParams,
    state: TrainingState,
    inputs: StudentInputs,
    is_train: BoolArray,
    soft_targets: FloatArray,
    placement: Placement,
    *,
    endless: bool,
) -> Trainer:
    """Put the rows on the device, and return the trainer of the module on them."""
    device, precision, ranks = placement
    module, classes = state.module, state.source.classes
    labels = inputs.class_indicator(classes) if params.label_weight else None
    in_loss, weights = inputs.loss_weights(
        is_train, soft_targets, classes, params.class_weight
    )
    rows = make_training_tensors(
        inputs.X_array, soft_targets, labels, weights, device, module.dtype
    )
    train_index = as_tensor(np.flatnonzero(in_loss), device)
    if rows.weight is not None:
        # A batch with smaller weights only would have the weight zero.
        tiny = torch.finfo(rows.weight.dtype).tiny
        train_index = train_index[rows.weight[train_index] >= tiny]
    optimizer = make_optimizer(
        params.optimizer, module.net, state.learning_rate, float(params.weight_decay)
    )
    if (earlier := state.optimizer_state) is not None:
        if earlier["made_by"] == params.optimizer:
            continue_optimizer(optimizer, to_tensors(earlier["optimizer"]))
        if earlier["scaler"] is not None and precision.scaler is not None:
            precision.scaler.load_state_dict(earlier["scaler"])
    return Trainer(
        module=module.net,
        optimizer=optimizer,
        objective=state.objective,
        rows=rows,
        train_index=train_index,
        subclass_weight_schedule=schedules.subclass_weight_schedule(
            params.subclass_weight,
            state.objective.subclass_scale
            if params.within_class_temperature == "auto"
            else 1.0,
        ),
        learning_rate_schedule=schedules.learning_rate_schedule(
            params.learning_rate_schedule, endless=endless
        ),
        max_epochs=int(params.max_epochs),
        batch_size=int(params.batch_size),
        max_grad_norm=params.max_grad_norm,
        augment=params.augment,
        precision=precision,
        ranks=ranks,
        seed=state.seeds.training,
    )


def make_validation(
    state: TrainingState,
    trainer: Trainer,
    inputs: StudentInputs,
    held_out_index: IntArray | None,
    validation_inputs: StudentInputs | None,
) -> ValidationData | None:
    """Return the rows that are held out, else those of `X_val`; None without either."""
    source, device = state.source, trainer.rows.X.device
    if held_out_index is not None:
        rows = trainer.rows.select(as_tensor(held_out_index, device))
        by_teacher = source.has_class_probabilities(inputs)
        return ValidationData(rows, source.temperature if by_teacher else 1.0)
    if validation_inputs is None:
        return None
    temperature, weights = source.temperature, None
    if source.can_embed(validation_inputs) and source.has_teacher:
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


def make_epoch_loop(
    params: StudentParams,
    state: TrainingState,
    trainer: Trainer,
    validation_data: ValidationData | None,
    checkpoint: Checkpoint | None,
    task: FitTask,
) -> EpochLoop:
    """Return the loop over all epochs of `fit`, which are steps of `task`."""
    early_stopping, n_epochs = None, trainer.max_epochs
    if params.early_stopping:
        first_epoch = first_final_epoch(trainer.subclass_weight_schedule, n_epochs)
        early_stopping = EarlyStopping(params.n_iter_no_change, first_epoch)
    reporter = EpochReporter(
        task,
        attributes=lambda: state.snapshot().attributes(),
        last_epoch=len(state.curves.loss) + n_epochs,
        verbose=bool(params.verbose),
    )
    return EpochLoop(
        state, trainer, n_epochs, validation_data, checkpoint, early_stopping, reporter
    )


def _make_objective(
    params: StudentParams,
    source: Any,
    soft_targets: FloatArray,
    weights: FloatArray,
    earlier: Objective | None,
) -> Objective:
    """Return the loss; what "auto" means stays as in an `earlier` one."""
    n_classes, within = len(source.classes), params.within_class_temperature
    if earlier is None:
        by_class = soft_targets.reshape(len(soft_targets), n_classes, -1)
        class_targets = by_class.sum(axis=2)
        scale = subclass_scale(class_targets, weights)
        is_hard = bool((by_class.max(axis=2) == class_targets).all())
    else:
        scale, is_hard = earlier.subclass_scale, earlier.has_hard_subclasses
    if within == "auto":
        within = scale * (1.0 if is_hard else source.temperature)
    return Objective(
        n_classes,
        source.temperature,
        float(within),
        float(params.label_weight),
        scale,
        is_hard,
    )


def current_versions() -> dict[str, str]:
    """Return the versions of what predictions are made with."""
    return {
        "lelp_sklearn": sys.modules[__name__.partition(".")[0]].__version__,
        "torch": str(torch.__version__),
        "scikit-learn": sklearn.__version__,
    }


def releases(versions: dict[str, str]) -> dict[str, str]:
    """Return the parts of versions that must agree: of libraries two numbers."""
    return {
        name: version if name == "lelp_sklearn" else ".".join(version.split(".")[:2])
        for name, version in versions.items()
    }
