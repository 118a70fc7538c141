"""A report, from a few quick students, on whether subclass targets will help."""

from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from lelp_sklearn._callers import warned_once
from lelp_sklearn._diagnostics.advice import Advice
from lelp_sklearn._diagnostics.pilots import (
    LABELS,
    SUBCLASSES,
    VANILLA,
    Pilot,
    PilotData,
    draw_seed,
    has_epochs,
    make_pilots,
)
from lelp_sklearn._diagnostics.reasons import mean_margin_r2
from lelp_sklearn._diagnostics.table import check_at_least
from lelp_sklearn._training.inputs import add_note_on_error
from lelp_sklearn._typing import BoolArray

# Between these gains a verdict is open: benchmarks/results/findings.md has the tasks.
_LEAST_GAIN, _WORTHWHILE = 0.005, 0.01
# Standard errors on either side of a gain in an interval of 95 %.
_HALF_WIDTH = 1.96
# With less headroom, subclasses that gain something may not with more rows.
_LITTLE_ROOM = 0.05
# Where reasons change their wording.
_MOSTLY_CONFIDENCE = 0.8
_HARDLY_LEARNED, _PARTLY_LEARNED = 0.2, 0.5


@dataclass(frozen=True)
class SubclassReport:
    """The result of :func:`subclass_report`; printed, it explains itself.

    Shares are between 0 and 1, and gains are differences of shares. A student is asked
    about rows that it has not seen. Three students are compared: one that learns the
    labels alone, one that learns the teacher's class probabilities (vanilla
    distillation, S = 1), and one that learns subclasses.

    Parameters
    ----------
    pilot_gain, pilot_gain_se : float
        How much larger the share of right rows is with subclasses than without, and its
        standard error. A row is right if the student predicts its label, or the
        teacher's class if it has none.
    teacher_gain, teacher_gain_se : float or None
        The same for the student without subclasses against the one that learns labels,
        on the labelled rows. None without labels.
    teacher_accuracy, label_accuracy : float or None
        Share of the labelled rows that the teacher and the student of the labels get
        right. None without labels.
    vanilla_accuracy, subclass_accuracy : float
        The same for the students of the teacher, without and with subclasses; without
        labels, the share of rows in which they agree with the teacher.
    headroom : float
        Share of rows on which the student without subclasses differs from the teacher.
    learnability : float
        Adjusted mutual information between the subclasses of rows and those that the
        student predicts, within each class: 0 for chance, 1 if all agree.
    margin_r2 : float
        Share of the variance of the teacher's margin in a class, the logit of the class
        minus the largest other, that is explained by the clusters of the class in the
        null space.
    training_length : {"too long", "too short"} or None
        Whether the score of held-out rows, of the student with subclasses, is best in
        the first tenth of training, or still clearly rises in the last. None otherwise,
        and for a student without epochs.
    n_subclasses : int
        The number S of subclasses that was compared with S = 1.
    n_samples, n_labelled, n_splits : int
        Number of rows used, of those that have a label, and of splits.
    recommendation : str
        What to do, and the call to make.
    """

    pilot_gain: float
    pilot_gain_se: float
    teacher_gain: float | None
    teacher_gain_se: float | None
    teacher_accuracy: float | None
    label_accuracy: float | None
    vanilla_accuracy: float
    subclass_accuracy: float
    headroom: float
    learnability: float
    margin_r2: float
    training_length: str | None
    n_subclasses: int
    n_samples: int
    n_labelled: int
    n_splits: int
    # The arguments that it names are how the report was asked, not what it found.
    recommendation: str = field(compare=False)

    @property
    def verdict(self) -> str:
        """Whether subclasses help: "helps", "unclear" or "does not help".

        "does not help" if `pilot_gain` plus its standard error is below 0.01, one point
        of accuracy; else "helps" if `pilot_gain` minus its standard error is above
        0.005 and `headroom` is at least 0.05.
        """
        return _verdict(self.pilot_gain, self.pilot_gain_se, self.headroom)

    @property
    def recommended_n_subclasses(self) -> int:
        """The `n_subclasses` to use.

        1 if the verdict is "does not help", else the projector's number.
        """
        return 1 if self.verdict == "does not help" else self.n_subclasses

    def __str__(self) -> str:
        return "\n".join(
            [
                f"Subclass targets: {self.verdict} ({self.n_samples} rows, "
                f"{self.n_splits} splits)",
                *self._describe_accuracies(),
                *self._describe_gains(),
                "Reasons",
                *(_wrap(reason) for reason in self._reasons()),
                f"Recommendation: {self.recommendation}",
            ]
        )

    def _describe_accuracies(self) -> list[str]:
        rows = f"Accuracy on {self.n_labelled} labelled rows, unseen by the student"
        if not self.n_labelled:
            rows = f"Agreement with the teacher on {self.n_samples} unseen rows"
        lines = [
            ("the teacher itself, which may have seen them", self.teacher_accuracy),
            ("student of the labels", self.label_accuracy),
            ("student of the teacher, 1 subclass per class", self.vanilla_accuracy),
            (
                f"student of the teacher, {self.n_subclasses} subclasses per class",
                self.subclass_accuracy,
            ),
        ]
        return [rows, *(f"  {a:<48}{b:6.1%}" for a, b in lines if b is not None)]

    def _describe_gains(self) -> list[str]:
        interval = _interval(self.pilot_gain, self.pilot_gain_se)
        lines = [f"  {'subclasses instead of 1':<48}{interval}"]
        if self.teacher_gain is not None and self.teacher_gain_se is not None:
            interval = _interval(self.teacher_gain, self.teacher_gain_se)
            lines.insert(0, f"  {'the teacher instead of the labels':<48}{interval}")
        others = ""
        if 0 < self.n_labelled < self.n_samples:
            others = " (rows without a label: agreement with the teacher)"
        return [f"Gain in points, with 95 % interval{others}", *lines]

    def _reasons(self) -> list[str]:
        """Return sentences on what the verdict follows from."""
        room = "little" if self.headroom < _LITTLE_ROOM else "something"
        recognises = "recognises the subclasses well"
        if self.learnability < _PARTLY_LEARNED:
            recognises = "recognises the subclasses in part"
        if self.learnability < _HARDLY_LEARNED:
            recognises = "hardly recognises the subclasses"
        confidence = "Subclasses say more than the teacher's confidence"
        if self.margin_r2 > _MOSTLY_CONFIDENCE:
            confidence = "Subclasses mostly repeat the teacher's confidence"
        reasons = [
            f"With 1 subclass the student differs from the teacher on "
            f"{self.headroom:.1%} of the rows: {room} to gain.",
            f"From its inputs the student {recognises}: {self.learnability:.2f}, "
            "where 0 is guessing and 1 is perfect.",
            f"{confidence}, of which groups in a class explain {self.margin_r2:.0%}.",
        ]
        if self.training_length == "too long":
            reasons.append(
                "Training is too long: unseen rows are predicted best in the first "
                "tenth of it."
            )
        elif self.training_length == "too short":
            reasons.append(
                "Training is too short: unseen rows are still predicted better and "
                "better in the last tenth of it."
            )
        return reasons


