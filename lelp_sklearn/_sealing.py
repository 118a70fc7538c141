"""States of fitted estimators that say which versions made them, and whether whole."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import sklearn

from lelp_sklearn._extraction.content_hash import content_hash
from lelp_sklearn.exceptions import OtherVersionsWarning

_SEAL = "_seal"


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Give the state of a fitted student with its versions and a digest of both."""
    versions = current_versions()
    return {**state, _SEAL: {"versions": versions, "digest": _digest(state, versions)}}


def unsealed(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Give the state that was sealed, or one that is not of a fitted student.

    Warns
    -----
    OtherVersionsWarning
        If other versions made it, which may predict otherwise.

    Raises
    ------
    ValueError
        If the state is not that which was sealed.
    """
    content = dict(state)
    seal = content.pop(_SEAL, None)
    if seal is None and "_fit" not in content:
        return content
    if seal is None or seal["digest"] != _digest(content, seal["versions"]):
        raise ValueError(
            f"This {name} is damaged: what was loaded is not what was saved. Load "
            "another copy of the file, or fit again."
        )
    saved, current = seal["versions"], current_versions()
    if _releases(saved) != _releases(current):
        warnings.warn(OtherVersionsWarning(name, saved, current), stacklevel=3)
    return content


def current_versions() -> dict[str, str]:
    """Versions of what predictions are made with."""
    # Imported here, because the projector, which needs none, does not wait for it.
    import torch

    package = sys.modules[__name__.partition(".")[0]]
    return {
        "lelp_sklearn": package.__version__,
        "torch": str(torch.__version__),
        "scikit-learn": sklearn.__version__,
    }


def _digest(state: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Digest parameters, fitted attributes and the fit, which predictions hang on.

    What scikit-learn keeps in an estimator, such as callbacks and metadata requests, is
    not of them.
    """
    covered = {
        name: value
        for name, value in state.items()
        if name == "_fit" or not name.startswith("_")
    }
    return content_hash([covered, versions])


def _releases(versions: Mapping[str, str]) -> dict[str, str]:
    """What has to be equal: of other libraries the first two numbers."""
    return {
        name: version if name == "lelp_sklearn" else ".".join(version.split(".")[:2])
        for name, version in versions.items()
    }
