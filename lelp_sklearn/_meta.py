"""LELPMetaClassifier: any scikit-learn classifier fitted to subclass soft labels."""

from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    clone,
    is_classifier,
    is_regressor,
)
from sklearn.dummy import DummyClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import (
    _safe_indexing,
    check_random_state,
    gen_batches,
    get_tags,
    indexable,
)
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from lelp_sklearn._callers import warned_once
from lelp_sklearn._extraction.sklearn_teachers import OmittedTeacher
from lelp_sklearn._projector import LELPProjector
from lelp_sklearn._sklearn import single_block
from lelp_sklearn._targets import (
    TARGET_METADATA,
    check_target_params,
    make_targets,
    set_nested_params,
    usable_rows,
)
from lelp_sklearn._training.inputs import StudentInputs, has_head
from lelp_sklearn._typing import FloatArray, IntArray
from lelp_sklearn._validation import check_class_weight

# The share of a row's mass at which its most likely subclasses are enough.
_ENOUGH_MASS = 0.99
_ROWS_PER_BLOCK = 8192


class Examples(NamedTuple):
    """What the last step of the estimator is fitted on."""

    # The index (m,) of the row of each example.
    rows: IntArray
    # A subclass (m,), or the soft targets (m, C * S) of a regressor.
    targets: NDArray[Any]
    # None for an estimator that takes none.
    weights: FloatArray | None


def _has_probabilities(classifier: Any) -> bool:
    """Return whether the estimator of a LELPMetaClassifier predicts probabilities."""
    estimator = getattr(classifier, "estimator_", classifier.estimator)
    return is_regressor(estimator) or hasattr(estimator, "predict_proba")


