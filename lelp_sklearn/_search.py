"""Candidates of a search for parameters: trained and judged on splits of the rows."""

import copy
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, indexable

from lelp_sklearn._diagnostics.scoring import labeled_scorer
from lelp_sklearn._files import content_hash
from lelp_sklearn._sklearn import NO_TASK, FitTask
from lelp_sklearn._student import LELPStudentClassifier
from lelp_sklearn._targets import TargetSource
from lelp_sklearn._training.checkpoint import Checkpoint
from lelp_sklearn._training.inputs import StudentInputs, unlabeled_mark
from lelp_sklearn._training.loop import Trainer, ValidationData
from lelp_sklearn._training.stacked import group_alike, train_together
from lelp_sklearn._training.state import (
    Placement,
    Seeds,
    TrainingState,
    make_epoch_loop,
    make_validation,
    start_training,
)
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray
from lelp_sklearn._validation import seen_features

# Parameters that begin so change the embeddings, and those that change the targets.
_TEACHER_PARAMS = "teacher", "early_stopping", "validation_fraction", "random_state"
_TARGET_PARAMS = "projector", "unlabeled", *_TEACHER_PARAMS
# Teacher and students are compared at one temperature, whatever they were trained at:
# a high one, at which rows that a sharper one makes certain still tell students apart.
_SCORE_TEMPERATURE = 4.0


