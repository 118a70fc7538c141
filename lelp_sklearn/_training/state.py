"""The state of a fit: what a student predicts with, pickles and continues from.

`LELPStudentClassifier.__getstate__` says what a pickle drops, keeps and moves.
"""

import sys
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from lelp_sklearn._sklearn import FitTask
from lelp_sklearn._training.batches import (
    TrainingTensors,
    as_tensor,
    make_training_tensors,
)
from lelp_sklearn._training.checkpoint import Checkpoint
from lelp_sklearn._training.device import (
    Precision,
    resolve_device,
    warm_up_backward,
)
from lelp_sklearn._training.inputs import RowFormat, StudentInputs
from lelp_sklearn._training.loop import (
    Curves,
    EarlyStopping,
    EpochLoop,
    Trainer,
    ValidationData,
    first_final_epoch,
)
from lelp_sklearn._training.modules import (
    StudentModule,
    build_student,
    to_arrays,
    to_tensors,
)
from lelp_sklearn._training.objective import (
    Objective,
    auto_learning_rate,
    learning_rate_schedule,
    subclass_scale,
    subclass_weight_schedule,
)
from lelp_sklearn._training.optimizer import continue_optimizer, make_optimizer
from lelp_sklearn._training.process_group import SINGLE_PROCESS, Ranks
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray


class Seeds(NamedTuple):
    """Seeds that a fit draws from its random state."""

    projector: int
    hold_out: int
    training: int

    @classmethod
    def of(cls, student: Any, previous: "TrainingState | None" = None) -> "Seeds":
        """Draw the seeds, or keep them, so that the same rows are held out again."""
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
    def resolve(
        cls, student: Any, inputs: StudentInputs, ranks: Ranks = SINGLE_PROCESS
    ) -> "Placement":
        """Return the placement that the parameters ask for, or raise."""
        device = resolve_device(student.device, inputs.X_array, ranks.device_index)
        return cls(device, Precision(student.precision, device), ranks)


@dataclass
class TrainingState:
    """The state of a fit, from which the next fit continues."""

    # A TargetSource.
    source: Any
    module: StudentModule
    objective: Objective
    # Those of the first fit.
    seeds: Seeds
    # What the learning rate "auto" was in the first fit.
    auto_learning_rate: float
    # Of the last fit, before its schedule.
    learning_rate: float
    # Of the complete epochs.
    curves: Curves = field(default_factory=Curves)
    # Why the fit ended.
    stop_reason: str | None = None
    # What the next `partial_fit` continues from: `Trainer.optimizer_state`, and as
    # "made_by" the parameter `optimizer`. None after `fit`.
    optimizer_state: dict[str, Any] | None = None

    @property
    def row_format(self) -> RowFormat:
        """What the module takes."""
        takes_token_ids = not self.module.dtype.is_floating_point
        return RowFormat(self.module.row_shape, takes_token_ids)

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