class LELPMetaClassifier(
    ClassifierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    r"""Any scikit-learn classifier, fitted to the subclass soft labels of a teacher.

    A clone of `estimator` learns :math:`C \cdot S` subclasses, S for each class. A row
    with soft targets :math:`p_{c,s}` becomes several examples of the same features, one
    for each of its most likely subclasses, whose weights are the probabilities of these
    subclasses. Predictions are summed over the subclasses of a class. Linear models
    gain most from it: with subclasses their classes need not be linearly separable.

    Parameters
    ----------
    estimator : estimator
        A classifier, or a regressor of several outputs, which is fitted to the soft
        targets themselves. A classifier whose `fit` has no `sample_weight` gets each
        row once, as its most likely subclass, and so learns less of the teacher. In a
        :class:`~sklearn.pipeline.Pipeline` the first steps are fitted on the rows, with
        the classes as y and without weights, and the last step on the examples. A
        classifier that splits its rows itself would find examples of one row in both
        parts: one with a parameter `cv`, ``early_stopping=True`` or, in gradient
        boosting, `n_iter_no_change` is an error, and ``early_stopping="auto"`` is set
        to False.
    projector : LELPProjector, FrozenEstimator or None, default=None
        Makes the targets, as in :class:`LELPStudentClassifier`; None is
        ``LELPProjector()``. ``n_subclasses=1`` is vanilla knowledge distillation. The
        `temperature` "auto" is 1 here: an estimator predicts its targets as they are.
    teacher : transformer, classifier or None, default=None
        Turns X into embeddings, unless they are given, as in
        :class:`LELPStudentClassifier`.
    teacher_cv : int, cross-validation generator, iterable or None, default=5
        Splits the rows for a `teacher` that is an unfitted classifier: the class
        targets of a row come from a fit that did not see it, and the embeddings from a
        fit to all rows. None takes both from the latter, which is too sure of the rows
        that it has seen. An iterable of splits counts the labelled training rows.
    max_subclasses : int, default=5
        A row becomes at most so many examples, fewer if its most likely subclasses have
        99 % of its mass. With one subclass per class nothing is left out: there is an
        example for each class.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, by label; 1 if not given. "balanced" makes the classes
        equal in total weight. A row without a label counts as the teacher's most likely
        class.
    unlabeled : object, default=None
        The value in y that marks rows without a label, as in
        :class:`LELPStudentClassifier`.
    random_state : int, RandomState instance or None, default=None
        Controls the subclasses, if `random_state` of `projector` is None. It does not
        reach `estimator`, which has its own.

    Attributes
    ----------
    estimator_ : estimator
        The fitted clone. Its classes are numbers of the subclasses that it has seen. If
        that is one only, a :class:`~sklearn.dummy.DummyClassifier`.
    projector_ : LELPProjector, FrozenEstimator or None
        The fitted projector; None if `soft_targets` were given and no frozen one.
    classes_ : ndarray of shape (n_classes,)
        The classes.
    n_features_in_ : int
        Number of features, if the fitted estimator has it.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if the fitted estimator has them.

    See Also
    --------
    LELPStudentClassifier : A torch module as the student.
    LELPProjector : Makes the soft labels.

    Notes
    -----
    Time and memory grow with the number of examples: at most `max_subclasses` times the
    rows, with one subclass C times the rows. They grow with the outputs too. Gradient
    boosting grows one tree for each subclass and iteration, S times as many as for the
    classes (C·S instead of one, if there are two classes). Each leaf of a forest
    stores a number for each subclass.

    Set ``l2_regularization=1.0`` in a HistGradientBoostingClassifier. Without it, some
    fits to several subclasses are many points worse than to one.

    Embeddings, logits, soft targets and `sample_weight` are metadata of `fit` that
    cross-validation slices with the rows and that is requested by default. The
    probabilities are those at the `temperature` of the projector, to which the
    estimator is fitted. If there is a teacher, only it and the estimator read X, which
    may be sparse, text or a table with categories, as they take it.

    Weights reach the estimator as they are, sample weight times class weight times the
    probability of the subclass. The teacher is not stored if a fitted classifier is
    pickled.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from lelp_sklearn import LELPMetaClassifier, LELPProjector
    >>> X, digit = load_digits(return_X_y=True)
    >>> X, y = X / 16, digit % 2
    >>> head = LogisticRegression().fit(X, y)
    >>> linear = LELPMetaClassifier(
    ...     LogisticRegression(max_iter=200),
    ...     projector=LELPProjector(n_subclasses=10, head=head),
    ...     random_state=0,
    ... )
    >>> linear = linear.fit(X, y, teacher_embeddings=X)
    >>> linear.score(X, y) > head.score(X, y)
    True
    """

    __metadata_request__fit: ClassVar[dict[str, Any]] = TARGET_METADATA

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "estimator": [HasMethods("fit")],
        "projector": [LELPProjector, FrozenEstimator, None],
        "teacher": "no_validation",
        "teacher_cv": ["cv_object"],
        "max_subclasses": [Interval(Integral, 1, None, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "unlabeled": "no_validation",
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        projector: Any = None,
        teacher: Any = None,
        teacher_cv: Any = 5,
        max_subclasses: Any = 5,
        class_weight: Any = None,
        unlabeled: Any = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.projector = projector
        self.teacher = teacher
        self.teacher_cv = teacher_cv
        self.max_subclasses = max_subclasses
        self.class_weight = class_weight
        self.unlabeled = unlabeled
        self.random_state = random_state

    set_params = set_nested_params

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        teacher_embeddings: Any = None,
        teacher_logits: Any = None,
        soft_targets: Any = None,
        sample_weight: Any = None,
    ) -> "LELPMetaClassifier":
        """Make the targets, and fit the estimator to them.

        The targets are made as in :meth:`LELPStudentClassifier.fit`.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), or list of str
            Rows as the estimator takes them. Without embeddings, soft targets and
            teacher they, or their TruncatedSVD if they are sparse, take the place of
            the embeddings, and must be numbers; NaN count as 0 there, and are an error
            if X is sparse.
        y : array-like of shape (n_samples,), default=None
            Class labels. Rows marked `unlabeled`, or all rows if y is None, take the
            class that is most likely by the teacher.
        teacher_embeddings, teacher_logits, soft_targets, sample_weight : \
                array-like, default=None
            As in :meth:`LELPStudentClassifier.fit`.

        Returns
        -------
        self : LELPMetaClassifier
            The fitted classifier.

        Raises
        ------
        TypeError
            If the estimator is neither a classifier nor a regressor.
        ValueError
            If the estimator splits rows itself, if it takes no weights and rows differ
            in weight, if a regressor has one output only, or as in
            :meth:`LELPStudentClassifier.fit`.

        Warns
        -----
        NoTeacherWarning
            If no teacher is given: the class targets are then the labels.
        ClassOrderWarning
            If the teacher's classes in another order would agree far better with the
            labels.
        OverfittedTeacherWarning
            If class targets of labelled rows are far more certain than those of others.
        """
        with warned_once():
            # 1. Parameters.
            estimator = self._check_params()
            # 2. Data.
            _check_texts(estimator, X)
            inputs = StudentInputs.from_user(
                self,
                X,
                y,
                teacher_embeddings=teacher_embeddings,
                teacher_logits=teacher_logits,
                soft_targets=soft_targets,
                sample_weight=sample_weight,
            )
            if not has_head(self.projector):
                inputs.check_several_labels()
            # 3. Teacher and projector make the targets.
            is_train = usable_rows(self, inputs)
            seed = check_random_state(self.random_state).randint(2**31 - 1)
            source, targets = make_targets(
                self, inputs, is_train, seed, None, auto_temperature=1.0
            )
            # 4. The rows, their targets and their weights.
            is_train, weights = inputs.row_weights(
                is_train, targets, source.classes, self.class_weight
            )
            labels = source.classes[inputs.most_likely_class(targets, source.classes)]
            (X,) = indexable(X)
            if not is_train.all():
                index = np.flatnonzero(is_train)
                X, labels = _safe_indexing(X, index), labels[index]
                targets, weights = targets[index], weights[index]
            # 5. The estimator learns subclasses.
            n_subclasses = targets.shape[1] // len(source.classes)
            examples = self._make_examples(
                _last_step(estimator), targets, weights, n_subclasses
            )
            estimator, seen_subclasses = _fit_estimator(estimator, X, labels, examples)
            # All at once, so that an error leaves the classifier as it was.
            self.estimator_, self._seen_subclasses = estimator, seen_subclasses
            self.projector_, self.classes_ = source.projector, source.classes
            self._n_outputs = targets.shape[1]
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each row.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), or list of str
            Rows as in fit.

        Returns
        -------
        ndarray of shape (n_samples,)
            The most likely classes; the classes of the predicted subclasses, if the
            estimator does not predict probabilities.
        """
        check_is_fitted(self)
        if _has_probabilities(self):
            index = self.predict_proba(X).argmax(axis=1)
        else:
            subclass = self._seen_subclasses[self.estimator_.predict(X)]
            index = subclass // (self._n_outputs // len(self.classes_))
        classes: NDArray[Any] = self.classes_[index]
        return classes

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> FloatArray:
        """Predict class probabilities, sums over the subclasses of each class.

        Not available if the estimator is a classifier that does not predict
        probabilities.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), or list of str
            Rows as in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of `classes_`.
        """
        soft = self.predict_subclass_proba(X)
        summed: FloatArray = soft.reshape(len(soft), len(self.classes_), -1).sum(axis=2)
        return summed

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_log_proba(self, X: Any) -> FloatArray:
        """Predict the logarithms of class probabilities, of 0 minus infinity.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), or list of str
            Rows as in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Logarithms of `predict_proba`.
        """
        with np.errstate(divide="ignore"):
            logarithms: FloatArray = np.log(self.predict_proba(X))
        return logarithms

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_subclass_proba(self, X: Any) -> FloatArray:
        """Predict the probabilities of subclasses.

        Subclasses that the estimator has not seen have probability 0. Predictions of a
        regressor are clipped at 0 and divided by their sum.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), or list of str
            Rows as in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes * n_subclasses)
            Probabilities, subclass s of class c in column ``c * n_subclasses + s``.
        """
        check_is_fitted(self)
        if is_regressor(self.estimator_):
            soft = np.asarray(self.estimator_.predict(X))
            soft = np.maximum(soft, np.finfo(soft.dtype).tiny)
            regressed: FloatArray = soft / soft.sum(axis=1, keepdims=True)
            return regressed
        seen = np.asarray(self.estimator_.predict_proba(X))
        probabilities = np.zeros((len(seen), self._n_outputs), dtype=seen.dtype)
        probabilities[:, self._seen_subclasses] = seen
        return probabilities

    @property
    def n_features_in_(self) -> int:
        """The number of features, if the fitted estimator has it."""
        return int(self.estimator_.n_features_in_)

    @property
    def feature_names_in_(self) -> NDArray[Any]:
        """The names of the features, if the fitted estimator has them."""
        names: NDArray[Any] = self.estimator_.feature_names_in_
        return names

    # --- the parts of a fit -----------------------------------------------------------

    def _check_params(self) -> Any:
        """Check the parameters; return a clone of the estimator that splits no rows."""
        self._validate_params()
        check_target_params(self)
        check_class_weight(self.class_weight)
        estimator = clone(self.estimator)
        last_step = _last_step(estimator)
        if is_regressor(last_step):
            if not get_tags(last_step).target_tags.multi_output:
                raise ValueError(
                    f"estimator {type(last_step).__name__} predicts one output, and "
                    "soft targets are several: wrap it in MultiOutputRegressor."
                )
        elif is_classifier(last_step):
            _switch_off_inner_splits(last_step)
        else:
            raise TypeError(
                f"estimator {type(last_step).__name__} must be a classifier, or a "
                "regressor of several outputs."
            )
        return estimator

    def _make_examples(
        self,
        estimator: Any,
        targets: FloatArray,
        weights: FloatArray,
        n_subclasses: int,
    ) -> Examples:
        """Return the examples of rows with soft targets (n, K) and weights (n,)."""
        rows = np.arange(len(targets))
        takes_weights = has_fit_parameter(estimator, "sample_weight")
        if not takes_weights and np.ptp(weights) > 0:
            raise ValueError(
                f"estimator {type(estimator).__name__} takes no sample_weight, and "
                "sample_weight or class_weight give the rows different weights: leave "
                "these out, or use an estimator whose fit has sample_weight."
            )
        if is_regressor(estimator):
            # One that takes weights may hold one that does not.
            is_weighted = takes_weights and (weights != 1).any()
            return Examples(rows, targets, weights if is_weighted else None)
        if not takes_weights:
            return Examples(rows, targets.argmax(axis=1), None)
        n_copies = None if n_subclasses == 1 else int(self.max_subclasses)
        return _most_likely_subclasses(targets, weights, n_copies)

    _sk_visual_block_ = single_block

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags.allow_nan = inner.input_tags.allow_nan
        tags.input_tags.sparse = inner.input_tags.sparse
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if "estimator_" in state:
            state = {**state, "teacher": OmittedTeacher.of(self.teacher)}
        return state


def _fit_estimator(
    estimator: Any, X: Any, labels: NDArray[Any], examples: Examples
) -> tuple[Any, Any]:
    """Fit an estimator, and return it with the subclasses that a classifier sees.

    A classifier is fitted to the numbers of these.
    """
    seen = None
    if is_classifier(_last_step(estimator)):
        seen, number = np.unique(examples.targets, return_inverse=True)
        examples = examples._replace(targets=number)
        if len(seen) == 1:
            estimator = DummyClassifier()
    # Weights go to the last step alone, whatever its steps request.
    with config_context(enable_metadata_routing=False):
        _fit_steps(estimator, X, labels, examples)
    return estimator, seen


def _last_step(estimator: Any) -> Any:
    """Return the last step of a pipeline, also of one that ends in another."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return estimator


