"""What a few quick students tell of subclass targets, before training in earnest."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    roc_auc_score,
)
from sklearn.utils import _safe_indexing, check_random_state

from lelp_sklearn import _validation
from lelp_sklearn._callbacks import NO_TASK
from lelp_sklearn._callers import warned_once
from lelp_sklearn._diagnostics import report_validation
from lelp_sklearn._subclasses import structure
from lelp_sklearn._subclasses.directions import row_space_basis
from lelp_sklearn._targets import (
    Sample,
    as_array,
    embed,
    encode,
    hold_out,
    noted,
    select,
)

_HELD_OUT = 0.25
# A gain in agreement that is worth having: benchmarks/README.md has the tasks.
_WORTHWHILE = 0.01


@dataclass(frozen=True)
class SubclassReport:
    """What :func:`subclass_report` found.

    Printed, it is a table. Shares lie between 0 and 1; gains are differences of them.

    Parameters
    ----------
    pilot_gain : float
        Share of held-out rows on which the quick student with subclasses agrees with
        the teacher's class, less that of the one without: the mean over the splits.
    pilot_gain_se : float
        Its standard error, corrected for splits that share rows.
    ranking_gain : float
        The same for the area under the ROC curve, which asks how well a student ranks
        rows by how much they are of the teacher's class: the mean over the classes. It
        varies less from split to split.
    headroom : float
        Share of held-out rows on which the quick student without subclasses disagrees
        with the teacher.
    learnability : float
        How well the student with subclasses tells, of held-out rows, which subclass of
        their class they belong to: adjusted mutual information, 0 for chance and 1 for
        every row.
    structure : float
        How much more clustered than a Gaussian of the same covariance a class is in the
        null space: the ratio of the inertias that k-means leaves, 1 for a Gaussian.
    stability : float
        How well the subclasses of two splits agree: adjusted Rand index, 0 for chance
        and 1 for the same partition, as that of a frozen projector always is.
    margin_r2 : float
        Share of the variance of the teacher's margin in a class that its clusters in
        the null space tell. Near 1 they restate how sure the teacher is.
    n_subclasses : int
        S, with which the student was compared to one with S = 1.
    n_samples, n_splits : int
        How many rows were read and how often they were split.
    """

    pilot_gain: float
    pilot_gain_se: float
    ranking_gain: float
    headroom: float
    learnability: float
    structure: float
    stability: float
    margin_r2: float
    n_subclasses: int
    n_samples: int
    n_splits: int

    @property
    def verdict(self) -> str:
        """Whether subclasses help: "helps", "unclear" or "does not help".

        They do where `pilot_gain` less its error is above 0.01, one point of agreement;
        they do not where even with its error added it is below.
        """
        if self.pilot_gain - self.pilot_gain_se > _WORTHWHILE:
            return "helps"
        if self.pilot_gain + self.pilot_gain_se < _WORTHWHILE:
            return "does not help"
        return "unclear"

    @property
    def recommended_n_subclasses(self) -> int:
        """What to give a student's projector as `n_subclasses`.

        1 where the verdict is that S does not help. Where it is wrong, a gain is
        forgone; what it saves is outputs and the time to train them.
        """
        return 1 if self.verdict == "does not help" else self.n_subclasses

    def __str__(self) -> str:
        gain = f"{_in_points(self.pilot_gain)} ± {100 * self.pilot_gain_se:.1f} points"
        lines = [
            ("pilot gain", gain, "agreement with the teacher, over one subclass"),
            (
                "ranking gain",
                f"{_in_points(self.ranking_gain)} points",
                "area under the ROC curve, likewise",
            ),
            ("headroom", f"{self.headroom:.1%}", "of rows on which one subclass errs"),
            ("learnability", f"{self.learnability:.2f}", "0: by chance, 1: wholly"),
            ("structure", f"{self.structure:.2f}", "1: as a Gaussian"),
            ("stability", f"{self.stability:.2f}", "0: by chance, 1: the same again"),
            (
                "confidence share",
                f"{self.margin_r2:.2f}",
                "1: subclasses restate confidence",
            ),
        ]
        title = (
            f"Subclass targets: {self.verdict} ({self.n_subclasses} subclasses a class,"
            f" {self.n_samples} rows, {self.n_splits} splits)"
        )
        return "\n".join([title, *(f"  {a:<18}{b:<21}{c}" for a, b, c in lines)])


def _in_points(share: float) -> str:
    """Show a gain in points; nothing is +0.0, never -0.0."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def subclass_report(
    student: Any,
    X: Any,
    y: Any = None,
    *,
    teacher_embeddings: Any = None,
    teacher_logits: Any = None,
    n_splits: int = 5,
    max_samples: int = 5000,
    max_epochs: int = 30,
    random_state: Any = None,
) -> SubclassReport:
    r"""Tell before training whether subclass targets will help a student.

    Of at most `max_samples` rows a quarter is held out, several times anew. On the rest
    two quick students are trained, alike in all but their targets: those with the
    subclasses of the student's projector and those of its class probabilities alone
    (S = 1, vanilla distillation). The gain in agreement with the teacher's class on the
    held-out rows is what the verdict rests on; the other measures say why.

    Parameters
    ----------
    student : LELPStudentClassifier
        Fitted or not; its projector, module and training arguments are used, with fewer
        epochs, and it stays as it is. Give it a learning rate and a temperature that
        are about right.
    X : {array-like, torch.Tensor} of shape (n_samples, n_features, ...)
        Inputs of the student, as in :meth:`LELPStudentClassifier.fit`.
    y : array-like of shape (n_samples,), default=None
        Class labels, as in :meth:`LELPStudentClassifier.fit`.
    teacher_embeddings : array-like of shape (n_samples, n_embedding), default=None
        The teacher's embeddings. None takes what fit would: those of the student's
        `teacher`, else X itself.
    teacher_logits : array-like of shape (n_samples, n_classes or 1), default=None
        The teacher's logits.
    n_splits : int, default=5
        How often the rows are split, at least 2. Each split trains two students.
    max_samples : int, default=5000
        Rows that are drawn, stratified by label, where there are more.
    max_epochs : int, default=30
        Epochs of a quick student, where its own `max_epochs` is not less.
    random_state : int, RandomState instance or None, default=None
        Draws rows, splits and the students' seeds. An int gives an equal report at
        every call; None draws from NumPy's global generator.

    Returns
    -------
    SubclassReport
        Print it for a table; `verdict` is "helps", "unclear" or "does not help", and
        `recommended_n_subclasses` follows from it.

    Raises
    ------
    TypeError
        If `student` is no student, or X is sparse.
    ValueError
        If nothing of a teacher is given, if the projector makes one subclass only or
        more than three quarters of the rows of a class allow, or as in
        :meth:`LELPStudentClassifier.fit`.

    See Also
    --------
    subclass_table : What the subclasses are.

    Notes
    -----
    The standard error of the mean of K splits is that of Nadeau and Bengio [1]_,

    .. math:: \sqrt{\left( \frac{1}{K} + \frac{n_{held\ out}}{n_{rest}} \right)
              s^2}

    with the variance :math:`s^2` of the K differences: splits share rows, and the mean
    of many is not as certain as that of as many samples.

    The cost, in fits of E epochs on n rows, is ``1.5 * n_splits * min(max_epochs, E) *
    min(max_samples, n) / (E * n)``: by default 0.9 of a fit of 240 epochs on 2 000
    rows, 2.3 of one of 100 epochs on 5 000 or fewer, a twentieth of one of 100 epochs
    on 225 000. k-means for `structure` and `margin_r2` looks for at most 20
    clusters.

    References
    ----------
    .. [1] C. Nadeau and Y. Bengio, "Inference for the Generalization Error", Machine
       Learning 52, 2003.

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
    ...     student, X, y, teacher_embeddings=X, max_epochs=2, random_state=0
    ... )
    >>> report.verdict in ("helps", "unclear", "does not help")
    True
    >>> print(report)
    Subclass targets: ... (5 subclasses a class, 1797 rows, 5 splits)
      pilot gain ...
    >>> student = student.set_params(
    ...     projector__n_subclasses=report.recommended_n_subclasses
    ... )
    """
    report_validation.check_student(student)
    report_validation.check_at_least(n_splits, 2, "n_splits")
    report_validation.check_at_least(max_samples, 2, "max_samples")
    report_validation.check_at_least(max_epochs, 1, "max_epochs")
    drawn = check_random_state(random_state)
    given = teacher_embeddings, teacher_logits
    with (
        warned_once(),
        noted(f"(In a report, which reads at most max_samples={max_samples} rows.)"),
    ):
        rows = _Rows.read(student, X, y, given, max_samples, drawn)
        pilots = list(_pilots(rows, n_splits, max_epochs, drawn))
    gains = np.array([pilot.gain for pilot in pilots])
    shared = np.mean([pilot.n_held_out / pilot.n_rest for pilot in pilots])
    ratio, told = np.mean([_of_class(rows, c, drawn) for c in rows.classes], axis=0)
    return SubclassReport(
        pilot_gain=float(gains.mean()),
        pilot_gain_se=_error_of_mean(gains, float(shared)),
        ranking_gain=float(np.mean([pilot.ranking_gain for pilot in pilots])),
        headroom=float(np.mean([pilot.headroom for pilot in pilots])),
        learnability=float(np.mean([pilot.learnability for pilot in pilots])),
        stability=_stability(pilots, rows),
        structure=float(ratio),
        margin_r2=float(told),
        n_subclasses=pilots[0].n_subclasses,
        n_samples=len(rows.sample),
        n_splits=n_splits,
    )


