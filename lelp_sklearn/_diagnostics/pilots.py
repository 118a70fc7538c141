"""Pilots: students that are trained on some rows and asked about the others."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import _safe_indexing, indexable

from lelp_sklearn._diagnostics.reasons import agreement_in_classes
from lelp_sklearn._diagnostics.table import class_logits
from lelp_sklearn._projector import LELPProjector
from lelp_sklearn._targets import TargetSource, embed, has_teacher, usable_rows
from lelp_sklearn._training.inputs import StudentInputs, as_array, unlabeled_mark
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray

# How the targets of a pilot are made.
LABELS, VANILLA, SUBCLASSES = "labels", "vanilla", "subclasses"


@dataclass(frozen=True)
class PilotData:
    """The rows of a report, and a projector that is fitted to all of them."""

    student: Any
    sample: StudentInputs
    # Number of rows that were given, of which the sample is a part.
    n_given: int
    # (n, d) and (n, C), those of the teacher.
    embeddings: FloatArray
    logits: FloatArray
    # A LELPProjector or a FrozenEstimator of one.
    projector: Any
    # The index (n,) of the label of each row, -1 without one.
    labels: IntArray

    @classmethod
    def read(
        cls,
        student: Any,
        X: Any,
        y: Any,
        teacher_embeddings: Any,
        teacher_logits: Any,
        max_samples: int,
        random_state: np.random.RandomState,
    ) -> "PilotData":
        """Check all rows, draw some, and fit teacher and projector to them."""
        student = _pilot_student(student, draw_seed(random_state))
        student._check_params()
        given = StudentInputs.from_user(
            student,
            X,
            y,
            teacher_embeddings=teacher_embeddings,
            teacher_logits=teacher_logits,
        )
        if not has_teacher(student, given):
            raise ValueError(
                "No teacher is given, so there is nothing to learn from it: pass "
                "teacher_embeddings or teacher_logits, or a student that has a "
                "teacher or a projector with a head."
            )
        sample, used = given, usable_rows(student, given)
        if len(given) > max_samples:
            fraction = max_samples / len(given)
            rows = np.sort(given.draw(used, fraction, draw_seed(random_state)))
            sample, used = given.select(rows), used[rows]
        source, sample = TargetSource.resolve(
            student,
            sample,
            used,
            seed=draw_seed(random_state),
            # As a LELPMetaClassifier itself does.
            auto_temperature=None if has_epochs(student) else 1.0,
        )
        _check_several_subclasses(source.projector)
        embeddings = as_array(embed(sample, source.teacher))
        logits = sample.teacher_logits
        logits = None if logits is None else as_array(logits)
        return cls(
            student,
            replace(sample, teacher_embeddings=None, teacher_logits=None),
            len(given),
            embeddings,
            class_logits(source.projector, embeddings, logits),
            source.projector,
            sample.class_index(source.classes),
        )

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return int(self.logits.shape[1])

    @property
    def by_teacher(self) -> IntArray:
        """The index of the teacher's most likely class of each row (n,)."""
        most_likely: IntArray = self.logits.argmax(axis=1)
        return most_likely

    @property
    def class_index(self) -> IntArray:
        """The index of the label of each row (n,), else of the teacher's class."""
        return np.where(self.labels >= 0, self.labels, self.by_teacher)

    def fit_projector(self, rows: IntArray, seed: int) -> Any:
        """Fit a projector to some rows and freeze it; return a frozen one as it is."""
        if isinstance(self.projector, FrozenEstimator):
            return self.projector
        projector = clone(self.projector).set_params(unlabeled=None, random_state=seed)
        return self._fit_frozen(projector, rows)

    def fit_class_projector(self, rows: IntArray) -> Any:
        """Fit a projector of one subclass per class, at the temperature of labels."""
        return self._fit_frozen(LELPProjector(1, temperature=1.0), rows)

    def _fit_frozen(self, projector: Any, rows: IntArray) -> Any:
        projector.set_params(head=(self.projector.coef_, self.projector.intercept_))
        projector.fit(
            self.embeddings[rows],
            self.projector.classes_[self.class_index[rows]],
            teacher_logits=self.logits[rows],
        )
        return FrozenEstimator(projector)