def _check_texts(estimator: Any, X: Any) -> None:
    """Raise if X is texts and nothing turns them into features."""
    is_column = getattr(X, "ndim", 1) == 1 and hasattr(X, "__iter__")
    if isinstance(estimator, Pipeline) or not is_column:
        return
    takes_texts = get_tags(estimator).input_tags.string
    if isinstance(next(iter(X), None), str) and not takes_texts:
        raise ValueError(
            f"X holds texts, which estimator {type(estimator).__name__} does not take: "
            "put a vectorizer before it, make_pipeline(TfidfVectorizer(), estimator)."
        )


def _switch_off_inner_splits(estimator: Any) -> None:
    """Raise if a classifier splits the rows that it is fitted on; "auto" is set off."""
    params = estimator.get_params()
    for name, value in params.items():
        short = name.rpartition("__")[2]
        if short == "early_stopping" and value == "auto":
            estimator.set_params(**{name: False})
            continue
        # Where both are there, the number alone splits nothing.
        is_alone = f"{name.removesuffix(short)}early_stopping" not in params
        fixes = {
            "cv": "put LELPMetaClassifier into it instead",
            "early_stopping": f"set {name}=False" if value else None,
            "n_iter_no_change": f"set {name}=None" if value and is_alone else None,
            # A support vector machine fits them to parts of the rows.
            "probability": f"set {name}=False" if value is True else None,
        }
        if fixes.get(short) is not None:
            raise ValueError(
                f"estimator {type(estimator).__name__} splits its rows itself "
                f"({name}={value!r}), and would find examples of one row in both "
                f"parts: {fixes[short]}."
            )


