"""Teachers with the methods of scikit-learn: fit them, and make embeddings with them.

`ClassifierTeacher` makes embeddings, head and logits of a fitted classifier; a further
kind of classifier is a branch of `_embedding_of`. A further kind of torch model belongs
in runner.py: nothing here imports torch.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, TransformerMixin, clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import _num_samples, check_is_fitted

from lelp_sklearn import _validation
from lelp_sklearn._callers import warn_user
from lelp_sklearn._training.inputs import mean_over_members
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray
from lelp_sklearn.exceptions import NoLinearHeadWarning

# The activations of MLPClassifier.
_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda values: values,
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda values: np.maximum(values, 0),
}
_LEAF_COMPONENTS = 32
_ROWS_TO_COMPARE = 64
_SMALLEST_PROBABILITY = 1e-7
_TOLERANCE = 1e-6

# Weights and intercepts of the logits, and a function from rows to embeddings (n, d).
Head = tuple[FloatArray, FloatArray]
Embed = Callable[[Any], Any]


@dataclass(frozen=True)
class OmittedTeacher:
    """Stands for the teacher in a fitted student that was pickled."""

    name: str

    @classmethod
    def of(cls, teacher: Any) -> Any:
        """Return the stand-in for a teacher; None and a stand-in stay."""
        if teacher is None or isinstance(teacher, cls):
            return teacher
        if isinstance(teacher, ClassifierTeacher):
            teacher = teacher.model
        return cls(type(teacher).__name__)


def check_teacher(teacher: Any) -> None:
    """Raise unless a teacher can make embeddings."""
    if is_classifier_teacher(teacher):
        if isinstance(teacher, FrozenEstimator) or not is_fitted(teacher):
            return
        name = type(teacher).__name__
        raise ValueError(
            f"teacher is a fitted {name}, which would be cloned and fitted again: pass "
            f"FrozenEstimator(teacher) or EmbeddingExtractor(teacher) to use it as it "
            f"is, or an unfitted one."
        )
    if all(callable(getattr(teacher, name, None)) for name in ("fit", "transform")):
        return
    wrapped = " Wrap a torch module, EmbeddingExtractor(module)."
    raise InvalidParameterError(
        "The 'teacher' parameter must be a transformer with fit and transform, such as "
        "EmbeddingExtractor, a classifier of scikit-learn, or None. Got "
        f"{type(teacher).__name__}.{wrapped if hasattr(teacher, 'forward') else ''}"
    )


def require_teacher(teacher: Any) -> Any:
    """Return a teacher; raise if it was left out of a pickle."""
    if isinstance(teacher, OmittedTeacher):
        raise ValueError(
            f"teacher ({teacher.name}) was left out when the fitted student was "
            "pickled: set it again with set_params(teacher=...), or pass "
            "teacher_embeddings."
        )
    return teacher


def transform_teacher(teacher: Any, X: Any, n_samples: int) -> Any:
    """Return the embeddings (n, d) of rows by a fitted teacher."""
    embeddings = require_teacher(teacher).transform(X)
    return _check_embeddings(embeddings, n_samples, "teacher.transform(X)")


def fit_teacher(teacher: Any, X: Any, y: Any, is_train: BoolArray) -> Any:
    """Return a clone of the teacher, fitted on some rows; a frozen one as it is."""
    if isinstance(require_teacher(teacher), FrozenEstimator | ClassifierTeacher):
        return teacher
    return clone(teacher).fit(*_select(X, y, is_train))


def fit_transform_teacher(
    teacher: Any, X: Any, y: Any, is_train: BoolArray
) -> tuple[Any, Any]:
    """Return what `fit_teacher` returns, and embeddings (n, d) of all rows.

    A teacher with a `fit_transform` of its own makes the embeddings of its training
    rows by it, because its `transform` may have seen their labels, as in an out-of-fold
    transformer.
    """
    if not has_own_fit_transform(teacher):
        teacher = fit_teacher(teacher, X, y, is_train)
        return teacher, transform_teacher(teacher, X, len(is_train))
    teacher = clone(teacher)
    train_index, other_index = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    embeddings = teacher.fit_transform(*_select(X, y, is_train))
    embeddings = _check_embeddings(
        embeddings, len(train_index), "teacher.fit_transform(X, y)"
    )
    if not other_index.size:
        return teacher, embeddings
    other_rows = _safe_indexing(X, other_index)
    other_embeddings = transform_teacher(teacher, other_rows, len(other_index))
    # NumPy, torch, pandas and polars have it under the same name.
    concat = sys.modules[type(embeddings).__module__.partition(".")[0]].concat
    order = np.argsort(np.concatenate([train_index, other_index]))
    return teacher, _safe_indexing(concat([embeddings, other_embeddings]), order)


def has_own_fit_transform(teacher: Any) -> bool:
    """Return whether a teacher has a `fit_transform` that is not fit and transform."""
    if isinstance(teacher, FrozenEstimator):
        return False
    method = getattr(teacher, "fit_transform", None)
    inherited = TransformerMixin.fit_transform
    return method is not None and getattr(method, "__func__", None) is not inherited


def _check_embeddings(embeddings: Any, n_samples: int, name: str) -> Any:
    """Return the output of a teacher as embeddings (n, d), or raise."""
    if issparse(embeddings):
        raise TypeError(
            f"Sparse data was passed: {name} is sparse, and embeddings must be dense. "
            "End the teacher in a step that makes them dense, such as TruncatedSVD."
        )
    if isinstance(embeddings, np.ndarray) or not hasattr(embeddings, "shape"):
        # A plain array, also of a class of the user's.
        embeddings = np.asarray(embeddings)
    embeddings = mean_over_members(embeddings, n_samples, name)
    _validation.check_length(embeddings, n_samples, name)
    return embeddings


def _select(X: Any, y: Any, is_train: BoolArray) -> tuple[Any, Any]:
    """Return the training rows and their labels; X itself if these are all rows."""
    if is_train.all():
        return X, y
    rows = np.flatnonzero(is_train)
    return _safe_indexing(X, rows), None if y is None else y[rows]


# scikit-learn has no types.
@dataclass(frozen=True)
class ClassifierTeacher(BaseEstimator):  # type: ignore[misc]
    """A fitted classifier as a teacher."""

    model: Any
    embed: Embed
    head_: Head | None  # None if it does not give the logits of the model
    n_logits_: int  # columns of `predict_logits`

    @classmethod
    def of(cls, model: Any, X: Any) -> "ClassifierTeacher":
        """Return the teacher, with a head if it gives the logits of the first rows."""
        embed, head = _embedding_of(model, X)
        rows = _safe_indexing(X, np.arange(min(_num_samples(X), _ROWS_TO_COMPARE)))
        logits = logits_of(model, rows)
        if head is not None and not _gives_logits(head, embed(rows), logits):
            head = None
            warn_user(
                "The weights of the classifier times its embeddings are not the logits "
                f"of {type(model).__name__}: head_ is None, and the logarithms of its "
                "probabilities are the logits.",
                NoLinearHeadWarning,
            )
        return cls(model, embed, head, logits.shape[1])

    def fit(self, X: Any, y: Any = None) -> "ClassifierTeacher":
        """Return the teacher as it is."""
        return self

    def transform(self, X: Any) -> Any:
        """Return the embeddings (n, d) of rows."""
        return self.embed(X)

    def predict_logits(self, X: Any) -> FloatArray:
        """Return the logits (n, n_classes) of rows."""
        return logits_of(self.model, X)


def is_classifier_teacher(teacher: Any) -> bool:
    """Return whether a teacher is a classifier that makes no embeddings itself.

    A StackingClassifier is one too, though its `transform` returns predictions.
    """
    if isinstance(teacher, type) or not hasattr(teacher, "__sklearn_tags__"):
        return False
    last = teacher
    while isinstance(last, FrozenEstimator | Pipeline):
        is_frozen = isinstance(last, FrozenEstimator)
        last = last.estimator if is_frozen else last.steps[-1][1]
    has_embeddings = hasattr(teacher, "transform")
    is_stack = hasattr(last, "final_estimator")
    return bool(is_classifier(teacher)) and (is_stack or not has_embeddings)


def is_fitted(model: Any) -> bool:
    """Return whether a model of scikit-learn is fitted."""
    try:
        check_is_fitted(model)
    except NotFittedError:
        return False
    return True


def fit_classifier_teacher(
    teacher: Any, X: Any, y: Any, rows: IntArray, cv: Any
) -> tuple[ClassifierTeacher, FloatArray | None]:
    """Fit a classifier to some rows; return it as a teacher, and logits of all rows.

    The logits of these rows come from folds that did not hold them, those of the others
    from the teacher of all `rows`. They are None if `cv` is None or the teacher is
    frozen: then there is nothing to mend.
    """
    if isinstance(teacher, FrozenEstimator):
        return ClassifierTeacher.of(teacher.estimator, X), None
    X_fit, y_fit = _safe_indexing(X, rows), y[rows]
    model = clone(teacher).fit(X_fit, y_fit)
    fitted = ClassifierTeacher.of(model, X_fit)
    if cv is None:
        return fitted, None
    method = "predict_proba" if hasattr(model, "predict_proba") else "decision_function"
    unseen = cross_val_predict(clone(teacher), X_fit, y_fit, cv=cv, method=method)
    logits = fitted.predict_logits(X)
    logits[rows] = _as_logits(unseen, are_probabilities=method == "predict_proba")
    return fitted, logits


def logits_of(model: Any, X: Any) -> FloatArray:
    """Return log-probabilities of rows (n, C), else what the model decides by."""
    if hasattr(model, "predict_proba"):
        return _as_logits(model.predict_proba(X), are_probabilities=True)
    return _as_logits(model.decision_function(X), are_probabilities=False)


def _as_logits(scores: Any, *, are_probabilities: bool) -> FloatArray:
    """Return logits, of one column for two classes if they are no probabilities."""
    logits: FloatArray = np.asarray(scores, dtype=np.float64)
    if are_probabilities:
        return np.log(np.maximum(logits, _SMALLEST_PROBABILITY))
    return logits.reshape(len(logits), -1)


def _embedding_of(model: Any, X: Any) -> tuple[Embed, Head | None]:
    """Return the embedding of a fitted classifier, and the head if it has one."""
    # Few fits need them: the import of the package stays quick.
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        RandomForestClassifier,
        StackingClassifier,
    )
    from sklearn.neural_network import MLPClassifier

    if isinstance(model, FrozenEstimator):
        return _embedding_of(model.estimator, X)
    if isinstance(model, Pipeline) and len(model.steps) == 1:
        return _embedding_of(model.steps[0][1], X)
    if isinstance(model, Pipeline):
        first_steps = model[:-1]
        last, head = _embedding_of(model.steps[-1][1], first_steps.transform(X))
        return partial(_after, first_steps, last), head
    if isinstance(model, StackingClassifier):
        # What it reads is what the classifiers below it predict.
        last, head = _embedding_of(model.final_estimator_, model.transform(X))
        return partial(_after, model, last), head
    if isinstance(model, MLPClassifier):
        head = model.coefs_[-1].T, model.intercepts_[-1]
        return partial(_last_hidden_layer, model), head
    if isinstance(model, HistGradientBoostingClassifier):
        return _boosting(model, _staged_rounds, model.n_iter_)
    if isinstance(model, GradientBoostingClassifier):
        return _boosting(model, _staged_rounds, model.n_estimators_)
    if isinstance(model, RandomForestClassifier | ExtraTreesClassifier):
        # Probabilities are means over the trees: there is no head.
        return partial(_leaves, model, _reduce_leaves(model.apply(X))), None
    # Of a library that a model comes from, the module is there.
    if _is_of(model, "lightgbm", "LGBMClassifier"):
        return _boosting(model, _lightgbm_rounds, model.n_estimators_)
    if _is_of(model, "xgboost", "XGBClassifier"):
        return _boosting(model, _xgboost_rounds, _n_xgboost_rounds(model))
    if hasattr(model, "coef_"):
        coef = np.asarray(model.coef_)
        return _identity, (coef, np.broadcast_to(model.intercept_, len(coef)))
    raise TypeError(
        f"{type(model).__name__} has no embeddings that are known here: pass "
        "teacher_embeddings, or a teacher that is linear, an MLPClassifier, gradient "
        "boosting, a forest, or a Pipeline or StackingClassifier that ends in one."
    )


def _identity(values: Any) -> Any:
    return values


def _after(first_steps: Any, embed: Embed, X: Any) -> Any:
    return embed(first_steps.transform(X))


def _last_hidden_layer(model: Any, X: Any) -> Any:
    activate = _ACTIVATIONS[model.activation]
    hidden = X if issparse(X) else np.asanyarray(X)
    for coef, intercept in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        hidden = activate(safe_sparse_dot(hidden, coef) + intercept)
    return hidden


def _reduce_leaves(leaves: Any) -> Pipeline:
    """Fit the components of the leaves that rows fall into."""
    # Few fits need it: the import of the package stays quick.
    from sklearn.decomposition import TruncatedSVD

    one_hot = OneHotEncoder(handle_unknown="ignore")
    n_leaves = one_hot.fit_transform(leaves).shape[1]
    svd = TruncatedSVD(min(_LEAF_COMPONENTS, n_leaves), random_state=0)
    return make_pipeline(one_hot, svd).fit(leaves)


def _leaves(model: Any, reduction: Pipeline, X: Any) -> Any:
    return reduction.transform(model.apply(X))


def _boosting(
    model: Any, rounds: Callable[..., Iterable[FloatArray]], n_rounds: int
) -> tuple[Embed, Head]:
    """Return what each round adds to the logits, and ones, which sum up the rounds.

    `rounds` yields it for a model, rows and `n_rounds`, (n,) or (n, n_logits). The
    first round has what boosting begins with too.
    """
    n_classes = len(model.classes_)
    n_logits = 1 if n_classes == 2 else n_classes
    head = np.tile(np.eye(n_logits), int(n_rounds)), np.zeros(n_logits)
    return partial(_side_by_side, rounds, model, int(n_rounds)), head


def _side_by_side(
    rounds: Callable[..., Iterable[FloatArray]], model: Any, n_rounds: int, X: Any
) -> FloatArray:
    n_rows = _num_samples(X)
    added = rounds(model, X, n_rounds)
    return np.hstack([each.reshape(n_rows, -1) for each in added])


def _staged_rounds(model: Any, X: Any, n_rounds: int) -> Iterable[FloatArray]:
    before: Any = 0
    for logits in model.staged_decision_function(X):
        yield logits - before
        before = logits


def _lightgbm_rounds(model: Any, X: Any, n_rounds: int) -> Iterable[FloatArray]:
    for start in range(n_rounds):
        yield model.predict(X, raw_score=True, start_iteration=start, num_iteration=1)


def _xgboost_rounds(model: Any, X: Any, n_rounds: int) -> Iterable[FloatArray]:
    base_margin = None
    for start in range(n_rounds):
        margin = model.predict(
            X,
            output_margin=True,
            iteration_range=(start, start + 1),
            base_margin=base_margin,
        )
        yield margin
        # The first round alone has the base score.
        base_margin = np.zeros_like(margin)


def _n_xgboost_rounds(model: Any) -> int:
    """Return the number of rounds up to the best one, if any was chosen."""
    # Without early stopping there is no such attribute.
    best = getattr(model, "best_iteration", None)
    return int(model.get_booster().num_boosted_rounds() if best is None else best + 1)


def _is_of(model: Any, library: str, name: str) -> bool:
    """Return whether a model is of a class of a library that may not be installed."""
    return isinstance(model, getattr(sys.modules.get(library), name, ()))


def _gives_logits(head: Head, embeddings: Any, logits: FloatArray) -> bool:
    """Return whether a head gives logits, up to a constant of each row.

    Probabilities are compared, which some models have in single precision.
    """
    made = np.asarray(safe_sparse_dot(embeddings, head[0].T)) + head[1]
    if made.shape[1] == logits.shape[1] == 1:
        return bool(np.allclose(made, logits, atol=_TOLERANCE))
    if made.shape[1] == 1:
        made = np.hstack([-made / 2, made / 2])
    return bool(
        np.allclose(softmax(made, axis=1), softmax(logits, axis=1), atol=_TOLERANCE)
    )
