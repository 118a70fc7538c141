"""LELPProjector: teacher embeddings in, subclass soft labels out."""

import copy
import os
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _wrap_data_with_container
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, validate_data

from lelp_sklearn import _validation
from lelp_sklearn._callers import warned_once
from lelp_sklearn._files import new_npy
from lelp_sklearn._sklearn import CallbackSupportMixin, begin_fit, with_callbacks
from lelp_sklearn._subclasses import dask_backend, torch_backend
from lelp_sklearn._subclasses.head import Head
from lelp_sklearn._subclasses.inputs import ProjectorInputs
from lelp_sklearn._subclasses.kmeans import KMEANS
from lelp_sklearn._subclasses.moments import (
    Covariance,
    ExplicitCovariance,
    row_space_basis,
)
from lelp_sklearn._subclasses.pca import PCA, SOLVERS, resolve_solver
from lelp_sklearn._subclasses.rows import hash_rows
from lelp_sklearn._subclasses.soft_labels import SoftLabeller, class_sums
from lelp_sklearn._subclasses.splitters import (
    AUTO_N_SUBCLASSES,
    RANDOM,
    RandomStates,
    Solver,
    Split,
    SplitProblem,
    Splitter,
    Stream,
    given_directions,
    score_moments,
)
from lelp_sklearn._subclasses.subsample import N_PROBES
from lelp_sklearn._threads import exclusive, one_blas_thread
from lelp_sklearn._typing import FloatArray
from lelp_sklearn._validation import as_numbers, check_dense, check_numbers

# To add a splitter, see `_subclasses.splitters`.
SPLITTERS = {"kmeans": KMEANS, "pca": PCA, "random": RANDOM}

# The temperature "auto": the teacher's margin over the first, within these bounds.
_MARGIN_PER_TEMPERATURE = 3
_AUTO_TEMPERATURES = 1, 4


