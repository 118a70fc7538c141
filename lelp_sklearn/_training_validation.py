"""Checks of what a user passes to the losses and the student, and their messages."""

import inspect
import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator

from lelp_sklearn._typing import BoolArray
from lelp_sklearn._validation import as_numbers

# --- the student: inputs and targets --------------------------------------------------


def check_frozen(projector: Any, kind: type) -> None:
    """Raise where another estimator than a projector is frozen as one."""
    if isinstance(projector, FrozenEstimator) and not isinstance(
        projector.estimator, kind
    ):
        raise TypeError(
            f"projector is a FrozenEstimator of {type(projector.estimator).__name__}; "
            f"it must hold a fitted {kind.__name__}."
        )


def check_nested_parameters(student: Any, params: dict[str, Any]) -> None:
    """Raise where parameters of a projector or a teacher are set and there is none."""
    for name, needed in (
        ("projector", "projector=LELPProjector()"),
        ("teacher", "the teacher, such as teacher=EmbeddingExtractor(model)"),
    ):
        nested = [each for each in params if each.startswith(f"{name}__")]
        if nested and params.get(name, getattr(student, name)) is None:
            raise ValueError(
                f"{nested[0]} cannot be set: {name} is None, which has no parameters. "
                f"Construct the student with {needed}."
            )


def check_row_shape(found: tuple[int, ...], fitted: tuple[int, ...]) -> None:
    """Raise unless rows have the shape of those seen in fit."""
    if found != fitted:
        raise ValueError(
            f"X has rows of shape {found} and the student was fitted on rows of shape "
            f"{fitted}: pass rows of that shape."
        )


def check_codes(dtype: object, as_fitted: bool) -> None:
    """Raise where numbers come to a module that was fitted on integer codes."""
    if not as_fitted:
        raise ValueError(
            f"X is {dtype} and the student was fitted on integers, which its module "
            "takes as codes: pass integers."
        )


def check_soft_targets(soft_targets: Any) -> NDArray[Any]:
    """Give soft targets (n, C*S) as a floating array."""
    soft = as_numbers(soft_targets, "soft_targets")
    if soft.dtype.kind != "f":
        soft = soft.astype(np.float64)
    if soft.ndim != 2 or 0 in soft.shape:
        raise ValueError(
            f"soft_targets has shape {soft.shape}; it must be (n_samples, n_classes * "
            "n_subclasses), as LELPProjector.transform makes it."
        )
    return soft


def check_soft_target_columns(n_columns: int, classes: NDArray[Any]) -> None:
    """Raise unless each class has as many columns as any other."""
    if n_columns % len(classes):
        raise ValueError(
            f"soft_targets has {n_columns} columns, no multiple of the {len(classes)} "
            f"classes {classes.tolist()}: give n_subclasses columns a class."
        )


def check_subclass_columns(n_columns: int, n_subclasses: int) -> None:
    """Raise unless n_subclasses says how many classes the soft targets have."""
    if n_columns % n_subclasses:
        raise ValueError(
            f"soft_targets has {n_columns} columns, no multiple of the "
            f"n_subclasses={n_subclasses} of projector: set the number that they were "
            "made with, or pass y, which says the classes."
        )


def check_target_subclasses(n_columns: int, n_classes: int, n_subclasses: int) -> None:
    """Raise unless soft targets have as many subclasses as the projector says."""
    if n_columns != n_classes * n_subclasses:
        raise ValueError(
            f"soft_targets has {n_columns} columns; {n_classes} classes of the "
            f"n_subclasses={n_subclasses} of projector are {n_classes * n_subclasses}: "
            "set the number that they were made with, or leave it 'auto'; y must have "
            "every class."
        )


def check_probabilities(soft: NDArray[Any]) -> None:
    """Raise unless each row of soft targets is a distribution."""
    if soft.min() < 0:
        row = int(np.argmax((soft < 0).any(axis=1)))
        raise ValueError(
            f"soft_targets is negative in row {row}: they must be probabilities, not "
            "logits."
        )
    sums = soft.sum(axis=1, dtype=np.float64)
    # Entries of bfloat16 add up to no better than this.
    wrong = np.abs(sums - 1) > 5e-3
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"soft_targets does not sum to one in row {row} (sum {sums[row]:.4g}): "
            "divide each row by its sum."
        )


