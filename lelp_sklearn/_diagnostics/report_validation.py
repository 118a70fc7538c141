"""Checks of what a user asks a report about, and their messages."""

from numbers import Integral
from typing import Any


def check_student(student: Any) -> None:
    """Raise unless it is a student, fitted or not."""
    if hasattr(student, "predict_subclass_proba") and hasattr(student, "projector"):
        return
    kind = type(student).__name__
    mend = "pass a LELPStudentClassifier"
    if hasattr(student, "steps"):
        mend = "pass its last step, and X as the steps before it make it"
    elif hasattr(student, "n_subclasses"):
        mend = "pass the LELPStudentClassifier whose projector it is"
    raise TypeError(f"student is of type {kind}: {mend}.")


def check_at_least(value: object, least: int, name: str) -> None:
    """Raise unless an argument is an integer of some size."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; it must be an integer.")
    if int(value) < least:
        raise ValueError(f"{name}={value!r} must be at least {least}.")


def check_teacher_is_known(is_known: bool) -> None:
    """Raise where nothing says what the teacher knows."""
    if not is_known:
        raise ValueError(
            "Nothing of a teacher is given, and there is no one to agree with: pass "
            "teacher_embeddings or teacher_logits, or a student that has a teacher or "
            "a projector with a head."
        )


def check_several_subclasses(n_subclasses: int, given: object) -> None:
    """Raise where the projector makes one subclass of a class."""
    if n_subclasses < 2:
        raise ValueError(
            f"The projector makes {n_subclasses} subclass of each class "
            f"(n_subclasses={given!r}), which is vanilla distillation, and there is "
            "nothing to compare: set n_subclasses to 'auto' or to 2 or more, and give "
            "each class several distinct rows."
        )