# scikit-learn has no types.
class LELPProjector(  # type: ignore[call-arg]
    CallbackSupportMixin,
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
    auto_wrap_output_keys=None,
):
    r"""Split the classes of a teacher into subclasses along linear projections.

    Learning Embedding Linear Projections (LELP) [1]_ turns embeddings h of a trained
    teacher into soft labels for C classes of S subclasses each, which teach a student
    more than the class probabilities alone when classes are few:

    .. math:: p_{c,s}(h) = \mathrm{softmax}_c(\ell(h) / \tau) \cdot
              \mathrm{softmax}_s(z_{c,\cdot}(h) / \beta), \qquad
              z_{c,s}(h) = u_{c,s} \cdot h - o_{c,s}

    The directions u of each class are about its mean, within the null space of
    the teacher's head. In the paper they are principal directions, rotated so that they
    share the variance; here they are by default the centroids of k-means, for which
    :math:`-\lVert h - m \rVert^2 / 2` is a linear projection up to a term that all
    subclasses share. The class mass of the teacher is kept: the sum over s is the
    teacher's class probability at temperature :math:`\tau`.

    Parameters
    ----------
    n_subclasses : int or "auto", default="auto"
        S, the subclasses of each class. 1 is vanilla knowledge distillation. "auto"
        takes 20, or as many as every class allows if that is less. An explicit number
        may exceed 20; it is an error if a class allows fewer.
    splitter : {"kmeans", "pca", "random"} or array (C, S, d), default="kmeans"
        Where the directions come from: the centroids of each class by k-means, relative
        to the class mean; the principal directions of each class, as published; random
        orthonormal ones, zeros for a class that does not vary along them; or the
        caller's own, used as given. All but the last are in the null space of the
        head, unless `null_space` is False.
    head : None, (coef, intercept), linear classifier or torch.nn.Linear, default=None
        The linear map from embeddings to the teacher's logits, ``coef`` (C, d). An
        intercept of None stands for zeros. A layer is refused if its output is not
        its weights times its input plus its bias. The one row of a sigmoid head, w,
        stands for the two rows -w/2 and w/2. Rows are in the order of the sorted
        labels; those of a classifier are in the order of its `classes_`. A fitted
        classifier stays fitted in clones. An unfitted one is cloned and fitted on the
        labelled rows, which are copied if other rows lack a label or weight. It must
        have a row of `coef_` for each class, and cannot be a Pipeline. None is the
        weighted least-squares map to `teacher_logits` if these are given, else the
        linear discriminant of the labels with a pooled covariance whose correlations
        are shrunk. Neither estimate depends on the units of the columns. Inside a
        meta-estimator that encodes y, such as VotingClassifier, a classifier fitted on
        other labels is refused; its ``(coef_, intercept_)`` is accepted.
    null_space : bool, default=True
        Whether directions avoid the row space of the head, which the class
        probabilities carry already. A softmax head of two rows spans two dimensions and
        the equivalent sigmoid head one: their directions differ slightly.
    rotation : {"equal", "random"} or None, default="equal"
        How principal directions are turned: so that all have exactly the same variance;
        by a random rotation, as published; or not at all. Ignored unless `splitter` is
        "pca".
    temperature : float or "auto", default="auto"
        :math:`\tau`, the temperature of the class probabilities. "auto" is a third of
        the teacher's mean margin `margin_`, but at least 1 and at most 4: the logits of
        a teacher that is sure of every row say little at temperature 1, and those of an
        unsure one are nearly equal at 4.
    subclass_temperature : float or "auto", default="auto"
        :math:`\beta` in root mean squares of z over the training rows (each in its own
        class). 0 assigns each row to one subclass. "auto" is 0.1 for "kmeans" and 0.3
        for other directions. Ignored if S is 1, and if no class varies along
        its directions: then subclasses share the mass of their class alike.
    unlabeled : object, default=None
        The value in y that marks rows without a label (-1, NaN, a string): they take
        the class that the teacher gives them. None: every value is a label. Inside a
        meta-estimator that encodes y, such as BaggingClassifier, only None is allowed.
    svd_solver : {"auto", "randomized", "covariance_eigh", "full"}, default="auto"
        How principal directions are found. Ignored unless `splitter` is "pca".

        - "auto" is "covariance_eigh" if the head is estimated, which needs the
          covariance anyway, or if X has at most 192 features; else "randomized".
        - "covariance_eigh" forms the d by d covariance of each class.
        - "randomized" starts from the principal subspace of a sample of each class and
          makes a few passes over all rows (block Krylov). Apart from the sample, its
          largest arrays are a few of d by (S + `n_oversamples`) per class.
        - "full" is a singular value decomposition of the rows of each class, which are
          copied to the host. On dask arrays it works as "covariance_eigh".
    n_oversamples : int, default=10
        Number of additional vectors of the randomized solver. If it starts from a
        sample, at least two are random, to detect directions missing from the sample.
    iterated_power : int or "auto", default="auto"
        Number of passes of the randomized solver after the first. "auto" continues
        until a pass adds less than 1e-4 of the variance captured, or the next one is
        expected to, with at most 12 passes in all.
    random_state : int, RandomState instance or None, default=None
        Draws the rotation, the random directions and the rows from which the randomized
        solver and k-means start. None uses NumPy's global generator.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Those of a fitted classifier as head, else those passed to
        :meth:`partial_fit`, else the labels of y; without any, 0 to C - 1.
    n_subclasses_ : int
        S.
    components_ : ndarray of shape (n_classes, n_subclasses, n_features)
        The directions u. Zeros if S is 1, which needs none.
    offsets_ : ndarray of shape (n_classes, n_subclasses)
        The offsets o, so that ``z = X @ components_[c].T - offsets_[c]``.
    mean_ : ndarray of shape (n_classes, n_features)
        Weighted mean of each class.
    explained_variance_ : ndarray of shape (n_classes, n_subclasses)
        Weighted population variance of z over the rows of the class.
    explained_variance_ratio_ : ndarray of shape (n_classes, n_subclasses)
        `explained_variance_` divided by the variance of the class in the null space.
        It is a share of that variance for directions of length 1 ("pca", "random");
        the centroids of "kmeans" scale it by their squared length.
    spectrum_ : ndarray of shape (n_classes, n_subclasses)
        Principal variances before rotation, the largest first. Only for "pca".
    coef_ : ndarray of shape (n_classes, n_features)
        The head, with a row for each class, also for two classes.
    intercept_ : ndarray of shape (n_classes,)
    margin_ : float
        Weighted mean, over the rows of the fit, of the largest of the teacher's logits
        minus the second largest. Without `teacher_logits`, a class of more than 2048
        distinct rows is represented by a sample of them. A fit by :meth:`partial_fit`
        has the margin of the first block with enough rows.
    temperature_ : float
        :math:`\tau`.
    subclass_temperature_ : float
        The absolute :math:`\beta` that divides z.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Only if X has feature names that are all strings.

    See Also
    --------
    LELPStudentClassifier : Trains a student on such targets.

    Notes
    -----
    A fit to a tensor on an accelerator differs from one to the same array by rounding.

    Sample weights act as repetitions of a row. The order of rows changes nothing but
    rounding, with two exceptions: principal directions of equal variance are not
    determined, nor is the subclass of a row at equal distance from two centroids if
    `subclass_temperature` is 0.
    "kmeans" and the randomized solver start from a sample of the distinct rows of a
    class if there are more than 2048; which rows are drawn depends on their content.

    Soft labels in single precision agree with those in double precision to 1e-5 if
    logits and z / beta are within 30 of zero and the class means are within 100
    standard deviations of one another. Embeddings whose squares, with "kmeans" fourth
    powers, overflow or underflow are refused. The user guide describes precision and
    memory.

    The equal rotation and the k-means start are not in the paper.

    References
    ----------
    .. [1] N. Loo, F. Iliopoulos, W. Hu, E. Vee, "Linear Projections of Teacher
       Embeddings for Few-Class Distillation", arXiv:2409.20449, 2024.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from lelp_sklearn import LELPProjector
    >>> X, digit = load_digits(return_X_y=True)
    >>> projector = LELPProjector(n_subclasses=5, random_state=0)
    >>> soft_labels = projector.fit_transform(X, digit % 2)
    >>> soft_labels.shape
    (1797, 10)
    >>> projector.inverse_transform(soft_labels).shape
    (1797, 2)
    """

    __metadata_request__fit: ClassVar[dict[str, Any]] = {"teacher_logits": True}
    __metadata_request__partial_fit: ClassVar[dict[str, Any]] = {"teacher_logits": True}
    __metadata_request__transform: ClassVar[dict[str, Any]] = {
        "teacher_logits": True,
        "out": UNUSED,
    }

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_subclasses": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "splitter": [StrOptions(set(SPLITTERS)), "array-like"],
        "head": "no_validation",
        "null_space": ["boolean"],
        "rotation": [StrOptions({"equal", "random"}), None],
        "temperature": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"auto"}),
        ],
        "subclass_temperature": [
            Interval(Real, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "unlabeled": "no_validation",
        "svd_solver": [StrOptions({"auto", *SOLVERS})],
        "n_oversamples": [Interval(Integral, 0, None, closed="left")],
        "iterated_power": [
            Interval(Integral, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_subclasses: int | str = "auto",
        *,
        splitter: Any = "kmeans",
        head: Any = None,
        null_space: bool = True,
        rotation: str | None = "equal",
        temperature: float | str = "auto",
        subclass_temperature: float | str = "auto",
        unlabeled: object = None,
        svd_solver: str = "auto",
        n_oversamples: int = 10,
        iterated_power: int | str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_subclasses = n_subclasses
        self.splitter = splitter
        self.head = head
        self.null_space = null_space
        self.rotation = rotation
        self.temperature = temperature
        self.subclass_temperature = subclass_temperature
        self.unlabeled = unlabeled
        self.svd_solver = svd_solver
        self.n_oversamples = n_oversamples
        self.iterated_power = iterated_power
        self.random_state = random_state

    def __sklearn_clone__(self) -> "LELPProjector":
        # A fitted classifier as head is what the teacher knows: it stays fitted.
        with exclusive(self.head):
            twin: LELPProjector = super().__sklearn_clone__()
        if hasattr(self.head, "coef_"):
            twin.head = copy.deepcopy(self.head)
        return twin

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.target_tags.required = self.head is None
        return tags

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        teacher_logits: Any = None,
        sample_weight: Any = None,
    ) -> "LELPProjector":
        """Find the directions that split each class.

        Parameters
        ----------
        X : {array-like, memmap, tensor, dask array} of shape (n_samples, n_features)
            Teacher embeddings, float16, float32 or float64 (tensors bfloat16 too). A
            dask array is read chunk by chunk, each on its worker; the other arguments
            may be dask arrays too. A tensor on an accelerator is read on its device:
            sums, a bounded sample of the rows and a few numbers per row are copied to
            the host. Only `svd_solver` "full" and an unfitted classifier as head copy
            the rows to the host.
        y : array-like of shape (n_samples,), default=None
            Class labels. Rows marked `unlabeled`, or all rows if y is None, take the
            class that is most likely by the teacher.
        teacher_logits : array-like of shape (n_samples, n_classes) or (n_samples, 1), \
                default=None
            The teacher's logits, in the order of `classes_`, or the one column of a
            sigmoid teacher. Log-probabilities are logits: for a teacher that gives only
            probabilities pass their logarithm, zeros clipped.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights, which act as repetitions.

        Returns
        -------
        self : LELPProjector
            The fitted projector.

        Raises
        ------
        ValueError
            If X, the logits or the weights hold NaN or infinity, if shapes do not fit,
            if a class has no rows or too few for `n_subclasses`, if neither y, a head
            nor logits determine the classes, or if the chunks of a dask array have
            unknown sizes or it comes with an unfitted classifier as head.

        Warns
        -----
        ClassOrderWarning
            If the teacher's classes in another order would agree far better with some
            of the labels.
        ProbabilitiesAsLogitsWarning
            If `teacher_logits` are probabilities.
        """
        self._validate_params()
        with _validation.features_kept_on_error(self, "components_"):
            inputs = self._read_inputs(X, y, teacher_logits, sample_weight)
            splitter = self._resolve_splitter(inputs)
            solver, covariance_kind = self._resolve_solver(splitter, inputs)
            task = begin_fit(self, X, y, sample_weight=sample_weight)
            random_states = RandomStates.start(self.random_state)
            # Exact sums use the threads of BLAS, the others threads of their own.
            with nullcontext() if covariance_kind == "exact" else one_blas_thread:
                inputs, covariance = self._measure(
                    inputs, covariance_kind, solver, random_states
                )
                split = self._split(inputs, covariance, splitter, solver, random_states)
                self._set_fitted(inputs, covariance, splitter, split)
            task.end({})
        return self

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        classes: Any = None,
        *,
        teacher_logits: Any = None,
        sample_weight: Any = None,
    ) -> "LELPProjector":
        """Fit to one more block of rows.

        The d by d covariance of each class is kept, so the blocks give the result of
        :meth:`fit` on all rows with `svd_solver` "covariance_eigh" and the same
        temperature, which "auto" takes from the first block. "full" works as
        "covariance_eigh". "kmeans" updates the centroids of the first block, as
        mini-batch k-means does. `head` may be None, which estimates it from all blocks,
        but not an unfitted classifier. Rows without a label require a head or
        `teacher_logits`.

        Until every class has enough rows for `n_subclasses` there are no directions,
        and :meth:`transform` raises an error that says what is missing. k-means starts
        with the first block that has enough rows by itself; "auto" takes as many
        subclasses as that block allows. The first call after :meth:`fit` starts again,
        without the rows of that fit.

        Parameters
        ----------
        X : {array-like, memmap, tensor} of shape (n_samples, n_features)
            Teacher embeddings.
        y : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.
        classes : array-like of shape (n_classes,), default=None
            All classes. Not needed if the first block has them all. Used in the first
            call only.
        teacher_logits : array-like of shape (n_samples, n_classes) or (n_samples, 1), \
                default=None
            As in :meth:`fit`; given with every block or with none.
        sample_weight : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.

        Returns
        -------
        self : LELPProjector
            The projector, fitted to all blocks so far.

        Raises
        ------
        ValueError
            As in :meth:`fit`, except that a class may have too few rows. The projector
            is then as it was before the call.
        TypeError
            If an argument is a dask array.
        """
        self._validate_params()
        given = X, y, teacher_logits, sample_weight
        if any(dask_backend.is_dask_array(each) for each in given):
            raise TypeError(
                "partial_fit takes blocks that are in memory, and one of its arguments "
                "is a dask array: call fit, which reads dask arrays chunk by chunk on "
                "their workers, or pass array.compute()."
            )
        before: Stream | None = self.__dict__.get("_stream")
        if before is not None:
            classes = before.classes
        elif classes is not None:
            classes = _validation.sorted_classes(classes)
        with _validation.features_kept_on_error(self, "components_"):
            inputs = self._read_inputs(*given, classes, before, is_stream=True)
            splitter = self._resolve_splitter(inputs)
            solver, _ = self._resolve_solver(splitter, inputs, is_stream=True)
            moments, centroids = inputs.moments(), None
            if before is not None:
                # The stream itself stays as it is until all is well.
                moments.merge(before.moments)
                centroids = copy.deepcopy(before.centroids)
            margin = None if before is None else before.margin
            stream = Stream(inputs.classes, moments, centroids, margin)
            random_states = RandomStates.start(self.random_state)
            try:
                inputs, _ = inputs.with_head(moments)
                row_space = self._row_space(inputs.head)
                covariance = ExplicitCovariance.from_moments(moments, row_space)
                split = self._split(
                    inputs, covariance, splitter, solver, random_states, stream
                )
                self._set_fitted(inputs, covariance, splitter, split, stream)
            except _validation.TooFewRowsError as error:
                stream.not_fitted_reason = str(error)
                self._stream = stream
        return self

    def transform(self, X: Any, *, teacher_logits: Any = None, out: Any = None) -> Any:
        r"""Compute the subclass soft labels of embeddings.

        .. math:: p_{c,s}(h) = \mathrm{softmax}_c(\ell(h) / \tau) \cdot
                  \mathrm{softmax}_s((u_{c,s} \cdot h - o_{c,s}) / \beta)

        Parameters
        ----------
        X : {array-like, memmap, tensor, dask array} of shape (n_samples, n_features)
            Teacher embeddings. They are read in blocks, and never copied or converted
            as a whole. A tensor on an accelerator is read there, on the current stream.
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
            c. The floating dtype is that of X, at least float32. The result is a tensor
            on the same device if X is a tensor, and a lazy dask array with the chunks
            of X if X is a dask array. With `out` it is the array, or a read-only memory
            map of the file. `set_output` changes none of these.

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
        if dask_backend.is_dask_array(X):
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
            _check_out(out, shape, dtype, [rows, logits])
            # Raises if a row is not finite, before the caller's array is changed;
            # the hashes are not needed.
            hash_rows(rows)
            labeller.write(rows, logits, out)
            return out
        soft_labels = labeller(rows, logits)
        if torch_backend.is_tensor(X):
            return torch_backend.like(soft_labels, X)
        return _wrap_data_with_container("transform", soft_labels, X, self)

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        *,
        teacher_logits: Any = None,
        sample_weight: Any = None,
    ) -> Any:
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

    def inverse_transform(self, X: Any) -> Any:
        """Sum soft labels over the subclasses of each class.

        It returns class probabilities and does not reconstruct the embeddings.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_classes * n_subclasses)
            Subclass soft labels.

        Returns
        -------
        probabilities : array of shape (n_samples, n_classes)
            For the projector's own soft labels, the teacher's class probabilities at
            its temperature. A tensor if X is a tensor, a lazy dask array if X is a dask
            array, and an ndarray otherwise, also for a data frame.
        """
        self._check_fitted()
        shape = self.offsets_.shape
        if torch_backend.is_tensor(X):
            _validation.check_soft_label_shape(X.shape, self.offsets_.size)
            return X.reshape(len(X), *shape).sum(-1)
        if dask_backend.is_dask_array(X):
            _validation.check_soft_label_shape(X.shape, self.offsets_.size)
            return dask_backend.sum_subclasses(X, shape)
        soft_labels = _validation.check_soft_labels(X, self.offsets_.size)
        return class_sums(soft_labels, shape)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Name the columns ``"{class}_{subclass}"``.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Not used, present for API consistency by convention.

        Returns
        -------
        names : ndarray of str objects of shape (n_classes * n_subclasses,)
            A name for each column of the soft labels.
        """
        self._check_fitted()
        subclasses = range(self.n_subclasses_)
        names = [f"{label}_{s}" for label in self.classes_ for s in subclasses]
        return np.array(names, dtype=object)

    # --- stages of a fit --------------------------------------------------------------

    def _read_inputs(
        self,
        X: Any,
        y: Any,
        teacher_logits: Any,
        sample_weight: Any,
        classes: NDArray[Any] | None = None,
        before: Stream | None = None,
        *,
        is_stream: bool = False,
    ) -> ProjectorInputs:
        """Check the arguments, fit a classifier given as head, label each row."""
        inputs = ProjectorInputs.read(
            self._check_rows(X, reset=before is None),
            y,
            teacher_logits,
            sample_weight,
            head=self.head,
            unlabeled=self.unlabeled,
            classes=classes,
            is_stream=is_stream,
        )
        if is_stream:
            _check_stream(inputs, before)
        return inputs

    def _resolve_splitter(self, inputs: ProjectorInputs) -> Splitter:
        """Return the splitter of a name, or one that uses the caller's directions."""
        if isinstance(self.splitter, str):
            return SPLITTERS[self.splitter]
        shape = len(inputs.classes), inputs.data.shape[1]
        return given_directions(
            _check_directions(self.splitter, self._n_wanted(), *shape)
        )

    def _resolve_solver(
        self, splitter: Splitter, inputs: ProjectorInputs, *, is_stream: bool = False
    ) -> tuple[Solver | None, str]:
        return resolve_solver(
            self.svd_solver,
            is_used=splitter.uses_solver and self.n_subclasses != 1,
            n_features=inputs.data.shape[1],
            sums_covariance=is_stream or inputs.head is None,
            rows_are_here=inputs.data.is_in_memory and not is_stream,
        )

    def _measure(
        self,
        inputs: ProjectorInputs,
        covariance_kind: str,
        solver: Solver | None,
        random_states: RandomStates,
    ) -> tuple[ProjectorInputs, Covariance]:
        """Return the inputs with a head, and the class covariances."""
        if covariance_kind == "exact":
            inputs, moments = inputs.with_head(inputs.moments())
            row_space = self._row_space(inputs.head)
            return inputs, ExplicitCovariance.from_moments(moments, row_space)
        row_space = self._row_space(inputs.head)
        if covariance_kind == "quick":
            return inputs, inputs.quick_covariance(row_space)
        n_vectors = 0
        if solver is not None and solver.starts_from_sample:
            n_vectors = self._n_wanted() or AUTO_N_SUBCLASSES
            n_vectors += max(int(self.n_oversamples), N_PROBES)
        return inputs, inputs.multipass_covariance(
            row_space, n_vectors, random_states.samples
        )

    def _row_space(self, head: Head | None) -> FloatArray:
        """Return a basis (d, r) of the directions that are projected out."""
        assert head is not None
        if self.null_space:
            return row_space_basis(head.coef)
        return np.empty((head.coef.shape[1], 0))

    def _n_wanted(self) -> int | None:
        """Return the number of subclasses; None if the splitter chooses it."""
        return None if self.n_subclasses == "auto" else int(self.n_subclasses)

    def _split(
        self,
        inputs: ProjectorInputs,
        covariance: Covariance,
        splitter: Splitter,
        solver: Solver | None,
        random_states: RandomStates,
        stream: Stream | None = None,
    ) -> Split:
        """Return the directions that split each class."""
        n_subclasses = self._n_wanted()
        if n_subclasses == 1:
            return Split.single(covariance)
        power = self.iterated_power
        return splitter.split(
            SplitProblem(
                data=inputs.data,
                classes=inputs.classes,
                covariance=covariance,
                n_subclasses=n_subclasses,
                solver=solver,
                rotation=self.rotation,
                n_oversamples=int(self.n_oversamples),
                iterated_power=None if power == "auto" else int(power),
                random_states=random_states,
                stream=stream,
            )
        )

    def _set_fitted(
        self,
        inputs: ProjectorInputs,
        covariance: Covariance,
        splitter: Splitter,
        split: Split,
        stream: Stream | None = None,
    ) -> None:
        """Set the fitted attributes, all at once."""
        assert inputs.head is not None
        variance, scale = score_moments(split, covariance)
        if not scale:
            # Divided by rounding, the scores would be noise.
            split = split.flattened()
        null_variance = covariance.null_variance[:, None]
        ratio = np.zeros_like(variance)
        np.divide(variance, null_variance, out=ratio, where=null_variance > 0)
        subclass_temperature = self.subclass_temperature
        if subclass_temperature == "auto":
            subclass_temperature = splitter.auto_temperature
        margin = None if stream is None else stream.margin
        if margin is None:
            margin = inputs.teacher_margin()
        if stream is not None:
            stream.margin = margin
        temperature = self.temperature
        if temperature == "auto":
            temperature = np.clip(margin / _MARGIN_PER_TEMPERATURE, *_AUTO_TEMPERATURES)
        fitted = {
            "classes_": inputs.classes,
            "n_subclasses_": split.offsets.shape[1],
            "components_": split.components,
            "offsets_": split.offsets,
            "mean_": covariance.mean.copy(),
            "coef_": inputs.head.coef,
            "intercept_": inputs.head.intercept,
            "explained_variance_": variance,
            "explained_variance_ratio_": ratio,
            "margin_": margin,
            "temperature_": float(temperature),
            # Without a scale all scores are 0, whatever divides them, but 0.
            "subclass_temperature_": scale * float(subclass_temperature)
            if scale
            else 1.0,
            "_stream": stream,
        }
        if splitter.uses_solver:
            fitted["spectrum_"] = split.spectrum
        # An interrupt finds the one fit or the other.
        self.__dict__.update(fitted)
        if "spectrum_" not in fitted:
            self.__dict__.pop("spectrum_", None)

    # --- soft labels ------------------------------------------------------------------

    def _labeller(self) -> SoftLabeller:
        return SoftLabeller(
            self.components_,
            self.offsets_,
            self.coef_,
            self.intercept_,
            self.mean_.mean(axis=0),
            self.temperature_,
            self.subclass_temperature_,
        )

    def _transform_lazily(self, rows: Any, teacher_logits: Any, out: Any) -> Any:
        """Return lazy soft labels of a dask array, computed chunk by chunk."""
        if out is not None:
            raise TypeError(
                "out cannot be given for a dask array, whose soft labels are a lazy "
                "dask array: store that with dask.array.to_zarr, "
                "dask.array.to_npy_stack or dask.array.store."
            )
        logits = None
        if teacher_logits is not None:
            logits = dask_backend.beside(teacher_logits, rows, "teacher_logits")
            _validation.check_logit_dimensions(logits.shape)
            logits = logits[:, None] if logits.ndim == 1 else logits
            _validation.check_logit_columns(logits.shape[1], len(self.classes_))
        return dask_backend.map_rows(
            self._labeller().of_chunk,
            rows,
            logits,
            self.offsets_.size,
            np.result_type(rows.dtype, np.float32),
        )

    # --- checks -----------------------------------------------------------------------

    def _check_fitted(self) -> None:
        stream = self.__dict__.get("_stream")
        if stream is not None and stream.not_fitted_reason is not None:
            raise NotFittedError(
                f"partial_fit needs more rows: {stream.not_fitted_reason}"
            )
        # n_features_in_ is set before the rows are checked: it does not mean fitted.
        check_is_fitted(self, "components_")

    def _check_logits(self, teacher_logits: Any, n_samples: int) -> FloatArray | None:
        if teacher_logits is None:
            return None
        check_dense(teacher_logits, "teacher_logits")
        logits = torch_backend.to_array(teacher_logits)
        logits = _validation.check_logits(logits, n_samples)
        if _validation.are_probabilities(logits):
            _validation.warn_of_probabilities()
        _validation.check_logit_columns(logits.shape[1], len(self.classes_))
        return _validation.logits_of_classes(logits)

    def _check_rows(self, X: Any, *, reset: bool) -> Any:
        """Return X as rows to be read in blocks; they may still hold NaN."""
        if torch_backend.is_tensor(X) or dask_backend.is_dask_array(X):
            rows: Any
            if torch_backend.is_tensor(X):
                _validation.check_tensor(X, max_ndim=2)
                rows = torch_backend.as_rows(X)
            else:
                rows = dask_backend.as_rows(X)
            validate_data(self, X, reset=reset, skip_check_array=True)
            return rows
        check_numbers(X, "X")
        return validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float64, np.float32, np.float16],
            # `hash_rows` and the soft labels check this: scikit-learn makes a mask of
            # the size of float16 input, and does not name the row.
            ensure_all_finite=False,
        )


