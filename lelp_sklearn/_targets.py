"""The soft targets of a student: given, or made by teacher and projector."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import diags_array, issparse
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from lelp_sklearn import _validation
from lelp_sklearn._callers import warn_user
from lelp_sklearn._extraction.sklearn_teachers import (
    OmittedTeacher,
    check_teacher,
    fit_classifier_teacher,
    fit_teacher,
    fit_transform_teacher,
    has_own_fit_transform,
    is_classifier_teacher,
    require_teacher,
    transform_teacher,
)
from lelp_sklearn._files import content_hash
from lelp_sklearn._projector import LELPProjector
from lelp_sklearn._sklearn import NO_TASK, FitTask
from lelp_sklearn._training.inputs import (
    StudentInputs,
    add_note_on_error,
    as_array,
    has_head,
)
from lelp_sklearn._typing import BoolArray, FloatArray, IntArray
from lelp_sklearn.exceptions import NoTeacherWarning, OverfittedTeacherWarning

# Metadata that `fit` requests by default.
TARGET_METADATA = dict.fromkeys(
    ("teacher_embeddings", "teacher_logits", "soft_targets", "sample_weight"), True
)

_MAX_SVD_COMPONENTS = 100
_IN_TEACHER = (
    "(In the teacher, which reads the student's X: in a Pipeline, what the steps "
    "before the student return. If your teacher reads something else, such as the "
    "texts themselves, compute its embeddings first and pass teacher_embeddings.)"
)
# Where a teacher has seen only some rows: the fewest of each kind to compare, and the
# least mean probability beside the most likely class in the others.
_FEWEST_ROWS_TO_COMPARE = 50
_WORTHWHILE_DOUBT = 0.05


@dataclass
class TargetSource:
    """Makes soft targets of rows."""

    # Fitted, or frozen; None if soft targets are given instead.
    projector: Any
    # Fitted; None without one. If X takes the place of the embeddings (`reads_inputs`),
    # the TruncatedSVD of sparse X.
    teacher: Any
    reads_inputs: bool
    # Of the first fit; without, the labels take the place of class probabilities.
    has_teacher: bool
    # In the order of the columns.
    classes: NDArray[Any]
    # Of the class targets.
    temperature: float
    # Whether the teacher is asked for logits that are not given.
    asks_logits: bool = False
    # Content hash of the rows that the teacher was fitted on, if it has a
    # `fit_transform` of its own or was cross-fitted.
    fitted_on: str | None = None
    # Logits (n, C) of the rows of the first fit by a cross-fitted teacher.
    unseen_logits: FloatArray | None = None

    @classmethod
    def resolve(
        cls,
        student: Any,
        inputs: StudentInputs,
        is_train: BoolArray,
        *,
        seed: int,
        task: FitTask = NO_TASK,
        classes: NDArray[Any] | None = None,
        auto_temperature: float | None = None,
    ) -> tuple["TargetSource", StudentInputs]:
        """Fit clones of teacher and projector, unless frozen or soft targets are given.

        `seed` is the random state of a projector that has none, and its fit is a step
        of `task`. `classes` are all classes, sorted, if the labels of a block might
        lack some. `auto_temperature` is the temperature of a projector whose
        `temperature` is "auto"; None lets the projector choose it. The returned inputs
        have the embeddings of the teacher, which makes them once.
        """
        is_distilled = has_teacher(student, inputs)
        if not is_distilled:
            warn_user(NoTeacherWarning())
            # Labels are sure at every temperature.
            auto_temperature = 1.0
        projector = _projector_to_fit(student, seed, auto_temperature)
        is_frozen = isinstance(projector, FrozenEstimator)
        if inputs.soft_targets is not None:
            return cls._of_soft_targets(inputs, projector, classes), inputs
        teacher, unseen_logits = _given_teacher(student, inputs), None
        if is_classifier_teacher(teacher):
            teacher, unseen_logits = _fit_classifier(student, inputs, is_train)
            if unseen_logits is not None and inputs.teacher_logits is None:
                inputs = replace(inputs, teacher_logits=unseen_logits)
        reads_inputs = inputs.teacher_embeddings is None and teacher is None
        if reads_inputs and issparse(inputs.X_array):
            teacher = _fit_truncated_svd(projector, inputs, is_train, seed)
        if inputs.teacher_embeddings is not None or teacher is None:
            _check_embedding_width(projector, inputs, embed(inputs, None))
        labels = np.unique(inputs.labels[inputs.is_labelled])
        lacks_classes = classes is not None and not np.isin(classes, labels).all()
        if lacks_classes and not is_frozen:
            _check_block_classes(inputs, projector, teacher, labels, classes)
        if teacher is None:
            embeddings = embed(inputs, None)
        else:
            teacher, embeddings = _fit_and_embed(teacher, inputs, is_train)
        is_of_rows = has_own_fit_transform(teacher) or unseen_logits is not None
        fitted_on = _hash_of_rows(inputs) if is_of_rows else None
        n_classes = len(labels if classes is None else classes)
        asks_logits = _asks_logits(projector, teacher, n_classes)
        if asks_logits and inputs.teacher_logits is None:
            inputs = replace(inputs, teacher_logits=teacher.predict_logits(inputs.X))
        if not is_frozen:
            if not asks_logits:
                _set_head(projector, teacher, inputs, embeddings)
            some_classes = classes if lacks_classes else None
            with (
                task.delegate("fit-projector", projector),
                _in_projector(inputs, teacher, reads_inputs=reads_inputs),
            ):
                _fit_projector(projector, embeddings, inputs, is_train, some_classes)
        # Fitted on too few rows it has neither, and its transform raises the error.
        projector_classes: Any = getattr(projector, "classes_", classes)
        temperature = getattr(projector, "temperature_", 1.0)
        _check_projector_classes(projector_classes, classes)
        source = cls(
            projector,
            teacher,
            reads_inputs=reads_inputs,
            has_teacher=is_distilled,
            classes=projector_classes,
            temperature=temperature,
            asks_logits=asks_logits,
            fitted_on=fitted_on,
            unseen_logits=unseen_logits,
        )
        if teacher is not None:
            inputs = replace(inputs, teacher_embeddings=embeddings)
        return source, inputs

    @classmethod
    def _of_soft_targets(
        cls, inputs: StudentInputs, projector: Any, classes: NDArray[Any] | None
    ) -> "TargetSource":
        """Return the source of soft targets that are given."""
        is_frozen = isinstance(projector, FrozenEstimator)
        origin = "y" if classes is None else "classes"
        n_columns, n_subclasses = inputs.soft_targets.shape[1], None
        if is_frozen:
            _check_projector_classes(projector.classes_, classes)
            classes, origin = projector.classes_, "projector"
            temperature = projector.temperature_
        else:
            number, temperature = projector.n_subclasses, projector.temperature
            n_subclasses = None if number == "auto" else int(number)
            temperature = 1.0 if temperature == "auto" else float(temperature)
        if classes is None:
            classes = _classes_of_columns(inputs, n_columns, n_subclasses)
            origin = origin if inputs.is_labelled.any() else "soft_targets"
        n_classes = len(classes)
        if n_subclasses is not None and n_columns != n_classes * n_subclasses:
            raise ValueError(
                f"soft_targets has {n_columns} columns; {n_classes} classes with "
                f"n_subclasses={n_subclasses} need {n_classes * n_subclasses}. Set the "
                "projector's n_subclasses to the number used, or 'auto', and check "
                "that y has every class."
            )
        if n_columns % n_classes:
            raise ValueError(
                f"soft_targets has {n_columns} columns, not a multiple of the "
                f"{n_classes} classes {classes.tolist()}: pass n_subclasses columns "
                "per class."
            )
        return cls(
            projector if is_frozen else None,
            teacher=None,
            reads_inputs=False,
            has_teacher=True,
            classes=_validation.check_several_classes(classes, origin),
            temperature=temperature,
        )

    def has_class_probabilities(self, inputs: StudentInputs) -> bool:
        """Return whether rows without a label have class targets too."""
        given = inputs.soft_targets, inputs.teacher_logits
        return self.has_teacher or any(each is not None for each in given)

    def can_embed(self, inputs: StudentInputs) -> bool:
        """Return whether the rows have embeddings, or the source can make them."""
        makes = self.reads_inputs or self.teacher is not None
        return self.projector is not None and (
            makes or inputs.teacher_embeddings is not None
        )

    def with_refit_embeddings(
        self, inputs: StudentInputs, is_train: BoolArray
    ) -> StudentInputs:
        """Refit a clone of the teacher to rows that it was fitted on, and embed them.

        If the teacher was cross-fitted, the logits of the first fit are taken again.
        Only its own `fit_transform` makes the embeddings of training rows. Other rows
        are returned as they are; `transform` makes their embeddings.
        """
        if (
            self.fitted_on is None
            or inputs.teacher_embeddings is not None
            or self.fitted_on != _hash_of_rows(inputs)
        ):
            return inputs
        if self.unseen_logits is not None:
            return replace(inputs, teacher_logits=self.unseen_logits)
        _, embeddings = fit_transform_teacher(
            self.teacher, inputs.X, inputs.y, is_train
        )
        return replace(inputs, teacher_embeddings=embeddings)

    def soft_targets(self, inputs: StudentInputs) -> FloatArray:
        """Return the targets (n, C*S) of rows."""
        if inputs.soft_targets is not None:
            targets: FloatArray = inputs.soft_targets
            return targets
        if not self.can_embed(inputs):
            has_projector = self.projector is not None
            missing = "teacher_embeddings" if has_projector else "soft_targets"
            raise ValueError(
                f"the student was fitted on {missing}: pass them again, for these rows."
            )
        logits = inputs.teacher_logits
        if logits is None and self.asks_logits:
            logits = require_teacher(self.teacher).predict_logits(inputs.X)
        if not self.has_teacher and logits is None:
            # So far apart that the softmax is the label itself.
            distance = 1e4 * self.temperature
            logits = distance * inputs.class_indicator(self.classes)
        options = {} if logits is None else {"teacher_logits": logits}
        embeddings = embed(inputs, self.teacher)
        with _in_projector(inputs, self.teacher, reads_inputs=self.reads_inputs):
            targets = as_array(self.projector.transform(embeddings, **options))
        return targets

    def warn_of_class_order(
        self, soft_targets: FloatArray, class_index: IntArray
    ) -> None:
        """Warn if given targets, or a frozen projector, have the classes in disorder.

        A projector that was fitted here has compared the teacher with the labels.
        """
        if self.projector is None or isinstance(self.projector, FrozenEstimator):
            known = class_index >= 0
            shape = len(class_index), len(self.classes), -1
            likeliest = soft_targets.reshape(shape).sum(axis=2)[known].argmax(axis=1)
            _validation.warn_of_class_order(likeliest, class_index[known], self.classes)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TargetSource":
        # Unlike a pickle, a copy keeps the teacher.
        return TargetSource(**copy.deepcopy(vars(self), memo))

    def __getstate__(self) -> dict[str, Any]:
        if self.reads_inputs:
            return vars(self)
        # Without its teacher, a source makes no targets of these rows again.
        teacher = OmittedTeacher.of(self.teacher)
        return {**vars(self), "teacher": teacher, "unseen_logits": None}


def has_teacher(student: Any, inputs: StudentInputs) -> bool:
    """Return whether a first fit has class probabilities besides the labels."""
    given = inputs.teacher_embeddings, inputs.teacher_logits, inputs.soft_targets
    has_any = any(each is not None for each in (*given, student.teacher))
    return has_any or has_head(student.projector)


def check_target_params(student: Any) -> None:
    """Raise unless the projector and the teacher are of the right kind."""
    projector = student.projector
    if isinstance(projector, FrozenEstimator) and not isinstance(
        projector.estimator, LELPProjector
    ):
        raise TypeError(
            "projector is a FrozenEstimator of "
            f"{type(projector.estimator).__name__}; it must hold a fitted "
            "LELPProjector."
        )
    if not isinstance(student.teacher, OmittedTeacher | None):
        check_teacher(student.teacher)


def set_nested_params(self: Any, **params: Any) -> Any:
    """Set the parameters of this estimator, and of the estimators in it.

    Parameters
    ----------
    **params : dict
        Parameters by name; ``projector__...`` and ``teacher__...``, for instance, are
        parameters of the projector and of the teacher.

    Returns
    -------
    self : estimator
        The estimator.

    Raises
    ------
    ValueError
        If a parameter does not exist, or is one of a `projector` or a `teacher` that is
        None.
    """
    for name, needed in (
        ("projector", "projector=LELPProjector()"),
        ("teacher", "the teacher, such as teacher=EmbeddingExtractor(model)"),
    ):
        nested = [each for each in params if each.startswith(f"{name}__")]
        if nested and params.get(name, getattr(self, name)) is None:
            raise ValueError(
                f"{nested[0]} cannot be set: {name} is None, which has no "
                f"parameters. Construct the student with {needed}."
            )
    return BaseEstimator.set_params(self, **params)


def usable_rows(
    student: Any,
    inputs: StudentInputs,
    source: TargetSource | None = None,
) -> BoolArray:
    """Return which rows have a target and a positive weight.

    `source` is the source of an earlier fit; None in a first fit.
    """
    # Only a student has it.
    label_weight = float(getattr(student, "label_weight", 0))
    if label_weight:
        needed_by = f"label_weight={label_weight!r} needs labels"
        inputs.check_some_label(needed_by, "set label_weight=0")
    has_weight: BoolArray = inputs.sample_weight > 0
    if source is None and has_teacher(student, inputs):
        return has_weight
    if source is not None and source.has_class_probabilities(inputs):
        return has_weight
    inputs.check_some_label(
        "there is no teacher", "pass teacher_logits, soft_targets or a teacher"
    )
    return has_weight & inputs.is_labelled


def make_targets(
    student: Any,
    inputs: StudentInputs,
    is_train: BoolArray,
    seed: int,
    source: TargetSource | None,
    task: FitTask = NO_TASK,
    *,
    classes: Any = None,
    auto_temperature: float | None = None,
) -> tuple[TargetSource, FloatArray]:
    """Return the source of the targets, and the targets (n, C*S) of the rows.

    `source` is the source of an earlier fit. In a first fit it is None, and
    `TargetSource.resolve` makes it of the same arguments.
    """
    is_first = source is None
    if source is None:
        classes = None if classes is None else _validation.sorted_classes(classes)
        source, inputs = TargetSource.resolve(
            student,
            inputs,
            is_train,
            seed=seed,
            task=task,
            classes=classes,
            auto_temperature=auto_temperature,
        )
    else:
        inputs = source.with_refit_embeddings(inputs, is_train)
    class_index = inputs.class_index(source.classes)
    soft_targets = source.soft_targets(inputs)
    if is_first and source.has_teacher:
        source.warn_of_class_order(soft_targets, class_index)
        _warn_of_seen_rows(soft_targets, inputs.is_labelled, len(source.classes))
    return source, soft_targets


def _warn_of_seen_rows(
    soft_targets: FloatArray, is_labelled: BoolArray, n_classes: int
) -> None:
    """Warn if class targets of labelled rows are far more certain than of others."""
    mass = soft_targets.reshape(len(soft_targets), n_classes, -1).sum(axis=2)
    doubt = 1 - mass.max(axis=1)
    of_labelled, of_others = doubt[is_labelled], doubt[~is_labelled]
    if min(len(of_labelled), len(of_others)) < _FEWEST_ROWS_TO_COMPARE:
        return
    seen, unseen = of_labelled.mean(), of_others.mean()
    if unseen > _WORTHWHILE_DOUBT and seen < unseen / 2:
        warn_user(
            f"The teacher's most likely class has {1 - seen:.0%} on average in "
            f"labelled rows, and {1 - unseen:.0%} in others: it has probably learned "
            "the former by heart, and the student would learn its errors. Use class "
            "targets from a fit that did not see the row, as teacher_cv makes.",
            OverfittedTeacherWarning,
        )


def _given_teacher(student: Any, inputs: StudentInputs) -> Any:
    """Return the teacher; None if a pickle lacks it and its embeddings are given."""
    has_embeddings = inputs.teacher_embeddings is not None
    is_omitted = has_embeddings and isinstance(student.teacher, OmittedTeacher)
    return None if is_omitted else student.teacher


def _projector_to_fit(student: Any, seed: int, auto_temperature: float | None) -> Any:
    """Return a projector as it is if frozen, else a clone with a random state."""
    projector = student.projector
    if isinstance(projector, FrozenEstimator):
        check_is_fitted(projector)
        return projector
    projector = LELPProjector() if projector is None else clone(projector)
    if projector.random_state is None:
        projector.set_params(random_state=seed)
    if student.unlabeled is not None:
        projector.set_params(unlabeled=student.unlabeled)
    if auto_temperature is not None and projector.temperature == "auto":
        projector.set_params(temperature=auto_temperature)
    return projector


def embed(inputs: StudentInputs, teacher: Any) -> Any:
    """Return the given embeddings, else embeddings by the teacher, else the rows."""
    if inputs.teacher_embeddings is not None:
        return inputs.teacher_embeddings
    if teacher is not None:
        return transform_teacher(teacher, inputs.X, len(inputs))
    if inputs.X_array.ndim != 2:
        raise ValueError(
            f"X has {inputs.X_array.ndim} dimensions and cannot take the place of the "
            "teacher's embeddings: pass teacher_embeddings, soft_targets or a teacher."
        )
    return inputs.X_array


def _classes_of_columns(
    inputs: StudentInputs, n_columns: int, n_subclasses: int | None
) -> NDArray[Any]:
    """Return the classes of soft targets: the labels in y, else 0, 1 and so on."""
    if inputs.is_labelled.any():
        return np.unique(inputs.labels[inputs.is_labelled])
    if n_subclasses is None:
        raise ValueError(
            "soft_targets is given and nothing says the classes of its columns: pass "
            "y, or a projector with an integer n_subclasses or fitted and frozen "
            "(FrozenEstimator)."
        )
    return np.arange(n_columns // n_subclasses)


def _check_projector_classes(
    projector_classes: NDArray[Any], classes: NDArray[Any] | None
) -> None:
    """Raise unless the projector has the `classes` of partial_fit."""
    if classes is not None and not np.array_equal(np.sort(projector_classes), classes):
        raise ValueError(
            f"classes={classes.tolist()} are not those of the projector, "
            f"{projector_classes.tolist()}: pass these."
        )


def _check_block_classes(
    inputs: StudentInputs, projector: Any, teacher: Any, labels: Any, classes: Any
) -> None:
    """Raise if the projector cannot be fitted on a first block."""
    # The teacher may find the other classes in rows without a label.
    sources = projector.head, inputs.teacher_logits, teacher
    if not inputs.is_labelled.all() and any(each is not None for each in sources):
        return
    raise ValueError(
        "the first block of partial_fit has no rows of "
        f"{np.setdiff1d(classes, labels).tolist()}, and the projector is fitted on it: "
        "pass a block with every class, soft_targets or projector=FrozenEstimator(...)."
    )


def _fit_truncated_svd(
    projector: Any, inputs: StudentInputs, is_train: BoolArray, seed: int
) -> Any:
    """Return the transformer that makes dense embeddings of sparse X, frozen.

    Rows count by their weights, as in the projector.
    """
    if has_head(projector):
        raise ValueError(
            "teacher_embeddings are missing: X is sparse, so that its TruncatedSVD "
            "would take their place, which the head or the fitted projector does not "
            "read. Pass teacher_embeddings, or a teacher that makes them."
        )
    # Few fits need it: the import of the package stays quick.
    from sklearn.decomposition import TruncatedSVD

    rows = np.flatnonzero(is_train)
    X, weights = inputs.X_array, inputs.sample_weight
    if len(rows) < len(inputs) or (weights != 1).any():
        # Counts are integers, and roots are not.
        number = np.result_type(X.dtype, np.float32)
        X = diags_array(np.sqrt(weights[rows]).astype(number)) @ X[rows]
    n_components = min(_MAX_SVD_COMPONENTS, X.shape[1])
    svd = TruncatedSVD(n_components, random_state=seed)
    return FrozenEstimator(svd.fit(X))


def _fit_classifier(
    student: Any, inputs: StudentInputs, is_train: BoolArray
) -> tuple[Any, FloatArray | None]:
    """Fit a classifier as teacher to the labelled rows; also return unseen logits."""
    if not isinstance(student.teacher, FrozenEstimator):
        inputs.check_some_label(
            "the teacher is fitted on labels", "wrap a fitted one in a FrozenEstimator"
        )
    rows = np.flatnonzero(is_train & inputs.is_labelled)
    fit = add_note_on_error(_IN_TEACHER)(fit_classifier_teacher)
    return fit(student.teacher, inputs.X, inputs.labels, rows, student.teacher_cv)


@add_note_on_error(_IN_TEACHER)
def _fit_and_embed(
    teacher: Any, inputs: StudentInputs, is_train: BoolArray
) -> tuple[Any, Any]:
    """Return the fitted teacher, and the embeddings of all rows."""
    if inputs.teacher_embeddings is None:
        return fit_transform_teacher(teacher, inputs.X, inputs.y, is_train)
    return fit_teacher(teacher, inputs.X, inputs.y, is_train), inputs.teacher_embeddings


def _fit_projector(
    projector: Any,
    embeddings: Any,
    inputs: StudentInputs,
    is_train: BoolArray,
    classes: NDArray[Any] | None,
) -> None:
    """Fit the projector; `classes` are given if the rows lack some."""
    options: dict[str, Any] = {"sample_weight": inputs.sample_weight * is_train}
    if inputs.teacher_logits is not None:
        options["teacher_logits"] = inputs.teacher_logits
    if classes is None:
        projector.fit(embeddings, inputs.y, **options)
    else:
        projector.partial_fit(embeddings, inputs.y, classes, **options)


def _hash_of_rows(inputs: StudentInputs) -> str:
    return content_hash([inputs.X, inputs.y])


def _asks_logits(projector: Any, teacher: Any, n_classes: int) -> bool:
    """Return whether a teacher's embeddings have no head, but the teacher has logits.

    An `EmbeddingExtractor` of an earlier layer is such a teacher, or one of a model
    whose logits no linear layer makes. With no class known yet (`n_classes` is 0) the
    answer is False.
    """
    if has_head(projector) or not n_classes:
        return False
    if getattr(teacher, "head_", ()) is not None:
        return False
    # One column is the output of a sigmoid.
    fitting = {n_classes, 1} if n_classes == 2 else {n_classes}
    n_logits = getattr(teacher, "n_logits_", 0)
    # A model without a head may be an encoder, whose outputs are not classes.
    # Logits of a head that do not fit are refused, as the head would be.
    return n_logits in fitting or getattr(teacher, "head_layer_", None) is not None


def _set_head(
    projector: Any, teacher: Any, inputs: StudentInputs, embeddings: Any
) -> None:
    """Give a projector without a head the head of the teacher, if there is one."""
    if projector.head is not None or not hasattr(teacher, "head_"):
        return
    head = teacher.head_
    if hasattr(head, "weight"):
        # Arrays, which any machine can load; copies, because more training of the
        # teacher must not change a fitted projector.
        coef, bias = np.array(as_array(head.weight)), head.bias
        bias = np.zeros(len(coef)) if bias is None else np.array(as_array(bias))
        head = coef, bias
    projector.set_params(head=head)
    _check_embedding_width(projector, inputs, embeddings)


def _check_embedding_width(
    projector: Any, inputs: StudentInputs, embeddings: Any
) -> None:
    """Raise if the head or the fitted projector takes embeddings of another width."""
    if isinstance(projector, FrozenEstimator):
        expected = projector.n_features_in_
    else:
        head: Any = projector.head
        coef: Any = head[0] if isinstance(head, tuple | list) and head else None
        coef = getattr(head, "coef_", getattr(head, "weight", coef))
        # An array, a tensor or nested lists; None has no dimension.
        expected = next(reversed(np.shape(coef)), None)
    shape = np.shape(embeddings)
    if expected is None or len(shape) != 2 or shape[1] == expected:
        return
    if inputs.teacher_embeddings is None:
        raise ValueError(
            "teacher_embeddings are missing: X would take their place, and has "
            f"{shape[1]} features, but the head or the fitted projector reads "
            f"{expected}. Pass teacher_embeddings of shape (n_samples, {expected}), or "
            "a teacher that makes them."
        )
    raise ValueError(
        f"teacher_embeddings has {shape[1]} features, but the head or the fitted "
        f"projector reads {expected}: pass embeddings of shape (n_samples, "
        f"{expected})."
    )


@contextmanager
def _in_projector(
    inputs: StudentInputs, teacher: Any, *, reads_inputs: bool
) -> Iterator[None]:
    """Name the embeddings in errors as the user knows them."""
    name = "X"
    if inputs.teacher_embeddings is not None:
        name = f"teacher_embeddings{inputs.suffix}"
    elif teacher is not None:
        name = "TruncatedSVD of X" if reads_inputs else "teacher.transform(X)"
    try:
        with add_note_on_error(
            f"(In the projector of the student, whose X is {name} here.)"
        ):
            yield
    except _validation.NotFiniteError as error:
        if error.name != "X":
            raise
        raise _validation.NotFiniteError(name, error.rest) from None