@dataclass(frozen=True)
class _Rows:
    """Some rows, and what the teacher says of them.

    Parameters
    ----------
    student : LELPStudentClassifier
        Whose arguments count.
    sample : Sample
        The rows.
    embeddings : ndarray of shape (n, d)
    logits : ndarray of shape (n, C)
        The teacher's.
    codes : ndarray of shape (n,)
        The class of each row by its label, else by the teacher.
    projector : LELPProjector or FrozenEstimator
        Fitted to all rows.
    """

    student: Any
    sample: Sample
    embeddings: Any
    logits: Any
    codes: Any
    projector: Any

    @classmethod
    def read(
        cls,
        student: Any,
        X: Any,
        y: Any,
        given: tuple[Any, Any],
        max_samples: int,
        drawn: np.random.RandomState,
    ) -> "_Rows":
        """Check all rows and draw some; have the teacher and the projector see them."""
        asked = _quick(student, student.max_epochs, _seed(drawn))
        asked._check_parameters()
        sample = asked._read(X, y, (*given, None), None, None)
        report_validation.check_teacher_is_known(asked._has_teacher(sample))
        used = asked._usable(sample, None)
        if len(sample) > max_samples:
            chosen = hold_out(sample, used, max_samples / len(sample), _seed(drawn))
            sample, used = select(sample, np.sort(chosen)), used[chosen]
        source, sample = asked._make_source(sample, used, _seed(drawn), NO_TASK, None)
        projector = source.projector
        report_validation.check_several_subclasses(
            projector.n_subclasses_, projector.n_subclasses
        )
        embeddings = as_array(embed(sample, source.teacher))
        if sample.teacher_logits is None:
            logits = embeddings @ projector.coef_.T + projector.intercept_
        else:
            logits = _validation.check_logits(
                as_array(sample.teacher_logits), len(sample)
            )
            logits = _validation.logits_of_classes(logits)
        codes = encode(sample, source.classes)
        codes = np.where(codes >= 0, codes, logits.argmax(axis=1))
        return cls(student, sample, embeddings, logits, codes, projector)

    @property
    def classes(self) -> range:
        """The codes of the classes."""
        return range(self.logits.shape[1])

    def projector_of(self, rest: Any, seed: int) -> Any:
        """Give a projector that has seen some rows only; a frozen one as it is."""
        if isinstance(self.projector, FrozenEstimator):
            return self.projector
        fitted = clone(self.projector).set_params(
            head=(self.projector.coef_, self.projector.intercept_),
            unlabeled=None,
            random_state=seed,
        )
        fitted.fit(
            self.embeddings[rest],
            self.codes[rest],
            teacher_logits=self.logits[rest],
        )
        # The rows came with the codes of the classes, the student's have labels.
        fitted.classes_ = self.projector.classes_
        return FrozenEstimator(fitted)


