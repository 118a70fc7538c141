"""Warnings that a user can filter by their class."""

from collections.abc import Mapping

from sklearn.exceptions import InconsistentVersionWarning


class NoTeacherWarning(UserWarning):
    """Issued if a student is fitted without a teacher.

    X, or its TruncatedSVD if it is sparse, is then used in place of the teacher's
    embeddings, and the labels in place of its class probabilities.
    """

    def __str__(self) -> str:
        return (
            "No teacher was given; X, or its TruncatedSVD if it is sparse, is used as "
            "the embeddings and y as the targets. Pass teacher_embeddings, "
            "teacher_logits or soft_targets, or set teacher= or the projector's head=."
        )


# scikit-learn, whose class it extends, has no types.
class OtherVersionsWarning(InconsistentVersionWarning):  # type: ignore[misc]
    """Issued if a fitted student is loaded with other versions than saved it.

    Parameters
    ----------
    estimator_name : str
        Its class.
    saved, current : dict of str
        The version of each library when it was saved, and now.
    """

    def __init__(
        self, estimator_name: str, saved: Mapping[str, str], current: Mapping[str, str]
    ) -> None:
        super().__init__(
            estimator_name=estimator_name,
            current_sklearn_version=current.get("scikit-learn"),
            original_sklearn_version=saved.get("scikit-learn"),
        )
        self.saved, self.current = saved, current

    def __str__(self) -> str:
        def listed(versions: Mapping[str, str]) -> str:
            other = [n for n, v in self.saved.items() if self.current.get(n) != v]
            return ", ".join(f"{name} {versions.get(name)}" for name in other)

        return (
            f"{self.estimator_name} was saved with {listed(self.saved)} and is loaded "
            f"with {listed(self.current)}. Compare its predictions with earlier ones."
        )


class ClassOrderWarning(UserWarning):
    """Issued if another order of the teacher's classes agrees far better with y.

    Rows of a head and columns of logits or soft targets are in the order of the sorted
    labels.
    """


class ProbabilitiesAsLogitsWarning(UserWarning):
    """Issued if probabilities are passed as the teacher's logits.

    Pass their logarithm instead, with zeros clipped.
    """


class OverfittedTeacherWarning(UserWarning):
    """Issued if the teacher is far surer of labelled rows than of rows without a label.

    It has probably been trained on the former. Class targets from a fit that did not
    see the row teach more.
    """


class NoLinearHeadWarning(UserWarning):
    """Issued if no linear layer of a teacher makes the logits that it returns.

    The teacher then has no head; its logits are used together with its embeddings.
    """