def _wrap(sentence: str) -> str:
    return fill(sentence, 80, initial_indent="  ", subsequent_indent="    ")


def _verdict(gain: float, error: float, headroom: float) -> str:
    if gain + error < _WORTHWHILE:
        return "does not help"
    has_room = headroom >= _LITTLE_ROOM
    return "helps" if has_room and gain - error > _LEAST_GAIN else "unclear"


def _interval(gain: float, error: float) -> str:
    """Format a gain in points with its interval; zero is +0.0, never -0.0."""
    width = _HALF_WIDTH * error
    center, low, high = (
        f"{round(100 * value, 1) + 0.0:+.1f}"
        for value in (gain, gain - width, gain + width)
    )
    return f"{center} [{low}, {high}]"


def subclass_report(
    student: Any,
    X: Any,
    y: Any = None,
    *,
    teacher_embeddings: Any = None,
    teacher_logits: Any = None,
    n_splits: int = 5,
    max_samples: int = 5000,
    max_steps: int = 2000,
    random_state: Any = None,
) -> SubclassReport:
    r"""Estimate before training whether subclass targets will help a student.

    At most `max_samples` rows are split into `n_splits` parts. Each part is held out
    once, while three students are trained on the others: on the subclasses of the
    student's projector, on its class probabilities alone (S = 1, vanilla distillation),
    and on the labels, if there are any. The verdict depends on how many more of the
    held-out rows the first gets right than the second; the rest of the report says what
    to compare that with, why it may be so, and what to do.

    Parameters
    ----------
    student : LELPStudentClassifier, LELPMetaClassifier or Pipeline that ends in one
        Fitted or not; it is not changed. All its parameters are used, but
        `early_stopping`, `warm_start`, `checkpoint` and `verbose`. The steps of a
        Pipeline before it are fitted once, on all rows. The estimator of a
        LELPMetaClassifier has to predict probabilities.
    X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, n_features, ...)
        Inputs of `student`, as in :meth:`LELPStudentClassifier.fit`; of a Pipeline,
        what its first step takes.
    y : array-like of shape (n_samples,), default=None
        Class labels, as in :meth:`LELPStudentClassifier.fit`.
    teacher_embeddings : array-like of shape (n_samples, n_embedding), default=None
        The teacher's embeddings. If None, those that fit would use: of the student's
        `teacher`, else X itself.
    teacher_logits : array-like of shape (n_samples, n_classes or 1), default=None
        The teacher's logits.
    n_splits : int, default=5
        Number of parts, at least 2.
    max_samples : int, default=5000
        Number of rows to use at most, drawn stratified by label.
    max_steps : int, default=2000
        Number of steps in which a quick student is trained at most, in whole epochs. It
        makes as many steps as `student` would make on all rows, if that is less, and
        its schedules end with the last one.
    random_state : int, RandomState instance or None, default=None
        Controls the drawn rows, the splits and the students' seeds. Pass an int for
        reproducible reports; None uses NumPy's global generator.

    Returns
    -------
    SubclassReport
        Print it. Its `verdict` is "helps", "unclear" or "does not help", and
        `recommendation` has the call to make.

    Raises
    ------
    TypeError
        If `student` is not a student.
    ValueError
        If no teacher is given, if the projector makes only one subclass or more than
        the rows of a class in all parts but one allow, or as in
        :meth:`LELPStudentClassifier.fit`.
    FloatingPointError
        If the weights of a quick student were not finite.

    See Also
    --------
    LELPStudentClassifierCV : Chooses the parameters of a student.
    subclass_table : Describes the subclasses.

    Notes
    -----
    The standard error of a gain over n rows is that of paired differences,
    :math:`s / \sqrt{n}`, where s is the standard deviation over the rows of
    (right now) minus (right before). It says how much the gain depends on the rows that
    were held out, not on those that the students learned from.

    The students of all parts are trained together, as in
    :class:`LELPStudentClassifierCV`, if the module allows it; otherwise one after the
    other, which takes up to ``3 * n_splits`` trainings of `max_steps` steps. Nothing is
    printed meanwhile. The clusters that the teacher's confidence is explained by are at
    most 20 in a class.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from lelp_sklearn import LELPProjector, LELPStudentClassifier, subclass_report
    >>> X, digit = load_digits(return_X_y=True)
    >>> X, y = X / 16, digit % 2
    >>> head = LogisticRegression().fit(X, y)
    >>> student = LELPStudentClassifier(projector=LELPProjector(5, head=head))
    >>> report = subclass_report(
    ...     student, X, y, teacher_embeddings=X, max_steps=60, random_state=0
    ... )
    >>> report.verdict in ("helps", "unclear", "does not help")
    True
    >>> print(report)
    Subclass targets: ... (1797 rows, 5 splits)
    Accuracy on 1797 labelled rows, unseen by the student
      the teacher itself, which may have seen them ...
    >>> student = student.set_params(
    ...     projector__n_subclasses=report.recommended_n_subclasses
    ... )
    """
    student, steps, name = _split_pipeline(student)
    _check_student(student)
    check_at_least(n_splits, 2, "n_splits")
    check_at_least(max_samples, 2, "max_samples")
    check_at_least(max_steps, 1, "max_steps")
    random_state = check_random_state(random_state)
    given = {
        "y": y,
        "teacher_embeddings": teacher_embeddings,
        "teacher_logits": teacher_logits,
    }
    advice = Advice(student, name, [n for n, v in given.items() if v is not None])
    note = f"(In a report, which uses at most max_samples={max_samples} rows.)"
    with warned_once(), add_note_on_error(note):
        if steps is not None:
            X = clone(steps).fit_transform(X, y)
        data = PilotData.read(
            student, X, y, teacher_embeddings, teacher_logits, max_samples, random_state
        )
        pilots = make_pilots(data, n_splits, max_steps, random_state)
        length = None
        if has_epochs(student):
            # Not every student needs torch.
            from lelp_sklearn._diagnostics import pilot_training

            pilot_training.train_pilots(data, pilots, draw_seed(random_state))
            length = pilot_training.training_length(pilots)
        else:
            for pilot in pilots:
                pilot.fit(data)
    return _summarise(data, pilots, length, advice)