def start_training(
    student: Any,
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
    X, device, n_outputs = inputs.X_array, placement.device, soft_targets.shape[1]
    in_loss, weights = inputs.row_weights(
        is_train, soft_targets, source.classes, student.class_weight
    )
    objective = _make_objective(
        student, source, soft_targets, weights * in_loss, previous
    )
    if previous is None:
        module = build_student(
            student.module,
            student.module_params,
            X,
            n_outputs,
            device,
            seeds.training,
            may_take_token_ids=inputs.row_format(student.module).is_token_ids,
            precision=student.precision,
        )
        rate = auto_learning_rate(student.module, objective.temperature)
        state = TrainingState(source, module, objective, seeds, rate, rate)
    else:
        state, module = replace(previous, objective=objective), previous.module
        module.check_layout(X)
    if student.learning_rate == "auto":
        state.learning_rate = state.auto_learning_rate
    else:
        # torch's and fixed-width NumPy numbers do not mix.
        state.learning_rate = float(student.learning_rate)
    if n_outputs != module.n_outputs:
        raise ValueError(
            f"the targets have {n_outputs} columns and the fitted module "
            f"{module.n_outputs} outputs: keep n_subclasses, or fit again with "
            "warm_start=False."
        )
    module.net.to(device)
    warm_up_backward(device)
    placement.ranks.broadcast_module(module.net)
    if student.augment is not None:
        module.check_augmented(student.augment, X, device, seeds.training)
    labels = inputs.class_indicator(source.classes) if student.label_weight else None
    # Of mean 1, so that single precision holds weights of any scale.
    are_equal = np.ptp(weights[inputs.sample_weight > 0]) == 0
    row_weights = None if are_equal else weights / weights[in_loss].mean()
    rows = make_training_tensors(
        X, soft_targets, labels, row_weights, device, module.dtype
    )
    train_index = as_tensor(np.flatnonzero(in_loss), device)
    return state, _make_trainer(
        student, state, rows, train_index, placement, endless=endless
    )


def _make_trainer(
    student: Any,
    state: TrainingState,
    rows: TrainingTensors,
    train_index: Tensor,
    placement: Placement,
    *,
    endless: bool,
) -> Trainer:
    """Return the trainer of a module on the rows at `train_index`."""
    _, precision, ranks = placement
    module, objective = state.module.net, state.objective
    if rows.weight is not None:
        # A batch with smaller weights only would have the weight zero.
        tiny = torch.finfo(rows.weight.dtype).tiny
        train_index = train_index[rows.weight[train_index] >= tiny]
    optimizer = make_optimizer(
        student.optimizer, module, state.learning_rate, float(student.weight_decay)
    )
    if (earlier := state.optimizer_state) is not None:
        if earlier["made_by"] == student.optimizer:
            continue_optimizer(optimizer, to_tensors(earlier["optimizer"]))
        # Empty without a loss scaler.
        if earlier["scaler"]:
            precision.scaler.load_state_dict(earlier["scaler"])
    is_auto = student.within_class_temperature == "auto"
    return Trainer(
        module=module,
        optimizer=optimizer,
        objective=objective,
        rows=rows,
        train_index=train_index,
        subclass_weight_schedule=subclass_weight_schedule(
            student.subclass_weight, objective.subclass_scale if is_auto else 1.0
        ),
        learning_rate_schedule=learning_rate_schedule(
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
    student: Any,
    state: TrainingState,
    trainer: Trainer,
    validation_data: ValidationData | None,
    checkpoint: Checkpoint | None,
    task: FitTask,
) -> EpochLoop:
    """Return the loop over all epochs of `fit`, which are steps of `task`."""
    early_stopping = None
    if student.early_stopping:
        early_stopping = EarlyStopping(
            int(student.n_iter_no_change),
            first_final_epoch(trainer.subclass_weight_schedule, trainer.max_epochs),
        )
    return EpochLoop(
        state,
        trainer,
        trainer.max_epochs,
        validation_data,
        checkpoint,
        early_stopping,
        task,
        verbose=bool(student.verbose),
    )


def _make_objective(
    student: Any,
    source: Any,
    soft_targets: FloatArray,
    weights: FloatArray,
    previous: TrainingState | None,
) -> Objective:
    """Return the loss; what "auto" means stays as in a `previous` fit."""
    n_classes, within = len(source.classes), student.within_class_temperature
    if previous is None:
        by_class = soft_targets.reshape(len(soft_targets), n_classes, -1)
        class_targets = by_class.sum(axis=2)
        scale = subclass_scale(class_targets, weights)
        is_hard = bool((by_class.max(axis=2) == class_targets).all())
    else:
        scale = previous.objective.subclass_scale
        is_hard = previous.objective.has_hard_subclasses
    if within == "auto":
        within = scale * (1.0 if is_hard else source.temperature)
    return Objective(
        n_classes,
        source.temperature,
        float(within),
        float(student.label_weight),
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
