"""What a step may change on the host, where a recorded step changes nothing."""

import dis
import functools
import io
import pickle
import random
import sys
from collections.abc import Iterable, Iterator
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

# Torch's names of the hooks that all modules have.
_HOOKS_OF_ALL = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)

# Larger tensors count by how often torch has changed them.
_MOST_NUMBERS = 2**16

# Their code changes nothing that a step reads, but for the generators.
_TRUSTED = {"torch", "numpy", *sys.stdlib_module_names}

# Called without being named.
_UNNAMED = "__call__", "__init__", "forward", "backward"

# What code is found behind.
_WRAPPERS: dict[type, str] = {
    MethodType: "__func__",
    staticmethod: "__func__",
    classmethod: "__func__",
    property: "fget",
    functools.cached_property: "func",
    functools._lru_cache_wrapper: "__wrapped__",
}
_NO_VALUES = (
    ModuleType,
    type,
    staticmethod,
    classmethod,
    property,
    functools.cached_property,
    functools._lru_cache_wrapper,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)


def host_state(module: nn.Module) -> bytes | None:
    """Give all that the `forward` of a module reads on the host, None if it is unknown.

    The attributes of the module and its parts; what their code, and that of the
    functions and methods that it names, finds outside itself; the generators that all
    share. Two states are equal unless something has changed between.
    """
    buffer = io.BytesIO()
    generators = (
        random.getstate(),
        np.random.get_state(legacy=False),  # noqa: NPY002 - the one that all share
        torch.get_rng_state().numpy(),
    )
    try:
        _Reader(buffer, module).write(generators, module)
    # What cannot be pickled says so in many ways.
    except Exception:
        return None
    return buffer.getvalue()


def has_hooks(module: nn.Module) -> bool:
    """Tell whether somebody's functions are called beside the module's own."""
    return (
        any(getattr(torch_module, name) for name in _HOOKS_OF_ALL)
        or any(
            part._forward_pre_hooks
            or part._forward_hooks
            or part._backward_pre_hooks
            or part._backward_hooks
            for part in module.modules()
        )
        or any(
            parameter._backward_hooks or parameter._post_accumulate_grad_hooks
            for parameter in module.parameters()
        )
    )


def is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer is torch's own and calls nobody's functions."""
    return (
        type(optimizer).__module__.startswith("torch.optim.")
        and not {"step", "zero_grad"} & vars(optimizer).keys()
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and not torch_optimizer._global_optimizer_pre_hooks
        and not torch_optimizer._global_optimizer_post_hooks
    )


class _Reader(pickle.Pickler):
    """Writes values; modules, functions and the device's tensors as their places.

    What a module holds and a function finds is written after it, until nothing new
    comes up.
    """

    def __init__(self, file: io.BytesIO, module: nn.Module) -> None:
        super().__init__(file)
        held = *module.parameters(), *module.buffers()
        self._on_device = {id(tensor) for tensor in held}
        self._kinds: dict[type, None] = {}
        # These are kept, since a number that `id` gives is used again.
        self._queue: list[Any] = []
        self._known: set[int] = set()

    def write(self, *values: Any) -> None:
        """Write values and all that they lead to."""
        self.dump(values)
        for value in self._queue:
            self.dump(list(self._found_by(value)))

    def persistent_id(self, obj: Any) -> Any:
        """Give what is written in the place of a value, None for its content."""
        self._kinds[obj if isinstance(obj, type) else type(obj)] = None
        if isinstance(obj, Tensor):
            return self._tensor(obj)
        leads_on = type(obj) in _WRAPPERS or isinstance(obj, nn.Module | FunctionType)
        if leads_on and id(obj) not in self._known:
            self._known.add(id(obj))
            self._queue.append(obj)
        if isinstance(obj, BuiltinFunctionType):
            is_bound = not isinstance(obj.__self__, ModuleType | type | None)
            return None if is_bound else id(obj)
        is_place = isinstance(obj, (nn.Module, FunctionType, *_NO_VALUES))
        return id(obj) if is_place else None

    def _tensor(self, tensor: Tensor) -> Any:
        if tensor.device.type != "cpu" or id(tensor) in self._on_device:
            return id(tensor)
        if tensor.numel() > _MOST_NUMBERS:
            return id(tensor), tensor._version
        content = tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        return id(tensor), content

    def _found_by(self, value: Any) -> Iterator[Any]:
        if isinstance(value, nn.Module):
            yield from (vars(value), value.forward, type(value).__call__)
        elif type(value) in _WRAPPERS:
            yield getattr(value, _WRAPPERS[type(value)])
        elif not _is_trusted(value):
            yield from _found_by_function(value, self._kinds)


def _found_by_function(function: FunctionType, kinds: Iterable[type]) -> Iterator[Any]:
    """Give what a function finds outside itself, by the names in its code.

    Attributes are looked for in all modules and classes that it names, and in `kinds`.
    """
    yield from (cell.cell_contents for cell in function.__closure__ or ())
    yield from (function.__defaults__, function.__kwdefaults__)
    yield from vars(function).values()
    from_outside, names = _names(function.__code__)
    owners = [
        place[name]
        for name in sorted(from_outside)
        for place in (function.__globals__, sys.modules)
        if name in place
    ]
    yield from owners
    owners += kinds
    seen: set[int] = set()
    # Modules and classes lead to others.
    for owner in owners:
        for space in _spaces(owner):
            if id(space) in seen:
                continue
            seen.add(id(space))
            for name in sorted(names & vars(space).keys()):
                owners.append(vars(space)[name])
                yield owners[-1]


def _spaces(value: Any) -> list[Any]:
    """Give what has attributes: a module, or the classes of an object but trusted ones.

    A class itself is its own.
    """
    if isinstance(value, ModuleType):
        return [value]
    kind = value if isinstance(value, type) else type(value)
    return [each for each in kind.__mro__ if not _is_trusted(each)]


def _is_trusted(value: type | FunctionType) -> bool:
    return str(value.__module__).partition(".")[0] in _TRUSTED


@functools.lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Give the names that compiled Python looks for outside, and all names in it.

    A string may be a name too, and functions inside count.
    """
    strings = {each for each in code.co_consts if isinstance(each, str)}
    outside = strings | {
        str(each.argval)
        for each in dis.get_instructions(code)
        if each.opname.endswith(("_GLOBAL", "_NAME"))
    }
    names = {*strings, *code.co_names, *_UNNAMED}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            others = _names(constant)
            outside |= others[0]
            names |= others[1]
    return frozenset(outside), frozenset(names)
