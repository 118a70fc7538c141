"""What a fitted projector does: from embeddings to soft labels and back."""

import os

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils._set_output import _wrap_data_with_container
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    check_is_fitted,
    validate_data,
)

from lelp_sklearn import _validation
from lelp_sklearn._callers import warned_once
from lelp_sklearn._files import new_npy
from lelp_sklearn._subclasses import dask_arrays, dask_validation, tensors
from lelp_sklearn._subclasses.digests import hash_rows
from lelp_sklearn._subclasses.soft_labels import SoftLabeller, class_sums
from lelp_sklearn._validation import check_dense, check_numbers


class SoftLabelMixin:
    """The methods of a fitted `LELPProjector`.

    In a class of their own because scikit-learn wraps the output of every
    `transform` that a transformer's own class defines, and here `out` and tensors come
    back as they are.
    """

    def transform(self, X, *, teacher_logits=None, out=None):
        r"""Compute the subclass soft labels of embeddings.

        .. math:: p_{c,s}(h) = \mathrm{softmax}_c(\ell(h) / \tau) \cdot
                  \mathrm{softmax}_s((u_{c,s} \cdot h - o_{c,s}) / \beta)

        Parameters
        ----------
        X : {array-like, memmap, tensor, dask array} of shape (n_samples, n_features)
            Teacher embeddings. Read in blocks, never copied or up-cast whole; a tensor
            on an accelerator there, on the current stream.
        teacher_logits : array-like of shape (n_samples, n_classes or 1), default=None
            The teacher's logits, in the order of `classes_`, or the one column of a
            sigmoid teacher. They replace ``X @ coef_.T + intercept_``. For a teacher
            that gives only probabilities pass their logarithm, zeros clipped.
        out : ndarray or path, default=None
            Where to write the result: an array of its shape and dtype, or a ``.npy``
            file, which is written beside its place and renamed once complete. Its room
            on the disk is reserved first; a process that is killed leaves
            ``.<name>.<random>.part``. Not for a dask array, whose soft labels dask
            itself stores.

        Returns
        -------
        soft_labels : array of shape (n_samples, n_classes * n_subclasses)
            In column ``c * n_subclasses_ + s`` the probability of subclass s of class
            c. The floating dtype is that of X, at least float32. A tensor for a tensor,
            on the same device; a lazy dask array for a dask array, chunked as X is;
            with `out` the array, or a read-only memory map of the file. These whatever
            `set_output` says.

        Raises
        ------
        ValueError
            If X or the logits hold NaN or infinity (of a dask array, once it is
            computed), if shapes do not fit, or if `out` cannot be written or overlaps
            what is read.
        TypeError
            If `out` is neither an array nor a path, or is given for a dask array.
        """
        self._check_fitted()
        rows = self._check_rows(X, reset=False)
        if dask_arrays.is_dask_array(X):
            return self._transform_lazily(rows, teacher_logits, out)
        logits = self._check_logits(teacher_logits, rows.shape[0])
        labeller = self._labeller()
        shape = rows.shape[0], self.offsets_.size
        dtype = np.result_type(rows.dtype, np.float32)
        if isinstance(out, str | os.PathLike):
            with new_npy(out, shape, dtype) as target:
                labeller.write(rows, logits, target)
            return np.lib.format.open_memmap(out, mode="r")
        if out is not None:
            _validation.check_out(out, shape, dtype, [rows, logits])
            # An array of the caller's is not begun before the rows are known to be
            # finite.
            hash_rows(rows)
            labeller.write(rows, logits, out)
            return out
        soft_labels = labeller(rows, logits)
        if tensors.is_tensor(X):
            return tensors.like(soft_labels, X)
        return _wrap_data_with_container("transform", soft_labels, X, self)

    def fit_transform(self, X, y=None, *, teacher_logits=None, sample_weight=None):
        """Fit, then compute the soft labels of the same rows.

        Parameters
        ----------
        X : {array-like, memmap, tensor, dask array} of shape (n_samples, n_features)
            Teacher embeddings.
        y : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.
        teacher_logits : array-like of shape (n_samples, n_classes) or (n_samples, 1), \
                default=None
            Handed to both :meth:`fit` and :meth:`transform`.
        sample_weight : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.

        Returns
        -------
        soft_labels : array of shape (n_samples, n_classes * n_subclasses)
            As from :meth:`transform`.
        """
        with warned_once():
            self.fit(X, y, teacher_logits=teacher_logits, sample_weight=sample_weight)
            return self.transform(X, teacher_logits=teacher_logits)

    def inverse_transform(self, X):
        """Sum soft labels over the subclasses of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_classes * n_subclasses)
            Subclass soft labels.

        Returns
        -------
        probabilities : array of shape (n_samples, n_classes)
            For the projector's own soft labels, the teacher's class probabilities at
            its temperature. Of the kind of X.
        """
        self._check_fitted()
        shape = self.offsets_.shape
        if tensors.is_tensor(X):
            _validation.check_soft_label_shape(X.shape, self.offsets_.size)
            return X.reshape(len(X), *shape).sum(-1)
        if dask_arrays.is_dask_array(X):
            _validation.check_soft_label_shape(X.shape, self.offsets_.size)
            return dask_arrays.sum_subclasses(X, shape)
        soft_labels = _validation.check_soft_labels(X, self.offsets_.size)
        return class_sums(soft_labels, shape)

    def get_feature_names_out(self, input_features=None):
        """Name the columns ``"{class}_{subclass}"``.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Ignored; there for the interface.

        Returns
        -------
        names : ndarray of str objects of shape (n_classes * n_subclasses,)
            A name for each column of the soft labels.
        """
        self._check_fitted()
        subclasses = range(self.n_subclasses_)
        names = [f"{label}_{s}" for label in self.classes_ for s in subclasses]
        return np.array(names, dtype=object)

    def _labeller(self):
        return SoftLabeller(
            self.components_,
            self.offsets_,
            self.coef_,
            self.intercept_,
            self.mean_.mean(axis=0),
            self.temperature,
            self.subclass_temperature_,
        )

    def _transform_lazily(self, rows, teacher_logits, out):
        """Soft labels of a dask array, made where and when its chunks are."""
        if out is not None:
            raise dask_validation.no_dask_out()
        logits = None
        if teacher_logits is not None:
            logits = dask_arrays.beside(teacher_logits, rows, "teacher_logits")
            _validation.check_logit_dimensions(logits.shape)
            logits = logits[:, None] if logits.ndim == 1 else logits
            _validation.check_logit_columns(logits.shape[1], len(self.classes_))
        return dask_arrays.map_rows(
            self._labeller().of_chunk,
            rows,
            logits,
            self.offsets_.size,
            np.result_type(rows.dtype, np.float32),
        )

    def _check_fitted(self):
        stream = self.__dict__.get("_stream")
        if stream is not None and stream.missing is not None:
            raise NotFittedError(f"partial_fit needs more rows: {stream.missing}")
        # n_features_in_ is set before the rows are checked and says nothing.
        check_is_fitted(self, "components_")

    def _check_logits(self, teacher_logits, n_samples):
        if teacher_logits is None:
            return None
        check_dense(teacher_logits, "teacher_logits")
        logits = tensors.to_array(teacher_logits)
        logits = _validation.check_logits(logits, n_samples)
        if _validation.are_probabilities(logits):
            _validation.warn_of_probabilities()
        _validation.check_logit_columns(logits.shape[1], len(self.classes_))
        return _validation.logits_of_classes(logits)

    def _check_rows(self, X, *, reset):
        """Give X as rows to be read in blocks; whether they are finite is not known."""
        if tensors.is_tensor(X):
            _validation.check_tensor(X)
            rows = tensors.as_rows(X)
            _check_feature_names(self, X, reset=reset)
            _check_n_features(self, rows, reset=reset)
        elif dask_arrays.is_dask_array(X):
            rows = dask_arrays.as_rows(X)
            _check_feature_names(self, X, reset=reset)
            _check_n_features(self, rows, reset=reset)
        else:
            check_numbers(X, "X")
            rows = validate_data(
                self,
                X,
                reset=reset,
                dtype=[np.float64, np.float32, np.float16],
                # Found where the rows are read: scikit-learn makes a mask of the size
                # of float16 input, and does not name the row.
                ensure_all_finite=False,
            )
        return rows
