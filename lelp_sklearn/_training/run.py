"""Epochs one after the other, until the last or until something ends them before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from lelp_sklearn._training.checkpoints import Checkpoint
from lelp_sklearn._training.loop import (
    EarlyStopping,
    Trainer,
    Validation,
    copy_tensors,
)


@dataclass
class Run:
    """The training of one fit, which may begin with epochs of an earlier process.

    Parameters
    ----------
    trainer : Trainer
        Trains an epoch.
    loss_curve : list of float
        Grows by a loss each epoch; what is in it belongs to earlier fits.
    validation_scores : list of float or None
        Grows by a score each epoch; None without early stopping.
    stopping : EarlyStopping
        Judges the scores.
    held_out : Validation or None
        The rows to score, in the first process.
    checkpoint : Checkpoint or None
        Keeps what an interrupted training goes on from, in the first process.
    begin_epoch : callable
        Called before each epoch; gives what is to be called after it, where true ends
        the training.
    stop_reason : str
        What ended it: "max_epochs", "early_stopping", "callback", "interrupted",
        "not_finite" or "error"; empty before the end.
    """

    trainer: Trainer
    loss_curve: list[float]
    validation_scores: list[float] | None
    stopping: EarlyStopping
    held_out: Validation | None
    checkpoint: Checkpoint | None
    begin_epoch: Callable[[], Callable[[], bool]]
    stop_reason: str = ""

    def train(self) -> None:
        """Run the epochs. However they end, the weights are finite and the best.

        Raises
        ------
        FloatingPointError
            If the loss of a step or a weight was not finite.
        KeyboardInterrupt
            As it comes.
        """
        before = len(self.loss_curve)
        done = self._resume()
        good = self._weights()
        try:
            while not self.stop_reason:
                end = self.begin_epoch()
                loss = self.trainer.run_epoch(before + done, done)
                done += 1
                good = self._weights()
                self.loss_curve.append(loss)
                self._end_epoch(done, end)
        except KeyboardInterrupt:
            self.stop_reason = "interrupted"
            if not self.trainer.has_finite_weights():
                self.trainer.module.load_state_dict(good)
            raise
        except Exception as error:
            diverged = isinstance(error, FloatingPointError)
            self.stop_reason = "not_finite" if diverged else "error"
            self.trainer.module.load_state_dict(good)
            raise
        finally:
            self.stopping.restore(self.trainer.module)
        self.trainer.ranks.copy_first(self.trainer.module)

    def _end_epoch(self, done: int, end: Callable[[], bool]) -> None:
        """Judge and report an epoch, note what ends the training, and save."""
        ranks, stops = self.trainer.ranks, False
        if self.validation_scores is not None:
            # There to score where the score is found.
            held_out = cast(Validation, self.held_out)
            score = ranks.from_first(lambda: self.trainer.score(held_out))
            self.validation_scores.append(score)
            stops = self.stopping.update(done - 1, score, self.trainer.module)
        if ranks.from_first(end):
            self.stop_reason = "callback"
        elif stops:
            self.stop_reason = "early_stopping"
        elif done >= self.trainer.max_epochs:
            self.stop_reason = "max_epochs"
        if self.checkpoint is not None and (
            self.stop_reason or done % self.checkpoint.interval == 0
        ):
            self.checkpoint.save(self._state(done))

    def _weights(self) -> dict[str, Any]:
        return copy_tensors(self.trainer.module.state_dict().items())

    def _resume(self) -> int:
        """Go on from the checkpoint; give the number of epochs that are done."""
        trainer = self.trainer
        state = trainer.ranks.from_first(self._saved)
        if state is None:
            return 0
        trainer.module.load_state_dict(state["module"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.precision.scaler is not None:
            trainer.precision.scaler.load_state_dict(state["scaler"])
        self.stopping.load_state_dict(state["stopping"])
        self.loss_curve += state["loss_curve"]
        if self.validation_scores is not None:
            self.validation_scores += state["validation_scores"]
        self.stop_reason = state["stop_reason"]
        return int(state["done"])

    def _saved(self) -> dict[str, Any] | None:
        """Read the checkpoint; None where there is none, but could be."""
        if self.checkpoint is None:
            return None
        state = self.checkpoint.load(self.trainer.rows.X.device)
        if state is None:
            self.checkpoint.check(self._state(0))
        return state

    def _state(self, done: int) -> dict[str, Any]:
        trainer, scores = self.trainer, self.validation_scores or []
        scaler = trainer.precision.scaler
        return {
            "done": done,
            "module": trainer.module.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "stopping": self.stopping.state_dict(),
            "loss_curve": self.loss_curve[-done:],
            "validation_scores": scores[-done:],
            "stop_reason": self.stop_reason,
        }