def halving_rounds(
    n_candidates: int, n_rows: int, factor: float, fewest_rows: int
) -> list[tuple[int, int]]:
    """Return the numbers of candidates and of rows of each iteration.

    They are those of scikit-learn's HalvingGridSearchCV: as few rows at the beginning
    as let the last iteration have all rows and fewer than `factor` candidates.
    """
    n_needed = 1 + math.floor(math.log(n_candidates, factor))
    first = max(fewest_rows, int(n_rows // factor ** (n_needed - 1)))
    first = min(first, n_rows)
    n_possible = 1 + math.floor(math.log(n_rows // first, factor))
    rounds = []
    for iteration in range(min(n_needed, n_possible)):
        rounds.append((n_candidates, min(int(factor**iteration * first), n_rows)))
        n_candidates = math.ceil(n_candidates / factor)
    return rounds


@dataclass(frozen=True, eq=False)
class Split:
    """Rows to train on, as a mask, and indices of rows to judge by."""

    is_train: BoolArray
    held_out: IntArray

    def subsample(self, inputs: StudentInputs, n_rows: int, seed: int) -> "Split":
        """Return the split with its part of `n_rows` rows to train on."""
        if n_rows == len(inputs):
            return self
        drawn = inputs.draw(self.is_train, n_rows / len(inputs), seed)
        return Split(as_mask(drawn, len(inputs)), self.held_out)


@dataclass(frozen=True, eq=False)
class Candidate:
    """Parameters, and their position in the grid."""

    position: int
    params: dict[str, Any]

    def make_student(self, student: LELPStudentClassifier) -> LELPStudentClassifier:
        """Return a clone of a student with these parameters and the same features."""
        candidate: LELPStudentClassifier = clone(student)
        candidate.set_params(**clone(self.params, safe=False))
        candidate.__dict__.update(seen_features(student))
        return candidate

    def key(self, prefixes: tuple[str, ...]) -> str:
        """Return what stands for the parameters whose names begin so."""
        return content_hash(
            {n: value for n, value in self.params.items() if n.startswith(prefixes)}
        )


class Result(NamedTuple):
    """What a split says of a candidate; times are in seconds.

    Without finite losses the score is NaN.
    """

    score: float
    fit_time: float
    score_time: float
    is_finite: bool


@dataclass(frozen=True, eq=False)
class Trial:
    """What the splits of one iteration say of a candidate."""

    candidate: Candidate
    iteration: int
    n_rows: int
    results: list[Result]

    @property
    def mean_score(self) -> float:
        """The mean score; the worst there is if one of them is not a number."""
        mean = float(np.mean([result.score for result in self.results]))
        return -math.inf if math.isnan(mean) else mean

    @property
    def rank_key(self) -> tuple[float, int]:
        """What sorts the best first, and of equal ones the first in the grid."""
        return -self.mean_score, self.candidate.position


@dataclass
class Fit:
    """A candidate that is ready to be trained on a split.

    `class_targets` (n, C) are the teacher's class probabilities at the temperature of
    the targets; `seconds` is the time that it took so far.
    """

    candidate: Candidate
    student: LELPStudentClassifier
    state: TrainingState
    trainer: Trainer
    validation_data: ValidationData | None
    class_targets: FloatArray
    seconds: float

    def train_alone(self) -> bool:
        """Train the candidate; return whether its losses and weights were finite."""
        loop = make_epoch_loop(
            self.student, self.state, self.trainer, self.validation_data, None, NO_TASK
        )
        try:
            loop.run()
        except FloatingPointError:
            return False
        return True


class SharedData:
    """What the candidates of a split share: teachers, targets and rows on the device.

    Each teacher and each projector is fitted once.
    """

    def __init__(self, inputs: StudentInputs) -> None:
        self.inputs = inputs
        self._embedded: dict[str, tuple[Any, StudentInputs]] = {}
        self._targets: dict[str, tuple[TargetSource, FloatArray]] = {}
        self._rows: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def make_targets(
        self,
        candidate: Candidate,
        student: LELPStudentClassifier,
        is_train: BoolArray,
        seed: int,
    ) -> tuple[TargetSource, FloatArray]:
        """Return the source of targets of a candidate, and the targets of all rows."""
        key = candidate.key(_TARGET_PARAMS)
        if key not in self._targets:
            teacher_key = candidate.key(_TEACHER_PARAMS)
            inputs = self.inputs
            if teacher_key in self._embedded:
                teacher, inputs = self._embedded[teacher_key]
                if teacher is not None:
                    student = copy.copy(student)
                    student.teacher = FrozenEstimator(teacher)
            source, inputs = TargetSource.resolve(student, inputs, is_train, seed=seed)
            if not source.reads_inputs:
                self._embedded.setdefault(teacher_key, (source.teacher, inputs))
            self._targets[key] = source, source.soft_targets(inputs)
        return self._targets[key]

    def share_rows(self, trainer: Trainer) -> Trainer:
        """Return a trainer with the same tensor of X as others, if it is of a kind."""
        X = trainer.rows.X
        X = self._rows.setdefault((X.device, X.dtype), X)
        return replace(trainer, rows=replace(trainer.rows, X=X))


@dataclass
class Search:
    """Trains candidates on splits of the rows, and judges them.

    `scoring` and `verbose` are parameters of the search.
    """

    student: LELPStudentClassifier
    inputs: StudentInputs
    splits: list[Split]
    scoring: Any
    verbose: bool
    checkpoint: Checkpoint | None = None
    task: FitTask = NO_TASK
    # By iteration, split and candidate.
    known: dict[str, Result] = field(default_factory=dict)
    explained: bool = False

    def run(
        self, candidates: list[Candidate], rounds: list[tuple[int, int]], seed: int
    ) -> list[Trial]:
        """Train and judge candidates in each iteration; return all trials."""
        if self.checkpoint is not None:
            saved = self.checkpoint.load(torch.device("cpu")) or {}
            self.known = {name: Result(**values) for name, values in saved.items()}
        trials: list[Trial] = []
        for iteration, (n_candidates, n_rows) in enumerate(rounds):
            best = sorted(trials[-len(candidates) :], key=lambda trial: trial.rank_key)
            if best:
                positions = {trial.candidate.position for trial in best[:n_candidates]}
                candidates = [c for c in candidates if c.position in positions]
            for number, split in enumerate(self.splits):
                part = split.subsample(self.inputs, n_rows, seed + number)
                self._run_split(candidates, part, iteration, number)
            for candidate in candidates:
                results = [
                    self.known[_name(iteration, number, candidate)]
                    for number in range(len(self.splits))
                ]
                trials.append(Trial(candidate, iteration, n_rows, results))
        return trials

    def _run_split(
        self, candidates: list[Candidate], split: Split, iteration: int, number: int
    ) -> None:
        """Train and judge the candidates whose score on a split is not known."""
        names = {c.position: _name(iteration, number, c) for c in candidates}
        missing = [c for c in candidates if names[c.position] not in self.known]
        for _ in range(len(candidates) - len(missing)):
            self.task.begin("candidate").end()
        fits = self._prepare(missing, split)
        for group in self._group(fits):
            tasks = [self.task.begin("candidate") for _ in group]
            start = time.perf_counter()
            if len(group) > 1:
                are_finite = train_together([fit.trainer for fit in group])
            else:
                are_finite = [group[0].train_alone()]
            seconds = time.perf_counter() - start
            for fit, is_finite, task in zip(group, are_finite, tasks, strict=True):
                start = time.perf_counter()
                score = self._score(fit, split) if is_finite else math.nan
                self.known[names[fit.candidate.position]] = Result(
                    score,
                    fit_time=fit.seconds + seconds / len(group),
                    score_time=time.perf_counter() - start,
                    is_finite=is_finite,
                )
                task.end()
            if self.verbose:
                together = " together" if len(group) > 1 else ""
                print(
                    f"Split {number + 1} of {len(self.splits)}: {len(group)} "
                    f"candidate(s) trained{together}, {seconds:.1f} s"
                )
            if self.checkpoint is not None:
                results = {name: each._asdict() for name, each in self.known.items()}
                self.checkpoint.save(results)

    def _prepare(self, candidates: list[Candidate], split: Split) -> list[Fit]:
        """Make the targets and build the modules of candidates."""
        shared, fits = SharedData(self.inputs), []
        for candidate in candidates:
            start = time.perf_counter()
            fit = self._prepare_one(candidate, split, shared)
            fit.seconds = time.perf_counter() - start
            fits.append(fit)
        return fits

    def _prepare_one(
        self, candidate: Candidate, split: Split, shared: SharedData
    ) -> Fit:
        """Go through the stages of `LELPStudentClassifier.fit` before the epochs."""
        inputs, student = self.inputs, candidate.make_student(self.student)
        placement = Placement.resolve(student, inputs)
        seeds = Seeds.of(student)
        is_train, stopping_rows = inputs.hold_out(
            student, split.is_train, seeds.hold_out
        )
        source, soft = shared.make_targets(
            candidate, student, is_train, seeds.projector
        )
        state, trainer = start_training(
            student, inputs, is_train, source, soft, seeds, None, placement
        )
        trainer = shared.share_rows(trainer)
        validation_data = make_validation(state, trainer, inputs, stopping_rows, None)
        targets = soft.reshape(len(soft), len(source.classes), -1).sum(axis=2)
        return Fit(
            candidate, student, state, trainer, validation_data, targets, seconds=0.0
        )

    def _group(self, fits: list[Fit]) -> list[list[Fit]]:
        """Return the candidates that are trained together; others are alone."""
        alike: dict[str, list[Fit]] = {}
        groups, alone = [], []
        for fit in fits:
            if fit.validation_data is None:
                alike.setdefault(fit.candidate.key(("module",)), []).append(fit)
            else:
                alone.append(fit)
        for some in alike.values():
            together, others = group_alike([fit.trainer for fit in some])
            groups += [[some[i] for i in positions] for positions in together]
            alone += [some[i] for i in others]
        if alone and self.verbose and not self.explained:
            self.explained = True
            print(
                f"{len(alone)} candidate(s) are trained one after the other: early "
                "stopping, optimizers other than 'adamw', mixed precision and modules "
                "that torch.func.vmap cannot call do not allow to train them together."
            )
        return [*groups, *([fit] for fit in alone)]

    def _score(self, fit: Fit, split: Split) -> float:
        """Return the score of a trained candidate on the rows that are held out."""
        inputs, student, rows = self.inputs, fit.student, split.held_out
        student.__dict__.update(fit.state.attributes())
        # An X without rows to index, which only has `__array__`, becomes an array.
        X = _safe_indexing(*indexable(inputs.X), rows)
        weight = inputs.sample_weight[rows]
        if self.scoring is not None:
            weights = None if (inputs.sample_weight == 1).all() else weight
            return call_scorer(self.scoring, student, X, inputs.labels[rows], weights)
        source = fit.state.source
        by_teacher = source.has_class_probabilities(inputs)
        temperature = _SCORE_TEMPERATURE if by_teacher else 1.0
        found = softmax(student.predict_log_proba(X) / temperature, axis=1)
        wanted = fit.class_targets[rows] ** (source.temperature / temperature)
        wanted = wanted / wanted.sum(axis=1, keepdims=True)
        overlap = np.minimum(found, wanted).sum(axis=1)
        return float(np.average(overlap, weights=weight))


def _name(iteration: int, split: int, candidate: Candidate) -> str:
    """Return the key of a result."""
    return f"{iteration}, {split}, {candidate.position}"


def call_scorer(
    scoring: Any, student: LELPStudentClassifier, X: Any, y: Any, sample_weight: Any
) -> float:
    """Return a score of rows, weighted if the scorer takes weights."""
    scorer = labeled_scorer(scoring, unlabeled=unlabeled_mark(student))
    if sample_weight is None or not scorer._accept_sample_weight():
        return float(scorer(student, X, y))
    return float(scorer(student, X, y, sample_weight=sample_weight))


def as_mask(rows: Any, n_rows: int) -> BoolArray:
    """Return indices or a mask of rows as a mask."""
    mask = np.zeros(n_rows, dtype=bool)
    mask[rows] = True
    return mask


def results_of(trials: list[Trial], *, with_halving: bool) -> dict[str, Any]:
    """Return `cv_results_`."""
    results: dict[str, Any] = {}
    if with_halving:
        results["iter"] = np.array([trial.iteration for trial in trials])
        results["n_resources"] = np.array([trial.n_rows for trial in trials])
    columns = {
        "fit_time": "fit_time",
        "score_time": "score_time",
        "score": "test_score",
    }
    for field_name, name in columns.items():
        values = np.array(
            [[getattr(each, field_name) for each in trial.results] for trial in trials]
        )
        if name == "test_score":
            results |= {f"split{i}_{name}": of for i, of in enumerate(values.T)}
        results[f"mean_{name}"] = values.mean(axis=1)
        results[f"std_{name}"] = values.std(axis=1)
    scores = np.array([trial.mean_score for trial in trials])
    results["rank_test_score"] = rankdata(-scores, method="min").astype(np.int32)
    params = [trial.candidate.params for trial in trials]
    for name in sorted({name for each in params for name in each}):
        is_missing = [name not in each for each in params]
        column_of = np.ma.MaskedArray(np.empty(len(params), object), mask=is_missing)
        for i, each in enumerate(params):
            if name in each:
                column_of[i] = each[name]
        results[f"param_{name}"] = column_of
    results["params"] = params
    return results
