"""Scores of the rows that have a label."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.metrics._scorer import _BaseScorer
from sklearn.utils import _safe_indexing
from sklearn.utils.metadata_routing import MetadataRequest, get_routing_for_object
from sklearn.utils.validation import _num_samples

from lelp_sklearn import _validation


def labeled_scorer(
    scoring: str | Callable[..., Any] = "accuracy", *, unlabeled: object = -1
) -> "_LabeledScorer":
    """Make a scorer that leaves out rows without a label.

    scikit-learn's own scorers take the value that marks such rows for one more class,
    which no prediction matches.

    Parameters
    ----------
    scoring : str or callable, default="accuracy"
        The score of the labelled rows: the name of a scorer of scikit-learn, or a
        callable ``(estimator, X, y)``, which may take `sample_weight` too.
    unlabeled : object, default=-1
        The value in y that marks rows without a label, such as -1 or a string; NaN
        also stands for None and pandas' NA. If None, every row has a label.

    Returns
    -------
    scorer : callable
        Called as ``scorer(estimator, X, y, sample_weight=None)``, with an X of any
        kind that has rows. It can be pickled, and supports metadata routing by
        ``set_score_request`` as scikit-learn's own scorers do; by default it requests
        `sample_weight` if the given scorer does.

    Raises
    ------
    ValueError
        If `scoring` is not the name of a scorer, or is a metric rather than a scorer.
        When called: if no row has a label, or a missing label is not marked.
    TypeError
        If `scoring` is neither a name nor a callable.

    See Also
    --------
    LELPStudentClassifier : Learns from rows without a label.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.dummy import DummyClassifier
    >>> from lelp_sklearn import labeled_scorer
    >>> X, y = np.zeros((6, 1)), np.array([1, 1, 1, 0, -1, -1])
    >>> classifier = DummyClassifier(strategy="constant", constant=1).fit(X, y)
    >>> classifier.score(X, y)
    0.5
    >>> labeled_scorer("accuracy", unlabeled=-1)(classifier, X, y)
    0.75
    """
    if isinstance(scoring, str):
        if scoring not in get_scorer_names():
            raise ValueError(
                f"scoring={scoring!r} is not the name of a scorer: use one of "
                "sklearn.metrics.get_scorer_names(), or pass a callable (estimator, X, "
                "y)."
            )
    elif not callable(scoring):
        raise TypeError(
            f"scoring is {scoring!r}; it must be the name of one scorer or a callable "
            "(estimator, X, y). For several scores pass a dict of labeled_scorer to "
            "the search."
        )
    # Of a metric, this says that make_scorer turns it into a scorer.
    return _LabeledScorer(scoring, check_scoring(scoring=scoring), unlabeled)


# scikit-learn's monitors accept its own kind of scorers only.
class _LabeledScorer(_BaseScorer):  # type: ignore[misc]
    """Scores the labelled rows by another scorer, which `scoring` names."""

    def __init__(
        self, scoring: object, scorer: Callable[..., Any], unlabeled: object
    ) -> None:
        super().__init__(score_func=scorer, sign=1, kwargs={})
        self._scoring = scoring
        self._unlabeled = unlabeled
        # A request of this scorer's own, so that messages name it.
        self._metadata_request = MetadataRequest(owner=self)
        for param, alias in get_routing_for_object(scorer).score.requests.items():
            if param == "sample_weight":
                self._metadata_request.score.add_request(param=param, alias=alias)

    def __repr__(self) -> str:
        return f"labeled_scorer({self._scoring!r}, unlabeled={self._unlabeled!r})"

    def _score(
        self,
        method_caller: Any,
        estimator: Any,
        X: Any,
        y_true: Any,
        sample_weight: Any = None,
    ) -> Any:
        # `method_caller` caches predictions by method, not by rows: not usable here.
        n_samples = _num_samples(X)
        labels, labelled = _validation.check_labels(y_true, n_samples, self._unlabeled)
        if not labelled.any():
            raise ValueError(
                f"y has no label in {len(labelled)} rows (unlabeled="
                f"{self._unlabeled!r}), so there is nothing to score: split by "
                "StratifiedKFold, so that each fold has its share of the labelled "
                "rows, or into fewer folds."
            )
        if not labelled.all():
            rows = np.flatnonzero(labelled)
            X, labels = _safe_indexing(X, rows), labels[rows]
            if sample_weight is not None:
                sample_weight = _safe_indexing(sample_weight, rows)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        return self._score_func(estimator, X, labels, **weights)

    def _accept_sample_weight(self) -> bool:
        scorer = self._score_func
        if hasattr(scorer, "_accept_sample_weight"):
            return bool(scorer._accept_sample_weight())
        return "sample_weight" in signature(scorer).parameters
