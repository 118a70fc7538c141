"""Scores of the rows that have a label."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
from sklearn.metrics._scorer import _BaseScorer
from sklearn.utils import _safe_indexing
from sklearn.utils.metadata_routing import MetadataRequest, get_routing_for_object
from sklearn.utils.validation import _num_samples

from lelp_sklearn import _validation
from lelp_sklearn._diagnostics import scoring_validation
from lelp_sklearn._targets import as_array


def labeled_scorer(
    scoring: str | Callable[..., Any] = "accuracy", *, unlabeled: object = -1
) -> "_LabeledScorer":
    """Make a scorer that leaves rows without a label out.

    To scikit-learn's scorers the value that marks such rows is one more class, which no
    prediction hits.

    Parameters
    ----------
    scoring : str or callable, default="accuracy"
        The score of the labelled rows: the name of a scorer of scikit-learn, or a
        callable ``(estimator, X, y)``, which may take `sample_weight` too.
    unlabeled : object, default=-1
        The value in y that marks rows without a label, such as -1 or a string; NaN
        stands for None and pandas' NA too. None is no value: every row has a label.

    Returns
    -------
    scorer : callable
        Called as ``scorer(estimator, X, y, sample_weight=None)``, with an X of any
        kind that has rows. It can be pickled, and with metadata routing it has
        ``set_score_request``, as scikit-learn's own scorers; at first it requests
        `sample_weight` where the scorer given does.

    Raises
    ------
    ValueError
        If `scoring` is no name of a scorer, or is a metric, not a scorer; at the call,
        if no row has a label or a label is missing that is not marked.
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
    return _LabeledScorer(scoring, scoring_validation.check_scorer(scoring), unlabeled)


class _LabeledScorer(_BaseScorer):
    """Scores labelled rows; of scikit-learn's kind, without which monitors refuse it.

    Parameters
    ----------
    scoring : str or callable
        What was asked for.
    scorer : callable
        Scores (estimator, X, y).
    unlabeled : object
        The value in y that marks rows without a label.
    """

    def __init__(self, scoring, scorer, unlabeled):
        super().__init__(score_func=scorer, sign=1, kwargs={})
        self._scoring = scoring
        self._unlabeled = unlabeled
        # A request of this scorer's own, so that messages name it.
        self._metadata_request = MetadataRequest(owner=self)
        for param, alias in get_routing_for_object(scorer).score.requests.items():
            if param == "sample_weight":
                self._metadata_request.score.add_request(param=param, alias=alias)

    def __repr__(self):
        return f"labeled_scorer({self._scoring!r}, unlabeled={self._unlabeled!r})"

    def _score(self, method_caller, estimator, X, y_true, sample_weight=None):
        # The caller's predictions are kept by method alone, not by rows: not for us.
        y = None if y_true is None else as_array(y_true)
        labels, labelled = _validation.check_labels(y, _num_samples(X), self._unlabeled)
        scoring_validation.check_labelled_rows(labelled, self._unlabeled)
        if not labelled.all():
            rows = np.flatnonzero(labelled)
            X, labels = _safe_indexing(X, rows), labels[rows]
            if sample_weight is not None:
                sample_weight = _safe_indexing(sample_weight, rows)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        return self._score_func(estimator, X, labels, **weights)

    def _accept_sample_weight(self):
        scorer = self._score_func
        if hasattr(scorer, "_accept_sample_weight"):
            return scorer._accept_sample_weight()
        return "sample_weight" in signature(scorer).parameters
