"""Checks of how rows with a label are to be scored, and their messages."""

from collections.abc import Callable
from typing import Any

from sklearn.metrics import check_scoring, get_scorer_names

from lelp_sklearn._typing import BoolArray


def check_scorer(scoring: Any) -> Callable[..., Any]:
    """Give the scorer of a name, or the callable itself."""
    if isinstance(scoring, str):
        if scoring not in get_scorer_names():
            raise ValueError(
                f"scoring={scoring!r} is no scorer of scikit-learn: take one of "
                "sklearn.metrics.get_scorer_names(), or pass a callable (estimator, X, "
                "y)."
            )
    elif not callable(scoring):
        raise TypeError(
            f"scoring is {scoring!r}; it must be the name of one scorer or a callable "
            "(estimator, X, y). For several scores give a dict of labeled_scorer to "
            "what takes them."
        )
    # Says, of a metric, that make_scorer turns it into a scorer.
    scorer: Callable[..., Any] = check_scoring(scoring=scoring)
    return scorer


def check_labelled_rows(labelled: BoolArray, unlabeled: object) -> None:
    """Raise where there is nothing to score against."""
    if not labelled.any():
        raise ValueError(
            f"y has no label in {len(labelled)} rows (unlabeled={unlabeled!r}), and "
            "nothing to score: split by StratifiedKFold, so that each fold has its "
            "share of the labelled rows, or into fewer folds."
        )
