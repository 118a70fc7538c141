"""Where the targets of the student come from: given, or projected from embeddings."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from lelp_sklearn import (
    _training_validation,
    _validation,
)
from lelp_sklearn._callbacks import FitTask
from lelp_sklearn._extraction.content_hash import content_hash
from lelp_sklearn._extraction.sklearn_teachers import (
    OmittedTeacher,
    fit_transformed,
    fitted,
    makes_training_embeddings,
    mean_over_members,
    present,
    transformed,
)


@dataclass(frozen=True)
class Sample:
    """Checked rows, with what is given of their targets.

    Parameters
    ----------
    X, inputs
        The rows as they were passed, and as an array or a tensor.
    labels, labelled : ndarray of shape (n,)
        y as a column, and which rows have a label; the others hold anything.
    weight : ndarray of shape (n,)
        Row weights.
    y : ndarray of shape (n,) or None
        The labels as they were passed, with what marks rows without one, for the
        projector and the teacher; None where there are none.
    teacher_embeddings, teacher_logits, soft_targets
        The teacher's, None where not given.
    suffix : str
        What the names of the arguments end with.
    """

    X: Any
    inputs: Any
    labels: np.ndarray
    labelled: np.ndarray
    weight: np.ndarray
    y: np.ndarray | None = None
    teacher_embeddings: Any = None
    teacher_logits: Any = None
    soft_targets: Any = None
    suffix: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def says_targets(self) -> bool:
        """Whether anything of the teacher is given with the rows."""
        given = self.teacher_embeddings, self.teacher_logits, self.soft_targets
        return any(each is not None for each in given)


@dataclass
class TargetSource:
    """Makes soft targets of rows.

    Parameters
    ----------
    projector : LELPProjector, FrozenEstimator or None
        Fitted; None where soft targets are given instead.
    teacher : transformer or None
        Fitted; None where there is none.
    reads_inputs : bool
        Whether X takes the place of the embeddings.
    labels_only : bool
        Whether the labels take the place of the teacher's class probabilities.
    classes : ndarray of shape (n_classes,)
        The classes, in the order of the columns.
    temperature : float
        The temperature of the class targets.
    asks_logits : bool
        Whether the teacher is asked for logits that are not given.
    fitted_on : str or None
        Digest of the rows that the teacher was fitted on, where it has a
        `fit_transform` of its own.
    """

    projector: Any
    teacher: Any
    reads_inputs: bool
    labels_only: bool
    classes: np.ndarray
    temperature: float
    asks_logits: bool = False
    fitted_on: str | None = None

    def has_teacher(self, sample: Sample) -> bool:
        """Tell whether a teacher gives the targets, also of rows without a label."""
        given = sample.soft_targets, sample.teacher_logits
        return not self.labels_only or any(each is not None for each in given)

    def knows_classes_of(self, sample: Sample) -> bool:
        """Tell whether the teacher says the class probabilities of the rows."""
        embeddable = self.reads_inputs or self.teacher is not None
        return (
            self.projector is not None
            and not self.labels_only
            and (embeddable or sample.teacher_embeddings is not None)
        )

    def embed_again(self, sample: Sample, used: np.ndarray) -> Sample:
        """Give rows that the teacher was fitted on the embeddings they had then.

        Those of its `transform` may differ. All other rows stay as they are.
        """
        if (
            self.fitted_on is None
            or sample.teacher_embeddings is not None
            or self.fitted_on != _digest_of_rows(sample)
        ):
            return sample
        rows = sample.X, sample.y, used
        _, embeddings = fit_transformed(self.teacher, *rows)
        return replace(sample, teacher_embeddings=embeddings)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TargetSource":
        return TargetSource(**copy.deepcopy(vars(self), memo))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "teacher": OmittedTeacher.of(self.teacher)}

    def soft_targets(self, sample: Sample, codes: np.ndarray) -> np.ndarray:
        """Give the targets (n, C*S); `codes` are -1 for rows without a label."""
        if sample.soft_targets is not None:
            return sample.soft_targets
        embeddable = self.reads_inputs or self.teacher is not None
        if self.projector is None or (
            sample.teacher_embeddings is None and not embeddable
        ):
            raise _training_validation.targets_are_missing(self.projector is not None)
        logits = sample.teacher_logits
        if logits is None and self.asks_logits:
            logits = present(self.teacher).predict_logits(sample.X)
        if self.labels_only and logits is None:
            logits = np.zeros((len(sample), len(self.classes)))
            known = np.flatnonzero(codes >= 0)
            # So far apart that the softmax is the label itself.
            logits[known, codes[known]] = 1e4 * self.temperature
        options = {} if logits is None else {"teacher_logits": logits}
        embeddings = embed(sample, self.teacher)
        with _in_projector(sample, self.teacher):
            return as_array(self.projector.transform(embeddings, **options))


def read_sample(
    X: Any,
    inputs: Any,
    y: Any,
    unlabeled: object,
    sample_weight: Any,
    embeddings: Any = None,
    logits: Any = None,
    soft_targets: Any = None,
    suffix: str = "",
) -> Sample:
    """Check, before work starts, what is given with checked inputs.

    The names of the arguments end with `suffix`.
    """
    n_samples = len(inputs)
    if y is not None:
        y = as_array(y) if hasattr(y, "detach") else _validation.label_array(y)
    labels, labelled = _validation.check_labels(y, n_samples, unlabeled)
    weight = _validation.check_sample_weight(sample_weight, n_samples)
    _validation.check_some_weight(bool(np.any(weight > 0)))
    given = {
        "teacher_embeddings": embeddings,
        "teacher_logits": logits,
        "soft_targets": soft_targets,
    }
    for name, array in given.items():
        if array is None:
            continue
        argument = name + suffix
        _check_is_array(array, argument)
        _validation.check_dense(array, argument)
        _validation.check_numbers(array, argument)
        if isinstance(array, list | tuple):
            array = _validation.as_numbers(array, argument)
        if name == "teacher_embeddings":
            array = mean_over_members(array, n_samples, argument)
        _validation.check_length(array, n_samples, argument)
        given[name] = array
    if soft_targets is not None:
        soft_targets = as_array(given["soft_targets"])
        soft_targets = _training_validation.check_soft_targets(soft_targets)
        _validation.check_finite_block(soft_targets, 0, "soft_targets")
        _training_validation.check_probabilities(soft_targets)
        given["soft_targets"] = soft_targets
    marked = np.ravel(y) if labelled.any() else None
    return Sample(X, inputs, labels, labelled, weight, marked, **given, suffix=suffix)


def select(sample: Sample, rows: np.ndarray) -> Sample:
    """Give some of the rows, by their indices."""
    parts = {
        name: _safe_indexing(value, rows)
        for name, value in vars(sample).items()
        if value is not None and name != "suffix"
    }
    return replace(sample, **parts)


def check_several_labels(sample: Sample) -> None:
    """Raise, before work starts, where all labels are the same."""
    if sample.labelled.any():
        _validation.check_several_classes(np.unique(sample.labels[sample.labelled]))


def hold_out(
    sample: Sample, usable: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Draw the indices of some usable rows, stratified by label.

    Of each label at least one row is drawn and one is left, where it has two; rows
    without a label are a stratum of their own.
    """
    strata = np.full(len(sample), -1)
    labels = sample.labels[sample.labelled]
    strata[sample.labelled] = np.unique(labels, return_inverse=True)[1]
    random_state = np.random.RandomState(seed)
    drawn = []
    for stratum in np.unique(strata):
        rows = random_state.permutation(np.flatnonzero(usable & (strata == stratum)))
        n_drawn = max(1, round(fraction * len(rows)))
        drawn.append(rows[: min(n_drawn, len(rows) - 1)] if len(rows) else rows)
    held_out = np.concatenate(drawn)
    _training_validation.check_held_out(len(held_out), fraction, int(usable.sum()))
    return held_out


