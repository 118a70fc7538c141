"""LELPStudentClassifier: a torch module trained on subclass soft labels."""

import os
from numbers import Integral, Real
from typing import ClassVar

import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from lelp_sklearn import _training_validation
from lelp_sklearn._callbacks import CallbackSupportMixin, with_callbacks
from lelp_sklearn._callers import warned_once
from lelp_sklearn._class_predictions import ClassPredictionMixin
from lelp_sklearn._features import features_of_what_is_kept
from lelp_sklearn._fitting import StudentFittingMixin
from lelp_sklearn._projector import LELPProjector
from lelp_sklearn._saving import SavedStudentMixin
from lelp_sklearn._training.process_group import process_group


class LELPStudentClassifier(
    CallbackSupportMixin,
    StudentFittingMixin,
    ClassPredictionMixin,
    SavedStudentMixin,
    ClassifierMixin,
    BaseEstimator,
):
    r"""A torch module trained on the subclass soft labels of a teacher (LELP).

    The module has :math:`K = C \cdot S` outputs, S for each class. It is trained on the
    probabilities of subclasses that :class:`LELPProjector` makes of the teacher's
    embeddings, with the loss of [1]_ opened into classes and subclasses:

    .. math::

        L = (1 - \alpha) \left[ \tau^2 \mathrm{CE}_{class}(\tau) + \lambda \tau_w^2
            \sum_c p_c \mathrm{CE}_{within\ c}(\tau_w) \right]
            + \alpha \, \mathrm{CE}(y, \mathrm{softmax}(A))

    where :math:`A_c = \tau \log \sum_s \exp(a_{c,s} / \tau)` are the class logits that
    `predict_proba`, `predict` and `decision_function` use. S = 1 is vanilla knowledge
    distillation.

    Parameters
    ----------
    module : torch.nn.Module, callable or None, default=None
        The student. A callable ``(n_features, n_outputs, **module_params)``, such as a
        class, returns the module; `n_features` is ``X.shape[1]``. An instance is a
        template: it is copied and, unless it has K outputs already, the
        :class:`torch.nn.Linear` of the copy whose output it returns for the first rows
        is replaced by a new one of K outputs; the other weights are where training
        starts. None is a multilayer perceptron with ReLU on the flattened
        rows, which takes ``hidden_layer_sizes``, default ``(128,)``, in
        `module_params`.
    module_params : dict, default=None
        Further arguments of the callable.
    projector : LELPProjector, FrozenEstimator or None, default=None
        Makes the targets; None is ``LELPProjector()``. A clone is fitted, whose
        `random_state`, where it is None, is derived from that of the student. A
        :class:`~sklearn.frozen.FrozenEstimator` of a fitted one is used as it is.
    teacher : transformer or None, default=None
        Turns X into embeddings, unless they are given. A clone is fitted by
        ``teacher.fit(X, y)``, unless frozen, also where `teacher_embeddings` are given;
        inside a Pipeline X is what the steps before made of it. Where it has a
        `fit_transform` of its own, as a Pipeline and
        :class:`~sklearn.preprocessing.TargetEncoder` have, that makes the embeddings of
        the rows that it is fitted on, and of the same rows in later calls, and
        `transform` those of all others. Embeddings of several members, (n_members,
        n_samples, n_features), are averaged. `random_state` does not reach it. Its
        `head_`, if there is one, is the head of a projector that has none; an
        :class:`EmbeddingExtractor` without a head is called once more for the logits
        that are not given. The teacher is not stored when a fitted student is pickled.
        A torch module is wrapped in an :class:`EmbeddingExtractor`.
    label_weight : float, default=0.0
        The weight α of the true labels. Rows without a label have no such term.
    subclass_weight : float, "anneal" or callable, default="anneal"
        The weight λ of the subclasses. 1 is the published method; "anneal" falls
        linearly from 1 to 0 over the first half of training; a callable takes the
        progress of training from 0 to 1.
    within_class_temperature : float or "auto", default="auto"
        The temperature :math:`\tau_w` within the classes. "auto" is 1 where each class
        has all its mass on one subclass (`subclass_temperature` 0) and else τ.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes in the loss, by label; 1 where not given. "balanced"
        makes the classes equal in total weight. A row without a label counts as the
        teacher's likeliest class. The student does not learn from rows of weight 0; the
        projector does.
    unlabeled : object, default=None
        The value in y that marks rows without a label, such as -1, NaN or a string.
        Handed on to the projector; None is what `projector` has, by default no value.
        VotingClassifier, StackingClassifier, BaggingClassifier and the multiclass
        meta-estimators encode y, and with it the marks, before the student sees it:
        inside them only None is allowed.
    optimizer : "adamw" or callable, default="adamw"
        A callable ``(parameters, lr=, weight_decay=)`` returns a
        :class:`torch.optim.Optimizer` whose `step` needs no closure, such as
        ``torch.optim.SGD``.
    learning_rate : float, default=0.01
        The learning rate, where the schedule has not changed it.
    learning_rate_schedule : str or callable, default="cosine"
        "constant"; "cosine" falls to 0 at the end of training; "one_cycle" rises from a
        25th over the first three tenths and then falls, as in
        :class:`torch.optim.lr_scheduler.OneCycleLR`. A stream has no known end, so that
        both are constant in `partial_fit`. A callable gives the factor of
        `learning_rate` at a progress from 0 to 1.
    weight_decay : float, default=0.01
        Decoupled weight decay of AdamW, or what `optimizer` makes of it.
    max_grad_norm : float, default=None
        Longer gradients are shortened to this norm; None leaves them.
    max_epochs : int, default=100
        Number of epochs, and what progress counts in.
    batch_size : int, default=128
        Rows a step, of all processes together. A last batch of one row joins the one
        before.
    augment : callable, default=None
        Takes the inputs of a training batch, a tensor on the training device, and
        returns others for the same rows, whose targets stay. What it draws from torch's
        generators hangs on `random_state`.
    early_stopping : bool, default=False
        Whether to stop when the score on validation rows has not risen for
        `n_iter_no_change` epochs, and to keep the weights of the best epoch. The score
        is the negative cross-entropy to the class probabilities of the teacher, so rows
        without a label count. Epochs are counted once λ has its final value.
    validation_fraction : float, default=0.1
        Part of the rows, stratified by label, that is held out where `early_stopping`
        is set and no `X_val` is given. The projector does not learn from it.
    n_iter_no_change : int, default=10
        See `early_stopping`.
    warm_start : bool, default=False
        Whether `fit` goes on from the fitted module, with a new optimizer. The fitted
        projector is kept, since the outputs stand for its subclasses; so are the
        precision of the weights and the seeds, so that `early_stopping` holds the same
        rows out again. The curves are continued.
    verbose : int, default=0
        1 prints a line an epoch: its mean loss, the score on the validation rows where
        there are any, its seconds, and the time that remains until `max_epochs`.
    checkpoint : path-like, default=None
        Where to keep what an interrupted `fit` goes on from: called again with the same
        data and parameters it ends with the same weights. A file that ends in
        ``.ckpt`` is for this fit; any other path is a folder, in which each fit, of a
        search for instance, has a file of its own. A complete fit is not repeated, but
        read from its file. Wants an integer `random_state`.
    checkpoint_interval : int, default=1
        Epochs between two writings.
    device : str or torch.device, default="auto"
        Where to train. "auto" is the accelerator that holds X, else the first that is
        available, else the CPU.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        "auto" is float64 where X is, on the CPU, and else float32.
        The last two are automatic mixed precision: products are of half precision,
        weights float32, and with "float16" the loss is scaled.
    random_state : int, RandomState instance or None, default=None
        Fixes the initial weights, the order of rows, what modules draw from torch and
        what is held out, and leaves every global generator alone. None draws seeds from
        NumPy's global generator.

    Attributes
    ----------
    module_ : torch.nn.Module
        The trained module, which makes the K logits.
    projector_ : LELPProjector, FrozenEstimator or None
        The fitted projector; None where `soft_targets` were given and no frozen one.
    classes_ : ndarray of shape (n_classes,)
        The classes.
    n_epochs_ : int
        Number of complete epochs.
    stop_reason_ : str or None
        What ended `fit`: "max_epochs", "early_stopping", "callback", or an exception
        that was raised: "interrupted" (KeyboardInterrupt), "not_finite"
        (FloatingPointError) or "error". None after `partial_fit`.
    loss_curve_ : list of float
        Mean loss of each epoch.
    validation_scores_ : list of float or None
        Score of each epoch on the validation rows, as many as there are losses. NaN for
        an epoch without `early_stopping`, where warm starts and `partial_fit` mix both;
        None if no epoch was scored.
    n_features_in_ : int
        ``X.shape[1]``.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, where X has names that are strings.

    See Also
    --------
    LELPProjector : Makes the soft labels.
    lelp_sklearn.losses.subclass_cross_entropy : The loss, for other trainers.

    Notes
    -----
    Embeddings, logits, soft targets and `sample_weight` are metadata of `fit` that
    cross-validation slices with the rows and that is requested by default. Where
    another step of a pipeline takes `sample_weight` too, metadata routing wants the
    request of every such step to be explicit (`set_fit_request`). `X_val`, `y_val` and
    `teacher_embeddings_val` are not requested; a Pipeline transforms `X_val` where it
    is named in its `transform_input`.

    Integers stay integers where a `module` of the caller's
    takes them, such as the ids of tokens; else they are numbers. On the CPU and with an
    equal number of threads a fit with the same `random_state` gives equal bits.

    An exception may end `fit` at any moment, KeyboardInterrupt too. The epochs that
    were complete are kept: the weights are those of the last, or with `early_stopping`
    of the best. Before the first is complete, and in `partial_fit`, the student stays
    as it was.

    The loss is read once an epoch, so that the host never waits for the device.

    A fitted student pickles as NumPy arrays and is loaded on the CPU; ``module_.to``
    moves it. A pickle that is damaged raises an error, one of other versions warns.
    skops loads it again where `module` is None or can be imported, the projector's
    `head` is None or arrays and there is no teacher. `to_module` and `to_onnx` take
    what predicts away.

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

    __metadata_request__fit: ClassVar[dict] = {
        "teacher_embeddings": True,
        "teacher_logits": True,
        "soft_targets": True,
        "sample_weight": True,
    }
    __metadata_request__partial_fit: ClassVar[dict] = __metadata_request__fit

    _parameter_constraints: ClassVar[dict] = {
        "module": [callable, None],
        "module_params": [dict, None],
        "projector": [LELPProjector, FrozenEstimator, None],
        "teacher": "no_validation",
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
        "optimizer": [StrOptions({"adamw"}), callable],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
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

    def __init__(
        self,
        module=None,
        *,
        module_params=None,
        projector=None,
        teacher=None,
        label_weight=0.0,
        subclass_weight="anneal",
        within_class_temperature="auto",
        class_weight=None,
        unlabeled=None,
        optimizer="adamw",
        learning_rate=0.01,
        learning_rate_schedule="cosine",
        weight_decay=0.01,
        max_grad_norm=None,
        max_epochs=100,
        batch_size=128,
        augment=None,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        warm_start=False,
        verbose=0,
        checkpoint=None,
        checkpoint_interval=1,
        device="auto",
        precision="auto",
        random_state=None,
    ):
        self.module = module
        self.module_params = module_params
        self.projector = projector
        self.teacher = teacher
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

    def set_params(self, **params):
        """Set the parameters of this student, and of its projector and its teacher.

        Parameters
        ----------
        **params : dict
            By name; those of the projector and the teacher as ``projector__...`` and
            ``teacher__...``.

        Returns
        -------
        self : LELPStudentClassifier
            The student.

        Raises
        ------
        ValueError
            If a parameter does not exist, or is one of a `projector` or a `teacher`
            that is None.
        """
        _training_validation.check_nested_parameters(self, params)
        return super().set_params(**params)

    @with_callbacks
    def fit(
        self,
        X,
        y=None,
        *,
        teacher_embeddings=None,
        teacher_logits=None,
        soft_targets=None,
        sample_weight=None,
        X_val=None,
        y_val=None,
        teacher_embeddings_val=None,
    ):
        """Train the student.

        The targets are `soft_targets`; else they are made by the projector, from
        `teacher_embeddings`, else from those of `teacher`, else from X in their place.
        In the last case, unless `teacher_logits` or a `head` of the projector say the
        class probabilities, there is no teacher: class targets are the labels.

        Parameters
        ----------
        X : {array-like, torch.Tensor} of shape (n_samples, n_features, ...)
            Inputs of the student: two dimensions or more, such as images or token ids.
        y : array-like of shape (n_samples,), default=None
            Class labels. Rows marked `unlabeled`, or all rows where y is None, take the
            class that the teacher finds likeliest.
        teacher_embeddings : array-like of shape (n_samples, n_embedding), default=None
            The teacher's embeddings of the rows. An array of three dimensions,
            (n_members, n_samples, n_embedding), is averaged over the members; before
            cross-validation, which slices the first axis, average it yourself.
        teacher_logits : array-like of shape (n_samples, n_classes) or (n_samples, 1), \
                default=None
            The teacher's logits, as in :meth:`LELPProjector.fit`.
        soft_targets : array-like of shape (n_samples, n_classes * n_subclasses), \
                default=None
            What :meth:`LELPProjector.transform` made, elsewhere and with the
            `temperature` of `projector`. The classes are those of a frozen projector,
            else of y, else, where `n_subclasses` of `projector` is a number, 0, 1 and
            so on. So y must have every class unless the projector is frozen: columns of
            a class that it lacks would count as subclasses of others, which is found
            only where `n_subclasses` is a number.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights. A row of weight 0 is left out.
        X_val : {array-like, torch.Tensor} of shape (n_val, n_features, ...), \
                default=None
            Validation rows for `early_stopping`.
        y_val : array-like of shape (n_val,), default=None
            Their labels: what they are scored against where the teacher's class
            probabilities are not known.
        teacher_embeddings_val : array-like of shape (n_val, n_embedding), default=None
            The teacher's embeddings of the validation rows. Without a head, and without
            a `teacher` to ask, their class probabilities are those of the least-squares
            map to the logits of the other rows.

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
            If X is sparse, or the module or the optimizer cannot be built.
        FloatingPointError
            If the loss of a step or a weight was not finite, at the end of the epoch.
        """
        given = teacher_embeddings, teacher_logits, soft_targets
        validation_data = X_val, y_val, teacher_embeddings_val
        with (
            warned_once(),
            features_of_what_is_kept(self, "_fit"),
            torch.inference_mode(False),
            process_group() as ranks,
        ):
            self._fit_rows(ranks, X, y, given, sample_weight, validation_data)
        return self

    def partial_fit(
        self,
        X,
        y=None,
        classes=None,
        *,
        teacher_embeddings=None,
        teacher_logits=None,
        soft_targets=None,
        sample_weight=None,
    ):
        """Train for one epoch on a block of rows.

        The projector, unless frozen, and the teacher are fitted at the first call and
        kept. Progress, which λ depends on, counts the calls and the epochs of `fit`
        before them over `max_epochs` and ends at 1. The learning rate is
        `learning_rate`, unless `learning_rate_schedule` is a callable, so that a stream
        goes on learning, after :meth:`fit` too. The optimizer keeps its state from call
        to call; it takes a new `learning_rate` and `weight_decay`, and another
        `optimizer` starts again.

        Parameters
        ----------
        X : {array-like, torch.Tensor} of shape (n_samples, n_features, ...)
            As in :meth:`fit`. Where a projector is fitted the first block must hold
            rows of every class, by label or taken by the teacher for it, enough for
            `n_subclasses`.
        y : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.
        classes : array-like of shape (n_classes,), default=None
            All classes; sorted, they are in the order of the teacher's outputs. Needed
            at the first call.
        teacher_embeddings : array-like of shape (n_samples, n_embedding), default=None
            As in :meth:`fit`.
        teacher_logits : array-like of shape (n_samples, n_classes) or (n_samples, 1), \
                default=None
            As in :meth:`fit`.
        soft_targets : array-like of shape (n_samples, n_classes * n_subclasses), \
                default=None
            As in :meth:`fit`.
        sample_weight : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.

        Returns
        -------
        self : LELPStudentClassifier
            The student.

        Raises
        ------
        ValueError
            As in :meth:`fit`; if `classes` are missing at the first call, or
            `early_stopping` or balanced class weights are asked for.
        """
        given = teacher_embeddings, teacher_logits, soft_targets
        with (
            warned_once(),
            features_of_what_is_kept(self, "_fit"),
            torch.inference_mode(False),
        ):
            self._fit_block(X, y, classes, given, sample_weight)
        return self
