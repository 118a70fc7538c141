"""Where the targets of the student come from: given, or projected from embeddings."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing

from lelp_sklearn._common import training_validation, validation
from lelp_sklearn._common.callbacks import FitTask


@dataclass(frozen=True)
class OmittedTeacher:
    """Stands for the teacher in a fitted student that was pickled."""

    name: str


@dataclass(frozen=True)
class Sample:
    """Checked rows, with what is given of their targets.

    Parameters
    ----------
    X, inputs
        The rows as they were passed, and as an array or a tensor.
    labels, labelled : ndarray of shape (n,)
        y as a column, and which rows have a label.
    weight : ndarray of shape (n,)
        Row weights.
    embeddings, logits, soft_targets
        The teacher's, None where not given.
    """

    X: Any
    inputs: Any
    labels: np.ndarray
    labelled: np.ndarray
    weight: np.ndarray
    embeddings: Any = None
    logits: Any = None
    soft_targets: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def y(self) -> np.ndarray | None:
        """The labels as a projector takes them: None where there are none."""
        return self.labels if self.labelled.any() else None


@dataclass
class TargetSource:
    """Makes soft targets of rows.

    Parameters
    ----------
    projector : LELPProjector, FrozenEstimator or None
        Fitted; None where soft targets are given instead.
    teacher : transformer or None
        Fitted; None where embeddings are given or X takes their place.
    reads_inputs : bool
        Whether X takes the place of the embeddings.
    labels_only : bool
        Whether the labels take the place of the teacher's class probabilities.
    classes : ndarray of shape (n_classes,)
        The classes, in the order of the columns.
    temperature : float
        The temperature of the class targets.
    """

    projector: Any
    teacher: Any
    reads_inputs: bool
    labels_only: bool
    classes: np.ndarray
    temperature: float

    def knows_classes_of(self, sample: Sample) -> bool:
        """Tell whether the teacher says the class probabilities of the rows."""
        embeddable = self.reads_inputs or self.teacher is not None
        return (
            self.projector is not None
            and not self.labels_only
            and (embeddable or sample.embeddings is not None)
        )

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.teacher is not None:
            state["teacher"] = OmittedTeacher(type(self.teacher).__name__)
        return state

    def soft_targets(self, sample: Sample, codes: np.ndarray) -> np.ndarray:
        """Give the targets (n, C*S); `codes` are -1 for rows without a label."""
        if sample.soft_targets is not None:
            return sample.soft_targets
        if self.projector is None:
            raise training_validation.targets_are_missing()
        logits = sample.logits
        if self.labels_only:
            logits = np.zeros((len(sample), len(self.classes)))
            known = np.flatnonzero(codes >= 0)
            # So far apart that the softmax is the label itself.
            logits[known, codes[known]] = 1e4 * self.temperature
        options = {} if logits is None else {"teacher_logits": logits}
        embeddings = _embed(sample, self.teacher)
        with _in_projector(sample):
            return as_array(self.projector.transform(embeddings, **options))


def _embed(sample: Sample, teacher: Any) -> Any:
    """Give the embeddings: those given, those of the teacher, or the rows."""
    if sample.embeddings is not None:
        return sample.embeddings
    if isinstance(teacher, OmittedTeacher):
        raise training_validation.omitted_teacher(teacher.name)
    if teacher is not None:
        return teacher.transform(sample.X)
    training_validation.check_embeddable(sample.inputs.ndim)
    return sample.inputs


def as_array(values: Any) -> Any:
    """Give an array of the CPU; tensors of half precision become float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.itemsize == 2 else values
    return np.asarray(values)


def is_hard(soft_targets: np.ndarray, n_classes: int) -> bool:
    """Tell whether each class has all its mass on one subclass, row by row."""
    by_class = soft_targets.reshape(len(soft_targets), n_classes, -1)
    return bool((by_class.max(axis=2) == by_class.sum(axis=2)).all())