def unknown_classes() -> ValueError:
    """Soft targets without anything that says the classes."""
    return ValueError(
        "soft_targets is given and nothing says the classes of its columns: pass y, or "
        "a projector with an integer n_subclasses or fitted and frozen "
        "(FrozenEstimator)."
    )


def check_labels_for(needed_by: str, labelled: BoolArray) -> None:
    """Raise where no row is labelled and labels are needed."""
    if not labelled.any():
        raise ValueError(
            "LELPStudentClassifier requires y to be passed, but the target y is None "
            f"or has no labels: {needed_by}."
        )


def check_embeddable(n_dimensions: int) -> None:
    """Raise where X cannot take the place of the teacher's embeddings."""
    if n_dimensions != 2:
        raise ValueError(
            f"X has {n_dimensions} dimensions and cannot take the place of the "
            "teacher's embeddings: pass teacher_embeddings, soft_targets or a teacher."
        )


# --- the student: training ------------------------------------------------------------


def check_validation_data(
    early_stopping: bool, X_val: Any, y_val: Any, teacher_embeddings_val: Any
) -> None:
    """Raise where validation data is incomplete or would not be used."""
    others = {"y_val": y_val, "teacher_embeddings_val": teacher_embeddings_val}
    for name, value in others.items():
        if X_val is None and value is not None:
            raise ValueError(f"{name} is given without X_val: pass both or neither.")
    if X_val is not None and not early_stopping:
        raise ValueError(
            "X_val is given and early_stopping is False, which has no use for it: set "
            "early_stopping=True."
        )


def check_validation_labels(labelled: BoolArray, has_embeddings: bool) -> None:
    """Raise where nothing says what a student should predict of validation rows."""
    if has_embeddings:
        raise ValueError(
            "teacher_embeddings_val is given and there is no projector that was fitted "
            "on embeddings of the teacher: with soft_targets give "
            "projector=FrozenEstimator(...), or leave it out and pass y_val."
        )
    if not labelled.any():
        raise ValueError(
            "X_val is given and nothing says its classes: pass y_val, or "
            "teacher_embeddings_val."
        )


def check_partial_fit(
    early_stopping: bool, class_weight: Any, classes: Any, first: bool
) -> None:
    """Raise for what needs all the data, and where the classes are not known."""
    if early_stopping:
        raise ValueError("partial_fit does not support early_stopping=True.")
    if class_weight == "balanced":
        raise ValueError(
            "partial_fit does not support class_weight='balanced': pass a dict."
        )
    if first and classes is None:
        raise ValueError("classes must be passed on the first call to partial_fit.")


def check_block_classes(found: NDArray[Any], classes: NDArray[Any]) -> None:
    """Raise where the projector cannot be fitted on a first block."""
    missing = np.setdiff1d(classes, found)
    if missing.size:
        raise ValueError(
            f"the first block of partial_fit has no rows of {missing.tolist()}, and "
            "the projector is fitted on it: pass a block with every class, "
            "soft_targets or projector=FrozenEstimator(...)."
        )


def check_projector_classes(
    of_projector: NDArray[Any], classes: NDArray[Any] | None
) -> None:
    """Raise unless the projector and `classes` of partial_fit mean the same."""
    if classes is not None and not np.array_equal(np.sort(of_projector), classes):
        raise ValueError(
            f"classes={classes.tolist()} are not those of the projector, "
            f"{of_projector.tolist()}: pass these."
        )


def check_held_out(n_held_out: int, fraction: float, n_samples: int) -> None:
    """Raise where early stopping has no rows to judge by."""
    if not n_held_out:
        raise ValueError(
            f"early_stopping=True cannot hold out validation_fraction={fraction} of "
            f"{n_samples} rows, none of two with the same label: give more rows, or "
            "pass X_val and y_val."
        )


def check_same_columns(n_columns: int, n_outputs: int) -> None:
    """Raise unless targets have a column for each output of the fitted module."""
    if n_columns != n_outputs:
        raise ValueError(
            f"the targets have {n_columns} columns and the fitted module {n_outputs} "
            "outputs: keep n_subclasses, or fit anew with warm_start=False."
        )


