"""When training stops early, and with which weights."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from lelp_sklearn._callers import warn_user
from lelp_sklearn._training.schedules import Schedule

# Relative rise of a validation score that is more than the end of every schedule adds.
_CLEAR_RISE = 0.02


@dataclass
class EarlyStopping:
    """Keeps the best weights, and stops after `patience` epochs without a better score.

    Any epoch can be the best. Only epochs from `first_epoch` on, which
    `first_final_epoch` returns, count for the patience: before, the loss itself changes
    with the weight of the subclasses.
    """

    patience: int
    first_epoch: int
    best_score: float = field(default=-torch.inf, init=False)
    best_weights: dict[str, Any] | None = field(default=None, init=False)
    n_idle: int = field(default=0, init=False)
    _saved: ClassVar = "best_score", "best_weights", "n_idle"

    def update(self, epoch: int, score: float, module: nn.Module) -> bool:
        """Record the score of an epoch, and return whether to stop."""
        if score > self.best_score:
            self.best_score, self.n_idle = score, 0
            self.best_weights = copy_tensors(module.state_dict().items())
        elif epoch >= self.first_epoch:
            self.n_idle += 1
        return self.n_idle >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves."""
        return {name: getattr(self, name) for name in self._saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        for name in self._saved:
            setattr(self, name, state[name])


def first_final_epoch(schedule: Schedule, max_epochs: int) -> int:
    """Return the first epoch from which on a schedule keeps its final value."""
    final = schedule(1.0)
    epoch = max_epochs
    while epoch and schedule((epoch - 1) / max_epochs) == final:
        epoch -= 1
    return epoch


def judge_length(scores: list[float], n_scores: int) -> str | None:
    """Return "too long" or "too short" for training with these scores, else None.

    It was too long if the best of the scores is in the first tenth of `n_scores`, the
    number without an early end, and too short if they clearly rose in the last tenth.
    """
    n_tenth = n_scores // 10
    if not n_tenth:
        return None
    best = max(range(len(scores)), key=scores.__getitem__)
    if best < n_tenth:
        return "too long"
    if best >= n_scores - n_tenth and _rise_at_end(scores, n_scores) > _CLEAR_RISE:
        return "too short"
    return None


def _rise_at_end(scores: list[float], n_scores: int) -> float:
    """Return how far scores rose in the last tenth, relative to the best before."""
    before = max(scores[: n_scores - n_scores // 10])
    return (max(scores) - before) / max(abs(before), torch.finfo().tiny)


def warn_of_length(scores: list[float], max_epochs: int) -> None:
    """Warn if training was too long or too short, by the scores of its epochs."""
    judgement = judge_length(scores, max_epochs)
    if judgement == "too long":
        best = max(range(len(scores)), key=scores.__getitem__)
        warn_user(
            ConvergenceWarning(
                f"the best validation score is that of epoch {best + 1} of "
                f"{max_epochs}, in the first tenth of training: lower learning_rate, "
                "or max_epochs."
            )
        )
    elif judgement == "too short":
        rise = _rise_at_end(scores, max_epochs)
        warn_user(
            ConvergenceWarning(
                f"the validation score rose by {rise:.0%} in the last tenth of "
                f"{max_epochs} epochs: raise max_epochs, or learning_rate."
            )
        )


def copy_tensors(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a copy of a state dict that shares no tensor with it."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in items}
