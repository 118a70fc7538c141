"""LELPProjector: teacher embeddings in, subclass soft labels out."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import UNUSED

from lelp_sklearn import _validation
from lelp_sklearn._callbacks import CallbackSupportMixin, begin_fit, with_callbacks
from lelp_sklearn._locks import exclusive
from lelp_sklearn._reading import read_sample
from lelp_sklearn._soft_labels import SoftLabelMixin
from lelp_sklearn._subclasses import dask_arrays, dask_validation, splitters
from lelp_sklearn._subclasses.directions import InitialSubspace, Solver
from lelp_sklearn._subclasses.kmeans import RunningCentroids, class_centroids
from lelp_sklearn._subclasses.moments import (
    ClassMoments,
    ExplicitCovariance,
    StreamedCovariance,
    class_weights,
    quick_dtype,
)
from lelp_sklearn._subclasses.pca import (
    eigh_directions,
    full_directions,
    randomized_directions,
)
from lelp_sklearn._subclasses.progress import ReportedData
from lelp_sklearn._subclasses.subsample import (
    N_PROBES,
    class_samples,
    initial_subspace_from_sample,
    random_initial_subspace,
)
from lelp_sklearn._subclasses.threads import one_blas_thread

# Features up to which forming the covariances takes less time than two passes over the
# rows: measured on 32 to 256 features and 5 to 20 subclasses.
_FEW_FEATURES = 192


@dataclass
class _Stream:
    """What `partial_fit` keeps between blocks."""

    classes: np.ndarray
    moments: ClassMoments
    centroids: RunningCentroids | None = None
    # Why there are no directions yet; None once there are.
    missing: str | None = None


@dataclass(frozen=True)
class _Draws:
    """Two generators, so that what a solver draws does not move the rotation."""

    directions: np.random.RandomState
    samples: np.random.RandomState

    @classmethod
    def start(cls, random_state):
        samples = check_random_state(random_state)
        directions = np.random.RandomState(samples.randint(2**31 - 1))
        return cls(directions, samples)


class LELPProjector(
    CallbackSupportMixin, SoftLabelMixin, TransformerMixin, BaseEstimator
):
    r"""Split the classes of a teacher into subclasses along linear projections.

    Learning Embedding Linear Projections (LELP) [1]_ turns embeddings h of a trained
    teacher into soft labels for C classes of S subclasses each, which teach a student
    more than the class probabilities alone when classes are few:

    .. math:: p_{c,s}(h) = \mathrm{softmax}_c(\ell(h) / \tau) \cdot
              \mathrm{softmax}_s(z_{c,\cdot}(h) / \beta), \qquad
              z_{c,s}(h) = u_{c,s} \cdot h - o_{c,s}

    The directions u are found for each class about its mean, within the null space of
    the teacher's head. In the paper they are principal directions, rotated so that they
    share the variance; here they are by default the centroids of k-means, for which
    :math:`-\tfrac12 \|h - m\|^2` is a linear projection up to a term that all
    subclasses share. The class mass of the teacher is kept: the sum over s is the
    teacher's class probability at temperature :math:`\tau`.

    Parameters
    ----------
    n_subclasses : int or "auto", default="auto"
        S, the subclasses of each class. 1 is vanilla knowledge distillation. "auto"
        takes 20, or as many as every class allows if that is less; an explicit number
        above that is an error.
    splitter : {"kmeans", "pca", "random"} or array (C, S, d), default="kmeans"
        Where the directions come from: the centroids of each class by k-means, relative
        to the class mean; the principal directions of each class, as published; random
        orthonormal ones, zeros for a class that does not vary along them; or the
        caller's own, used as given. All but the last lie in
        the null space of the head.
    head : None, (coef, intercept), linear classifier or torch.nn.Linear, default=None
        The linear map from embeddings to the teacher's logits, ``coef`` (C, d). An
        intercept of None stands for zeros. A layer is refused where its output is not
        its weights times its input plus its bias. The one row of a sigmoid head, w,
        stands for the two rows -w/2 and w/2. Rows are in the
        order of the sorted labels, unless a classifier says its own. A fitted
        classifier stays so in clones; one not yet fitted is cloned and fitted on the
        labelled rows, which are copied where others lack a label or weight. It must
        have a row of `coef_` for each class, and be no Pipeline. None: the weighted
        least-squares map to `teacher_logits` where these are given, else the linear
        discriminant of the labels with a pooled covariance whose correlations are
        shrunk. The units of the columns do not change either. Inside a meta-estimator
        that encodes y, such as VotingClassifier, a classifier fitted on other labels is
        refused, and its ``(coef_, intercept_)`` is not.
    null_space : bool, default=True
        Whether directions avoid the row space of the head, which the class
        probabilities carry already. A softmax head of two rows spans two dimensions and
        the equivalent sigmoid head one: their directions differ slightly.
    rotation : {"equal", "random"} or None, default="equal"
        How principal directions are turned: so that all have exactly the same variance;
        by a random rotation, as published; or not at all. Ignored unless `splitter` is
        "pca".
    temperature : float, default=1.0
        :math:`\tau`, the temperature of the class probabilities.
    subclass_temperature : float or "auto", default="auto"
        :math:`\beta` in root mean squares of z over the training rows (each in its own
        class). 0 assigns each row to one subclass. "auto" is 0.1 for "kmeans" and 0.3
        for other directions. Ignored where S is 1, and where no class varies along
        its directions: then subclasses share the mass of their class alike.
    unlabeled : object, default=None
        The value in y that marks rows without a label (-1, NaN, a string): they take
        the class that the teacher gives them. None: every value is a label. Inside a
        meta-estimator that encodes y, such as BaggingClassifier, only None is allowed.
    svd_solver : {"auto", "randomized", "covariance_eigh", "full"}, default="auto"
        "covariance_eigh" forms the d by d covariance of each class; "randomized" starts
        from the principal subspace of a sample of each class and makes one or a
        few passes over all rows (block Krylov), forming beside the sample nothing
        larger than a few d by (S + `n_oversamples`) arrays a class; "full" is a
        singular value decomposition of each class's rows, which it copies, to the host
        where they are a tensor elsewhere (on dask arrays it works as
        "covariance_eigh"). "auto" takes
        "covariance_eigh" where an estimated head needs the covariance anyway, and at up
        to 192 features, where one pass that sums it in the precision of X takes less
        time than two passes of "randomized"; else that. Ignored unless `splitter` is
        "pca".
    n_oversamples : int, default=10
        Further vectors of the randomized solver. Where it starts from a sample the last
        two, never fewer, are random: they show directions that the sample lacks.
    iterated_power : int or "auto", default="auto"
        Passes of the randomized solver after the first. "auto" goes on until a pass has
        added less than 1e-4 of the variance captured or the next one is expected to, by
        the residuals of the directions and by what the sample lacked.
    random_state : int, RandomState instance or None, default=None
        Draws the rotation, the random directions and the rows from which the randomized
        solver and k-means start. None uses NumPy's global generator.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Those of the labels; without y those of the head, else 0 to C - 1.
    n_subclasses_ : int
        S.
    components_ : ndarray of shape (n_classes, n_subclasses, n_features)
        The directions u. Zeros where S is 1, which needs none.
    offsets_ : ndarray of shape (n_classes, n_subclasses)
        The offsets o, so that ``z = X @ components_[c].T - offsets_[c]``.
    mean_ : ndarray of shape (n_classes, n_features)
        Weighted mean of each class.
    explained_variance_ : ndarray of shape (n_classes, n_subclasses)
        Weighted population variance of z over the rows of the class.
    explained_variance_ratio_ : ndarray of shape (n_classes, n_subclasses)
        The same, relative to the variance of the class in the null space.
    spectrum_ : ndarray of shape (n_classes, n_subclasses)
        Principal variances before rotation, the largest first. Only for "pca".
    coef_ : ndarray of shape (n_classes, n_features)
        The head, with a row for each class also where there are two.
    intercept_ : ndarray of shape (n_classes,)
    subclass_temperature_ : float
        The absolute :math:`\beta` that divides z.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Only where X has feature names that are all strings.

    See Also
    --------
    LELPStudentClassifier : Trains a student on such targets.

    Notes
    -----
    Tensors on an accelerator are multiplied in full single precision, whatever torch is
    allowed to round to; a fit to them differs from one to the same array by rounding.
    On NVIDIA's (compute capability 8.0 and later, with Triton) soft labels of half or
    single precision come from one kernel, which reads X once and does not round the
    directions to half.

    Sample weights act as repetitions of a row. The order of rows changes nothing but
    rounding, with two exceptions: principal directions of equal variance are not
    determined, nor is the subclass of a row at equal distance from two centroids where
    `subclass_temperature` is 0.
    "kmeans" and the randomized solver start from a sample of the distinct rows of a
    class where these are more than 2048; which rows are drawn hangs on what they hold.
    The statistics of these two, and covariances that "auto" forms without need, are
    summed in the precision of X over some thousand rows and in double precision over
    these sums, all others in double precision (on an accelerator that has it); so are
    those of weights that differ by more than a factor of 100 within a class. Memory
    beyond the input is bounded by scikit-learn's ``working_memory``, the d by d
    covariances where they are formed, a few copies of the sample of one class, and a
    few numbers a row. Soft labels whose scores overflow single precision are computed
    in double precision. Single precision soft
    labels agree with double precision to 1e-5 where logits and z / beta stay within 30
    and the class means lie within 100 standard deviations of one another. Embeddings
    whose squares, with "kmeans" their fourth powers, overflow or vanish are refused:
    squares in the precision of X, at least single, others in double. The equal
    rotation and the k-means start are not in the paper.

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

    __metadata_request__fit: ClassVar[dict] = {"teacher_logits": True}
    __metadata_request__partial_fit: ClassVar[dict] = {"teacher_logits": True}
    __metadata_request__transform: ClassVar[dict] = {
        "teacher_logits": True,
        "out": UNUSED,
    }

    _parameter_constraints: ClassVar[dict] = {
        "n_subclasses": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "splitter": [StrOptions({"pca", "random", "kmeans"}), "array-like"],
        "head": "no_validation",
        "null_space": ["boolean"],
        "rotation": [StrOptions({"equal", "random"}), None],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "subclass_temperature": [
            Interval(Real, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "unlabeled": "no_validation",
        "svd_solver": [StrOptions({"auto", "randomized", "covariance_eigh", "full"})],
        "n_oversamples": [Interval(Integral, 0, None, closed="left")],
        "iterated_power": [
            Interval(Integral, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_subclasses="auto",
        *,
        splitter="kmeans",
        head=None,
        null_space=True,
        rotation="equal",
        temperature=1.0,
        subclass_temperature="auto",
        unlabeled=None,
        svd_solver="auto",
        n_oversamples=10,
        iterated_power="auto",
        random_state=None,
    ):
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

    def __sklearn_clone__(self):
        # A fitted classifier as head is what the teacher knows: it stays fitted.
        with exclusive(self.head):
            twin = super().__sklearn_clone__()
        if hasattr(self.head, "coef_"):
            twin.head = copy.deepcopy(self.head)
        return twin

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.target_tags.required = self.head is None
        return tags

    @with_callbacks
    def fit(self, X, y=None, *, teacher_logits=None, sample_weight=None):
        """Find the directions that split each class.

        Parameters
        ----------
        X : {array-like, memmap, tensor, dask array} of shape (n_samples, n_features)
            Teacher embeddings, float16, float32 or float64 (tensors bfloat16 too). A
            dask array is read chunk by chunk, each on its worker; what comes with it
            may be dask arrays too. A tensor on an accelerator is read where it lies:
            to the host come sums, a bounded sample of the rows, and a few numbers a
            row. Only `svd_solver` "full" and a classifier as head that is still to be
            fitted have the rows copied to the host.
        y : array-like of shape (n_samples,), default=None
            Class labels. Rows marked `unlabeled`, or all rows where y is None, take the
            class that the teacher finds likeliest.
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
            if a class has no rows or too few for `n_subclasses`, if neither y, a
            head nor logits say what the classes are, or if a dask array does not know
            its chunks' sizes or comes with a classifier that is to be fitted as head.

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
            sample = self._read(X, y, teacher_logits, sample_weight)
            task = begin_fit(self, X, y, sample_weight=sample_weight, max_subtasks=None)
            draws = _Draws.start(self.random_state)
            forms_covariance = sample.head is None or self._forms_covariance(sample)
            sample = replace(sample, data=ReportedData(sample.data, task))
            with nullcontext() if forms_covariance else one_blas_thread:
                if forms_covariance:
                    moments = sample.moments()
                    sample = sample.with_head(moments)
                    row_space = self._removed(sample)
                    covariance = ExplicitCovariance(
                        moments, row_space, np.dtype(np.float64)
                    )
                elif self._has_few_features(sample):
                    row_space = self._removed(sample)
                    covariance = sample.scatters(row_space)
                else:
                    row_space = self._removed(sample)
                    covariance = self._stream_covariance(
                        sample, row_space, draws.samples
                    )
                self._finish(sample, covariance, row_space, draws)
            task.end({})
        return self

    def partial_fit(
        self, X, y=None, classes=None, *, teacher_logits=None, sample_weight=None
    ):
        """Take in a further block of rows.

        Keeps the d by d covariance of each class, so that blocks give what :meth:`fit`
        gives on all rows with the exact solver. "kmeans" moves the centroids of the
        first block, as mini-batches do; "full" works as "covariance_eigh". The
        head has to be given, as an array or fitted, or to be closed-form; unlabelled
        rows need a given head or logits. Until all classes have rows enough for
        `n_subclasses` there are no directions, and :meth:`transform` says what is
        missing; k-means starts at the first block that by itself has enough, and "auto"
        takes as many subclasses as that block allows. A first call after :meth:`fit`
        begins anew.

        Parameters
        ----------
        X : {array-like, memmap, tensor} of shape (n_samples, n_features)
            Teacher embeddings.
        y : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.
        classes : array-like of shape (n_classes,), default=None
            All classes. May be left out where the first block has them all; used at the
            first call only.
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
            As in :meth:`fit`, but for too few rows; the projector is then as it was
            before the call.
        TypeError
            If an argument is a dask array.
        """
        self._validate_params()
        given = X, y, teacher_logits, sample_weight
        if any(dask_arrays.is_dask_array(each) for each in given):
            raise dask_validation.no_dask_stream()
        stream = self.__dict__.get("_stream")
        if stream is not None:
            classes = stream.classes
        elif classes is not None:
            classes = _validation.sorted_classes(classes)
        with _validation.features_kept_on_error(self, "components_"):
            sample = self._read(
                X,
                y,
                teacher_logits,
                sample_weight,
                classes=classes,
                first=stream is None,
                streaming=True,
            )
            width = sample.n_columns
            known = width if stream is None else stream.moments.mean.shape[1]
            _validation.check_stream(sample.any_unlabelled, known == width)
            moments, centroids = sample.moments(), None
            if stream is not None:
                # The stream itself stays as it is until all is well.
                moments.merge(stream.moments)
                centroids = copy.deepcopy(stream.centroids)
            stream = _Stream(sample.classes, moments, centroids)
            try:
                sample = sample.with_head(moments)
                row_space = self._removed(sample)
                covariance = ExplicitCovariance(
                    moments, row_space, np.dtype(np.float64)
                )
                draws = _Draws.start(self.random_state)
                self._finish(sample, covariance, row_space, draws, stream)
            except _validation.TooFewRowsError as error:
                stream.missing = str(error)
                self._stream = stream
        return self

    def _read(
        self,
        X,
        y,
        teacher_logits,
        sample_weight,
        *,
        classes=None,
        first=True,
        streaming=False,
    ):
        """Check everything before work starts, and give each row its class.

        `classes` is that of `partial_fit`, None in `fit`; `first` says whether there
        was no block before.
        """
        sample = read_sample(
            self._check_rows(X, reset=first),
            y,
            teacher_logits,
            sample_weight,
            head=self.head,
            unlabeled=self.unlabeled,
            classes=classes,
            streaming=streaming,
        )
        if not isinstance(self.splitter, str):
            shape = len(sample.classes), sample.data.shape[1]
            _validation.check_directions(self.splitter, self._n_wanted(), *shape)
        return sample

    def _forms_covariance(self, sample):
        """Whether the solver asks for the d by d covariances."""
        if self.svd_solver == "full":
            # Rows that are spread over a cluster are not brought together for it.
            return not sample.data.is_in_memory
        return self.svd_solver == "covariance_eigh"

    def _has_few_features(self, sample):
        """Whether the covariances take less time than passes of the other solver."""
        solves = isinstance(self.splitter, str) and self.splitter == "pca"
        is_open = self.svd_solver == "auto" and self.n_subclasses != 1
        return solves and is_open and sample.data.shape[1] <= _FEW_FEATURES

    def _removed(self, sample):
        """Basis of what is taken out of the embeddings."""
        return splitters.null_space_rows(sample.head.coef, null_space=self.null_space)

    def _stream_covariance(self, sample, row_space, random_state):
        """Class covariances by passes over the rows, the first one begun well."""
        data, n_classes = sample.data, len(sample.classes)
        weight = class_weights(data, n_classes)
        _validation.check_every_class(weight, sample.classes)
        solves = isinstance(self.splitter, str) and self.splitter == "pca"
        n_vectors = 0
        if solves and self.svd_solver != "full" and self.n_subclasses != 1:
            n_oversamples = max(int(self.n_oversamples), N_PROBES)
            n_vectors = self._n_directions() + n_oversamples
        centres, starts = [], []
        dtype = quick_dtype(data, n_classes)
        for drawn in class_samples(data, n_classes, random_state):
            centres.append(drawn.mean)
            starts.append(
                initial_subspace_from_sample(drawn, row_space, n_vectors, random_state)
            )
        return StreamedCovariance(
            data,
            weight,
            centres=np.stack(centres).astype(dtype),
            row_space=row_space,
            starts=starts,
        )

    def _n_wanted(self):
        """The number of subclasses; None where it is chosen here."""
        return None if self.n_subclasses == "auto" else int(self.n_subclasses)

    def _n_directions(self):
        """How many principal directions to look for."""
        return self._n_wanted() or splitters.AUTO_N_SUBCLASSES

    def _finish(self, sample, covariance, row_space, draws, stream=None):
        """Choose the directions and set the fitted attributes."""
        head = sample.head
        split = self._split(sample, covariance, row_space, draws, stream)
        variance, scale = splitters.score_moments(split, covariance)
        if not scale:
            # Divided by rounding, the scores would be noise.
            split = splitters.without_directions(split)
        null_variance = covariance.null_variance
        ratio = np.divide(
            variance,
            null_variance[:, None],
            out=np.zeros_like(variance),
            where=null_variance[:, None] > 0,
        )
        subclass_temperature = splitters.resolve_subclass_temperature(
            self.subclass_temperature,
            scale,
            self.splitter if isinstance(self.splitter, str) else "pca",
        )
        fitted = {
            "classes_": sample.classes,
            "n_subclasses_": split.offsets.shape[1],
            "components_": split.components,
            "offsets_": split.offsets,
            "mean_": covariance.mean.copy(),
            "coef_": head.coef,
            "intercept_": head.intercept,
            "explained_variance_": variance,
            "explained_variance_ratio_": ratio,
            "subclass_temperature_": subclass_temperature,
            "_stream": stream,
        }
        if isinstance(self.splitter, str) and self.splitter == "pca":
            fitted["spectrum_"] = split.spectrum
        # All at once, so that an interrupt finds the one fit or the other.
        vars(self).update(fitted)
        if "spectrum_" not in fitted:
            self.__dict__.pop("spectrum_", None)

    def _split(self, sample, covariance, row_space, draws, stream):
        classes = sample.classes
        wanted = self._n_wanted()
        if not isinstance(self.splitter, str):
            directions = _validation.check_directions(
                self.splitter, wanted, *covariance.mean.shape
            )
            return splitters.given_split(directions, covariance)
        if wanted == 1:
            return splitters.single_split(covariance)
        if self.splitter == "random":
            return splitters.random_split(
                covariance, row_space, classes, wanted, draws.directions
            )
        if self.splitter == "kmeans":
            centroids = _find_centroids(
                sample, covariance, row_space, wanted, draws.samples, stream
            )
            return splitters.centroid_split(centroids, covariance, classes, wanted)
        solve = self._solver(
            sample, covariance, row_space, draws.samples, streaming=stream is not None
        )
        return splitters.principal_split(
            solve,
            covariance,
            classes,
            wanted,
            rotation=self.rotation,
            random_state=draws.directions,
        )

    def _solver(
        self, sample, covariance, row_space, random_state, *, streaming
    ) -> Solver:
        if (
            self.svd_solver == "full"
            and not self._forms_covariance(sample)
            and not streaming
        ):
            return partial(full_directions, sample.data, covariance, row_space)
        power = None if self.iterated_power == "auto" else int(self.iterated_power)
        if not isinstance(covariance, ExplicitCovariance):
            started = covariance.started
        elif self.svd_solver == "randomized":
            n_vectors = self._n_directions() + int(self.n_oversamples)
            bases = [
                random_initial_subspace(row_space, n_vectors, random_state)
                for _ in sample.classes
            ]
            starts = [InitialSubspace(basis, basis[:, :0]) for basis in bases]
            started = list(zip(starts, covariance.apply(bases), strict=True))
        else:
            return partial(eigh_directions, covariance, row_space)
        return partial(
            randomized_directions, covariance, row_space, started, iterated_power=power
        )


def _find_centroids(sample, covariance, row_space, wanted, random_state, stream):
    """Centroids (S, d) of each class about its mean; a stream goes on from its own."""
    data, where = sample.data, (covariance.mean, row_space)
    if stream is not None and stream.centroids is not None:
        stream.centroids.add(data, *where)
        return stream.centroids.relative(*where)
    if stream is not None:
        # The first block with which clusters can start; elsewhere this is known.
        weight = class_weights(data, len(sample.classes))
        _validation.check_every_class(weight, sample.classes)
    n_clusters = wanted or splitters.AUTO_N_SUBCLASSES
    centroids = class_centroids(data, covariance, row_space, n_clusters, random_state)
    fewest = min(len(each) for each in centroids)
    if wanted is None and fewest < n_clusters:
        # As many as every class allows.
        centroids = class_centroids(data, covariance, row_space, fewest, random_state)
    if stream is not None and fewest >= (wanted or 1):
        stream.centroids = RunningCentroids.start(centroids, covariance.mean)
        stream.centroids.add(data, *where)
        return stream.centroids.relative(*where)
    return centroids
