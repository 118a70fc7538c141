"""Checks of what a user passes to the displays, and their messages."""

from collections.abc import Sequence, Sized
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("spectrum", "embedding", "mass")


def check_kind(kind: object) -> None:
    """Raise unless there is such a picture."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, KINDS))}.")


def check_is_projector(projector: object) -> None:
    """Raise unless it is a projector, fitted or not."""
    if hasattr(projector, "transform") and hasattr(projector, "n_subclasses"):
        return
    kind = type(projector).__name__
    if hasattr(projector, "projector_"):
        mend = "pass the projector that it fitted, student.projector_"
    elif hasattr(projector, "projector"):
        mend = "fit the student and pass its projector, student.projector_"
    else:
        mend = "pass a fitted LELPProjector"
    raise TypeError(f"projector is of type {kind}: {mend}.")


def check_n_samples(n_samples: object) -> None:
    """Raise unless a subclass shows a whole number of samples, at least one."""
    if not isinstance(n_samples, Integral) or isinstance(n_samples, bool):
        raise TypeError(
            f"n_samples={n_samples!r} must be an integer, how many samples of each "
            "subclass are shown."
        )
    if n_samples < 1:
        raise ValueError(
            f"n_samples={n_samples} must be at least 1: pass no samples if none are to "
            "be shown."
        )


def check_every_class(codes: NDArray[Any], classes: NDArray[Any]) -> None:
    """Raise unless each class has a row; `codes` are the places of labels in them."""
    missing = np.setdiff1d(np.arange(len(classes)), codes)
    if missing.size:
        raise ValueError(
            f"y has no row of class {', '.join(map(str, classes[missing]))}, of which "
            "the projector has subclasses: pass rows of every class."
        )


def check_n_axes(n_axes: int, n_panels: int) -> None:
    """Raise unless there are as many axes as panels."""
    if n_axes != n_panels:
        raise ValueError(
            f"axes holds {n_axes} axes and there are {n_panels} panels: pass one for "
            "each, or None."
        )


def check_searched(names: list[str]) -> None:
    """Raise unless the number of subclasses was searched."""
    if not names:
        raise ValueError(
            "search has no parameter that ends in 'n_subclasses': put it into the "
            "grid, as in {'projector__n_subclasses': [1, 2, 5]}."
        )


def check_refit(refit: object) -> None:
    """Raise unless a search of several metrics says which one counts."""
    if not isinstance(refit, str):
        raise ValueError(
            f"search has several metrics and refit={refit!r} names none of them: "
            "search with refit='...', the name of the one to show."
        )


def check_scored(sizes: Sized) -> None:
    """Raise unless a candidate has a score."""
    if not len(sizes):
        raise ValueError(
            "search has no score to show, all are NaN: see why its fits failed with "
            "error_score='raise'."
        )


def failed_fits(sizes: Sequence[object]) -> str:
    """Say which numbers of subclasses are left out."""
    return (
        f"n_subclasses={', '.join(map(str, sizes))} has no score, as its fits failed, "
        "and is left out."
    )
