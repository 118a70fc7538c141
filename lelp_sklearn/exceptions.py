"""Warnings that a user may want to filter by name."""

from collections.abc import Mapping

from sklearn.exceptions import InconsistentVersionWarning


class NoTeacherWarning(UserWarning):
    """Nothing of a teacher was given to the student.

    The inputs then take the place of the teacher's embeddings, and the labels that of
    its class probabilities.
    """

    def __str__(self) -> str:
        return (
            "There is no teacher: neither teacher_embeddings, teacher_logits, "
            "soft_targets, a teacher nor a head of the projector is given. X takes the "
            "place of the embeddings and the labels that of class probabilities."
        )


# scikit-learn, whose class it extends, has no types.
class OtherVersionsWarning(InconsistentVersionWarning):  # type: ignore[misc]
    """A fitted student was saved with other versions than it is loaded with.

    Parameters
    ----------
    estimator_name : str
        Its class.
    saved, current : dict of str
        The version of each library, then and now.
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
    """Another order of the teacher's classes would agree far better with the labels.

    Rows of a head and columns of logits or soft targets are in the order of the sorted
    labels.
    """


class ProbabilitiesAsLogitsWarning(UserWarning):
    """What was given as logits of the teacher are probabilities.

    Their logarithms, zeros clipped, are logits.
    """


class NoLinearHeadWarning(UserWarning):
    """No linear layer of a torch teacher makes the logits that it returns.

    It then has no head; the logits that it returns are used beside its embeddings.
    """
