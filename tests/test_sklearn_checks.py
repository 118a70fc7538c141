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
    LELPProjector(splitter="kmeans"),
    LELPProjector(rotation="random", null_space=False),
    LELPProjector(rotation=None, subclass_temperature=0),
    LELPProjector(svd_solver="randomized"),
    LELPProjector(svd_solver="covariance_eigh", subclass_temperature=0.5),
    LELPProjector(svd_solver="full"),
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
