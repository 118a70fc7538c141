"""Warnings that a user may want to filter by name."""


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
