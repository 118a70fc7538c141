"""A report, from a few quick students, on whether subclass targets will help."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    roc_auc_score,
)
from sklearn.utils import _safe_indexing, check_random_state

from lelp_sklearn._callers import warned_once
from lelp_sklearn._diagnostics.table import check_at_least, class_logits
from lelp_sklearn._subclasses.kmeans import cluster
from lelp_sklearn._subclasses.moments import row_space_basis, to_null_space
from lelp_sklearn._targets import TargetSource, embed, has_teacher, usable_rows
from lelp_sklearn._training.inputs import StudentInputs, add_note_on_error, as_array
from lelp_sklearn._typing import FloatArray, IntArray

_HELD_OUT = 0.25
# A gain in agreement that is worth having: benchmarks/README.md has the tasks.
_WORTHWHILE = 0.01

_N_CLUSTERS = 20
# With fewer rows a cluster the inertia says little.
_ROWS_A_CLUSTER = 5
# Clusters are found in a few dimensions more than there are clusters.
_N_AXES = _N_CLUSTERS + 10


@dataclass(frozen=True)
class SubclassReport:
    """The result of :func:`subclass_report`; printed, it is a table.

    Shares are between 0 and 1, and gains are differences of shares.

    Parameters
    ----------
    pilot_gain : float
        Share of held-out rows on which the quick student with subclasses agrees with
        the teacher's class, minus that of the one without: the mean over the splits.
    pilot_gain_se : float
        Standard error of `pilot_gain`, corrected for splits that share rows.
    ranking_gain : float
        The same gain in the area under the ROC curve, one class against the others,
        averaged over the classes. It varies less from split to split.
    headroom : float
        Share of held-out rows on which the quick student without subclasses disagrees
        with the teacher.
    learnability : float
        Adjusted mutual information between the subclasses of held-out rows and those
        that the student with subclasses predicts, within each class: 0 for chance, 1
        if all agree.
    gap_ratio : float
        How clustered a class is in the null space: the inertia after k-means of a
        Gaussian sample with the same variances, divided by that of the class. 1 for a
        Gaussian, larger for clusters.
    stability : float
        Adjusted Rand index between the subclasses of two splits: 0 for chance, 1 for
        the same partition, as that of a frozen projector always is.
    margin_r2 : float
        Share of the variance of the teacher's margin in a class, the logit of the class
        minus the largest other, that is explained by the clusters of the class in the
        null space. Near 1, subclasses only restate the teacher's confidence.
    n_subclasses : int
        The number S of subclasses that was compared with S = 1.
    n_samples, n_splits : int
        Number of rows used, and of splits.
    """

    pilot_gain: float
    pilot_gain_se: float
    ranking_gain: float
    headroom: float
    learnability: float
    gap_ratio: float
    stability: float
    margin_r2: float
    n_subclasses: int
    n_samples: int
    n_splits: int

    @property
    def verdict(self) -> str:
        """Whether subclasses help: "helps", "unclear" or "does not help".

        "helps" if `pilot_gain` minus its standard error is above 0.01, one point of
        agreement; "does not help" if `pilot_gain` plus its standard error is below.
        """
        if self.pilot_gain - self.pilot_gain_se > _WORTHWHILE:
            return "helps"
        if self.pilot_gain + self.pilot_gain_se < _WORTHWHILE:
            return "does not help"
        return "unclear"

    @property
    def recommended_n_subclasses(self) -> int:
        """The `n_subclasses` to use.

        1 if the verdict is "does not help", else the projector's number.
        """
        return 1 if self.verdict == "does not help" else self.n_subclasses

    def __str__(self) -> str:
        gain = f"{_in_points(self.pilot_gain)} ± {100 * self.pilot_gain_se:.1f} points"
        ranking = f"{_in_points(self.ranking_gain)} points"
        lines = [
            ("pilot gain", gain, "agreement with the teacher, against one subclass"),
            ("ranking gain", ranking, "area under the ROC curve, against one subclass"),
            ("headroom", f"{self.headroom:.1%}", "disagreement of one subclass"),
            ("learnability", f"{self.learnability:.2f}", "0: chance, 1: perfect"),
            ("gap ratio", f"{self.gap_ratio:.2f}", "1: no clusters, as in a Gaussian"),
            ("stability", f"{self.stability:.2f}", "0: chance, 1: identical"),
            ("margin R²", f"{self.margin_r2:.2f}", "1: subclasses restate confidence"),
        ]
        title = (
            f"Subclass targets: {self.verdict} ({self.n_subclasses} subclasses per "
            f"class, {self.n_samples} rows, {self.n_splits} splits)"
        )
        return "\n".join([title, *(f"  {a:<14}{b:<21}{c}" for a, b, c in lines)])


def _in_points(share: float) -> str:
    """Format a gain in points; zero is +0.0, never -0.0."""
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
    r"""Estimate before training whether subclass targets will help a student.

    In each of several splits, a quarter of at most `max_samples` rows is held out, and
    two quick students are trained on the others. They differ in their targets only: the
    subclasses of the student's projector, or its class probabilities alone (S = 1,
    vanilla distillation). The verdict depends on the gain in agreement with the
    teacher's class on the held-out rows; the other measures explain it.

    Parameters
    ----------
    student : LELPStudentClassifier or LELPMetaClassifier
        Fitted or not. Its projector, module and training parameters are used, with
        fewer epochs, or its estimator; it is not changed. Its learning rate,
        regularization and temperature should be about right. An estimator has to
        predict probabilities.
    X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, n_features, ...)
        Inputs of the student, as in :meth:`LELPStudentClassifier.fit`.
    y : array-like of shape (n_samples,), default=None
        Class labels, as in :meth:`LELPStudentClassifier.fit`.
    teacher_embeddings : array-like of shape (n_samples, n_embedding), default=None
        The teacher's embeddings. If None, those that fit would use: of the student's
        `teacher`, else X itself.
    teacher_logits : array-like of shape (n_samples, n_classes or 1), default=None
        The teacher's logits.
    n_splits : int, default=5
        Number of splits, at least 2. Each trains two students.
    max_samples : int, default=5000
        Number of rows to use at most, drawn stratified by label.
    max_epochs : int, default=30
        Number of epochs of a quick student at most; its own `max_epochs` if that is
        less.
    random_state : int, RandomState instance or None, default=None
        Controls the drawn rows, the splits and the students' seeds. Pass an int for
        reproducible reports; None uses NumPy's global generator.

    Returns
    -------
    SubclassReport
        Print it for a table. Its `verdict` is "helps", "unclear" or "does not help",
        and `recommended_n_subclasses` follows from it.

    Raises
    ------
    TypeError
        If `student` is not a student.
    ValueError
        If no teacher is given, if the projector makes only one subclass or more than
        three quarters of the rows of a class allow, or as in
        :meth:`LELPStudentClassifier.fit`.

    See Also
    --------
    subclass_table : Describes the subclasses.

    Notes
    -----
    The standard error of the mean of K splits is that of Nadeau and Bengio [1]_,

    .. math:: \sqrt{\left( \frac{1}{K} + \frac{n_{held\ out}}{n_{rest}} \right)
              s^2}

    with the variance :math:`s^2` of the K differences: since splits share rows, their
    mean is less certain than that of as many independent samples.

    The cost, in fits of E epochs on n rows, is ``1.5 * n_splits * min(max_epochs, E) *
    min(max_samples, n) / (E * n)``: by default 0.9 of a fit of 240 epochs on 2 000
    rows, 2.3 of one of 100 epochs on 5 000 or fewer, a twentieth of one of 100 epochs
    on 225 000. k-means for `gap_ratio` and `margin_r2` uses at most 20 clusters.

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
    Subclass targets: ... (5 subclasses per class, 1797 rows, 5 splits)
      pilot gain ...
    >>> student = student.set_params(
    ...     projector__n_subclasses=report.recommended_n_subclasses
    ... )
    """
    _check_student(student)
    check_at_least(n_splits, 2, "n_splits")
    check_at_least(max_samples, 2, "max_samples")
    check_at_least(max_epochs, 1, "max_epochs")
    random_state = check_random_state(random_state)
    note = f"(In a report, which uses at most max_samples={max_samples} rows.)"
    with warned_once(), add_note_on_error(note):
        data = ReportData.read(
            student, X, y, teacher_embeddings, teacher_logits, max_samples, random_state
        )
        pilots = [
            _Pilot.train(data, max_epochs, _draw_seed(random_state))
            for _ in range(n_splits)
        ]
    gains = np.array([pilot.gain for pilot in pilots])
    size_ratio = float(np.mean([pilot.size_ratio for pilot in pilots]))
    partitions = combinations([pilot.partition for pilot in pilots], 2)
    stabilities = [
        _mean_by_class(adjusted_rand_score, data.class_index, one, other)
        for one, other in partitions
    ]
    of_classes = [
        data.gap_ratio_and_margin_r2(c, random_state) for c in range(data.n_classes)
    ]
    gap_ratio, margin_r2 = np.mean(of_classes, axis=0)
    return SubclassReport(
        pilot_gain=float(gains.mean()),
        pilot_gain_se=_error_of_mean(gains, size_ratio),
        ranking_gain=float(np.mean([pilot.ranking_gain for pilot in pilots])),
        headroom=float(np.mean([pilot.headroom for pilot in pilots])),
        learnability=float(np.mean([pilot.learnability for pilot in pilots])),
        gap_ratio=float(gap_ratio),
        stability=float(np.mean(stabilities)),
        margin_r2=float(margin_r2),
        n_subclasses=pilots[0].n_subclasses,
        n_samples=len(data.sample),
        n_splits=n_splits,
    )


@dataclass(frozen=True)
class ReportData:
    """The rows of a report, and a projector that is fitted to all of them."""

    student: Any
    sample: StudentInputs
    # (n, d) and (n, C), those of the teacher.
    embeddings: FloatArray
    logits: FloatArray
    # (n,), by the label of a row, else by the teacher.
    class_index: IntArray
    # A LELPProjector or a FrozenEstimator of one.
    projector: Any

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
    ) -> "ReportData":
        """Check all rows, draw some, and fit teacher and projector to them."""
        quick = _quick_student(student, 1, _draw_seed(random_state))
        quick._check_params()
        sample = StudentInputs.from_user(
            quick,
            X,
            y,
            teacher_embeddings=teacher_embeddings,
            teacher_logits=teacher_logits,
        )
        if not has_teacher(quick, sample):
            raise ValueError(
                "No teacher is given, so there is nothing to agree with: pass "
                "teacher_embeddings or teacher_logits, or a student that has a "
                "teacher or a projector with a head."
            )
        used = usable_rows(quick, sample)
        if len(sample) > max_samples:
            fraction = max_samples / len(sample)
            rows = np.sort(sample.draw(used, fraction, _draw_seed(random_state)))
            sample, used = sample.select(rows), used[rows]
        seed = _draw_seed(random_state)
        source, sample = TargetSource.resolve(quick, sample, used, seed=seed)
        projector = source.projector
        if projector.n_subclasses_ < 2:
            raise ValueError(
                f"The projector makes {projector.n_subclasses_} subclass of each class "
                f"(n_subclasses={projector.n_subclasses!r}), which is vanilla "
                "distillation, so there is nothing to compare: set n_subclasses to "
                "'auto' or to 2 or more, and give each class several distinct rows."
            )
        embeddings = as_array(embed(sample, source.teacher))
        logits = sample.teacher_logits
        logits = None if logits is None else as_array(logits)
        logits = class_logits(projector, embeddings, logits)
        class_index = sample.class_index(source.classes)
        class_index = np.where(class_index >= 0, class_index, logits.argmax(axis=1))
        return cls(student, sample, embeddings, logits, class_index, projector)

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return int(self.logits.shape[1])

    def fit_projector(self, rows: IntArray, seed: int) -> Any:
        """Fit a projector to some rows and freeze it; return a frozen one as it is."""
        if isinstance(self.projector, FrozenEstimator):
            return self.projector
        projector = clone(self.projector).set_params(
            head=(self.projector.coef_, self.projector.intercept_),
            unlabeled=None,
            random_state=seed,
        )
        projector.fit(
            self.embeddings[rows],
            self.class_index[rows],
            teacher_logits=self.logits[rows],
        )
        # It was fitted to class indices; the student has labels.
        projector.classes_ = self.projector.classes_
        return FrozenEstimator(projector)

    def fit_student(
        self, rows: IntArray, projector: Any, targets: Any, max_epochs: int, seed: int
    ) -> Any:
        """Train a quick student on targets (n, K) of some rows."""
        student = _quick_student(self.student, max_epochs, seed)
        student.set_params(projector=projector, teacher=None)
        return student.fit(
            _safe_indexing(self.sample.X, rows),
            None if self.sample.y is None else self.sample.y[rows],
            soft_targets=targets[rows],
        )

    def gap_ratio_and_margin_r2(
        self, c: int, random_state: np.random.RandomState
    ) -> tuple[float, float]:
        """Return how clustered a class is, and how well clusters explain the margin."""
        in_class = self.class_index == c
        embeddings = self.embeddings[in_class].astype(np.float64)
        row_space = row_space_basis(self.projector.coef_)
        points = principal_points(embeddings, row_space)
        logits = self.logits[in_class].astype(np.float64)
        margin = logits[:, c] - np.delete(logits, c, axis=1).max(axis=1)
        r2 = adjusted_r2(clusters_of(points), margin)
        return inertia_ratio(points, random_state), r2


@dataclass(frozen=True)
class _Pilot:
    """The measures of one split; `size_ratio` is the held-out rows over the others."""

    gain: float
    ranking_gain: float
    headroom: float
    learnability: float
    partition: IntArray
    n_subclasses: int
    size_ratio: float

    @classmethod
    def train(cls, data: ReportData, max_epochs: int, seed: int) -> "_Pilot":
        """Split the rows, train both quick students, and compare them."""
        all_rows = np.arange(len(data.sample))
        is_usable = np.full(len(all_rows), True)
        held_out = np.sort(data.sample.draw(is_usable, _HELD_OUT, seed))
        rest = np.setdiff1d(all_rows, held_out)
        projector = data.fit_projector(rest, seed)
        soft = projector.transform(data.embeddings, teacher_logits=data.logits)
        summed = projector.inverse_transform(soft)
        split = data.fit_student(rest, projector, soft, max_epochs, seed)
        vanilla = data.fit_student(rest, projector, summed, max_epochs, seed)
        n_subclasses = projector.n_subclasses_
        partition = _likeliest_in_class(soft, n_subclasses, data.class_index)
        inputs = _safe_indexing(data.sample.X, held_out)
        class_index = data.class_index[held_out]
        predicted = _likeliest_in_class(
            split.predict_subclass_proba(inputs), n_subclasses, class_index
        )
        teacher = data.logits[held_out].argmax(axis=1)
        split_proba, vanilla_proba = (
            student.predict_proba(inputs) for student in (split, vanilla)
        )
        agreement = float(np.mean(split_proba.argmax(axis=1) == teacher))
        vanilla_agreement = float(np.mean(vanilla_proba.argmax(axis=1) == teacher))
        return cls(
            gain=agreement - vanilla_agreement,
            ranking_gain=_mean_auc(split_proba, teacher)
            - _mean_auc(vanilla_proba, teacher),
            headroom=1 - vanilla_agreement,
            learnability=_mean_by_class(
                adjusted_mutual_info_score, class_index, partition[held_out], predicted
            ),
            partition=partition,
            n_subclasses=n_subclasses,
            size_ratio=len(held_out) / len(rest),
        )


def principal_points(rows: FloatArray, row_space: FloatArray) -> FloatArray:
    """Return coordinates (n, m) of rows (n, d) along principal axes in the null space.

    `row_space` (d, r) is an orthonormal basis of the head's rows.
    """
    inside = to_null_space((rows - rows.mean(axis=0)).T, row_space).T
    is_wide = inside.shape[0] < inside.shape[1]
    products = inside @ inside.T if is_wide else inside.T @ inside
    last = len(products) - 1
    values, vectors = linalg.eigh(
        products, subset_by_index=(max(0, last - _N_AXES + 1), last)
    )
    if is_wide:
        vectors = vectors * np.sqrt(np.maximum(values, 0))
    points: FloatArray = vectors if is_wide else inside @ vectors
    return points


def clusters_of(points: FloatArray) -> IntArray:
    """Return the cluster (n,) of each point (n, m), about the origin."""
    n_clusters = max(1, min(_N_CLUSTERS, len(points) // _ROWS_A_CLUSTER))
    weight = np.full(len(points), 1 / len(points))
    # Rows that differ by the rounding of single precision are one.
    rounding = float(np.finfo(np.float32).eps ** 2 * np.mean(points**2))
    return cluster(points, weight, n_clusters, rounding)


def inertia_ratio(points: FloatArray, random_state: np.random.RandomState) -> float:
    """Return the inertia after k-means of a Gaussian like the points, over theirs."""
    deviations = np.sqrt(np.mean(points**2, axis=0))
    gaussian = random_state.normal(size=points.shape) * deviations
    left, left_of_gaussian = _unexplained(points), _unexplained(gaussian)
    if not deviations.any():
        return 1.0
    return left_of_gaussian / left if left > 0 else np.inf


def _unexplained(points: FloatArray) -> float:
    """Return the share of the variance of points that clusters do not explain."""
    centred = points - points.mean(axis=0)
    clusters = clusters_of(centred)
    explained = sum(_explained_squares(clusters, axis) for axis in centred.T)
    return 1 - explained / max(float(np.sum(centred**2)), np.finfo(float).tiny)


def adjusted_r2(clusters: IntArray, values: FloatArray) -> float:
    """Return the adjusted R² of values (n,) by their clusters (n,), 0 for constants."""
    n_rows, n_clusters = len(values), len(np.unique(clusters))
    centred = values - values.mean()
    total = float(centred @ centred)
    if n_rows <= n_clusters or not total > 0:
        return 0.0
    explained = _explained_squares(clusters, centred) / total
    return 1 - (1 - explained) * (n_rows - 1) / (n_rows - n_clusters)


def _explained_squares(clusters: IntArray, centred: FloatArray) -> float:
    sizes, sums = np.bincount(clusters), np.bincount(clusters, centred)
    return float(np.sum(sums**2 / np.maximum(sizes, 1)))


def _quick_student(student: Any, max_epochs: int, seed: int) -> Any:
    """Return a student of the same parameters that trains briefly and saves nothing."""
    params = student.get_params(deep=False) | {"random_state": seed}
    # A LELPMetaClassifier has no epochs, and its estimator is fitted as it is.
    if "max_epochs" in params:
        params["max_epochs"] = min(params["max_epochs"], max_epochs)
        params |= {"early_stopping": False, "warm_start": False}
        params |= {"checkpoint": None, "verbose": 0}
    return type(student)(**params)


def _draw_seed(random_state: np.random.RandomState) -> int:
    return int(random_state.randint(2**31 - 1))


def _likeliest_in_class(
    soft: FloatArray, n_subclasses: int, class_index: IntArray
) -> IntArray:
    """Return the most likely subclass (n,) of each row in its own class."""
    by_class = soft.reshape(len(class_index), -1, n_subclasses)
    in_class = by_class[np.arange(len(class_index)), class_index]
    likeliest: IntArray = in_class.argmax(axis=1)
    return likeliest


def _mean_auc(probabilities: FloatArray, teacher: IntArray) -> float:
    """Return the area under the ROC curve, averaged over the classes present."""
    present = [c for c in np.unique(teacher) if (teacher != c).any()]
    areas = [roc_auc_score(teacher == c, probabilities[:, c]) for c in present]
    return float(np.mean(areas)) if areas else 0.5


def _error_of_mean(values: FloatArray, size_ratio: float) -> float:
    """Return the standard error of the mean of splits that share rows."""
    return float(np.sqrt((1 / len(values) + size_ratio) * values.var(ddof=1)))


def _mean_by_class(
    score: Callable[[Any, Any], float],
    class_index: IntArray,
    one: NDArray[Any],
    other: NDArray[Any],
) -> float:
    """Return the score of two partitions in each class, averaged over the rows."""
    present, sizes = np.unique(class_index, return_counts=True)
    scores = [score(one[class_index == c], other[class_index == c]) for c in present]
    return float(np.average(scores, weights=sizes))


def _check_student(student: object) -> None:
    if hasattr(student, "predict_subclass_proba") and hasattr(student, "projector"):
        return
    fix = (
        "pass a LELPStudentClassifier, or a LELPMetaClassifier whose estimator "
        "predicts probabilities"
    )
    if hasattr(student, "steps"):
        fix = "pass its last step, and X as transformed by the steps before it"
    elif hasattr(student, "n_subclasses"):
        fix = "pass the LELPStudentClassifier that has this projector"
    raise TypeError(f"student is of type {type(student).__name__}: {fix}.")
