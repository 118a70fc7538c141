"""Training of pilots whose students are torch modules."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from lelp_sklearn._diagnostics.pilots import LABELS, SUBCLASSES, Pilot, PilotData
from lelp_sklearn._targets import TargetSource
from lelp_sklearn._training.batches import as_tensor
from lelp_sklearn._training.loop import Trainer, ValidationData, judge_length
from lelp_sklearn._training.stacked import group_alike, train_together
from lelp_sklearn._training.state import (
    Placement,
    Seeds,
    TrainingState,
    make_validation,
    start_training,
)
from lelp_sklearn._validation import seen_features

# The held-out rows are scored about so many times.
_N_SCORES = 20


def train_pilots(data: PilotData, pilots: Sequence[Pilot], seed: int) -> None:
    """Train the students of pilots, as many as possible together."""
    fits: list[PilotFit] = []
    for pilot in pilots:
        shared_X = fits[0].trainer.rows.X if fits else None
        fits.append(PilotFit.start(data, pilot, seed, shared_X))
    together, alone = group_alike([fit.weighted_trainer for fit in fits])
    for positions in together:
        group = [fits[i] for i in positions]
        are_finite = train_together(
            [fit.weighted_trainer for fit in group],
            partial(_score_all, group),
        )
        if not all(are_finite):
            raise FloatingPointError(
                "the weights of a pilot were not finite: lower learning_rate, set "
                "max_grad_norm or standardise X."
            )
    for i in alone:
        fits[i].train_alone()
    for fit in fits:
        fit.pilot.student.__dict__.update(fit.state.attributes())


def _score_all(fits: Sequence["PilotFit"], epoch: int) -> None:
    for fit in fits:
        fit.score(epoch)


@dataclass(frozen=True, eq=False)
class PilotFit:
    """A pilot that is ready to be trained.

    `weighted_trainer` has the rows of all splits, of which those that are held out have
    no weight, so that the pilots of all splits can be trained together.
    """

    pilot: Pilot
    state: TrainingState
    trainer: Trainer
    weighted_trainer: Trainer
    validation_data: ValidationData

    @classmethod
    def start(
        cls, data: PilotData, pilot: Pilot, seed: int, shared_X: Tensor | None = None
    ) -> "PilotFit":
        """Go through the stages of `LELPStudentClassifier.fit` before the epochs.

        `shared_X` is the X of another pilot on the training device.
        """
        student, is_train = pilot.student, pilot.is_train
        # The same features as the student that has read the rows.
        student.__dict__.update(seen_features(data.student))
        inputs = replace(data.sample, soft_targets=pilot.soft_targets)
        seeds = Seeds.of(student)
        source, inputs = TargetSource.resolve(student, inputs, is_train, seed=seed)
        placement = Placement.resolve(student, inputs)
        state, trainer = start_training(
            student,
            inputs,
            is_train,
            source,
            pilot.soft_targets,
            seeds,
            None,
            placement,
        )
        if shared_X is not None:
            trainer = replace(trainer, rows=replace(trainer.rows, X=shared_X))
        validation_data = make_validation(state, trainer, inputs, pilot.held_out, None)
        assert validation_data is not None
        in_any_split = np.full(len(is_train), True)
        if pilot.kind == LABELS:
            in_any_split = data.labels >= 0
        rows = trainer.rows
        weight = as_tensor(is_train, placement.device, state.module.dtype)
        if rows.weight is not None:
            weight = weight * rows.weight
        weighted = replace(
            trainer,
            rows=replace(rows, weight=weight),
            train_index=as_tensor(np.flatnonzero(in_any_split), weight.device),
            # The students of a group have a common order of rows.
            seed=seed,
        )
        return cls(pilot, state, trainer, weighted, validation_data)

    def score(self, epoch: int) -> None:
        """Score the held-out rows, unless an epoch is between two scores."""
        if epoch % max(1, self.trainer.max_epochs // _N_SCORES) == 0:
            self.pilot.scores.append(self.trainer.score(self.validation_data))

    def train_alone(self) -> None:
        """Train the student, as `EpochLoop` does without early stopping."""
        trainer = self.trainer
        for epoch in range(trainer.max_epochs):
            trainer.run_epoch(epoch, epoch)
            self.score(epoch + 1)
        trainer.end()


def training_length(pilots: Sequence[Pilot]) -> str | None:
    """Return whether training was "too long" or "too short", by the mean of splits."""
    scores = [pilot.scores for pilot in pilots if pilot.kind == SUBCLASSES]
    mean = np.mean(scores, axis=0).tolist()
    return judge_length(mean, len(mean))[0]