def _summarise(
    data: PilotData, pilots: list[Pilot], length: str | None, advice: Advice
) -> SubclassReport:
    """Compare what the pilots say of the rows that they have not seen."""
    with_subclasses = [pilot for pilot in pilots if pilot.kind == SUBCLASSES]
    n_rows, truth, labelled = len(data.labels), data.class_index, data.labels >= 0
    predicted = {
        kind: np.full(n_rows, -1) for kind in dict.fromkeys(p.kind for p in pilots)
    }
    learnability = []
    for pilot in pilots:
        classes, subclasses = pilot.predict(data)
        predicted[pilot.kind][pilot.held_out] = classes
        if pilot.kind == SUBCLASSES:
            learnability.append(pilot.learnability(data, subclasses))
    is_right = {kind: of_kind == truth for kind, of_kind in predicted.items()}
    scored = labelled if labelled.any() else np.full(n_rows, True)
    accuracy = {kind: float(right[scored].mean()) for kind, right in is_right.items()}
    gain, error = _gain(is_right[SUBCLASSES], is_right[VANILLA])
    teacher_gain = teacher_gain_se = teacher_accuracy = None
    if LABELS in is_right:
        teacher_accuracy = float((data.by_teacher == truth)[labelled].mean())
        teacher_gain, teacher_gain_se = _gain(
            is_right[VANILLA][labelled], is_right[LABELS][labelled]
        )
    n_subclasses = with_subclasses[0].n_subclasses
    headroom = float(np.mean(predicted[VANILLA] != data.by_teacher))
    verdict = _verdict(gain, error, headroom)
    return SubclassReport(
        pilot_gain=gain,
        pilot_gain_se=error,
        teacher_gain=teacher_gain,
        teacher_gain_se=teacher_gain_se,
        teacher_accuracy=teacher_accuracy,
        label_accuracy=accuracy.get(LABELS),
        vanilla_accuracy=accuracy[VANILLA],
        subclass_accuracy=accuracy[SUBCLASSES],
        headroom=headroom,
        learnability=float(np.mean(learnability)),
        margin_r2=mean_margin_r2(
            data.embeddings, data.logits, data.projector.coef_, truth
        ),
        training_length=length,
        n_subclasses=n_subclasses,
        n_samples=n_rows,
        n_labelled=int(labelled.sum()),
        n_splits=len(with_subclasses),
        recommendation=advice.recommend(verdict, length, n_subclasses),
    )


def _gain(is_right: BoolArray, was_right: BoolArray) -> tuple[float, float]:
    """Return the mean of paired differences, and its standard error."""
    differences = is_right.astype(float) - was_right
    return float(differences.mean()), float(differences.std() / len(differences) ** 0.5)


def _split_pipeline(student: Any) -> tuple[Any, Any, str | None]:
    """Return the student, the steps before it and its name if it is in a Pipeline."""
    if not hasattr(student, "steps"):
        return student, None, None
    name, last = student.steps[-1]
    return last, student[:-1] if len(student.steps) > 1 else None, name


def _check_student(student: object) -> None:
    if hasattr(student, "predict_subclass_proba") and hasattr(student, "projector"):
        return
    fix = (
        "pass a LELPStudentClassifier, or a LELPMetaClassifier whose estimator "
        "predicts probabilities"
    )
    if hasattr(student, "n_subclasses"):
        fix = "pass the LELPStudentClassifier that has this projector"
    raise TypeError(f"student is of type {type(student).__name__}: {fix}.")
