"""LELPStudentClassifierCV: a student whose parameters are chosen on held-out rows."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from numbers import Integral, Real
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import ParameterGrid, check_cv
from sklearn.utils import check_random_state, get_tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from lelp_sklearn._callers import warned_once
from lelp_sklearn._extraction.sklearn_teachers import OmittedTeacher
from lelp_sklearn._files import content_hash
from lelp_sklearn._projector import LELPProjector
from lelp_sklearn._search import (
    Candidate,
    Search,
    Split,
    Trial,
    as_mask,
    call_scorer,
    halving_rounds,
    results_of,
)
from lelp_sklearn._sklearn import (
    CallbackSupportMixin,
    begin_fit,
    single_block,
    with_callbacks,
)
from lelp_sklearn._student import PARAMS_WITHOUT_EFFECT, LELPStudentClassifier
from lelp_sklearn._targets import TARGET_METADATA, usable_rows
from lelp_sklearn._threads import exclusive
from lelp_sklearn._training.checkpoint import (
    Checkpoint,
    check_path,
    check_resumable,
    open_checkpoint,
)
from lelp_sklearn._training.inputs import StudentInputs, add_note_on_error, has_head
from lelp_sklearn._validation import FEATURES

Params = ParamSpec("Params")
Returned = TypeVar("Returned")

# With cv=None: rows to judge by, and splits to that end.
_N_JUDGED, _MOST_SPLITS = 200, 5

_FITTED_BY_REFIT = "best_estimator_", "refit_time_", "classes_", *FEATURES


def _of_best(
    method: Callable[Concatenate[LELPStudentClassifier, Params], Returned],
) -> Callable[Concatenate["LELPStudentClassifierCV", Params], Returned]:
    """Return a method that calls that of the best student, and is documented alike."""

    @wraps(method)
    def call_best(
        self: "LELPStudentClassifierCV", /, *args: Params.args, **kwargs: Params.kwargs
    ) -> Returned:
        return method(self._best(), *args, **kwargs)

    return call_best


class LELPStudentClassifierCV(
    CallbackSupportMixin,
    ClassifierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    r"""Student whose parameters are chosen on held-out rows.

    Every combination of parameters is trained on some of the rows and judged on the
    others: by how far its class probabilities are those of the teacher, or by
    `scoring`. The best one is trained again on all rows. Candidates with the same
    layers, number of outputs, batch size and number of epochs are trained together, in
    batched products over stacked weights, which takes a fraction of the time of
    :class:`~sklearn.model_selection.GridSearchCV` and gives the same students up to
    rounding.

    Parameters
    ----------
    student : LELPStudentClassifier or None, default=None
        The student; clones of it are trained. None is ``LELPStudentClassifier()``. If
        its `projector` is None, it is ``LELPProjector()``, so that parameters of the
        projector can be searched.
    param_grid : dict, list of dict or None, default=None
        Values of parameters by name, such as ``learning_rate``, ``max_epochs``,
        ``projector__n_subclasses`` or ``teacher__layer``, as in
        :class:`~sklearn.model_selection.GridSearchCV`. None stands for ten candidates:
        `n_subclasses` 1, which is vanilla distillation, and "auto", with the
        `learning_rate` and `max_epochs` of `student`, at the learning rates 0.01 and
        0.1, and for a tenth of the epochs at 0.003 and 0.01; with a `module` of the
        caller these rates are about a third. With `soft_targets` or a frozen projector
        `n_subclasses` stays as it is.
    cv : int, splitter or iterable, default=None
        None holds out `validation_fraction` of the rows, stratified by label: once, or
        as often as it takes to judge by 200 rows, but at most five times. An int is a
        number of folds, stratified by label; a splitter and an iterable of
        (train, test) indices are used as in
        :func:`~sklearn.model_selection.check_cv`, a row that is drawn several times
        counting once. A splitter sees labels as numbers, -1 for rows without one.
    validation_fraction : float, default=0.1
        Fraction of the rows that is held out if `cv` is None.
    scoring : str, callable or None, default=None
        None is the overlap with the teacher, :math:`\sum_c \min(p_c, q_c)` of the class
        probabilities p of the teacher and q of the student at temperature 4, averaged
        over the held-out rows with `sample_weight`: 1 if they are equal. It tells
        students apart that predict the same classes. Without a teacher it is the
        student's probability of the label. Otherwise the name of a scorer of
        scikit-learn, or a callable ``(estimator, X, y)``; it scores the held-out rows
        that have a label.
    refit : bool, default=True
        Whether to train the best candidate on all rows. Prediction requires it.
    factor : float, default=None
        Successive halving, as in
        :class:`~sklearn.model_selection.HalvingGridSearchCV`: all candidates begin on a
        part of the training rows, and the best ``1 / factor`` of them go on with
        `factor` times as many rows, for as many rounds as the rows allow. None trains
        every candidate on all training rows.
    checkpoint : path-like, default=None
        Where to store the scores that are known, after each group of candidates: called
        again with the same data and parameters, `fit` trains only the others. A file
        that ends in ``.ckpt`` is for this search; any other path is a folder, in which
        each search has a file of its own. Requires an integer `random_state`. The
        `checkpoint` of `student` is for the last fit alone.
    verbose : int, default=0
        1 prints a line for each group of candidates, and says if they cannot be trained
        together.
    random_state : int, RandomState instance or None, default=None
        Controls the rows that are held out or drawn, and is the source of the
        `random_state` of a student that has None. All candidates have the same.

    Attributes
    ----------
    best_estimator_ : LELPStudentClassifier
        The student with `best_params_`, trained on all rows. Only with `refit`.
    best_params_ : dict
        The parameters of the candidate with the best mean score; of equal candidates
        the first.
    best_score_ : float
        Its mean score.
    best_index_ : int
        Its position in `cv_results_`.
    cv_results_ : dict of ndarray
        An entry for each candidate, as in
        :class:`~sklearn.model_selection.GridSearchCV`: `params`, ``param_...``,
        ``split0_test_score`` and so on, `mean_test_score`, `std_test_score`,
        `rank_test_score`, and the means and standard deviations of `fit_time` and
        `score_time` in seconds. The time of candidates that are trained together is
        divided equally. NaN is the score of a candidate whose loss was not finite. With
        `factor`, `iter` and `n_resources` are the iteration and its number of rows.
    n_splits_ : int
        Number of splits.
    n_resources_ : list of int
        Number of rows of each iteration, of which a split holds out its part. Only with
        `factor`.
    n_candidates_ : list of int
        Number of candidates of each iteration. Only with `factor`.
    refit_time_ : float
        Seconds of the last fit. Only with `refit`.
    classes_ : ndarray of shape (n_classes,)
        The classes.
    n_features_in_ : int
        ``X.shape[1]``.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if X has names that are strings.

    See Also
    --------
    LELPStudentClassifier : The student.
    subclass_report : Estimates before training whether subclasses help.

    Notes
    -----
    The teacher and its embeddings are computed once for each split, unless parameters
    of the teacher are searched, and the projector is fitted once for each of its
    settings. They see the training rows of the split only.

    Trained together are perceptrons (the default student, linear students and other
    sequences of :class:`torch.nn.Linear` and :class:`torch.nn.ReLU`) and modules that
    :func:`torch.func.functional_call` and :func:`torch.func.vmap` can call, with the
    default optimizer, in full precision and without early stopping. All others are
    trained one after the other.

    Embeddings, logits, soft targets and `sample_weight` are metadata of `fit` that are
    requested by default, as in :class:`LELPStudentClassifier`. The teacher of `student`
    is not stored when a fitted search is pickled; teachers in `param_grid` are, there
    and in `best_params_` and `cv_results_`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from lelp_sklearn import (
    ...     LELPProjector,
    ...     LELPStudentClassifier,
    ...     LELPStudentClassifierCV,
    ... )
    >>> X, digit = load_digits(return_X_y=True)
    >>> X, y = X / 16, digit % 2
    >>> head = LogisticRegression().fit(X, y)
    >>> student = LELPStudentClassifier(
    ...     projector=LELPProjector(head=head), max_epochs=5
    ... )
    >>> grid = {"projector__n_subclasses": [1, 5], "learning_rate": [0.003, 0.01]}
    >>> search = LELPStudentClassifierCV(student, grid, random_state=0)
    >>> search = search.fit(X, y, teacher_embeddings=X)
    >>> sorted(search.best_params_)
    ['learning_rate', 'projector__n_subclasses']
    >>> search.predict(X).shape
    (1797,)
    """

    __metadata_request__fit: ClassVar[dict[str, Any]] = TARGET_METADATA

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "student": [LELPStudentClassifier, None],
        "param_grid": [dict, list, None],
        "cv": ["cv_object"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "refit": ["boolean"],
        "factor": [Interval(Real, 1, None, closed="neither"), None],
        "checkpoint": [str, os.PathLike, None],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        student: Any = None,
        param_grid: Any = None,
        *,
        cv: Any = None,
        validation_fraction: Any = 0.1,
        scoring: Any = None,
        refit: Any = True,
        factor: Any = None,
        checkpoint: Any = None,
        verbose: Any = 0,
        random_state: Any = None,
    ) -> None:
        self.student = student
        self.param_grid = param_grid
        self.cv = cv
        self.validation_fraction = validation_fraction
        self.scoring = scoring
        self.refit = refit
        self.factor = factor
        self.checkpoint = checkpoint
        self.verbose = verbose
        self.random_state = random_state

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        teacher_embeddings: Any = None,
        teacher_logits: Any = None,
        soft_targets: Any = None,
        sample_weight: Any = None,
    ) -> "LELPStudentClassifierCV":
        """Choose the parameters of the student, and train it on all rows.

        Parameters
        ----------
        X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, ...)
            Inputs of the student, as in :meth:`LELPStudentClassifier.fit`.
        y : array-like of shape (n_samples,), default=None
            Class labels.
        teacher_embeddings, teacher_logits, soft_targets, sample_weight : \
                array-like, default=None
            As in :meth:`LELPStudentClassifier.fit`.

        Returns
        -------
        self : LELPStudentClassifierCV
            The fitted search.

        Raises
        ------
        ValueError
            If a name in `param_grid` is not a parameter of the student, if no row is
            held out, if `scoring` is set and no held-out row has a label, and as in
            :meth:`LELPStudentClassifier.fit`.
        TypeError
            As in :meth:`LELPStudentClassifier.fit`.
        FloatingPointError
            If the loss of every candidate, or of the last fit, was not finite.
        """
        with warned_once(), torch.inference_mode(False):
            # 1. Parameters.
            self._check_params()
            student, seed = self._make_student()
            can_split = soft_targets is None
            candidates = self._make_candidates(student, can_split=can_split)
            # 2. Data.
            inputs = StudentInputs.from_user(
                student,
                X,
                y,
                teacher_embeddings=teacher_embeddings,
                teacher_logits=teacher_logits,
                soft_targets=soft_targets,
                sample_weight=sample_weight,
            )
            # 3. Rows to judge by.
            splits = self._make_splits(student, inputs, seed)
            # 4. Search.
            rounds = self._make_rounds(student, candidates, inputs, len(splits))
            n_fits = len(splits) * sum(n for n, _ in rounds)
            task = begin_fit(
                self,
                **inputs.for_callbacks(y, sample_weight),
                max_subtasks=n_fits + bool(self.refit),
            )
            search = Search(
                student, inputs, splits, self.scoring, bool(self.verbose), task=task
            )
            with self._open_checkpoint(search, candidates) as search.checkpoint:
                trials = search.run(candidates, rounds, seed)
            fitted = self._choose(trials, rounds)
            # 5. The best candidate on all rows.
            if self.refit:
                best = clone(student)
                best.set_params(**clone(fitted["best_params_"], safe=False))
                start = time.perf_counter()
                with task.delegate("refit", best):
                    best.fit(
                        X,
                        y,
                        teacher_embeddings=teacher_embeddings,
                        teacher_logits=teacher_logits,
                        soft_targets=soft_targets,
                        sample_weight=sample_weight,
                    )
                fitted["refit_time_"] = time.perf_counter() - start
                fitted["best_estimator_"] = best
                names = "classes_", *FEATURES
                fitted |= {n: getattr(best, n) for n in names if hasattr(best, n)}
            # All at once, so that an error leaves the last search as it was.
            for name in _FITTED_BY_REFIT:
                self.__dict__.pop(name, None)
            self.__dict__.update(fitted)
            task.end({})
        return self

    predict = _of_best(LELPStudentClassifier.predict)
    predict_proba = _of_best(LELPStudentClassifier.predict_proba)
    predict_log_proba = _of_best(LELPStudentClassifier.predict_log_proba)
    predict_subclass_proba = _of_best(LELPStudentClassifier.predict_subclass_proba)
    decision_function = _of_best(LELPStudentClassifier.decision_function)
    to_module = _of_best(LELPStudentClassifier.to_module)
    to_onnx = _of_best(LELPStudentClassifier.to_onnx)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the score of the best student: `scoring`, or the accuracy if None.

        Parameters
        ----------
        X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, ...)
            Rows of the shape seen in fit.
        y : array-like of shape (n_samples,)
            Their labels. Rows that are marked as unlabeled are left out.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights, for a `scoring` that takes them.

        Returns
        -------
        float
            The score.
        """
        scoring = "accuracy" if self.scoring is None else self.scoring
        return call_scorer(scoring, self._best(), X, y, sample_weight)

    _sk_visual_block_ = single_block

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        student = LELPStudentClassifier() if self.student is None else self.student
        tags.input_tags = get_tags(student).input_tags
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "cv_results_")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the teacher of a fitted search."""
        state = dict(super().__getstate__())
        if self.__sklearn_is_fitted__() and self.student is not None:
            student = copy.copy(self.student)
            student.teacher = OmittedTeacher.of(student.teacher)
            state["student"] = student
        return state

    # --- the parts of a fit -----------------------------------------------------------

    def _best(self) -> LELPStudentClassifier:
        """Return the best student; raise if there is none."""
        check_is_fitted(self)
        if not self.refit:
            raise AttributeError(
                "refit=False leaves no student to predict with: set refit=True, or "
                "train one with best_params_."
            )
        best: LELPStudentClassifier = self.best_estimator_
        return best

    def _check_params(self) -> None:
        """Raise, before work starts, if a parameter cannot be used."""
        self._validate_params()
        check_resumable(self.checkpoint, self.random_state)
        if self.checkpoint is not None:
            check_path(self.checkpoint)

    def _make_student(self) -> tuple[LELPStudentClassifier, int]:
        """Return the student whose parameters are searched, and the seed of splits."""
        drawn = check_random_state(self.random_state).randint(2**31 - 1, size=2)
        student = LELPStudentClassifier()
        if self.student is not None:
            student = clone(self.student)
        if student.projector is None:
            student.set_params(projector=LELPProjector())
        if student.random_state is None:
            student.set_params(random_state=int(drawn[0]))
        return student, int(drawn[1])

    def _make_candidates(
        self, student: LELPStudentClassifier, *, can_split: bool
    ) -> list[Candidate]:
        """Return a candidate for each combination of parameters, all of them checked.

        `can_split` tells whether targets are made here, with any number of subclasses.
        """
        grid = self.param_grid
        if grid is None:
            is_frozen = isinstance(student.projector, FrozenEstimator)
            grid = default_grid(student, can_split=can_split and not is_frozen)
        candidates = []
        for position, params in enumerate(ParameterGrid(grid)):
            candidate = Candidate(position, params)
            with add_note_on_error(f"(In the candidate {params} of param_grid.)"):
                candidate.make_student(student)._check_params()
            candidates.append(candidate)
        return candidates

    def _make_splits(
        self, student: LELPStudentClassifier, inputs: StudentInputs, seed: int
    ) -> list[Split]:
        """Return the rows to train on and those to judge by, of each split."""
        if not has_head(student.projector):
            inputs.check_several_labels()
        is_usable = usable_rows(student, inputs)
        if self.cv is None:
            fraction = float(self.validation_fraction)
            name = f"validation_fraction={fraction}"
            drawn = [inputs.draw(is_usable, fraction, seed)]
            n_splits = math.ceil(_N_JUDGED / max(1, len(drawn[0])))
            drawn += [
                inputs.draw(is_usable, fraction, seed + number)
                for number in range(1, min(n_splits, _MOST_SPLITS))
            ]
            masks = [as_mask(rows, len(inputs)) for rows in drawn]
            pairs = [(~is_held_out, is_held_out) for is_held_out in masks]
        else:
            name = f"cv={self.cv!r}"
            # Numbers, since marks of rows without a label may be of another kind.
            strata = inputs.strata()
            splitter = check_cv(self.cv, strata, classifier=True)
            pairs = [
                (as_mask(train, len(inputs)), as_mask(test, len(inputs)))
                for train, test in splitter.split(inputs.X, strata)
            ]
        splits = []
        for train, test in pairs:
            judged = is_usable & test
            if not judged.any():
                raise ValueError(
                    f"{name} holds out none of the {is_usable.sum()} rows that have a "
                    "target and a positive weight: give more rows, or another "
                    "validation_fraction or cv."
                )
            if self.scoring is not None:
                judged &= inputs.is_labelled
                if not judged.any():
                    raise ValueError(
                        f"scoring={self.scoring!r} needs labels, and no row that "
                        f"{name} holds out has one: pass y, or scoring=None, which "
                        "compares with the teacher."
                    )
            splits.append(Split(is_usable & train, np.flatnonzero(judged)))
        return splits

    def _make_rounds(
        self,
        student: LELPStudentClassifier,
        candidates: list[Candidate],
        inputs: StudentInputs,
        n_splits: int,
    ) -> list[tuple[int, int]]:
        """Return the numbers of candidates and of rows of each iteration."""
        n_rows = len(inputs)
        if self.factor is None:
            return [(len(candidates), n_rows)]
        labels = inputs.labels[inputs.is_labelled]
        n_classes = max(2, len(np.unique(labels)))
        number = getattr(student.projector, "n_subclasses", 1)
        numbers = [c.params.get("projector__n_subclasses", number) for c in candidates]
        most = max((int(n) for n in numbers if isinstance(n, Integral)), default=1)
        fewest_rows = 2 * n_splits * n_classes * most
        return halving_rounds(len(candidates), n_rows, float(self.factor), fewest_rows)

    def _choose(
        self, trials: list[Trial], rounds: list[tuple[int, int]]
    ) -> dict[str, Any]:
        """Return the fitted attributes that a search leaves, the best among them."""
        last = [trial for trial in trials if trial.iteration == len(rounds) - 1]
        best = min(last, key=lambda trial: trial.rank_key)
        if best.mean_score == -math.inf:
            if any(result.is_finite for trial in last for result in trial.results):
                raise ValueError(
                    f"scoring={self.scoring!r} gives NaN for every candidate, on "
                    "rows with finite predictions: give a scorer that is defined on "
                    "the held-out rows, or hold out more of them."
                )
            raise FloatingPointError(
                "the score of every candidate is NaN, since losses were not finite: "
                "search lower values of learning_rate, set max_grad_norm or "
                "standardise X."
            )
        has_halving = self.factor is not None
        fitted: dict[str, Any] = {
            "cv_results_": results_of(trials, with_halving=has_halving),
            "best_index_": trials.index(best),
            "best_params_": best.candidate.params,
            "best_score_": best.mean_score,
            "n_splits_": len(best.results),
        }
        if has_halving:
            fitted["n_candidates_"] = [n for n, _ in rounds]
            fitted["n_resources_"] = [n for _, n in rounds]
        return fitted

    @contextmanager
    def _open_checkpoint(
        self, search: Search, candidates: list[Candidate]
    ) -> Iterator[Checkpoint | None]:
        """Yield the checkpoint of this search; None if the parameter is None."""
        if self.checkpoint is None:
            yield None
            return
        student = search.student
        params = student.get_params(deep=False)
        for name in PARAMS_WITHOUT_EFFECT:
            del params[name]
        values = {
            **{f"student.{name}": value for name, value in params.items()},
            **search.inputs.arguments(),
            "param_grid": [candidate.params for candidate in candidates],
            "cv": [(split.is_train, split.held_out) for split in search.splits],
            "scoring": self.scoring,
            "factor": self.factor,
            "random_state": self.random_state,
        }
        # While another thread runs the teacher, it has hooks and another mode.
        with exclusive(*student.get_params().values()):
            identity = {name: content_hash(value) for name, value in values.items()}
        with open_checkpoint(self.checkpoint, identity, interval=1) as checkpoint:
            yield checkpoint


def default_grid(
    student: LELPStudentClassifier, *, can_split: bool
) -> list[dict[str, list[Any]]]:
    """Return the grid of a search without one, vanilla distillation first.

    `can_split` tells whether the number of subclasses is free.
    """
    max_epochs = int(student.max_epochs)
    high, low, lowest = 0.1, 0.01, 0.003
    if student.module is not None:
        # As for the rate "auto": nothing is known about a module of the caller.
        high, low, lowest = 0.03, 0.003, 0.001
    own = student.learning_rate
    grids: list[dict[str, list[Any]]] = [
        {"max_epochs": [max_epochs], "learning_rate": [own, high, low]},
        # For inputs that are soon learned by heart, such as wide text.
        {"max_epochs": [max(1, max_epochs // 10)], "learning_rate": [low, lowest]},
    ]
    if not can_split:
        return grids
    numbers = 1, "auto"
    return [{"projector__n_subclasses": [S], **each} for each in grids for S in numbers]