def _most_likely_subclasses(
    targets: FloatArray, weights: FloatArray, n_copies: int | None
) -> Examples:
    """Return an example for each of a row's most likely subclasses, None for all.

    There are at most `n_copies` of them, and no more than have 99 % of the mass.
    """
    rows, subclasses, probabilities = [], [], []
    for block in gen_batches(len(targets), _ROWS_PER_BLOCK):
        soft = targets[block].astype(np.float64)
        if n_copies is not None:
            order = np.argsort(-soft, axis=1, kind="stable")
            falling = np.take_along_axis(soft, order, axis=1)
            before = np.cumsum(falling, axis=1) - falling
            np.put_along_axis(soft, order[:, n_copies:], 0, axis=1)
            is_enough = np.empty(soft.shape, dtype=bool)
            np.put_along_axis(is_enough, order, before >= _ENOUGH_MASS, axis=1)
            soft[is_enough] = 0
        row, subclass = np.nonzero(soft)
        rows.append(block.start + row)
        subclasses.append(subclass)
        probabilities.append(soft[row, subclass])
    index = np.concatenate(rows)
    weight = weights[index] * np.concatenate(probabilities)
    return Examples(index, np.concatenate(subclasses), weight)


def _fit_steps(
    estimator: Any, X: Any, labels: NDArray[Any], examples: Examples
) -> None:
    """Fit the first steps of a pipeline on the rows, and the last on the examples."""
    if isinstance(estimator, Pipeline):
        if len(estimator.steps) > 1:
            first_steps = estimator[:-1]
            X = first_steps.fit_transform(X, labels)
            # With `memory` they are clones.
            estimator.steps[:-1] = first_steps.steps
        _fit_steps(estimator.steps[-1][1], X, labels, examples)
        return
    (X,) = indexable(X)
    X = _safe_indexing(X, examples.rows)
    if examples.weights is None:
        estimator.fit(X, examples.targets)
    else:
        estimator.fit(X, examples.targets, sample_weight=examples.weights)