def encode(sample: Sample, classes: np.ndarray) -> np.ndarray:
    """Give the index of each label, -1 for rows without one."""
    labels, labelled = sample.labels, sample.labelled
    _validation.check_classes(labels[labelled], classes, None)
    return _validation.encode(labels, labelled, classes)


def one_hot(codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Give a row a class of 1, and zeros to rows without a label."""
    return codes[:, None] == np.arange(n_classes)


def loss_weight(
    sample: Sample,
    codes: np.ndarray,
    soft_targets: np.ndarray,
    used: np.ndarray,
    classes: np.ndarray,
    class_weight: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Give which rows have a part in the loss, and the weights, None where equal.

    Parameters
    ----------
    sample : Sample
        The rows with their own weights.
    codes : ndarray of shape (n,)
        Index of the label; rows without one, -1, count as their likeliest class.
    soft_targets : ndarray of shape (n, n_classes * n_subclasses)
        Which say the likeliest class.
    used : ndarray of shape (n,)
        True for the rows that may be learned from.
    classes : ndarray of shape (n_classes,)
        The classes.
    class_weight : dict, "balanced" or None
        By label; "balanced" makes the totals of the classes equal.
    """
    weight = sample.weight
    if class_weight is not None:
        mass = soft_targets.reshape(len(codes), len(classes), -1).sum(axis=2)
        assigned = np.where(codes >= 0, codes, mass.argmax(axis=1))
        factors = _class_factors(class_weight, classes, assigned, weight * used)
        weight = weight * factors[assigned]
        used = used & (weight > 0)
        _training_validation.check_class_weight_leaves_rows(used, class_weight)
    if np.ptp(weight[sample.weight > 0]) == 0:
        return used, None
    # Of mean 1, so that single precision holds them whatever their scale.
    return used, weight / weight[used].mean()


def _class_factors(
    class_weight: Any, classes: np.ndarray, assigned: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Give the factor of each class; `assigned` are the classes of rows of a weight."""
    if not isinstance(class_weight, str):
        _training_validation.check_weighted_classes(class_weight, classes)
        labels = classes.tolist()
        return np.array([float(class_weight.get(label, 1)) for label in labels])
    totals = np.bincount(assigned, weight, minlength=len(classes))
    mean = np.full(len(classes), totals.mean())
    return np.divide(mean, totals, out=np.zeros(len(classes)), where=totals > 0)


def scorable(sample: Sample, y: Any, sample_weight: Any) -> dict[str, Any]:
    """Give the arguments of fit as callbacks score them, without unlabelled rows."""
    X = sample.X
    if y is not None and not sample.labelled.all():
        rows = np.flatnonzero(sample.labelled)
        # Functions, which scikit-learn calls where a callback asks for the data.
        X, y = partial(_safe_indexing, X, rows), partial(_safe_indexing, y, rows)
        if sample_weight is not None:
            sample_weight = _safe_indexing(sample_weight, rows)
    return {"X": X, "y": y, "sample_weight": sample_weight}


def make_projector(given: Any, seed: int, unlabeled: object) -> Any:
    """Give a projector as it is if frozen, else a clone with a random state."""
    if isinstance(given, FrozenEstimator):
        check_is_fitted(given)
        return given
    projector = clone(given)
    if projector.random_state is None:
        projector.set_params(random_state=seed)
    if unlabeled is not None:
        projector.set_params(unlabeled=unlabeled)
    return projector


def embed(sample: Sample, teacher: Any) -> Any:
    """Give the embeddings: those given, those of the teacher, or the rows."""
    if sample.teacher_embeddings is not None:
        return sample.teacher_embeddings
    if teacher is not None:
        return transformed(teacher, sample.X, len(sample))
    _training_validation.check_embeddable(sample.inputs.ndim)
    return sample.inputs


def as_array(values: Any) -> Any:
    """Give an array of the CPU; tensors of half precision become float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.itemsize == 2 else values
    return np.asarray(values)


def is_hard(soft_targets: np.ndarray, n_classes: int) -> bool:
    """Tell whether each class has all its mass on one subclass, row by row."""
    by_class = soft_targets.reshape(len(soft_targets), n_classes, -1)
    return bool((by_class.max(axis=2) == by_class.sum(axis=2)).all())


@contextmanager
def noted(note: str) -> Iterator[None]:
    """Say more in the errors of a block."""
    try:
        yield
    except ValueError as error:
        error.add_note(note)
        raise


def warn_of_class_order(
    soft_targets: np.ndarray, codes: np.ndarray, source: TargetSource
) -> None:
    """Warn where targets that no projector was fitted for have classes out of order.

    Where one was fitted, it has looked at its teacher itself.
    """
    if source.projector is not None and not isinstance(
        source.projector, FrozenEstimator
    ):
        return
    known = codes >= 0
    mass = soft_targets.reshape(len(codes), len(source.classes), -1).sum(axis=2)
    likeliest = mass[known].argmax(axis=1)
    _validation.warn_of_class_order(likeliest, codes[known], source.classes)


def given_source(sample: Sample, projector: Any, classes: Any) -> TargetSource:
    """Make the source of soft targets that are given; None are `classes` not known."""
    frozen = isinstance(projector, FrozenEstimator)
    n_columns = sample.soft_targets.shape[1]
    if frozen:
        _training_validation.check_projector_classes(projector.classes_, classes)
        classes = projector.classes_
    elif classes is None and sample.labelled.any():
        classes = np.unique(sample.labels[sample.labelled])
    elif classes is None:
        if isinstance(projector.n_subclasses, str):
            raise _training_validation.unknown_classes()
        n_subclasses = int(projector.n_subclasses)
        _training_validation.check_subclass_columns(n_columns, n_subclasses)
        classes = np.arange(n_columns // n_subclasses)
    _training_validation.check_soft_target_columns(n_columns, np.asarray(classes))
    if not frozen and not isinstance(projector.n_subclasses, str):
        _training_validation.check_target_subclasses(
            n_columns, len(classes), int(projector.n_subclasses)
        )
    return TargetSource(
        projector if frozen else None,
        teacher=None,
        reads_inputs=False,
        labels_only=False,
        classes=_validation.check_several_classes(np.asarray(classes)),
        temperature=float(projector.temperature),
    )


def fitted_source(
    sample: Sample,
    projector: Any,
    teacher: Any,
    used: np.ndarray,
    task: FitTask,
    *,
    labels_only: bool,
    classes: np.ndarray | None = None,
) -> tuple[TargetSource, Sample]:
    """Fit the teacher, and the projector on its embeddings, with the rows `used`.

    Also gives the rows with the embeddings, which the teacher makes once.

    Parameters
    ----------
    sample : Sample
        The rows.
    projector : LELPProjector or FrozenEstimator
        Not the caller's own, which stays as it is, unless frozen.
    teacher : transformer or None
        The caller's.
    used : ndarray of shape (n,)
        True for rows that may be learned from.
    task : FitTask
        Of which the fit of the projector is a step.
    labels_only : bool
        See `TargetSource`.
    classes : ndarray of shape (n_classes,) or None
        All classes, where the labels of a block of rows might lack some.
    """
    frozen = isinstance(projector, FrozenEstimator)
    if sample.teacher_embeddings is not None and isinstance(teacher, OmittedTeacher):
        teacher = None
    if sample.teacher_embeddings is not None or teacher is None:
        _check_width(projector, sample, embed(sample, None))
    found = np.unique(sample.labels[sample.labelled])
    lacking = classes is not None and not np.isin(classes, found).all()
    if classes is not None and lacking and not frozen:
        # The teacher may find the others in rows without a label.
        says = projector.head, sample.teacher_logits, teacher
        if sample.labelled.all() or all(each is None for each in says):
            _training_validation.check_block_classes(found, classes)
    embeddings = fitted_on = None
    if teacher is not None:
        rows = sample.X, sample.y, used
        if sample.teacher_embeddings is None:
            teacher, embeddings = fit_transformed(teacher, *rows)
        else:
            teacher, embeddings = fitted(teacher, *rows), sample.teacher_embeddings
        if makes_training_embeddings(teacher):
            fitted_on = _digest_of_rows(sample)
    elif not frozen:
        embeddings = embed(sample, None)
    n_classes = len(found if classes is None else classes)
    wants_head = not frozen and projector.head is None
    asks_logits = wants_head and _asks_logits(teacher, n_classes)
    if asks_logits and sample.teacher_logits is None:
        sample = replace(sample, teacher_logits=teacher.predict_logits(sample.X))
    if not frozen:
        if wants_head and not asks_logits and hasattr(teacher, "head_"):
            projector.set_params(head=_head_arrays(teacher.head_))
            _check_width(projector, sample, embeddings)
        options: dict[str, Any] = {"sample_weight": sample.weight * used}
        if sample.teacher_logits is not None:
            options["teacher_logits"] = sample.teacher_logits
        in_projector = _in_projector(sample, teacher)
        with task.delegate("fit-projector", projector), in_projector:
            if lacking:
                projector.partial_fit(embeddings, sample.y, classes, **options)
            else:
                projector.fit(embeddings, sample.y, **options)
    # Of too few rows it has none; its transform says what is missing.
    of_projector: Any = getattr(projector, "classes_", classes)
    _training_validation.check_projector_classes(of_projector, classes)
    source = TargetSource(
        projector,
        teacher,
        reads_inputs=sample.teacher_embeddings is None and teacher is None,
        labels_only=labels_only,
        classes=of_projector,
        temperature=float(projector.temperature),
        asks_logits=asks_logits,
        fitted_on=fitted_on,
    )
    if teacher is not None:
        sample = replace(sample, teacher_embeddings=embeddings)
    return source, sample


def _digest_of_rows(sample: Sample) -> str:
    return content_hash([sample.X, sample.y])


def _asks_logits(teacher: Any, n_classes: int) -> bool:
    """Tell whether a teacher's embeddings have no head, but the teacher has logits.

    That is so for an `EmbeddingExtractor` of an earlier layer, and of a model whose
    logits no linear layer makes. Where no class is known yet (`n_classes` is 0) there
    is no telling.
    """
    if not n_classes or getattr(teacher, "head_", ()) is not None:
        return False
    # One column is that of a sigmoid.
    fitting = {n_classes, 1} if n_classes == 2 else {n_classes}
    n_logits = getattr(teacher, "n_logits_", 0)
    # A model without a head may be an encoder, whose output is of no classes; logits of
    # a head that do not fit are refused, as the head would be.
    return n_logits in fitting or getattr(teacher, "head_layer_", None) is not None


def _head_arrays(head: Any) -> Any:
    """Give a torch.nn.Linear as arrays, which any machine can load."""
    if not hasattr(head, "weight"):
        return head
    # Copies: training the teacher further changes no fitted projector.
    coef = np.array(as_array(head.weight))
    bias = np.zeros(len(coef)) if head.bias is None else np.array(as_array(head.bias))
    return coef, bias


def _check_width(projector: Any, sample: Sample, embeddings: Any) -> None:
    """Raise where the projector has a head or is fitted, for others than these."""
    if isinstance(projector, FrozenEstimator):
        expected = projector.n_features_in_
    else:
        head: Any = projector.head
        coef: Any = head[0] if isinstance(head, tuple | list) and head else None
        coef = getattr(head, "coef_", getattr(head, "weight", coef))
        # An array, a tensor or nested lists; None has no dimension.
        expected = next(reversed(np.shape(coef)), None)
    shape = np.shape(embeddings)
    if expected is not None and len(shape) == 2:
        _check_embedding_width(
            shape[1],
            expected,
            "teacher_embeddings",
            is_given=sample.teacher_embeddings is not None,
        )


@contextmanager
def _in_projector(sample: Sample, teacher: Any) -> Iterator[None]:
    """Call the embeddings in errors by the name that the caller knows."""
    name = "X"
    if sample.teacher_embeddings is not None:
        name = f"teacher_embeddings{sample.suffix}"
    elif teacher is not None:
        name = "teacher.transform(X)"
    try:
        with noted(f"(In the projector of the student, whose X is {name} here.)"):
            yield
    except _validation.NotFiniteError as error:
        if error.name != "X":
            raise
        raise _validation.NotFiniteError(name, error.rest) from None


def _check_is_array(values: Any, name: str) -> None:
    """Raise where a model is given in the place of what it makes."""
    if not hasattr(values, "__len__") and not hasattr(values, "shape"):
        raise TypeError(
            f"{name} is {type(values).__name__}; it must be an array, one row a "
            "sample. A model that makes it is passed as teacher=, or its "
            ".transform(X) here."
        )


def _check_embedding_width(
    n_features: int, expected: int, name: str, *, is_given: bool
) -> None:
    """Raise unless the projector can read embeddings of this width."""
    if n_features == expected:
        return
    if not is_given:
        raise ValueError(
            f"teacher_embeddings are missing: X would take their place, and has "
            f"{n_features} features, but the head or the fitted projector reads "
            f"{expected}. Pass teacher_embeddings of shape (n_samples, {expected}), or "
            "a teacher that makes them."
        )
    raise ValueError(
        f"{name} has {n_features} features, but the head or the fitted projector reads "
        f"{expected}: pass embeddings of shape (n_samples, {expected})."
    )
