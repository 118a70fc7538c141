"""What a fitted student does: from inputs to classes and subclasses."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    check_is_fitted,
    validate_data,
)

from lelp_sklearn import _training_validation, _validation
from lelp_sklearn._training import export, export_validation, modules
from lelp_sklearn._training.batches import as_tensor, batched_outputs
from lelp_sklearn._training.curves import Curves
from lelp_sklearn._training.device import is_integer
from lelp_sklearn._training.loop import Trainer
from lelp_sklearn._training.objective import Objective
from lelp_sklearn._validation import check_numbers


class Seeds(NamedTuple):
    """What a fit draws from its random state."""

    projector: int
    split: int
    training: int


@dataclass(frozen=True)
class Stream:
    """What `partial_fit` keeps from one block of rows to the next.

    Parameters
    ----------
    made_by : "adamw" or callable
        What made the optimizer.
    optimizer, scaler : dict
        Their states; that of the scaler is None where the loss is not scaled.
    """

    made_by: Any
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None

    @classmethod
    def of(cls, made_by: Any, trainer: Trainer) -> "Stream":
        """Give what a trainer has come to."""
        scaler = trainer.precision.scaler
        scale = None if scaler is None else scaler.state_dict()
        return cls(made_by, trainer.optimizer.state_dict(), scale)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "optimizer": modules.to_arrays(self.optimizer)}


@dataclass
class StudentFit:
    """What a fit has come to, and what the next one goes on from.

    Parameters
    ----------
    source : TargetSource
        Where targets come from.
    student : Student
        The module.
    objective : Objective
        The loss.
    seeds : Seeds
        Those of the first fit.
    curves : Curves
        What the epochs came to.
    stop_reason : str or None
        What ended it.
    stream : Stream or None
        What the next `partial_fit` goes on from; None after `fit`.
    """

    source: Any
    student: modules.StudentModule
    objective: Objective
    seeds: Seeds
    curves: Curves = field(default_factory=Curves)
    stop_reason: str | None = None
    stream: Stream | None = None

    @property
    def expected_rows(self) -> tuple[tuple[int, ...], bool]:
        """The shape of a row, and whether its integers are codes."""
        return self.student.row_shape, self.student.takes_token_ids

    def snapshot(self) -> "StudentFit":
        """Give a copy that stays as it is while training goes on."""
        return replace(self, student=self.student.snapshot())

    def attributes(self) -> dict[str, Any]:
        """Give the attributes of the estimator with which it predicts."""
        return {
            "module_": self.student.net,
            "projector_": self.source.projector,
            "classes_": self.source.classes,
            "n_epochs_": len(self.curves.loss),
            "loss_curve_": self.curves.loss,
            "validation_scores_": self.curves.scores,
            "stop_reason_": self.stop_reason,
            "_fit": self,
        }


class ClassPredictionMixin:
    """The methods of a fitted `LELPStudentClassifier`."""

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_fit")

    def predict(self, X):
        """Predict the class of each row.

        Parameters
        ----------
        X : {array-like, torch.Tensor} of shape (n_samples, n_features, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples,)
            The likeliest classes.
        """
        likeliest = self._class_logits(X).argmax(dim=1).cpu().numpy()
        return self.classes_[likeliest]

    def predict_proba(self, X):
        """Predict class probabilities, the softmax of the class logits.

        Parameters
        ----------
        X : {array-like, torch.Tensor} of shape (n_samples, n_features, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of `classes_`.
        """
        return torch.softmax(self._class_logits(X), dim=1).cpu().numpy()

    def predict_log_proba(self, X):
        """Predict the logarithms of class probabilities.

        They are computed from the class logits, so that they are finite where
        `predict_proba` rounds to zero.

        Parameters
        ----------
        X : {array-like, torch.Tensor} of shape (n_samples, n_features, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities, in the order of `classes_`.
        """
        return torch.log_softmax(self._class_logits(X), dim=1).cpu().numpy()

    def predict_subclass_proba(self, X):
        """Predict the probabilities of subclasses.

        Class probabilities times the softmax within the class at the within-class
        temperature: the sums over the subclasses are those of `predict_proba`.

        Parameters
        ----------
        X : {array-like, torch.Tensor} of shape (n_samples, n_features, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes * n_subclasses)
            Probabilities, subclass s of class c in column ``c * n_subclasses + s``.
        """
        logits = self._logits(X)
        classes = torch.softmax(self._fit.objective.class_logits(logits), dim=1)
        scaled = logits / self._fit.objective.within_class_temperature
        within = torch.softmax(scaled.view(len(logits), len(self.classes_), -1), dim=2)
        return (classes[:, :, None] * within).flatten(1).cpu().numpy()

    def decision_function(self, X):
        """Compute the class logits.

        Parameters
        ----------
        X : {array-like, torch.Tensor} of shape (n_samples, n_features, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples,)
            The class logits A; for two classes the second less the first, whose
            logistic function is the probability of the second class.
        """
        A = self._class_logits(X).cpu().numpy()
        return A[:, 1] - A[:, 0] if A.shape[1] == 2 else A

    def to_module(self):
        r"""Give a torch module of class probabilities, independent of the student.

        The module makes :math:`\mathrm{softmax}(A)` of the class logits
        :math:`A_c = \tau \log \sum_s \exp(a_{c,s} / \tau)`, what `predict_proba`
        gives, of a tensor of rows. It is a copy: neither training nor moving the one
        changes the other. It pickles, so that ``torch.save`` and
        ``torch.load(weights_only=False)`` keep it where the class of its student can
        be imported.

        Returns
        -------
        torch.nn.Module
            On the CPU, in evaluation mode and in the precision of the student, float64
            where X was float64; no parameter requires a gradient. Takes a tensor of
            shape (n, n_features, ...), of any number of rows and in its own precision,
            or int64 where X were ids, and gives one of shape (n, n_classes) in the
            order of `classes_`.

        Raises
        ------
        NotFittedError
            If the student is not fitted.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from lelp_sklearn import LELPStudentClassifier
        >>> X = np.random.RandomState(0).normal(size=(60, 4)).astype(np.float32)
        >>> soft = np.tile([0.5, 0.0, 0.25, 0.25], (60, 1))
        >>> student = LELPStudentClassifier(max_epochs=2, random_state=0)
        >>> student.fit(X, np.arange(60) % 2, soft_targets=soft)
        LELPStudentClassifier(...)
        >>> probabilities = student.to_module()(torch.from_numpy(X))
        >>> np.allclose(probabilities, student.predict_proba(X), atol=1e-6)
        True
        """
        check_is_fitted(self)
        return export.class_probabilities(*self._folded_net())

    def to_onnx(self, path):
        """Write class probabilities as an ONNX file.

        Its input ``X`` is a tensor of rows, float32 also where the student computes in
        float64, or int64 where X were ids; its first output ``probabilities``, of shape
        (n, n_classes), is what `predict_proba` gives, in the order of `classes_`. The
        number of rows is free. It is one file of the weights in single precision, and
        says nothing of the code or the folders from which it was made.

        Parameters
        ----------
        path : str or os.PathLike
            A name that ends in ``.onnx``. The file is written beside it and renamed
            when it is complete; a file that is there is replaced.

        Raises
        ------
        NotFittedError
            If the student is not fitted.
        ImportError
            If onnx or onnxscript, which the extra ``onnx`` installs, are missing.
        TypeError
            If `path` does not name a file.
        ValueError
            If `path` does not end in ``.onnx`` or cannot be written, if the weights
            have more than 2 GiB, or if torch cannot export the module for any number
            of rows.
        """
        check_is_fitted(self)
        path = export_validation.as_path(path)
        student = self._fit.student
        # The exporter takes a dimension of one row for a constant.
        rows = torch.zeros((2, *student.row_shape), dtype=student.dtype)
        export.export_onnx(*self._folded_net(), rows, path)

    def _folded_net(self):
        """Give the module, its C and S, and the temperature of their sum."""
        student, objective = self._fit.student, self._fit.objective
        n_classes = objective.n_classes
        n_subclasses = student.n_outputs // n_classes
        return student.net, n_classes, n_subclasses, float(objective.temperature)

    def _logits(self, X):
        check_is_fitted(self)
        student = self._fit.student
        inputs = as_tensor(self._check_inputs(X, self._fit.expected_rows))
        batches = batched_outputs(
            student.net, inputs, int(self.batch_size), student.dtype
        )
        return torch.cat(list(batches))

    def _class_logits(self, X):
        logits = self._logits(X)
        return self._fit.objective.class_logits(logits)

    def _check_inputs(self, X, expected=None):
        """Give X as an array or a tensor; `expected` is None in a first fit."""
        reset = expected is None
        if isinstance(X, torch.Tensor):
            _validation.check_tensor_rows(X)
            _check_feature_names(self, X, reset=reset)
            _check_n_features(self, X, reset=reset)
        else:
            check_numbers(X, "X")
            X = validate_data(
                self, X, reset=reset, allow_nd=True, ensure_all_finite=False
            )
            if X.dtype.kind == "O":
                # A table of unlike columns, all of which read as numbers.
                X = X.astype(np.float64)
            if X.dtype.kind == "f":
                # torch has no wider numbers than double precision.
                X = X.astype(np.float64) if X.dtype.itemsize > 8 else X
                _validation.check_finite_block(X, 0, "X")
        if not reset:
            row_shape, takes_token_ids = expected
            _training_validation.check_row_shape(tuple(X.shape[1:]), row_shape)
            as_fitted = is_integer(X) or not takes_token_ids
            _training_validation.check_codes(X.dtype, as_fitted)
        return X
