"""From what a user passes to rows whose numbers, labels and weights are checked."""

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn import _validation
from lelp_sklearn._subclasses import tensors
from lelp_sklearn._subclasses.digests import Digests, hash_rows
from lelp_sklearn._subclasses.rows import InMemory, LabelledRows, Rows
from lelp_sklearn._typing import BoolArray, FloatArray
from lelp_sklearn._validation import check_dense


@dataclass(frozen=True)
class Findings:
    """What has to be known of all rows before each gets a class.

    Parameters
    ----------
    labels : (k,) distinct labels, sorted
    n_logits : int or None
        Columns of the teacher's logits, None without.
    any_weight, any_unlabelled : bool
        Whether a row has weight; whether one with weight has no label.
    only_probabilities : bool
        Whether all logits are probabilities.
    refusal : (int, Exception) or None
        The first chunk that was refused, by its first row, and why.
    """

    labels: NDArray[Any]
    n_logits: int | None = None
    any_weight: bool = False
    any_unlabelled: bool = False
    only_probabilities: bool = False
    refusal: tuple[int, Exception] | None = None

    def merge(self, other: "Findings") -> "Findings":
        """Findings of these rows and of others."""
        # What has no labels says nothing of their dtype.
        labels = [each.labels for each in (self, other) if len(each.labels)]
        refusals = filter(None, (self.refusal, other.refusal))
        return Findings(
            np.unique(np.concatenate(labels)) if labels else self.labels,
            self.n_logits or other.n_logits,
            self.any_weight or other.any_weight,
            self.any_unlabelled or other.any_unlabelled,
            self.only_probabilities and other.only_probabilities,
            min(refusals, key=itemgetter(0), default=None),
        )

    def check(self) -> None:
        """Raise where a row was refused or none has weight."""
        if self.refusal is not None:
            raise self.refusal[1]
        _validation.check_some_weight(self.any_weight)


@dataclass(frozen=True)
class CheckedRows(InMemory):
    """Rows of finite embeddings with their labels; which of these are classes is open.

    Parameters
    ----------
    X : (n, d)
    labels : (n,)
    labelled : (n,) whether a row carries a label
    weight : (n,)
    digests : (n,) uint64
    logits : (n, C or 1) or None
    first_row : int
        The place of the first row where these are a chunk of more rows.
    """

    X: Rows
    labels: NDArray[Any]
    labelled: BoolArray
    weight: FloatArray
    digests: Digests
    logits: FloatArray | None
    first_row: int = 0

    @classmethod
    def check(
        cls,
        X: Rows,
        y: Any,
        sample_weight: Any,
        teacher_logits: Any,
        unlabeled: object,
        first_row: int = 0,
    ) -> "CheckedRows":
        """Check rows and what comes with them; the messages count from `first_row`."""
        n_rows = X.shape[0]
        digests = hash_rows(X, first_row)
        weight = _validation.check_sample_weight(sample_weight, n_rows, first_row)
        check_dense(teacher_logits, "teacher_logits")
        logits = tensors.to_array(teacher_logits)
        if logits is not None:
            logits = _validation.check_logits(logits, n_rows, first_row)
        labels, labelled = _validation.check_labels(y, n_rows, unlabeled, first_row)
        return cls(X, labels, labelled, weight, digests, logits, first_row)

    def findings(self) -> Findings:
        """What has to be known of all rows before each gets a class."""
        return Findings(
            np.unique(self.labels[self.labelled]),
            None if self.logits is None else self.logits.shape[1],
            bool(np.any(self.weight > 0)),
            bool(np.any(~self.labelled & (self.weight > 0))),
            self.logits is not None and _validation.are_probabilities(self.logits),
        )

    def encode(self, classes: NDArray[Any]) -> LabelledRows:
        """Give each row its class, and the logits a column for each class."""
        class_index = _validation.encode(self.labels, self.labelled, classes)
        logits = self.logits
        if logits is not None:
            logits = _validation.logits_of_classes(logits)
        return LabelledRows(
            self.X,
            # Rows without weight belong to no class.
            np.where(self.weight > 0, class_index, -1),
            self.weight,
            self.digests,
            logits,
            self.first_row,
        )