@dataclass(frozen=True)
class _Pilot:
    """What two quick students show on held-out rows, and the partition of all rows."""

    gain: float
    ranking_gain: float
    headroom: float
    learnability: float
    partition: Any
    n_subclasses: int
    n_held_out: int
    n_rest: int


def _pilots(
    rows: _Rows, n_splits: int, max_epochs: int, drawn: np.random.RandomState
) -> Iterator[_Pilot]:
    everything = np.full(len(rows.sample), True)
    for _ in range(n_splits):
        seed = _seed(drawn)
        held_out = hold_out(rows.sample, everything, _HELD_OUT, seed)
        yield _pilot(rows, np.sort(held_out), max_epochs, seed)


def _pilot(rows: _Rows, held_out: Any, max_epochs: int, seed: int) -> _Pilot:
    rest = np.setdiff1d(np.arange(len(rows.sample)), held_out)
    projector = rows.projector_of(rest, seed)
    soft = projector.transform(rows.embeddings, teacher_logits=rows.logits)
    split, whole = (
        _train(rows, rest, projector, targets, max_epochs, seed)
        for targets in (soft, projector.inverse_transform(soft))
    )
    codes = rows.codes[held_out]
    partition = _in_class(soft, projector.n_subclasses_, rows.codes)
    inputs = _safe_indexing(rows.sample.inputs, held_out)
    told = split.predict_subclass_proba(inputs)
    told = _in_class(told, projector.n_subclasses_, codes)
    teacher = rows.logits[held_out].argmax(axis=1)
    shown = [student.predict_proba(inputs) for student in (split, whole)]
    agreed, agreed_whole = (float(np.mean(p.argmax(axis=1) == teacher)) for p in shown)
    ranked, ranked_whole = (_area(p, teacher) for p in shown)
    return _Pilot(
        gain=agreed - agreed_whole,
        ranking_gain=ranked - ranked_whole,
        headroom=1 - agreed_whole,
        learnability=_by_class(
            adjusted_mutual_info_score, codes, partition[held_out], told
        ),
        partition=partition,
        n_subclasses=projector.n_subclasses_,
        n_held_out=len(held_out),
        n_rest=len(rest),
    )