# scikit-learn would wrap what `transform` returns, and `out` and tensors come back as
# they are: `transform` itself wraps the rest. This says that there is a `set_output`.
LELPProjector._sklearn_auto_wrap_output_keys = {"transform"}


def _check_stream(inputs: ProjectorInputs, before: Stream | None) -> None:
    """Raise if a block of `partial_fit` cannot be merged with the previous ones."""
    if before is not None and before.moments.mean.shape[1] != inputs.n_columns:
        raise ValueError(
            "teacher_logits must be given with every block of partial_fit or with none."
        )
    if inputs.any_unlabelled:
        raise ValueError(
            "partial_fit has unlabelled rows and nothing that gives their class: pass "
            "head=(coef, intercept) or teacher_logits."
        )


def _check_directions(
    directions: Any, n_subclasses: int | None, n_classes: int, n_features: int
) -> FloatArray:
    """Return the caller's own directions as float64 (C, S, d)."""
    # A copy: what the caller does to the array later changes no fitted projector.
    array = np.array(as_numbers(directions, "splitter"), dtype=np.float64)
    expected = (n_classes, n_subclasses or "n_subclasses", n_features)
    shape = array.shape
    if array.ndim != 3 or (shape[0], shape[2]) != expected[::2] or shape[1] == 0:
        raise ValueError(
            f"splitter is an array of shape {shape}; directions must have shape "
            f"(n_classes, n_subclasses, n_features) = {expected}."
        )
    if n_subclasses not in (None, shape[1]):
        raise ValueError(
            f"splitter is an array with {shape[1]} directions per class and "
            f"n_subclasses={n_subclasses}: make them equal, or use 'auto'."
        )
    _validation.check_finite_block(array.reshape(-1, n_features), 0, "splitter")
    return array


def _check_out(
    out: Any, shape: tuple[int, int], dtype: np.dtype[Any], inputs: list[Any]
) -> None:
    """Raise unless the array `out` can take the result as it is, apart from inputs."""
    if not isinstance(out, np.ndarray):
        raise TypeError(
            f"out must be a NumPy array or the path of a '.npy' file, got {type(out)}."
        )
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"out is {out.dtype} of shape {out.shape}; the result is {dtype} of shape "
            f"{shape}."
        )
    arrays = [array for array in inputs if isinstance(array, np.ndarray)]
    if any(np.shares_memory(out, array) for array in arrays):
        raise ValueError("out overlaps X or the logits; pass an array of its own.")
    if any(s == 0 and n > 1 for s, n in zip(out.strides, out.shape, strict=True)):
        raise ValueError(
            "out has elements that share memory; pass an array of its own."
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass an array that may be written to.")
