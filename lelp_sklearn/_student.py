"""LELPStudentClassifier: a torch module trained on subclass soft labels."""

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from lelp_sklearn._callers import warned_once
from lelp_sklearn._extraction.sklearn_teachers import OmittedTeacher
from lelp_sklearn._files import content_hash
from lelp_sklearn._projector import LELPProjector
from lelp_sklearn._sklearn import (
    NO_TASK,
    CallbackSupportMixin,
    FitTask,
    begin_fit,
    single_block,
    with_callbacks,
)
from lelp_sklearn._targets import (
    TARGET_METADATA,
    check_target_params,
    make_targets,
    set_nested_params,
    usable_rows,
)
from lelp_sklearn._threads import exclusive
from lelp_sklearn._training import export
from lelp_sklearn._training.batches import as_tensor, batched_outputs
from lelp_sklearn._training.checkpoint import (
    Checkpoint,
    check_path,
    check_resumable,
    open_checkpoint,
)
from lelp_sklearn._training.inputs import StudentInputs, check_rows, has_head
from lelp_sklearn._training.loop import EpochLoop
from lelp_sklearn._training.modules import check_module_arguments, on_cpu
from lelp_sklearn._training.objective import schedule_value
from lelp_sklearn._training.optimizer import check_optimizer
from lelp_sklearn._training.process_group import SINGLE_PROCESS, Ranks, process_group
from lelp_sklearn._training.state import (
    Placement,
    Seeds,
    TrainingState,
    current_versions,
    make_epoch_loop,
    make_validation,
    releases,
    start_training,
)
from lelp_sklearn._typing import FloatArray
from lelp_sklearn._validation import check_class_weight, features_kept_on_error
from lelp_sklearn.exceptions import OtherVersionsWarning

# Parameters that the result of a fit does not depend on.
PARAMS_WITHOUT_EFFECT = "checkpoint", "checkpoint_interval", "device", "verbose"


