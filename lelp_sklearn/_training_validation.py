"""Checks of what a user passes to the losses and the student, and their messages."""

import inspect
import numbers
from typing import Any

import numpy as np

# --- the student: training ------------------------------------------------------------


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