def _train(
    rows: _Rows, rest: Any, projector: Any, targets: Any, max_epochs: int, seed: int
) -> Any:
    """Train a quick student on the targets (n, K) of some rows."""
    student = _quick(rows.student, max_epochs, seed)
    student.set_params(projector=projector, teacher=None)
    sample = rows.sample
    return student.fit(
        _safe_indexing(sample.inputs, rest),
        None if sample.y is None else sample.y[rest],
        soft_targets=targets[rest],
    )


def _quick(student: Any, max_epochs: int, seed: int) -> Any:
    """Give a student of the same arguments that trains briefly and leaves no trace."""
    params = student.get_params(deep=False)
    params["max_epochs"] = min(params["max_epochs"], max_epochs)
    params |= {"early_stopping": False, "warm_start": False, "checkpoint": None}
    return type(student)(**params | {"verbose": 0, "random_state": seed})


def _seed(drawn: np.random.RandomState) -> int:
    return int(drawn.randint(2**31 - 1))


def _in_class(soft: Any, n_subclasses: int, codes: Any) -> Any:
    """Give the likeliest subclass (n,) of each row in its own class."""
    by_class = soft.reshape(len(codes), -1, n_subclasses)
    return by_class[np.arange(len(codes)), codes].argmax(axis=1)


def _area(probabilities: Any, teacher: Any) -> float:
    """Give the mean area under the ROC curves of the classes that are found."""
    found = [c for c in np.unique(teacher) if (teacher != c).any()]
    areas = [roc_auc_score(teacher == c, probabilities[:, c]) for c in found]
    return float(np.mean(areas)) if areas else 0.5


def _error_of_mean(values: Any, shared: float) -> float:
    """Give the standard error of a mean of splits; `shared` is held out over rest."""
    return float(np.sqrt((1 / len(values) + shared) * values.var(ddof=1)))


def _by_class(score: Any, codes: Any, one: Any, other: Any) -> float:
    """Score two partitions in each class; the mean over its rows."""
    found, sizes = np.unique(codes, return_counts=True)
    scores = [score(one[codes == c], other[codes == c]) for c in found]
    return float(np.average(scores, weights=sizes))


def _stability(pilots: list[_Pilot], rows: _Rows) -> float:
    pairs = combinations([pilot.partition for pilot in pilots], 2)
    scores = [_by_class(adjusted_rand_score, rows.codes, *pair) for pair in pairs]
    return float(np.mean(scores))


def _of_class(rows: _Rows, c: int, drawn: np.random.RandomState) -> tuple[float, float]:
    """Give the structure of a class, and its share of confidence."""
    own = rows.codes == c
    embeddings = rows.embeddings[own].astype(np.float64)
    row_space = row_space_basis(rows.projector.coef_)
    points = structure.principal_points(embeddings, row_space)
    logits = rows.logits[own].astype(np.float64)
    margin = logits[:, c] - np.delete(logits, c, axis=1).max(axis=1)
    told = structure.adjusted_r2(structure.clusters_of(points), margin)
    return structure.gaussian_ratio(points, drawn), told
