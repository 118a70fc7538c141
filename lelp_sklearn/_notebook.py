"""How notebooks show an estimator."""

from typing import Any


def single_block(estimator: Any) -> Any:
    """Return scikit-learn's box of one estimator, with its fit in a line.

    By default an estimator that holds others is drawn as boxes of these, each with its
    name twice. scikit-learn draws a box without the line if it has no `name_caption`.
    """
    from sklearn.utils._repr_html.estimator import _VisualBlock

    return _VisualBlock(
        "single",
        estimator,
        names=type(estimator).__name__,
        name_details=str(estimator),
        name_caption=_describe_fit(estimator),
    )


def _describe_fit(estimator: Any) -> str:
    """Return epochs, stop reason and number of subclasses, as far as there are any."""
    fitted = getattr(estimator, "best_estimator_", estimator)
    parts = []
    if hasattr(fitted, "n_epochs_"):
        parts.append(f"{fitted.n_epochs_} epochs")
        if fitted.stop_reason_ is not None:
            parts[0] += f" ({fitted.stop_reason_})"
    projector: Any = getattr(fitted, "projector_", None)
    # A frozen one hands on its attributes.
    if hasattr(projector, "n_subclasses_"):
        parts.append(f"S = {projector.n_subclasses_}")
    return ", ".join(parts)
