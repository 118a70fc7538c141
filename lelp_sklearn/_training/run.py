"""Epochs one after the other, until the last or until something ends them before."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from lelp_sklearn._training.checkpoint import Checkpoint
from lelp_sklearn._training.curves import Curves
from lelp_sklearn._training.loop import EarlyStopping, Trainer, Validation, copy_tensors


@dataclass
class Run:
    """The training of one fit, which may begin with epochs of an earlier process.

    An exception may come at any moment: an epoch is complete once `_reached` is set,
    which says what the complete epochs came to and with which weights.

    Parameters
    ----------
    trainer : Trainer
        Trains an epoch.
    before : Curves
        The epochs of earlier fits.
    n_epochs : int
        Number of epochs.
    progressed : int
        Number of epochs by which training had progressed at the beginning.
    stopping : EarlyStopping or None
        Judges the scores; None without early stopping.
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
    before: Curves
    n_epochs: int
    begin_epoch: Callable[[], Callable[[], bool]]
    progressed: int = 0
    stopping: EarlyStopping | None = None
    held_out: Validation | None = None
    checkpoint: Checkpoint | None = None
    stop_reason: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._reached = self.before, self._weights()

    @property
    def curves(self) -> Curves:
        """The epochs of earlier fits and those of this one that are complete."""
        return self._reached[0]

    @property
    def n_done(self) -> int:
        """Number of complete epochs of this fit."""
        return len(self.curves.loss) - len(self.before.loss)

    def train(self) -> None:
        """Run the epochs.

        Raises
        ------
        FloatingPointError
            If the loss of a step or a weight was not finite.
        """
        self._resume()
        while not self.stop_reason:
            end = self.begin_epoch()
            number = len(self.curves.loss)
            loss = self.trainer.run_epoch(number, self.progressed + self.n_done)
            stops = self._end_epoch(loss)
            self._report_epoch(end, stops)
        if self.stopping is not None:
            self.restore()
        self.trainer.ranks.broadcast_module(self.trainer.module)

    def restore(self) -> None:
        """Give the module the weights of the last complete epoch, or of the best."""
        self.trainer.module.load_state_dict(self._reached[1])

    def fail(self, error: BaseException) -> None:
        """End with an exception that came at any moment."""
        if isinstance(error, KeyboardInterrupt):
            self.stop_reason = "interrupted"
        else:
            diverged = isinstance(error, FloatingPointError)
            self.stop_reason = "not_finite" if diverged else "error"
        self.restore()

    def _end_epoch(self, loss: float) -> bool:
        """Judge an epoch and let it count; tell whether to stop early."""
        trainer = self.trainer
        if self.stopping is None:
            self._reached = self.curves.extended([loss], None), self._weights()
            return False
        # There to score where the score is found.
        held_out = cast(Validation, self.held_out)
        score = trainer.ranks.broadcast_from_rank0(lambda: trainer.score(held_out))
        stops = self.stopping.update(self.n_done, score, trainer.module)
        self._reached = self.curves.extended([loss], [score]), self._best_weights()
        return stops

    def _report_epoch(self, end: Callable[[], bool], stops: bool) -> None:
        """Report an epoch, note what ends the training, and save."""
        if self.trainer.ranks.broadcast_from_rank0(end):
            self.stop_reason = "callback"
        elif stops:
            self.stop_reason = "early_stopping"
        elif self.n_done >= self.n_epochs:
            self.stop_reason = "max_epochs"
        if self.checkpoint is not None and (
            self.stop_reason or self.n_done % self.checkpoint.interval == 0
        ):
            self.checkpoint.save(self._state())

    def _weights(self) -> dict[str, Any]:
        return copy_tensors(self.trainer.module.state_dict().items())

    def _best_weights(self) -> dict[str, Any]:
        """Give the best weights; the last where no score is a number."""
        best = None if self.stopping is None else self.stopping.best_weights
        return self._weights() if best is None else best

    def _resume(self) -> None:
        """Go on from the checkpoint."""
        trainer = self.trainer
        state = trainer.ranks.broadcast_from_rank0(self._saved)
        if state is None:
            return
        trainer.module.load_state_dict(state["module"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.precision.scaler is not None:
            trainer.precision.scaler.load_state_dict(state["scaler"])
        scores = None
        if self.stopping is not None:
            self.stopping.load_state_dict(state["stopping"])
            scores = state["validation_scores"]
        curves = self.before.extended(state["loss_curve"], scores)
        self._reached = curves, self._best_weights()
        self.stop_reason = state["stop_reason"]

    def _saved(self) -> dict[str, Any] | None:
        """Read the checkpoint; None where there is none, but could be."""
        if self.checkpoint is None:
            return None
        state = self.checkpoint.load(self.trainer.rows.X.device)
        if state is None:
            self.checkpoint.check(self._state())
        return state

    def _state(self) -> dict[str, Any]:
        trainer, stopping, first = self.trainer, self.stopping, len(self.before.loss)
        scaler = trainer.precision.scaler
        return {
            "module": trainer.module.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "stopping": None if stopping is None else stopping.state_dict(),
            "loss_curve": self.curves.loss[first:],
            "validation_scores": (self.curves.scores or [])[first:],
            "stop_reason": self.stop_reason,
        }
