"""What an estimator says of its features, when a fit fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FEATURES = "n_features_in_", "feature_names_in_"


@contextmanager
def features_of_what_is_kept(estimator: Any, kept: str) -> Iterator[None]:
    """Let the features be those of the fit that is kept when an error comes.

    Parameters
    ----------
    estimator : estimator
        Whose features are set while the rows are checked, before the fit.
    kept : str
        Name of an attribute that the fit replaces once it has succeeded.
    """
    attributes = vars(estimator)
    before = attributes.get(kept)
    features = {name: attributes[name] for name in _FEATURES if name in attributes}
    try:
        yield
    except BaseException:
        if attributes.get(kept) is before:
            for name in _FEATURES:
                attributes.pop(name, None)
            attributes.update(features)
        raise
