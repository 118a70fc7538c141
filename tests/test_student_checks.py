"""scikit-learn's own estimator checks of the student: none failing, none skipped.

Run with ``SCIPY_ARRAY_API=1``, without which scikit-learn skips a check.
"""

from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from lelp_sklearn import LELPStudentClassifier

# The checks know no teacher, which the student says in a warning.
pytestmark = pytest.mark.filterwarnings(
    "ignore::lelp_sklearn.exceptions.NoTeacherWarning"
)


@parametrize_with_checks([LELPStudentClassifier()])
def test_student_check(estimator, check):
    """A skipped check counts as failed."""
    try:
        check(estimator)
    except SkipTest as reason:
        pytest.fail(f"the check was skipped: {reason}")