def targets_are_missing(has_projector: bool) -> ValueError:
    """A student goes on without what its targets were made from."""
    missing = "teacher_embeddings" if has_projector else "soft_targets"
    return ValueError(
        f"the student was fitted on {missing}: pass them again, for these rows."
    )


def check_class_weight(class_weight: Any) -> None:
    """Raise where a dict has weights that are no finite numbers, or negative."""
    given = class_weight.items() if isinstance(class_weight, dict) else ()
    for label, value in given:
        if not isinstance(value, numbers.Real) or not 0 <= float(value) < np.inf:
            raise ValueError(
                f"class_weight[{label!r}]={value!r}: weights must be finite numbers "
                "that are not negative."
            )


def check_weighted_classes(class_weight: dict[Any, Any], classes: NDArray[Any]) -> None:
    """Raise where keys match no class while classes have no key, as scikit-learn does.

    A key beside those of all classes is ignored: a fold may lack its class.
    """
    labels = classes.tolist()
    unknown = [label for label in class_weight if label not in labels]
    without = [label for label in labels if label not in class_weight]
    if unknown and without:
        raise ValueError(
            f"class_weight has weights for {unknown}, which are not among the classes "
            f"{labels}, and none for {without}: the keys must be labels of y."
        )


def check_class_weight_leaves_rows(used: BoolArray, class_weight: object) -> None:
    """Raise where the weights of classes leave nothing to learn from."""
    if not used.any():
        raise ValueError(
            f"class_weight={class_weight!r} gives every row of positive weight the "
            "weight 0: give a class that has rows a positive weight."
        )


def check_schedule_value(
    value: Any, name: str, progress: float, at: tuple[int, int] | None = None
) -> None:
    """Raise unless a schedule gives a number that is not negative.

    `at` are the epoch and the step of a progress that training has come to.
    """
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < np.inf:
        where = f", step {at[1] + 1} of epoch {at[0] + 1}" if at else ""
        raise ValueError(
            f"{name} gives {value!r} at progress {progress:g}{where}; it must give "
            "finite numbers that are not negative."
        )


def check_losses(losses: list[float], learning_rates: list[float], epoch: int) -> None:
    """Raise where the loss of a step was not finite."""
    for step, loss in enumerate(losses):
        if not np.isfinite(loss):
            found = f"the loss was {loss} in step {step + 1} of epoch {epoch + 1}"
            raise _diverged(found, learning_rates[step])


def check_weights(finite: bool, learning_rate: float, epoch: int) -> None:
    """Raise where the last step of an epoch made weights that are not finite."""
    if not finite:
        found = f"weights of the module were not finite after epoch {epoch + 1}"
        raise _diverged(found, learning_rate)


def _diverged(found: str, learning_rate: float) -> FloatingPointError:
    return FloatingPointError(
        f"{found}, at learning rate {learning_rate:g}: lower learning_rate, set "
        "max_grad_norm or standardise X."
    )


# --- the student: modules and devices -------------------------------------------------


def unusable_device(device: object, reason: object) -> ValueError:
    """A device that torch does not know or that is not there."""
    first_line = str(reason).splitlines()[0]
    return ValueError(
        f"device={str(device)!r} cannot be used ({first_line}): use 'auto', 'cpu' or a "
        "device that torch finds here."
    )


def unusable_precision(name: str, device: object, reason: object) -> ValueError:
    """A device has no products of that precision."""
    first_line = str(reason).splitlines()[0]
    return ValueError(
        f"precision={name!r} cannot be used on {str(device)!r} ({first_line}): use "
        "'float32', or another device."
    )


def check_augmented_rows(
    shape: tuple[int, ...] | None, kind: type, n_rows: int
) -> None:
    """Raise unless augmented rows are a tensor of as many."""
    if shape is None or len(shape) < 2 or shape[0] != n_rows:
        found = kind.__name__ if shape is None else f"a tensor of shape {shape}"
        raise ValueError(
            f"augment makes {found} of {n_rows} rows; it must return a tensor of as "
            "many rows."
        )


