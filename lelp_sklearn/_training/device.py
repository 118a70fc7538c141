"""The device and the precision of training, and torch's random state."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from lelp_sklearn._threads import ForkSafeLock, at_fork
from lelp_sklearn._training.inputs import dtype_name, is_integer

Dtype = torch.dtype

_ACCELERATORS = ("cuda", "xpu", "mps")
_MIXED = {"bfloat16": torch.bfloat16, "float16": torch.float16}

# Modules draw from generators that all threads share, and the exporter of ONNX files
# changes how optimizers are called: one epoch or export runs at a time.
torch_lock = ForkSafeLock()


def _end_openmp_threads() -> None:
    """End the OpenMP threads of the calling thread; its next product makes others."""
    # A forked child has none of them, but GNU's OpenMP would wait for them there.
    soft = 1
    for library in _openmp_libraries():
        library.omp_pause_resource_all(soft)


@cache
def _openmp_libraries() -> list[Any]:
    libraries = ThreadpoolController().select(prefix="libgomp").lib_controllers
    found = [library.dynlib for library in libraries]
    # The one that torch 2.6 brings is older than the function.
    return [each for each in found if hasattr(each, "omp_pause_resource_all")]


at_fork(before=_end_openmp_threads)


def resolve_device(
    requested: str | torch.device, X: Any, index: int | None = None
) -> torch.device:
    """Return the device to train on.

    "auto" is the accelerator that holds X, else the first one available, else the CPU.
    `index` is the number of this process among several that share a machine.
    """
    if requested == "auto":
        if isinstance(X, torch.Tensor) and X.device.type != "cpu":
            return X.device
        available = (n for n in _ACCELERATORS if getattr(torch, n).is_available())
        requested = next(available, "cpu")
    if index is not None and requested in ("cuda", "xpu"):
        n_devices = getattr(torch, str(requested)).device_count()
        requested = f"{requested}:{index % n_devices}"
    try:
        # A device may be well named and still not be there.
        return torch.empty(0, device=requested).device
    # What torch raises here depends on the device and on how torch was built.
    except (RuntimeError, AssertionError, NotImplementedError) as reason:
        first_line = str(reason).splitlines()[0]
        raise ValueError(
            f"device={str(requested)!r} cannot be used ({first_line}): use 'auto', "
            "'cpu' or a device that torch finds here."
        ) from reason


def input_dtype(
    X: Any,
    device: torch.device,
    *,
    integers_are_token_ids: bool,
    precision: str = "auto",
) -> Dtype:
    """Return the dtype in which a module takes the rows of an array or a tensor.

    With precision "auto", float64 stays on the CPU, so that training is as precise as
    the data; all else is float32. Integers are token ids or numbers.
    """
    if integers_are_token_ids and is_integer(X):
        return torch.int64
    stays = dtype_name(X) == "float64" and precision == "auto" and device.type == "cpu"
    return torch.float64 if stays else torch.float32


class Precision:
    """Runs the parts of a step in one precision, mixed for "bfloat16" and "float16"."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = _MIXED.get(name)
        self.device_type = device.type
        is_float16 = self.dtype == torch.float16
        # For other dtypes it does nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=is_float16)
        if self.dtype is None:
            return
        reason = "torch does not support it there"
        try:
            with torch.autocast(self.device_type, dtype=self.dtype):
                is_usable = torch.is_autocast_enabled(self.device_type)
        except RuntimeError as error:
            reason, is_usable = str(error).splitlines()[0], False
        if not is_usable or self.scaler.is_enabled() != is_float16:
            raise ValueError(
                f"precision={name!r} cannot be used on {str(device)!r} ({reason}): use "
                "'float32', or another device."
            )

    def outputs(self, module: nn.Module, X: Tensor) -> Tensor:
        """Return the outputs of a module for a batch."""
        outputs: Tensor
        if self.dtype is None:
            outputs = module(X)
            return outputs
        with torch.autocast(self.device_type, dtype=self.dtype):
            outputs = module(X)
        return outputs

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        max_grad_norm: float | None,
    ) -> None:
        """Update the weights, with gradients clipped to the norm."""
        if max_grad_norm is not None:
            self.scaler.unscale_(optimizer)
            _clip_gradients(parameters, max_grad_norm)
        self.scaler.step(optimizer)
        self.scaler.update()


def _clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clip the gradients, some of which may be sparse, to a norm of all together."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    norm = nn.utils.get_total_norm(gradients)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))


def derive_seed(seed: int, *path: int) -> int:
    """Return a different seed for each path of integers, such as an epoch."""
    state = np.random.SeedSequence((seed, *path)).generate_state(1, np.uint64)
    return int(state[0] >> 1)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for the block, for which blocks of other threads wait."""
    with torch_lock.held(), ExitStack() as restorations:
        for place in {torch.device("cpu"), device}:
            get_state, set_state = _random_state_access(place)
            restorations.callback(set_state, get_state())
            # torch.manual_seed would seed the other accelerators too.
            set_state(torch.Generator(place).manual_seed(seed).get_state())
        yield


def warm_up_backward(device: torch.device) -> None:
    """Initialise a GPU in torch's backward thread, which else warns in a product."""
    if device.type == "cuda":
        with torch.enable_grad():
            torch.ones((), device=device, requires_grad=True).exp().backward()


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Flush denormal numbers of this thread to zero in the block."""
    # Processors are slow with them. An optimizer's running averages decay to them if a
    # gradient has long been zero, as for a rare word.
    smallest = sys.float_info.min
    before = smallest / 2 == 0
    try:
        torch.set_flush_denormal(True)
        yield
    finally:
        torch.set_flush_denormal(before)


def _random_state_access(
    device: torch.device,
) -> tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], None]]:
    if device.type == "cpu":
        return torch.get_rng_state, torch.set_rng_state
    module = getattr(torch, device.type)
    if device.type == "mps":
        return module.get_rng_state, module.set_rng_state
    return (
        partial(module.get_rng_state, device),
        partial(module.set_rng_state, device=device),
    )
