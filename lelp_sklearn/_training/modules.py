"""The default student, modules with as many outputs as needed, and their weights."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor, nn

from lelp_sklearn._threads import copied
from lelp_sklearn._training.batches import SparseLinear, as_tensor
from lelp_sklearn._training.device import input_dtype, seeded
from lelp_sklearn._training.layers import find_output

ModuleBuilder = Callable[..., nn.Module]
ModuleParam = nn.Module | ModuleBuilder | None


def multilayer_perceptron(
    n_features: int, n_outputs: int, hidden_layer_sizes: Sequence[int] = (128,)
) -> nn.Sequential:
    """Return the default student: linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for size in hidden_layer_sizes:
        layers += [nn.Linear(n_features, size), nn.ReLU()]
        n_features = size
    return nn.Sequential(*layers, nn.Linear(n_features, n_outputs))


def check_module_arguments(
    module: ModuleParam, module_params: Mapping[str, Any] | None
) -> None:
    """Raise if a module cannot be built with its arguments."""
    if isinstance(module, nn.Module):
        if module_params:
            raise ValueError(
                f"module_params={module_params!r} has no effect on an instance "
                f"({type(module).__name__}): pass its class, or module_params=None."
            )
        return
    builder = multilayer_perceptron if module is None else module
    try:
        inspect.signature(builder).bind(1, 1, **(module_params or {}))
    except ValueError:  # built in, and without a signature
        return
    except TypeError as reason:
        name = getattr(builder, "__name__", repr(builder))
        raise TypeError(
            f"module {name} cannot be called as module(n_features, n_outputs, "
            f"**module_params) with module_params={module_params!r}: {reason}."
        ) from reason


def _copy_with_hooks(module: nn.Module) -> nn.Module:
    twin: nn.Module = copied(module)
    _share_gradient_hooks(module, twin)
    return twin


def _share_gradient_hooks(module: nn.Module, other: nn.Module) -> None:
    """Register the gradient hooks of a module on another; copying loses them."""
    others = dict(other.named_parameters())
    for name, parameter in module.named_parameters():
        if name in others and others[name].requires_grad:
            for hook in (parameter._backward_hooks or {}).values():
                others[name].register_hook(hook)
            for hook in (parameter._post_accumulate_grad_hooks or {}).values():
                others[name].register_post_accumulate_grad_hook(hook)


def layer_to_widen(
    template: nn.Module, n_outputs: int, first_rows: Tensor
) -> str | None:
    """Return the name of the linear layer whose output a template returns.

    If no layer makes what is returned, it is the layer that comes closest, else the
    last one to run. None if the template has `n_outputs` outputs already.
    """
    # Lazy layers and counters change in a call, and the template stays as it is.
    net = _copy_with_hooks(template).to(first_rows.device)
    if first_rows.is_floating_point():
        net = net.to(first_rows.dtype)
    with torch.no_grad():
        output = find_output(net, partial(_try, net, first_rows), len(first_rows))
    if output.n_logits == n_outputs:
        return None
    closest = output.closest if output.head is None else output.head.module
    layer = output.last_linear if closest is None else closest
    if layer is None:
        raise ValueError(
            f"module is an instance of {type(template).__name__} that runs no "
            "torch.nn.Linear to widen: pass a callable (n_features, n_outputs)."
        )
    return layer


def _widen(module: nn.Module, layer: str, n_outputs: int) -> nn.Module:
    narrow: Any = module.get_submodule(layer)
    wider = nn.Linear(narrow.in_features, n_outputs, bias=narrow.bias is not None)
    wider.to(device=narrow.weight.device, dtype=narrow.weight.dtype)
    _share_gradient_hooks(narrow, wider)
    if not layer:
        return wider
    parent, _, attribute = layer.rpartition(".")
    setattr(module.get_submodule(parent), attribute, wider)
    return module


def _try(net: nn.Module, first_rows: Tensor, widened_layer: str | None = None) -> Any:
    """Call a module in evaluation mode."""
    net.eval()
    try:
        with torch.no_grad():
            return net(first_rows.clone())
    # A user's module may fail in any way; the error says which module and rows.
    except Exception as reason:
        kind, fix = "", "X must have the shape and dtype that it takes."
        if first_rows.layout == torch.sparse_csr:
            kind = "sparse CSR "
            fix = (
                "a module that cannot read sparse rows must call x.to_dense() first, "
                "in its forward method."
            )
        raise ValueError(
            f"module fails on the first rows of X, a {kind}tensor of shape "
            f"{tuple(first_rows.shape)} and dtype {first_rows.dtype}: {reason}; {fix}"
            f"{_note_on_widening(widened_layer)}"
        ) from reason


def _note_on_widening(widened_layer: str | None) -> str:
    if widened_layer is None:
        return ""
    return (
        f" (Only its linear layer {widened_layer!r} was widened: pass a callable "
        "(n_features, n_outputs) where others depend on its outputs.)"
    )