def check_module_arguments(
    module: Any, module_params: Any, *, is_template: bool
) -> None:
    """Raise where a module cannot be built with its arguments."""
    if is_template and module_params:
        raise ValueError(
            f"module_params={module_params!r} needs a module that is built: module is "
            f"an instance of {type(module).__name__}; pass its class or a function."
        )
    if is_template:
        return
    try:
        signature = inspect.signature(module)
    except ValueError:  # built in, and without a signature
        return
    try:
        signature.bind(1, 1, **(module_params or {}))
    except TypeError as reason:
        name = getattr(module, "__name__", repr(module))
        raise TypeError(
            f"module {name} cannot be called as module(n_features, n_outputs, "
            f"**module_params) with module_params={module_params!r}: {reason}."
        ) from reason


def check_optimizer_arguments(optimizer: Any) -> None:
    """Raise where a callable does not take the arguments of an optimizer."""
    try:
        inspect.signature(optimizer).bind([], lr=0.1, weight_decay=0.0)
    except ValueError:  # built in, and without a signature
        return
    except TypeError as reason:
        name = getattr(optimizer, "__name__", repr(optimizer))
        raise TypeError(
            f"optimizer {name} cannot be called as optimizer(parameters, lr=..., "
            f"weight_decay=...): {reason}. Wrap it in a function of these three."
        ) from reason


def failing_optimizer(optimizer: Any, reason: object) -> TypeError:
    """A callable is wrong in itself, whatever the parameters are."""
    name = getattr(optimizer, "__name__", repr(optimizer))
    return TypeError(f"optimizer {name} makes no optimizer of one parameter: {reason}")


def check_optimizer(is_optimizer: bool, made: object) -> None:
    """Raise unless a callable returned an optimizer."""
    if not is_optimizer:
        raise TypeError(
            f"optimizer returned {type(made).__name__}; it must return a "
            "torch.optim.Optimizer."
        )


def check_step(optimizer: Any) -> None:
    """Raise where a class of optimizers takes no step without a closure."""
    try:
        inspect.signature(optimizer.step).bind(None)
    except ValueError:  # built in, and without a signature
        return
    except TypeError as reason:
        raise TypeError(
            f"optimizer {optimizer.__name__} needs a closure, which evaluates the loss "
            "again and is not given: choose one whose step() takes no argument."
        ) from reason


def check_is_module(is_module: bool, built: object) -> None:
    """Raise unless a callable returned a module."""
    if not is_module:
        raise TypeError(
            f"module returned {type(built).__name__}; it must return a torch.nn.Module."
        )


def check_has_linear(has_linear: bool, module: object) -> None:
    """Raise unless a template has a layer to widen."""
    if not has_linear:
        raise ValueError(
            f"module is an instance of {type(module).__name__} that runs no "
            "torch.nn.Linear to widen: pass a callable (n_features, n_outputs)."
        )


def failing_module(rows: Any, reason: object, widened: str | None = None) -> ValueError:
    """The module does not take the rows; see `check_module_outputs` for `widened`."""
    return ValueError(
        f"module fails on the first rows of X, a tensor of shape {tuple(rows.shape)} "
        f"and dtype {rows.dtype}: {reason}{_of_widening(widened)}"
    )


def check_module_outputs(
    found: object, n_rows: int, n_outputs: int, widened: str | None
) -> None:
    """Raise unless the module makes one column an output.

    `widened` is the layer of a template that was given as many.
    """
    if found != (n_rows, n_outputs):
        raise ValueError(
            f"module makes an output of shape {found} of {n_rows} rows; it must be "
            f"({n_rows}, {n_outputs}), n_classes * n_subclasses columns of logits."
            f"{_of_widening(widened)}"
        )


def _of_widening(widened: str | None) -> str:
    if widened is None:
        return ""
    return (
        f" (Only its linear layer {widened!r} was widened: pass a callable "
        "(n_features, n_outputs) where others depend on its outputs.)"
    )


def check_trainable(n_parameters: int) -> None:
    """Raise unless there is something to train."""
    if not n_parameters:
        raise ValueError("module has no parameter that requires a gradient.")
