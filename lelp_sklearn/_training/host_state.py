"""What a step may change on the host, where a recorded step changes nothing."""

import io
import pickle
import random
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def host_state(module: nn.Module) -> bytes | None:
    """Give all that the `forward` of a module reads on the host, None if it is unknown.

    The attributes of the module and its parts, with each tensor as the place where it
    is; the variables of their `forward`; the generators that all share. Two states are
    equal unless something has changed between.
    """
    state = [
        [(vars(part), list(_variables(part.forward))) for part in module.modules()],
        random.getstate(),
        np.random.get_state(legacy=False),  # noqa: NPY002 - the one that all share
        torch.get_rng_state().numpy(),
    ]
    buffer = io.BytesIO()
    try:
        _Places(buffer).dump(state)
    # What cannot be pickled says so in many ways.
    except Exception:
        return None
    return buffer.getvalue()


def has_hooks(module: nn.Module) -> bool:
    """Tell whether somebody's functions are called beside the module's own."""
    return any(
        part._forward_pre_hooks
        or part._forward_hooks
        or part._backward_pre_hooks
        or part._backward_hooks
        for part in module.modules()
    )


class _Places(pickle.Pickler):
    """Writes a tensor or a module as the place where it is."""

    def persistent_id(self, obj: Any) -> int | None:
        return id(obj) if isinstance(obj, Tensor | nn.Module) else None


def _variables(function: Callable[..., Any]) -> Iterator[Any]:
    """Give what a method finds outside itself, but for modules, classes, functions."""
    function = getattr(function, "__func__", function)
    for cell in getattr(function, "__closure__", None) or ():
        yield cell.cell_contents
    code = getattr(function, "__code__", None)
    known = getattr(function, "__globals__", {})
    for name in _names(code) if code is not None else ():
        value = known.get(name)
        if not isinstance(value, ModuleType | type | FunctionType):
            yield value


def _names(code: CodeType) -> Iterator[str]:
    """Give the names in compiled Python, that of functions inside it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
