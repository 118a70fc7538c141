"""What the epochs of a student came to, one after the other."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Curves:
    """What each complete epoch came to; neither list is ever changed.

    Parameters
    ----------
    loss : list of float
        Mean losses.
    scores : list of float or None
        Validation scores, NaN for an epoch that was not scored; None where none was.
    """

    loss: list[float] = field(default_factory=list)
    scores: list[float] | None = None

    def describe_epoch(self, last: int, seconds: float, remaining: float) -> str:
        """Say in one line what the newest of `last` epochs came to.

        `seconds` is the time it took, `remaining` that of the epochs to come.
        """
        line = f"Epoch {len(self.loss)}/{last}: loss {self.loss[-1]:.6f}"
        if self.scores and not math.isnan(self.scores[-1]):
            line += f", validation score {self.scores[-1]:.6f}"
        return f"{line}, {seconds:.2f} s, {remaining:.0f} s left"

    def extended(self, loss: list[float], scores: list[float] | None) -> "Curves":
        """Give the curves with further epochs; `scores` is None without any."""
        longer = self.loss + loss
        if self.scores is None and scores is None:
            return Curves(longer)
        before = [math.nan] * len(self.loss) if self.scores is None else self.scores
        after = [math.nan] * len(loss) if scores is None else scores
        return Curves(longer, before + after)
