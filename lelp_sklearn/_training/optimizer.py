"""Optimizers: named or returned by a callable, and their states."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lelp_sklearn._training.device import torch_lock
from lelp_sklearn._training.sparse import SparseLinear
from lelp_sklearn._training.sparse_adam import SparseAdamW

Optimizer = torch.optim.Optimizer
OptimizerParam = str | Callable[..., Optimizer]


def make_optimizer(
    optimizer: OptimizerParam,
    module: nn.Module,
    learning_rate: float,
    weight_decay: float,
) -> Optimizer:
    """Return the optimizer of a module's trainable parameters.

    It decides whether the gradients of the layers for sparse rows are sparse.
    """
    for layer in module.modules():
        if isinstance(layer, SparseLinear):
            layer.sparse_gradient = optimizer == "sparse_adam"
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "module has no parameter that requires a gradient: set requires_grad=True "
            "on the parameters to train."
        )
    with torch_lock.held():
        if callable(optimizer):
            made = optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)
            return _check_returned(made)
        if optimizer == "sparse_adam":
            return SparseAdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        return torch.optim.AdamW(
            parameters,
            lr=learning_rate,
            weight_decay=weight_decay,
            fused=all(p.is_floating_point() for p in parameters),
        )


def check_optimizer(
    optimizer: OptimizerParam, learning_rate: float, weight_decay: float
) -> None:
    """Raise, before work starts, if a callable returns no usable optimizer.

    It is called for a single parameter that belongs to no module.
    """
    if not callable(optimizer):
        return
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        _check_step(optimizer)
    _check_signature(optimizer)
    try:
        parameters = [nn.Parameter(torch.zeros(1, 1))]
        with torch_lock.held():
            made = optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)
    except TypeError as reason:
        raise TypeError(
            f"optimizer {_name(optimizer)} failed when called with one parameter, lr= "
            f"and weight_decay=: {reason}; pass a callable that returns a "
            "torch.optim.Optimizer."
        ) from reason
    # It may depend on the parameters of the module.
    except Exception:
        return
    _check_returned(made)


def continue_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give a new optimizer the state of an earlier one, and keep its own settings.

    Its own settings are the learning rates and weight decays. With other parameters,
    as after some were frozen, it starts again.
    """
    groups = optimizer.param_groups
    earlier_groups = state["param_groups"]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in earlier_groups]:
        return
    for earlier, group in zip(earlier_groups, groups, strict=True):
        for name in ("lr", "initial_lr", "weight_decay"):
            earlier.pop(name, None)
            if name in group:
                earlier[name] = group[name]
    optimizer.load_state_dict(state)


def _check_returned(made: Any) -> Optimizer:
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"optimizer returned {type(made).__name__}; it must return a "
            "torch.optim.Optimizer."
        )
    _check_step(type(made))
    return made


def _check_step(kind: type[Optimizer]) -> None:
    """Raise if a class of optimizers takes no step without a closure."""
    try:
        inspect.signature(kind.step).bind(None)
    except ValueError:  # built in, and without a signature
        return
    except TypeError as reason:
        raise TypeError(
            f"optimizer {kind.__name__} needs a closure, which evaluates the loss "
            "again and is not given: choose one whose step() takes no argument."
        ) from reason


def _check_signature(optimizer: Callable[..., Any]) -> None:
    try:
        inspect.signature(optimizer).bind([], lr=0.1, weight_decay=0.0)
    except ValueError:  # built in, and without a signature
        return
    except TypeError as reason:
        raise TypeError(
            f"optimizer {_name(optimizer)} cannot be called as optimizer(parameters, "
            f"lr=..., weight_decay=...): {reason}. Wrap it in a function of these "
            "three."
        ) from reason


def _name(optimizer: Callable[..., Any]) -> str:
    return str(getattr(optimizer, "__name__", repr(optimizer)))