@contextmanager
def noted(note: str) -> Iterator[None]:
    """Say more in the errors of a block."""
    try:
        yield
    except ValueError as error:
        error.add_note(note)
        raise


def given_source(sample: Sample, projector: Any, classes: Any) -> TargetSource:
    """Make the source of soft targets that are given; None are `classes` not known."""
    frozen = isinstance(projector, FrozenEstimator)
    if frozen:
        classes = projector.classes_
    elif classes is None and sample.labelled.any():
        classes = np.unique(sample.labels[sample.labelled])
    elif classes is None:
        n_subclasses = projector.n_subclasses
        if isinstance(n_subclasses, str):
            raise training_validation.unknown_classes()
        classes = np.arange(sample.soft_targets.shape[1] // n_subclasses)
    n_columns = sample.soft_targets.shape[1]
    training_validation.check_soft_target_columns(n_columns, np.asarray(classes))
    return TargetSource(
        projector if frozen else None,
        teacher=None,
        reads_inputs=False,
        labels_only=False,
        classes=validation.check_several_classes(np.asarray(classes)),
        temperature=projector.temperature,
    )


def fitted_source(
    sample: Sample,
    projector: Any,
    teacher: Any,
    used: np.ndarray,
    task: FitTask,
    *,
    labels_only: bool,
    classes: np.ndarray | None = None,
) -> TargetSource:
    """Fit the teacher, and the projector on its embeddings, with the rows `used`.

    Parameters
    ----------
    sample : Sample
        The rows.
    projector : LELPProjector or FrozenEstimator
        Not the caller's own, which stays as it is, unless frozen.
    teacher : transformer or None
        The caller's.
    used : ndarray of shape (n,)
        True for rows that may be learned from.
    task : FitTask
        Of which the fit of the projector is a step.
    labels_only : bool
        See `TargetSource`.
    classes : ndarray of shape (n_classes,) or None
        All classes, where a block of rows might lack some.
    """
    if classes is not None:
        found = np.unique(sample.labels[sample.labelled])
        if not isinstance(projector, FrozenEstimator) and projector.head is None:
            training_validation.check_block_classes(found, classes)
    if sample.embeddings is not None:
        teacher = None
    if teacher is not None:
        teacher = _fit_teacher(teacher, sample, used)
    if not isinstance(projector, FrozenEstimator):
        if projector.head is None and hasattr(teacher, "head_"):
            projector.set_params(head=_head_arrays(teacher.head_))
        embeddings = _embed(sample, teacher)
        options: dict[str, Any] = {"sample_weight": sample.weight * used}
        if sample.logits is not None:
            options["teacher_logits"] = sample.logits
        with task.delegate("fit-projector", projector), _in_projector(sample):
            projector.fit(embeddings, sample.y, **options)
    return TargetSource(
        projector,
        teacher,
        reads_inputs=sample.embeddings is None and teacher is None,
        labels_only=labels_only,
        classes=projector.classes_,
        temperature=projector.temperature,
    )


def _fit_teacher(teacher: Any, sample: Sample, used: np.ndarray) -> Any:
    """Give the teacher as it is if frozen, else a clone fitted on the rows `used`."""
    if isinstance(teacher, OmittedTeacher):
        raise training_validation.omitted_teacher(teacher.name)
    if isinstance(teacher, FrozenEstimator):
        return teacher
    rows = np.flatnonzero(used)
    y = None if sample.y is None else sample.labels[rows]
    return clone(teacher).fit(_safe_indexing(sample.X, rows), y)


def _head_arrays(head: Any) -> Any:
    """Give a torch.nn.Linear as arrays, which any machine can load."""
    if not hasattr(head, "weight"):
        return head
    coef = as_array(head.weight)
    return coef, np.zeros(len(coef)) if head.bias is None else as_array(head.bias)


def _in_projector(sample: Sample) -> AbstractContextManager[None]:
    name = "X" if sample.embeddings is None else "teacher_embeddings"
    return noted(f"(In the projector of the student, whose X is {name} here.)")
