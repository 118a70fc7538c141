"""scikit-learn's own estimator checks of the search: none failing, none skipped.

Run with ``SCIPY_ARRAY_API=1``, without which scikit-learn skips a check.
"""

from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from lelp_sklearn import LELPProjector, LELPStudentClassifier, LELPStudentClassifierCV

pytestmark = [
    pytest.mark.slow,
    # The checks know no teacher, which the student says in a warning.
    pytest.mark.filterwarnings("ignore::lelp_sklearn.exceptions.NoTeacherWarning"),
]


@parametrize_with_checks(
    [
        LELPStudentClassifierCV(
            LELPStudentClassifier(
                module_params={"hidden_layer_sizes": (16,)},
                projector=LELPProjector(),
                max_epochs=20,
            ),
            {"projector__n_subclasses": [1, "auto"]},
            validation_fraction=0.2,
        )
    ]
)
def test_student_cv_check(estimator, check):
    """A skipped check counts as failed."""
    try:
        check(estimator)
    except SkipTest as reason:
        pytest.fail(f"the check was skipped: {reason}")
