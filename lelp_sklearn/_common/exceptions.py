"""Warnings that a user may want to filter by name."""


class NoTeacherWarning(UserWarning):
    """Nothing of a teacher was given to the student.

    The inputs then take the place of the teacher's embeddings, and the labels that of
    its class probabilities.
    """
