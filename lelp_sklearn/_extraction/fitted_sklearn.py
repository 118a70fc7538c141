"""Embeddings, head and logits of fitted classifiers of scikit-learn.

A further kind of classifier is a further class with `embed` and `head`, named in
`_embedder_of`. It imports no torch.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import _safe_indexing
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import _num_samples, check_is_fitted

from lelp_sklearn._callers import warn_user
from lelp_sklearn._typing import FloatArray, IntArray
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

Head = tuple[FloatArray, FloatArray]


class Embedder(Protocol):
    """Makes embeddings of rows with a fitted classifier."""

    def embed(self, X: Any) -> Any:
        """Return the embeddings (n, d) of rows."""

    def head(self) -> Head | None:
        """Return weights and intercepts of the logits; None if they are not linear."""


@dataclass(frozen=True)
class LinearEmbedder:
    """What a linear classifier reads is the embedding."""

    model: Any

    def embed(self, X: Any) -> Any:
        """Return the rows as they are."""
        return X

    def head(self) -> Head:
        """Return the weights of the classifier."""
        coef = np.asarray(self.model.coef_)
        return coef, np.broadcast_to(self.model.intercept_, len(coef))


@dataclass(frozen=True)
class PerceptronEmbedder:
    """The last hidden layer of a multilayer perceptron is the embedding."""

    model: Any

    def embed(self, X: Any) -> Any:
        """Return the last hidden layer."""
        activate = _ACTIVATIONS[self.model.activation]
        hidden = X if issparse(X) else np.asanyarray(X)
        layers = zip(self.model.coefs_[:-1], self.model.intercepts_[:-1], strict=True)
        for coef, intercept in layers:
            hidden = activate(safe_sparse_dot(hidden, coef) + intercept)
        return hidden

    def head(self) -> Head:
        """Return the weights of the output layer."""
        return self.model.coefs_[-1].T, self.model.intercepts_[-1]


@dataclass(frozen=True)
class BoostingEmbedder:
    """What each round of boosting adds to the logits is the embedding.

    The first round has what boosting begins with too. This is scikit-learn's boosting;
    that of other libraries differs in the two methods after `head`.
    """

    model: Any

    def embed(self, X: Any) -> FloatArray:
        """Return (n, n_rounds * n_logits), the logits of a round side by side."""
        n_rows = _num_samples(X)
        return np.hstack([added.reshape(n_rows, -1) for added in self.rounds(X)])

    def head(self) -> Head:
        """Return ones, which sum up the rounds of each logit."""
        n_classes = len(self.model.classes_)
        n_logits = 1 if n_classes == 2 else n_classes
        return np.tile(np.eye(n_logits), self.n_rounds()), np.zeros(n_logits)

    def n_rounds(self) -> int:
        """Return the number of rounds that predictions use."""
        is_histogram = hasattr(self.model, "n_iter_")
        return int(self.model.n_iter_ if is_histogram else self.model.n_estimators_)

    def rounds(self, X: Any) -> Iterable[FloatArray]:
        """Yield what each round adds to the logits, (n,) or (n, n_logits)."""
        before: Any = 0
        for logits in self.model.staged_decision_function(X):
            yield logits - before
            before = logits


class LightGBMEmbedder(BoostingEmbedder):
    """The rounds of LightGBM."""

    def n_rounds(self) -> int:
        """Return the number of rounds up to the best one."""
        return int(self.model.n_estimators_)

    def rounds(self, X: Any) -> Iterable[FloatArray]:
        """Yield the raw score of each round."""
        for start in range(self.n_rounds()):
            yield self.model.predict(
                X, raw_score=True, start_iteration=start, num_iteration=1
            )


class XGBoostEmbedder(BoostingEmbedder):
    """The rounds of XGBoost."""

    def n_rounds(self) -> int:
        """Return the number of rounds up to the best one, if any was chosen."""
        # Without early stopping there is no such attribute.
        best = getattr(self.model, "best_iteration", None)
        n_rounds = self.model.get_booster().num_boosted_rounds()
        return int(n_rounds if best is None else best + 1)

    def rounds(self, X: Any) -> Iterable[FloatArray]:
        """Yield the margin of each round; that of the first has the base score."""
        base_margin = None
        for start in range(self.n_rounds()):
            margin = self.model.predict(
                X,
                output_margin=True,
                iteration_range=(start, start + 1),
                base_margin=base_margin,
            )
            yield margin
            base_margin = np.zeros_like(margin)


@dataclass(frozen=True)
class LeafEmbedder:
    """The leaves that a row falls into, reduced to some components."""

    model: Any
    reduction: Any

    @classmethod
    def fit(cls, model: Any, X: Any) -> "LeafEmbedder":
        """Find the components of the leaves of rows."""
        # Few fits need it: the import of the package stays quick.
        from sklearn.decomposition import TruncatedSVD

        one_hot = OneHotEncoder(handle_unknown="ignore")
        n_leaves = one_hot.fit_transform(model.apply(X)).shape[1]
        n_components = min(_LEAF_COMPONENTS, n_leaves)
        svd = TruncatedSVD(n_components, random_state=0)
        return cls(model, make_pipeline(one_hot, svd).fit(model.apply(X)))

    def embed(self, X: Any) -> Any:
        """Return the components of the leaves."""
        return self.reduction.transform(self.model.apply(X))

    def head(self) -> None:
        """Return None: probabilities are means over the trees."""


@dataclass(frozen=True)
class PipelineEmbedder:
    """The embedding of the last step, after the steps before it or a stack."""

    first_steps: Any
    last: Embedder

    def embed(self, X: Any) -> Any:
        """Return the embeddings of the last step."""
        return self.last.embed(self.first_steps.transform(X))

    def head(self) -> Head | None:
        """Return the head of the last step."""
        return self.last.head()


@dataclass(frozen=True)
class ClassifierTeacher(BaseEstimator):  # type: ignore[misc]
    """A fitted classifier as a teacher.

    Parameters
    ----------
    model : classifier
    embedder : Embedder
    head_ : tuple of ndarray (n_outputs, n_embedding), (n_outputs,) or None
        None if it does not give the logits of the model.
    n_logits_ : int
        Number of columns of `predict_logits`.
    """

    model: Any
    embedder: Embedder
    head_: Head | None
    n_logits_: int

    @classmethod
    def of(cls, model: Any, X: Any) -> "ClassifierTeacher":
        """Return the teacher, with a head if it gives the logits of the first rows."""
        embedder = _embedder_of(model, X)
        head = embedder.head()
        rows = _safe_indexing(X, np.arange(min(_num_samples(X), _ROWS_TO_COMPARE)))
        logits = logits_of(model, rows)
        if head is not None and not _gives_logits(head, embedder.embed(rows), logits):
            head = None
            warn_user(
                "The weights of the classifier times its embeddings are not the logits "
                f"of {type(model).__name__}: head_ is None, and the logarithms of its "
                "probabilities are the logits.",
                NoLinearHeadWarning,
            )
        return cls(model, embedder, head, logits.shape[1])

    def fit(self, X: Any, y: Any = None) -> "ClassifierTeacher":
        """Return the teacher as it is."""
        return self

    def transform(self, X: Any) -> Any:
        """Return the embeddings (n, d) of rows."""
        return self.embedder.embed(X)

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


def _embedder_of(model: Any, X: Any) -> Embedder:
    """Return what makes embeddings with a fitted classifier."""
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
        return _embedder_of(model.estimator, X)
    if isinstance(model, Pipeline) and len(model.steps) == 1:
        return _embedder_of(model.steps[0][1], X)
    if isinstance(model, Pipeline):
        first_steps = model[:-1]
        last = _embedder_of(model.steps[-1][1], first_steps.transform(X))
        return PipelineEmbedder(first_steps, last)
    if isinstance(model, StackingClassifier):
        # What it reads is what the classifiers below it predict.
        last = _embedder_of(model.final_estimator_, model.transform(X))
        return PipelineEmbedder(model, last)
    if isinstance(model, MLPClassifier):
        return PerceptronEmbedder(model)
    if isinstance(model, HistGradientBoostingClassifier | GradientBoostingClassifier):
        return BoostingEmbedder(model)
    if isinstance(model, RandomForestClassifier | ExtraTreesClassifier):
        return LeafEmbedder.fit(model, X)
    # Of a library that a model comes from, the module is there.
    if _is_of(model, "lightgbm", "LGBMClassifier"):
        return LightGBMEmbedder(model)
    if _is_of(model, "xgboost", "XGBClassifier"):
        return XGBoostEmbedder(model)
    if hasattr(model, "coef_"):
        return LinearEmbedder(model)
    raise TypeError(
        f"{type(model).__name__} has no embeddings that are known here: pass "
        "teacher_embeddings, or a teacher that is linear, an MLPClassifier, gradient "
        "boosting, a forest, or a Pipeline or StackingClassifier that ends in one."
    )


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