@dataclass(eq=False)
class Pilot:
    """A student of one kind of targets, and the rows that it is asked about.

    `is_train` (n,) are the rows that it learns from, with `soft_targets` (n, C * S);
    `scores` are those of the held-out rows during training.
    """

    kind: str
    student: Any
    soft_targets: FloatArray
    is_train: BoolArray
    held_out: IntArray
    scores: list[float] = field(default_factory=list)

    @property
    def n_subclasses(self) -> int:
        """The number of subclasses per class of the projector."""
        return int(self.student.projector.n_subclasses_)

    def fit(self, data: PilotData) -> None:
        """Fit a student that has no epochs."""
        rows, y = np.flatnonzero(self.is_train), data.sample.y
        self.student.fit(
            _safe_indexing(*indexable(data.sample.X), rows),
            None if y is None else y[rows],
            soft_targets=self.soft_targets[rows],
        )

    def predict(self, data: PilotData) -> tuple[IntArray, IntArray]:
        """Return the class and the subclass of the held-out rows.

        The subclass is the most likely one of the label's class, else the teacher's.
        """
        X = _safe_indexing(*indexable(data.sample.X), self.held_out)
        return (
            self.student.predict_proba(X).argmax(axis=1),
            most_likely_in_class(
                self.student.predict_subclass_proba(X),
                data.class_index[self.held_out],
                data.n_classes,
            ),
        )

    def learnability(self, data: PilotData, predicted: IntArray) -> float:
        """Return how well predicted subclasses of held-out rows agree with theirs."""
        class_index = data.class_index[self.held_out]
        soft = self.soft_targets[self.held_out]
        subclass = most_likely_in_class(soft, class_index, data.n_classes)
        return agreement_in_classes(class_index, subclass, predicted)


def make_pilots(
    data: PilotData, n_splits: int, max_steps: int, random_state: np.random.RandomState
) -> list[Pilot]:
    """Return the pilots of splits that hold each row out once, not trained yet."""
    seed, is_labelled = draw_seed(random_state), data.labels >= 0
    pilots = []
    splitter = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
    for rest, held_out in splitter.split(data.class_index, data.class_index):
        seed = draw_seed(random_state)
        is_train = np.full(len(data.labels), True)
        is_train[held_out] = False
        projector = data.fit_projector(rest, seed)
        soft = projector.transform(data.embeddings, teacher_logits=data.logits)
        of_classes = projector.inverse_transform(soft)
        kinds = [(SUBCLASSES, projector, soft), (VANILLA, projector, of_classes)]
        if is_labelled.any():
            one_hot = np.eye(data.n_classes, dtype=soft.dtype)[data.class_index]
            kinds.append((LABELS, data.fit_class_projector(rest), one_hot))
        # A frozen projector does not tell it.
        mark = unlabeled_mark(data.student)
        for kind, projector, targets in kinds:
            student = _pilot_student(data.student, seed)
            student.set_params(projector=projector, teacher=None, unlabeled=mark)
            is_used = is_train & is_labelled if kind == LABELS else is_train
            if has_epochs(student):
                share = is_used.sum() / is_train.sum()
                student.max_epochs = _n_epochs(student, data, share, max_steps)
            pilots.append(Pilot(kind, student, targets, is_used, held_out))
    return pilots


def _n_epochs(student: Any, data: PilotData, share: float, max_steps: int) -> int:
    """Return the epochs of a pilot: those of as many steps as the student makes.

    `share` is the part of the rows that the pilot learns from, apart from the split.
    """
    batch_size, max_epochs = int(student.batch_size), int(student.max_epochs)
    per_epoch, own_per_epoch = (
        math.ceil(share * n_rows / batch_size)
        for n_rows in (len(data.labels), data.n_given)
    )
    n_steps = min(max_steps, max_epochs * own_per_epoch)
    return max(1, round(n_steps / per_epoch))


def has_epochs(student: Any) -> bool:
    """Return whether a student is trained in epochs; a LELPMetaClassifier is not."""
    return hasattr(student, "max_epochs")


def _pilot_student(student: Any, seed: int) -> Any:
    """Return a student of the same parameters that saves and prints nothing."""
    params = student.get_params(deep=False) | {"random_state": seed}
    if has_epochs(student):
        params |= {"early_stopping": False, "warm_start": False}
        params |= {"checkpoint": None, "verbose": 0}
    return type(student)(**params)


def _check_several_subclasses(projector: Any) -> None:
    """Raise if a fitted projector makes one subclass per class."""
    if projector.n_subclasses_ < 2:
        raise ValueError(
            f"The projector makes {projector.n_subclasses_} subclass of each class "
            f"(n_subclasses={projector.n_subclasses!r}), which is vanilla "
            "distillation, so there is nothing to compare: set n_subclasses to "
            "'auto' or to 2 or more, and give each class several distinct rows."
        )


def draw_seed(random_state: np.random.RandomState) -> int:
    """Draw a seed."""
    return int(random_state.randint(2**31 - 1))


def most_likely_in_class(
    soft: FloatArray, class_index: IntArray, n_classes: int
) -> IntArray:
    """Return the most likely subclass (n,) of each row in its own class."""
    by_class = soft.reshape(len(class_index), n_classes, -1)
    in_class = by_class[np.arange(len(class_index)), class_index]
    most_likely: IntArray = in_class.argmax(axis=1)
    return most_likely
