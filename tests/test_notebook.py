"""What a notebook shows of an estimator."""

import pytest

from lelp_sklearn import LELPProjector, LELPStudentClassifier
from tests.student_problems import make_groups

# Earlier versions draw boxes without a line for the fit.
pytest.importorskip("sklearn.utils._repr_html.estimator")


def test_a_student_is_one_box_with_its_fit_in_a_line():
    X, y, E, head = make_groups(n_rows=60)
    student = LELPStudentClassifier(
        projector=LELPProjector(3, head=head), max_epochs=2, random_state=0
    )
    assert "projector: LELPProjector" not in student._repr_html_()
    student.fit(X, y, teacher_embeddings=E)
    assert "2 epochs (max_epochs), S = 3" in student._repr_html_()