class StudentModule:
    """A module with the arguments that build it; its weights are pickled as arrays.

    The inputs have `dtype`. The first rows show which layer of a template to widen, and
    whether rows are sparse.
    """

    def __init__(
        self,
        module: ModuleParam,
        module_params: Mapping[str, Any] | None,
        row_shape: tuple[int, ...],
        n_outputs: int,
        dtype: torch.dtype,
        first_rows: Tensor,
    ) -> None:
        self.module = module
        self.module_params = dict(module_params or {})
        self.row_shape = row_shape
        self.n_outputs = n_outputs
        self.dtype = dtype
        self.is_sparse = first_rows.layout == torch.sparse_csr
        self.widened_layer: str | None = None
        if isinstance(module, nn.Module):
            self.widened_layer = layer_to_widen(module, n_outputs, first_rows)
        self.net = self._build()

    def _build(self) -> nn.Module:
        """Build the module; the caller's own never changes."""
        module, shape, params = self.module, self.row_shape, self.module_params
        if isinstance(module, nn.Module):
            net = _copy_with_hooks(module)
            if self.widened_layer is not None:
                net = _widen(net, self.widened_layer, self.n_outputs)
        elif module is None:
            layers = multilayer_perceptron(prod(shape), self.n_outputs, **params)
            if self.is_sparse:
                # With the same initial weights.
                layers[0] = SparseLinear(cast(nn.Linear, layers[0]))
            net = layers if len(shape) == 1 else nn.Sequential(nn.Flatten(), layers)
        else:
            net = module(shape[0], self.n_outputs, **params)
            if not isinstance(net, nn.Module):
                raise TypeError(
                    f"module returned {type(net).__name__}; it must return a "
                    "torch.nn.Module."
                )
            # A callable may return the same module at each call.
            net = _copy_with_hooks(net)
        return net.to(self.dtype) if self.dtype.is_floating_point else net

    def check_outputs(self, first_rows: Tensor) -> None:
        """Raise unless the module takes the rows and returns all outputs for each."""
        outputs = _try(self.net, first_rows, self.widened_layer)
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs)
        n_rows = len(first_rows)
        if shape != (n_rows, self.n_outputs):
            raise ValueError(
                f"module makes an output of shape {shape} of {n_rows} rows; it must be "
                f"({n_rows}, {self.n_outputs}), n_classes * n_subclasses columns of "
                f"logits.{_note_on_widening(self.widened_layer)}"
            )

    def check_layout(self, inputs: Any) -> None:
        """Raise if the module refuses sparse rows after dense ones, or dense ones."""
        if issparse(inputs) != self.is_sparse:
            device = next(self.net.parameters()).device
            self.check_outputs(as_tensor(inputs[:2], device, self.dtype))

    def check_augmented(
        self,
        augment: Callable[[Tensor], Any],
        inputs: Any,
        device: torch.device,
        seed: int,
    ) -> None:
        """Raise unless `augment` returns rows that the module takes."""
        first_rows = as_tensor(inputs[:2], device, self.dtype).clone()
        with seeded(seed, device):
            rows = augment(first_rows)
            is_tensor = isinstance(rows, Tensor)
            if not is_tensor or rows.ndim < 2 or len(rows) != len(first_rows):
                shape = f"shape {tuple(rows.shape)}" if is_tensor else None
                raise ValueError(
                    f"augment returned {shape or type(rows).__name__} for a batch of "
                    f"{len(first_rows)} rows; it must return a tensor with one row per "
                    "input row."
                )
            self.check_outputs(rows)

    def snapshot(self) -> "StudentModule":
        """Return a copy whose weights stay as they are now."""
        twin = StudentModule.__new__(StudentModule)
        vars(twin).update(vars(self), net=copied(self.net))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {
            **vars(self),
            "module": on_cpu(self.module),
            "dtype": str(self.dtype).removeprefix("torch."),
            "net": to_arrays(self.net.state_dict()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, dtype=getattr(torch, state["dtype"]))
        with seeded(0, torch.device("cpu")):
            self.net = self._build().eval()
        self.net.load_state_dict(to_tensors(state["net"]))


def build_student(
    module: ModuleParam,
    module_params: Mapping[str, Any] | None,
    inputs: Any,
    n_outputs: int,
    device: torch.device,
    seed: int,
    *,
    may_take_token_ids: bool,
    precision: str,
) -> StudentModule:
    """Build a student on a device, and call it on the first rows.

    The seed fixes the initial weights. If the module fails on integers as token ids, it
    gets them as numbers.
    """

    def build(*, integers_are_token_ids: bool) -> StudentModule:
        dtype = input_dtype(
            inputs,
            device,
            integers_are_token_ids=integers_are_token_ids,
            precision=precision,
        )
        first_rows = as_tensor(inputs[:2], device, dtype)
        row_shape = tuple(inputs.shape[1:])
        with seeded(seed, device):
            student = StudentModule(
                module, module_params, row_shape, n_outputs, dtype, first_rows
            )
            student.net.to(device)
            student.check_outputs(first_rows)
        return student

    try:
        return build(integers_are_token_ids=may_take_token_ids)
    except ValueError:
        if may_take_token_ids:
            with suppress(ValueError):
                return build(integers_are_token_ids=False)
        raise


def to_arrays(state: Any) -> Any:
    """Return a state dict with NumPy arrays in place of tensors."""
    if isinstance(state, Tensor):
        tensor = state.detach().cpu()
        # NumPy has no bfloat16, which float32 holds exactly.
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(state, Mapping):
        return {key: to_arrays(value) for key, value in state.items()}
    return [to_arrays(v) for v in state] if isinstance(state, list) else state


def to_tensors(state: Any) -> Any:
    """Undo `to_arrays`; tensors in the state are copied."""
    if isinstance(state, np.ndarray):
        return torch.tensor(state)
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {key: to_tensors(value) for key, value in state.items()}
    return [to_tensors(v) for v in state] if isinstance(state, list) else state


def on_cpu(module: Any) -> Any:
    """Return a module as it is, or its copy on the CPU if it is elsewhere."""
    if not isinstance(module, nn.Module):
        return module
    tensors = [*module.parameters(), *module.buffers()]
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return module
    return copied(module).cpu()
