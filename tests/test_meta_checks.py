"""scikit-learn's own estimator checks of the meta-classifier, around two estimators.

Run with ``SCIPY_ARRAY_API=1``, without which scikit-learn skips a check.
"""

from unittest import SkipTest

import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from lelp_sklearn import LELPMetaClassifier

# The checks know no teacher, which the classifier says in a warning, and some have
# columns of unlike scales.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lelp_sklearn.exceptions.NoTeacherWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@parametrize_with_checks(
    [
        LELPMetaClassifier(LogisticRegression(max_iter=300)),
        LELPMetaClassifier(
            HistGradientBoostingClassifier(max_iter=3, max_leaf_nodes=8)
        ),
    ]
)
def test_meta_classifier_check(estimator, check):
    """A skipped check counts as failed."""
    try:
        check(estimator)
    except SkipTest as reason:
        pytest.fail(f"the check was skipped: {reason}")
