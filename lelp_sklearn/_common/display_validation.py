"""Checks of what a user passes to the displays, and their messages."""

KINDS = ("spectrum", "embedding", "mass")


def check_kind(kind: object) -> None:
    """Raise unless there is such a picture."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, KINDS))}.")


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