class LELPStudentClassifier(
    CallbackSupportMixin,
    ClassifierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    r"""Torch module trained on the subclass soft labels of a teacher (LELP).

    The module has :math:`K = C \cdot S` outputs, S for each class. It is trained on the
    probabilities of subclasses that :class:`LELPProjector` makes of the teacher's
    embeddings. The loss of a row is

    .. math::

        L = (1 - \alpha) \left[ \tau^2 \mathrm{CE}_{class}(\tau) + \lambda \tau_w^2
            \sum_c p_c \mathrm{CE}_{within\ c}(\tau_w) \right]
            + \alpha \, \mathrm{CE}(y, \mathrm{softmax}(A))

    :math:`\mathrm{CE}_{class}(\tau)` is the cross-entropy between the class targets
    :math:`p_c = \sum_s p_{c,s}` and :math:`\mathrm{softmax}_c(A / \tau)`, where
    :math:`A_c = \tau \log \sum_s \exp(a_{c,s} / \tau)` are the class logits that
    `predict_proba`, `predict` and `decision_function` use.
    :math:`\mathrm{CE}_{within\ c}(\tau_w)` is that between :math:`p_{c,s} / p_c` and
    :math:`\mathrm{softmax}_s(a_{c,s} / \tau_w)`. With :math:`\lambda = 1` and
    :math:`\tau_w = \tau` this is the loss of [1]_. S = 1 is vanilla knowledge
    distillation.

    Parameters
    ----------
    module : torch.nn.Module, callable or None, default=None
        The student. A callable ``(n_features, n_outputs, **module_params)``, such as a
        class, returns the module; `n_features` is ``X.shape[1]``. An instance is a
        template: it is copied and, unless it has K outputs already, the
        :class:`torch.nn.Linear` of the copy whose output it returns for the first rows
        is replaced by a new one of K outputs. Training starts from the other weights of
        the template. None is a multilayer perceptron with ReLU on the flattened rows;
        its `module_params` are ``hidden_layer_sizes``, by default ``(128,)``; ``()`` is
        a linear student.
    module_params : dict, default=None
        Further arguments of the callable.
    projector : LELPProjector, FrozenEstimator or None, default=None
        Makes the targets; None is ``LELPProjector()``. A clone is fitted. If its
        `random_state` is None, it is derived from that of the student. A
        :class:`~sklearn.frozen.FrozenEstimator` of a fitted projector is used as it is.
    teacher : transformer, classifier or None, default=None
        Turns X into embeddings, unless they are given. A clone is fitted by
        ``teacher.fit(X, y)``, even if `teacher_embeddings` are given; wrap it in a
        :class:`~sklearn.frozen.FrozenEstimator` to avoid this. In a Pipeline, X is the
        output of the previous steps: for a teacher that reads texts, pass
        `teacher_embeddings`. If the teacher defines `fit_transform` itself, as
        a Pipeline and :class:`~sklearn.preprocessing.TargetEncoder` do, it makes the
        embeddings of the rows that the teacher is fitted on, in later calls too, and
        `transform` makes those of all other rows. Embeddings of several members,
        (n_members, n_samples, n_features), are averaged. `random_state` does not reach
        the teacher. Its `head_`, if there is one, is the head of a projector that has
        none; an :class:`EmbeddingExtractor` without a head is also asked for the
        logits, unless they are given. The teacher is not stored when a fitted student
        is pickled. A torch module has to be wrapped in an :class:`EmbeddingExtractor`.
        An unfitted classifier of scikit-learn is fitted on the labelled rows and
        cross-fitted: linear models, :class:`~sklearn.neural_network.MLPClassifier`,
        gradient boosting (also LightGBM's and XGBoost's), forests, and a Pipeline or a
        :class:`~sklearn.ensemble.StackingClassifier` that ends in one. A fitted one is
        wrapped in an :class:`EmbeddingExtractor` or a
        :class:`~sklearn.frozen.FrozenEstimator`.
    teacher_cv : int, cross-validation generator, iterable or None, default=5
        Splits the rows for a `teacher` that is an unfitted classifier: the class
        targets of a row come from a fit that did not see it, and the embeddings from a
        fit to all rows. None takes both from the latter, which is too sure of the rows
        that it has seen. An iterable of splits counts the labelled training rows.
    label_weight : float, default=0.0
        The weight α of the true labels. Rows without a label have no such term.
    subclass_weight : float, "anneal" or callable, default="anneal"
        The weight λ of the subclasses. 1 is the published weight; "anneal" falls
        linearly to 0 over the first half of training, from 1 or, if
        `within_class_temperature` is "auto", from r; a callable takes the progress of
        training from 0 to 1.
    within_class_temperature : float or "auto", default="auto"
        The temperature :math:`\tau_w` within the classes. "auto" is r if each class has
        all its mass on one subclass (`subclass_temperature` 0), and r τ otherwise. r is
        a fifth of :math:`\log p_{(1)} - \log p_{(2)}`, of the targets of the two
        most likely classes of a row, on average over the training rows, and at most 1.
        The student drives the logits of subclasses some :math:`\tau_w` apart; if they
        were farther apart than the logits of the teacher's classes, then subclasses
        that it learns by heart would decide the classes of new rows. r is 1 for labels.
        A fit that continues keeps what "auto" became.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes in the loss, by label; 1 if not given. "balanced"
        makes the classes equal in total weight. A row without a label counts as the
        teacher's most likely class. Rows whose class weight is 0 do not enter the
        student's loss but are used to fit the projector.
    unlabeled : object, default=None
        The value in y that marks rows without a label, such as -1, NaN or a string. It
        is passed to the projector. None uses `unlabeled` of `projector`; if that is
        None too, every value is a label. Inside VotingClassifier, StackingClassifier,
        BaggingClassifier and the multiclass meta-estimators only None is allowed: they
        encode y, marks included, before the student is fitted.
    optimizer : "adamw", "sparse_adam" or callable, default="adamw"
        "sparse_adam" is faster for sparse X with many features: a step changes the
        weights only of features that occur in its batch. What AdamW does to the others,
        weight decay and the rest of their momentum, is made up when they occur again,
        after the gradient of that batch, or at the end of the epoch; a stored 0 counts
        as an occurrence. The same applies
        to ``nn.Embedding(sparse=True)``; all else is updated as by "adamw". It trains
        in one process. A callable ``(parameters, lr=, weight_decay=)`` returns a
        :class:`torch.optim.Optimizer` whose `step` needs no closure.
    learning_rate : float or "auto", default="auto"
        The learning rate, which `learning_rate_schedule` multiplies. "auto" is 0.015 τ,
        but at most 0.06, and 0.01 for a `module` of the caller: the loss is of A / τ,
        so that logits at a higher τ have farther to go. A fit that continues keeps it.
    learning_rate_schedule : str or callable, default="cosine"
        "constant"; "cosine" falls to 0 at the end of training; "one_cycle" rises from a
        25th over the first three tenths and then falls, as in
        :class:`torch.optim.lr_scheduler.OneCycleLR`. In `partial_fit`, which has no
        known end, these are constant. A callable gives the factor of `learning_rate` at
        a progress from 0 to 1.
    weight_decay : float, default=0.01
        Decoupled weight decay of AdamW; passed to `optimizer`.
    max_grad_norm : float, default=None
        Norm to which longer gradients are clipped; None clips none.
    max_epochs : int, default=100
        Number of epochs, over which progress goes from 0 to 1.
    batch_size : int, default=64
        Rows per step, of all processes together. A last batch of one row is merged with
        the previous batch. Prediction takes up to 16 times as many rows at once.
    augment : callable, default=None
        Takes the inputs of a training batch, a tensor on the training device, in CSR
        format if X is sparse, and returns inputs for the same rows; the targets stay
        the same. Its torch random numbers are controlled by `random_state`.
    early_stopping : bool, default=False
        Whether to stop if the score on validation rows has not risen for
        `n_iter_no_change` epochs, and to keep the weights of the best epoch. The score
        is the negative cross-entropy to the class probabilities of the teacher, so rows
        without a label count; without a teacher, to the labels. Any epoch can be the
        best. Epochs without improvement count only once λ has reached its final value:
        with "anneal", from the middle of `max_epochs` on.
    validation_fraction : float, default=0.1
        Fraction of the rows, stratified by label, that is held out if `early_stopping`
        is set and no `X_val` is given. The projector is not fitted on them.
    n_iter_no_change : int, default=10
        See `early_stopping`.
    warm_start : bool, default=False
        Whether `fit` continues from the fitted module, with a new optimizer. λ and the
        learning rate schedule start again at progress 0. The fitted projector is kept,
        since the outputs stand for its subclasses; so are the precision of the weights
        and the seeds, so that `early_stopping` holds out the same rows. The curves are
        continued.
    verbose : int, default=0
        1 prints a line per epoch: its mean loss, the score on the validation rows if
        there are any, its seconds, and the time that remains until `max_epochs`.
    checkpoint : path-like, default=None
        Where to store what an interrupted `fit` continues from: called again with the
        same data and parameters, it ends with the same weights. A file that ends in
        ``.ckpt`` is for this fit; any other path is a folder, in which each fit, of a
        search for instance, has a file of its own. A complete fit is not repeated, but
        read from its file. Requires an integer `random_state`.
    checkpoint_interval : int, default=1
        Epochs between two writings.
    device : str or torch.device, default="auto"
        Where to train. "auto" is the accelerator that holds X, else the first that is
        available, else the CPU.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        "auto" is float64 on the CPU if X is float64, and float32 otherwise. "bfloat16"
        and "float16" are automatic mixed precision: products are of half precision,
        weights are float32, and with "float16" the loss is scaled.
    random_state : int, RandomState instance or None, default=None
        Controls the initial weights, the order of rows, the random numbers that modules
        draw from torch and the rows that are held out. With an int or a RandomState, no
        global generator is changed; None draws the seeds from NumPy's global generator.

    Attributes
    ----------
    module_ : torch.nn.Module
        The trained module, which returns the K logits.
    projector_ : LELPProjector, FrozenEstimator or None
        The fitted projector; None if `soft_targets` were given and no frozen one.
    classes_ : ndarray of shape (n_classes,)
        The classes.
    n_epochs_ : int
        Number of complete epochs.
    learning_rate_ : float
        The learning rate of the last fit, which `learning_rate_schedule` multiplies.
    stop_reason_ : str or None
        What ended `fit`: "max_epochs", "early_stopping", "callback", or an exception
        that was raised: "interrupted" (KeyboardInterrupt), "not_finite"
        (FloatingPointError) or "error". None after `partial_fit`.
    loss_curve_ : list of float
        Mean loss of each epoch.
    validation_scores_ : list of float or None
        Score of each epoch on the validation rows, one for each loss. NaN for an epoch
        without `early_stopping`, if warm starts and `partial_fit` mix both;
        None if no epoch was scored.
    n_features_in_ : int
        ``X.shape[1]``.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if X has names that are strings.

    See Also
    --------
    LELPProjector : Makes the soft labels.
    lelp_sklearn.losses.subclass_cross_entropy : The loss, for other trainers.

    Notes
    -----
    Embeddings, logits, soft targets and `sample_weight` are metadata of `fit` that
    cross-validation slices with the rows and that is requested by default. If another
    step of a pipeline takes `sample_weight` too, metadata routing requires an explicit
    request of every such step (`set_fit_request`). `X_val`, `y_val` and
    `teacher_embeddings_val` are not requested; a Pipeline transforms `X_val` if it is
    named in its `transform_input`.

    Integer X is passed as int64 (token ids) to a custom `module` that accepts it, and
    as floats otherwise. On the CPU, fits with the same `random_state` and number of
    threads give identical results.

    Sparse X is converted to CSR format once and never made dense as a whole. The first
    layer of the default module reads the stored entries only, and the result is that of
    dense X up to rounding. A custom `module` is given tensors of layout
    ``torch.sparse_csr``, which :class:`torch.nn.Linear` takes; any other has to call
    ``x.to_dense()`` first in its `forward`. TfidfVectorizer returns float64, with which
    training takes about twice the time: construct it with ``dtype=np.float32``.

    If an exception ends `fit`, KeyboardInterrupt included, the complete epochs are
    kept: the module has the weights of the last, or with `early_stopping` of the best.
    Before the first is complete, and in `partial_fit`, the student stays as it was.

    The loss is copied from the device once per epoch; no step waits for it. With sparse
    X on an accelerator a step waits for the number of entries of its batch.

    A fitted student is pickled as NumPy arrays and loaded on the CPU; ``module_.to``
    moves it. Loading a pickle of other versions issues a
    :class:`lelp_sklearn.exceptions.OtherVersionsWarning`. skops can load it if
    `module` is None or can be imported, the projector's `head` is None or arrays, and
    there is no teacher. Use `to_module` or `to_onnx` to export the fitted model for
    inference.

    References
    ----------
    .. [1] Loo, Iliopoulos, Hu and Vee, "Linear Projections of Teacher Embeddings for
       Few-Class Distillation", 2024, arXiv:2409.20449.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from lelp_sklearn import LELPProjector, LELPStudentClassifier
    >>> X, digit = load_digits(return_X_y=True)
    >>> X, y = X / 16, digit % 2
    >>> head = LogisticRegression().fit(X, y)
    >>> student = LELPStudentClassifier(
    ...     projector=LELPProjector(n_subclasses=5, head=head),
    ...     max_epochs=5,
    ...     random_state=0,
    ... )
    >>> student.fit(X, y, teacher_embeddings=X).predict_subclass_proba(X).shape
    (1797, 10)
    """

    __metadata_request__fit: ClassVar[dict[str, Any]] = TARGET_METADATA
    __metadata_request__partial_fit: ClassVar[dict[str, Any]] = TARGET_METADATA
    _sk_visual_block_ = single_block

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "module": [callable, None],
        "module_params": [dict, None],
        "projector": [LELPProjector, FrozenEstimator, None],
        "teacher": "no_validation",
        "teacher_cv": ["cv_object"],
        "label_weight": [Interval(Real, 0, 1, closed="both")],
        "subclass_weight": [
            Interval(Real, 0, None, closed="left"),
            StrOptions({"anneal"}),
            callable,
        ],
        "within_class_temperature": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"auto"}),
        ],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "unlabeled": "no_validation",
        "optimizer": [StrOptions({"adamw", "sparse_adam"}), callable],
        "learning_rate": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"auto"}),
        ],
        "learning_rate_schedule": [
            StrOptions({"constant", "cosine", "one_cycle"}),
            callable,
        ],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "augment": [callable, None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "checkpoint": [str, os.PathLike, None],
        "checkpoint_interval": [Interval(Integral, 1, None, closed="left")],
        "precision": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
        "device": [str, torch.device],
        "random_state": ["random_state"],
    }

    _state: TrainingState

    def __init__(
        self,
        module: Any = None,
        *,
        module_params: Any = None,
        projector: Any = None,
        teacher: Any = None,
        teacher_cv: Any = 5,
        label_weight: Any = 0.0,
        subclass_weight: Any = "anneal",
        within_class_temperature: Any = "auto",
        class_weight: Any = None,
        unlabeled: Any = None,
        optimizer: Any = "adamw",
        learning_rate: Any = "auto",
        learning_rate_schedule: Any = "cosine",
        weight_decay: Any = 0.01,
        max_grad_norm: Any = None,
        max_epochs: Any = 100,
        batch_size: Any = 64,
        augment: Any = None,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        n_iter_no_change: Any = 10,
        warm_start: Any = False,
        verbose: Any = 0,
        checkpoint: Any = None,
        checkpoint_interval: Any = 1,
        device: Any = "auto",
        precision: Any = "auto",
        random_state: Any = None,
    ) -> None:
        self.module = module
        self.module_params = module_params
        self.projector = projector
        self.teacher = teacher
        self.teacher_cv = teacher_cv
        self.label_weight = label_weight
        self.subclass_weight = subclass_weight
        self.within_class_temperature = within_class_temperature
        self.class_weight = class_weight
        self.unlabeled = unlabeled
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.augment = augment
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_interval = checkpoint_interval
        self.device = device
        self.precision = precision
        self.random_state = random_state

    set_params = set_nested_params

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        teacher_embeddings: Any = None,
        teacher_logits: Any = None,
        soft_targets: Any = None,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        teacher_embeddings_val: Any = None,
    ) -> "LELPStudentClassifier":
        """Train the student.

        The targets are `soft_targets`, if given. Otherwise the projector makes them of
        `teacher_embeddings`, else of the embeddings of `teacher`, else of X, or of its
        :class:`~sklearn.decomposition.TruncatedSVD` of at most 100 components if X is
        sparse. In the last case, unless `teacher_logits` or a `head` of the projector
        give the class probabilities, there is no teacher: the class targets are the
        labels.

        Parameters
        ----------
        X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, ...)
            Inputs of the student: two dimensions or more, such as images or token ids,
            or a sparse matrix or array of SciPy.
        y : array-like of shape (n_samples,), default=None
            Class labels. Rows marked `unlabeled`, or all rows if y is None, take the
            class that is most likely by the teacher.
        teacher_embeddings : array-like of shape (n_samples, n_embedding), default=None
            The teacher's embeddings of the rows. An array of three dimensions,
            (n_members, n_samples, n_embedding), is averaged over the members. Average
            it before cross-validation, which slices the first axis.
        teacher_logits : array-like of shape (n_samples, n_classes) or (n_samples, 1), \
                default=None
            The teacher's logits, as in :meth:`LELPProjector.fit`.
        soft_targets : array-like of shape (n_samples, n_classes * n_subclasses), \
                default=None
            Output of :meth:`LELPProjector.transform`, made elsewhere. Their temperature
            is that of a frozen projector, else the `temperature` of `projector`, 1 if
            that is "auto". The classes are those of a frozen projector,
            else of y, else, if `n_subclasses` of `projector` is a number, 0, 1 and so
            on. So y must have every class unless the projector is frozen: otherwise the
            columns of a missing class count as subclasses of others, which is an error
            only if `n_subclasses` is a number.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights. A row of weight 0 is left out.
        X_val : {array-like, sparse matrix, torch.Tensor} of shape (n_val, ...), \
                default=None
            Validation rows for `early_stopping`.
        y_val : array-like of shape (n_val,), default=None
            Their labels, against which they are scored if the teacher's class
            probabilities are not known.
        teacher_embeddings_val : array-like of shape (n_val, n_embedding), default=None
            The teacher's embeddings of the validation rows. Without a head and without
            a `teacher`, their class probabilities come from the least-squares map to
            the logits of the training rows.

        Returns
        -------
        self : LELPStudentClassifier
            The fitted student.

        Raises
        ------
        ValueError
            If arguments hold NaN or infinity, do not fit together, or leave the classes
            or targets unknown; if the module does not make K outputs.
        TypeError
            If teacher data are sparse, or the module or the optimizer cannot be built.
        FloatingPointError
            If the loss of a step or a weight was not finite, at the end of the epoch.

        Warns
        -----
        NoTeacherWarning
            If no teacher is given: the class targets are then the labels.
        ClassOrderWarning
            If the teacher's classes in another order would agree far better with the
            labels.
        OverfittedTeacherWarning
            If class targets of labelled rows are far more certain than those of others.
        ProbabilitiesAsLogitsWarning
            If `teacher_logits` are probabilities.
        ConvergenceWarning
            If, with `early_stopping`, the best epoch is in the first tenth of 10 epochs
            or more, or the score rose by more than 2 % in the last tenth.
        """
        with self._fitting(), process_group() as ranks:
            # 1. Parameters.
            self._check_params(ranks)
            previous = None
            if self.warm_start and hasattr(self, "_state"):
                previous = replace(self._state, optimizer_state=None)
            # 2. Data.
            row_format = previous.row_format if previous else None
            inputs = StudentInputs.from_user(
                self,
                X,
                y,
                row_format=row_format,
                teacher_embeddings=teacher_embeddings,
                teacher_logits=teacher_logits,
                soft_targets=soft_targets,
                sample_weight=sample_weight,
            )
            if previous is None and not has_head(self.projector):
                inputs.check_several_labels()
            validation_inputs = inputs.validation_from_user(
                self, X_val, y_val, teacher_embeddings_val, row_format
            )
            placement = Placement.resolve(self, inputs, ranks)
            # 3. Rows to train on, and rows to stop by.
            source = previous.source if previous else None
            is_train, held_out = usable_rows(self, inputs, source), None
            seeds = ranks.broadcast_from_rank0(lambda: Seeds.of(self, previous))
            if validation_inputs is None:
                is_train, held_out = inputs.hold_out(self, is_train, seeds.hold_out)
            # 4. Teacher and projector make the targets.
            task = self._begin_task(inputs, y, sample_weight, previous, ranks)
            source, targets = ranks.broadcast_from_rank0(
                lambda: make_targets(
                    self, inputs, is_train, seeds.projector, source, task
                )
            )
            # 5. Module, loss and optimizer.
            state, trainer = start_training(
                self, inputs, is_train, source, targets, seeds, previous, placement
            )
            validation = ranks.on_rank0(
                lambda: make_validation(
                    state, trainer, inputs, held_out, validation_inputs
                )
            )
            # 6. Checkpoint.
            with (
                self._open_checkpoint(
                    state, inputs, validation_inputs, ranks
                ) as checkpoint,
                self._set_fitted_attributes_on_exit(state),
            ):
                # 7. Epochs.
                make_epoch_loop(
                    self, state, trainer, validation, checkpoint, task
                ).run()
            task.end({})
        return self

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        classes: Any = None,
        *,
        teacher_embeddings: Any = None,
        teacher_logits: Any = None,
        soft_targets: Any = None,
        sample_weight: Any = None,
    ) -> "LELPStudentClassifier":
        """Train for one epoch on a block of rows.

        The teacher and the projector, unless frozen, are fitted in the first call and
        kept. Progress, on which λ depends, is the number of calls and of earlier epochs
        of `fit` over `max_epochs`, at most 1. The learning rate is `learning_rate`,
        unless `learning_rate_schedule` is a callable, so that a stream continues to
        learn, after :meth:`fit` too. The optimizer keeps its state between calls; it
        takes a new `learning_rate` and `weight_decay`, and another `optimizer` starts
        again.

        Parameters
        ----------
        X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, ...)
            As in :meth:`fit`. If a projector is fitted, the first block must have rows
            of every class, by label or by the teacher, enough for `n_subclasses`.
        y : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.
        classes : array-like of shape (n_classes,), default=None
            All classes; sorted, they are in the order of the teacher's outputs.
            Required in the first call.
        teacher_embeddings, teacher_logits, soft_targets, sample_weight : \
                array-like, default=None
            As in :meth:`fit`.

        Returns
        -------
        self : LELPStudentClassifier
            The student.

        Raises
        ------
        ValueError
            As in :meth:`fit`; if `classes` are missing in the first call, or if
            `early_stopping` or balanced class weights are set.
        """
        with self._fitting():
            # 1. Parameters.
            self._check_params()
            previous = getattr(self, "_state", None)
            self._check_partial_fit(classes, is_first=previous is None)
            # 2. Data.
            inputs = StudentInputs.from_user(
                self,
                X,
                y,
                row_format=previous.row_format if previous else None,
                teacher_embeddings=teacher_embeddings,
                teacher_logits=teacher_logits,
                soft_targets=soft_targets,
                sample_weight=sample_weight,
            )
            placement = Placement.resolve(self, inputs)
            # 3. Rows to train on; none are held out.
            source = previous.source if previous else None
            is_train = usable_rows(self, inputs, source)
            seeds = Seeds.of(self, previous)
            # 4. Teacher and projector make the targets.
            source, targets = make_targets(
                self, inputs, is_train, seeds.projector, source, classes=classes
            )
            # 5. Module, loss and optimizer.
            state, trainer = start_training(
                self,
                inputs,
                is_train,
                source,
                targets,
                seeds,
                previous,
                placement,
                endless=True,
            )
            # 7. One epoch, without a checkpoint.
            with self._set_fitted_attributes_on_exit(state):
                try:
                    EpochLoop(
                        state,
                        trainer,
                        n_epochs=1,
                        first_progress_epoch=len(state.curves.loss),
                    ).run()
                finally:
                    state.stop_reason = None
                    state.optimizer_state = {
                        "made_by": self.optimizer,
                        **trainer.optimizer_state(),
                    }
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples,)
            The most likely classes.
        """
        most_likely = self._class_logits(X).argmax(dim=1).cpu().numpy()
        classes: NDArray[Any] = self.classes_[most_likely]
        return classes

    def predict_proba(self, X: Any) -> FloatArray:
        """Predict class probabilities, the softmax of the class logits.

        Parameters
        ----------
        X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of `classes_`.
        """
        return torch.softmax(self._class_logits(X), dim=1).cpu().numpy()

    def predict_log_proba(self, X: Any) -> FloatArray:
        """Predict the logarithms of class probabilities.

        They are computed from the class logits, and so are finite even if
        `predict_proba` rounds to zero.

        Parameters
        ----------
        X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities, in the order of `classes_`.
        """
        return torch.log_softmax(self._class_logits(X), dim=1).cpu().numpy()

    def predict_subclass_proba(self, X: Any) -> FloatArray:
        """Predict the probabilities of subclasses.

        Class probabilities times the softmax within the class at the within-class
        temperature: summed over the subclasses they equal `predict_proba`.

        Parameters
        ----------
        X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes * n_subclasses)
            Probabilities, subclass s of class c in column ``c * n_subclasses + s``.
        """
        logits = torch.cat(list(self._logits(X)))
        objective = self._state.objective
        classes = torch.softmax(objective.class_logits(logits), dim=1)
        scaled = logits / objective.within_class_temperature
        within = torch.softmax(scaled.view(len(logits), len(self.classes_), -1), dim=2)
        return (classes[:, :, None] * within).flatten(1).cpu().numpy()

    def decision_function(self, X: Any) -> FloatArray:
        """Compute the class logits.

        Parameters
        ----------
        X : {array-like, sparse matrix, torch.Tensor} of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples,)
            The class logits A; for two classes the second minus the first, whose
            logistic function is the probability of the second class.
        """
        A = self._class_logits(X).cpu().numpy()
        return A[:, 1] - A[:, 0] if A.shape[1] == 2 else A

    def to_module(self) -> nn.Module:
        r"""Return a torch module of class probabilities, independent of the student.

        The module maps a tensor of rows to :math:`\mathrm{softmax}(A)` of the class
        logits :math:`A_c = \tau \log \sum_s \exp(a_{c,s} / \tau)`, as `predict_proba`
        does. It is a copy: training or moving one does not change the other. It can be
        pickled, so that ``torch.save`` and ``torch.load(weights_only=False)`` work if
        the class of the trained module can be imported.

        Returns
        -------
        torch.nn.Module
            On the CPU, in evaluation mode and in the precision of the student, float64
            if X was float64; no parameter requires a gradient. Takes a tensor of shape
            (n, n_features, ...), of any number of rows and in its own precision, or
            int64 if X were ids, and returns one of shape (n, n_classes) in the order of
            `classes_`. If X was sparse, the layout is ``torch.sparse_csr`` or dense.

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
        return export.ClassProbabilities(*self._folded_net())

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write class probabilities as an ONNX file.

        The input ``X`` is a dense tensor of rows, float32 even if the student computes
        in float64, or int64 if X were ids. Also if X was sparse, rows are dense, of 4
        bytes per feature: 1 MiB per row of 2¹⁸ features. The first output
        ``probabilities``, of shape (n, n_classes), equals `predict_proba`, in the order
        of `classes_`. The number of rows is free. The weights are in the same file, in
        single precision; it contains no source paths.

        Parameters
        ----------
        path : str or os.PathLike
            A name that ends in ``.onnx``. The file is renamed to it when it is
            complete; an existing file is replaced.

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
        module = self._state.module
        # The exporter takes a dimension of one row for a constant.
        rows = torch.zeros((2, *module.row_shape), dtype=module.dtype)
        export.export_onnx(*self._folded_net(), rows, path)

    def _logits(self, X: Any) -> Iterator[Tensor]:
        check_is_fitted(self)
        module = self._state.module
        rows = check_rows(self, X, self._state.row_format)
        module.check_layout(rows)
        batch_size = int(self.batch_size)
        return batched_outputs(module.net, as_tensor(rows), batch_size, module.dtype)

    def _class_logits(self, X: Any) -> Tensor:
        batches = self._logits(X)
        return torch.cat([self._state.objective.class_logits(each) for each in batches])

    def _folded_net(self) -> tuple[nn.Module, int, int, float]:
        """Return the module, its C and S, and the temperature of their sum."""
        module, objective = self._state.module, self._state.objective
        n_subclasses = module.n_outputs // objective.n_classes
        return module.net, objective.n_classes, n_subclasses, objective.temperature

    # --- the parts of a fit -----------------------------------------------------------

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Warn of each thing once; restore the features seen in fit after an error."""
        with (
            warned_once(),
            features_kept_on_error(self, "_state"),
            torch.inference_mode(False),
        ):
            yield

    def _check_params(self, ranks: Ranks = SINGLE_PROCESS) -> None:
        """Raise, before work starts, if a parameter cannot be used."""
        self._validate_params()
        check_target_params(self)
        check_class_weight(self.class_weight)
        check_resumable(self.checkpoint, self.random_state)
        if self.checkpoint is not None:
            ranks.broadcast_from_rank0(lambda: check_path(self.checkpoint))
        check_module_arguments(self.module, self.module_params)
        for name in ("subclass_weight", "learning_rate_schedule"):
            if callable(schedule := getattr(self, name)):
                for progress in self._progress_by_epoch():
                    schedule_value(schedule, name, progress)
        # What "auto" becomes is not known yet.
        rate = 0.01 if self.learning_rate == "auto" else float(self.learning_rate)
        check_optimizer(self.optimizer, rate, self.weight_decay)
        if self.optimizer == "sparse_adam" and ranks.size > 1:
            raise ValueError(
                f"optimizer='sparse_adam' trains in one process and there are "
                f"{ranks.size}: set optimizer='adamw'."
            )

    def _progress_by_epoch(self) -> list[float]:
        """Return the progress of training at each end of an epoch, 0 first."""
        max_epochs = int(self.max_epochs)
        return [epoch / max_epochs for epoch in range(max_epochs + 1)]

    def _check_partial_fit(self, classes: Any, *, is_first: bool) -> None:
        """Raise if a parameter needs all the data, or the classes are not known."""
        if self.early_stopping:
            raise ValueError(
                "partial_fit does not support early_stopping=True: set "
                "early_stopping=False, or use fit."
            )
        if self.class_weight == "balanced":
            raise ValueError(
                "partial_fit does not support class_weight='balanced': pass a dict."
            )
        if is_first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")

    def _begin_task(
        self,
        inputs: StudentInputs,
        y: Any,
        sample_weight: Any,
        previous: TrainingState | None,
        ranks: Ranks,
    ) -> FitTask:
        """Set up the callbacks, in the first process only."""
        if not ranks.is_rank0:
            return NO_TASK
        fits_projector = previous is None and inputs.soft_targets is None
        n_steps = int(self.max_epochs) + fits_projector
        data = inputs.for_callbacks(y, sample_weight)
        return begin_fit(self, **data, max_subtasks=n_steps)

    @contextmanager
    def _open_checkpoint(
        self,
        state: TrainingState,
        inputs: StudentInputs,
        validation_inputs: StudentInputs | None,
        ranks: Ranks,
    ) -> Iterator[Checkpoint | None]:
        """Yield the checkpoint of this fit; None if the parameter is None."""
        if self.checkpoint is None:
            yield None
            return
        identity = self._hash_fit(state, inputs, validation_inputs)
        interval = int(self.checkpoint_interval)
        with ExitStack() as stack:
            yield ranks.on_rank0(
                lambda: stack.enter_context(
                    open_checkpoint(self.checkpoint, identity, interval)
                )
            )

    def _hash_fit(
        self,
        state: TrainingState,
        inputs: StudentInputs,
        validation_inputs: StudentInputs | None,
    ) -> dict[str, str]:
        """Return content hashes of everything that the result depends on, by name."""
        params = self.get_params(deep=False)
        for name in PARAMS_WITHOUT_EFFECT:
            del params[name]
        for name, value in params.items():
            if isinstance(value, np.generic):
                # NumPy's 8 is the number 8.
                params[name] = value.item()
        # The weights count, not the callable that builds them.
        params["module"] = state.module.net.state_dict()
        for name in ("subclass_weight", "learning_rate_schedule"):
            if callable(schedule := params[name]):
                values = [float(schedule(each)) for each in self._progress_by_epoch()]
                params[name] = values
        rows = inputs.arguments()
        validation_rows = dict.fromkeys(rows)
        if validation_inputs is not None:
            validation_rows = validation_inputs.arguments()
        rows |= {f"{name}_val": value for name, value in validation_rows.items()}
        # While another thread runs the teacher, it has hooks and another mode.
        with exclusive(*self.get_params().values()):
            return {
                name: content_hash(value) for name, value in (params | rows).items()
            }

    @contextmanager
    def _set_fitted_attributes_on_exit(self, state: TrainingState) -> Iterator[None]:
        """Set the fitted attributes, also after an error, if an epoch is complete."""
        n_epochs_before = len(state.curves.loss)
        try:
            yield
        finally:
            if len(state.curves.loss) > n_epochs_before:
                # All at once, so that an interrupt cannot mix two fits.
                self.__dict__.update(state.attributes())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # --- copies and pickles -----------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    def __sklearn_clone__(self) -> Any:
        # The modules that are copied may be running as teachers in other threads.
        with exclusive(*self.get_params().values()):
            return super().__sklearn_clone__()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LELPStudentClassifier":
        # Unlike a pickle, a copy keeps the teacher.
        twin = memo[id(self)] = type(self).__new__(type(self))
        attributes = {k: v for k, v in vars(self).items() if k != "module_"}
        state = attributes.pop("_state", None)
        with exclusive(*self.get_params().values()):
            twin.__dict__.update(copy.deepcopy(attributes, memo))
        if state is not None:
            # Outside the locks: it builds a module under torch's lock, under which a
            # fit in another thread takes the lock of its template.
            twin._state = copy.deepcopy(state, memo)
            twin.module_ = twin._state.module.net
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, which loads on a machine without the device.

        - Dropped: `module_`, which is the module of `_state`, and the teacher of a
          fitted student, but for the name of its class.
        - Kept: parameters, fitted attributes and `_state`, with which training
          continues; if fitted, also the versions that made it.
        - Moved: a template `module` to the CPU; weights to NumPy arrays, by
          `StudentModule` in _training/modules.py; the optimizer of `partial_fit` to
          NumPy arrays, by `TrainingState` in _training/state.py. `TargetSource` in
          _targets.py drops the teacher from `_state`.
        """
        state = {**super().__getstate__(), "module": on_cpu(self.module)}
        if state.pop("module_", None) is None:
            return state
        teacher = OmittedTeacher.of(self.teacher)
        return {**state, "teacher": teacher, "_versions": current_versions()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved, current = state.get("_versions"), current_versions()
        if saved is not None and releases(saved) != releases(current):
            warning = OtherVersionsWarning(type(self).__name__, saved, current)
            warnings.warn(warning, stacklevel=2)
        super().__setstate__({n: v for n, v in state.items() if n != "_versions"})
        if hasattr(self, "_state"):
            self.module_ = self._state.module.net
