"""scikit-learn's own estimator checks: all of them, none failing, none skipped.

Run with ``SCIPY_ARRAY_API=1``, without which scikit-learn skips a check.
"""

from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from lelp_sklearn import LELPProjector

PROJECTORS = [
    LELPProjector(),
    LELPProjector(splitter="random"),
    LELPProjector(splitter="kmeans", subclass_temperature=0),
    LELPProjector(splitter="pca"),
    LELPProjector(splitter="pca", rotation="random", null_space=False),
    LELPProjector(splitter="pca", rotation=None, subclass_temperature=0),
    LELPProjector(splitter="pca", svd_solver="randomized"),
    LELPProjector(splitter="pca", svd_solver="full", subclass_temperature=0.5),
    LELPProjector(n_subclasses=1),
]


def run_check(estimator, check):
    """Run one check; a skipped one counts as failed."""
    try:
        check(estimator)
    except SkipTest as reason:
        pytest.fail(f"the check was skipped: {reason}")


@parametrize_with_checks(PROJECTORS)
def test_projector_check(estimator, check):
    run_check(estimator, check)
