"""The device of training, the dtype of inputs, and torch's random state."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from lelp_sklearn._locks import ForkSafeLock, at_fork
from lelp_sklearn._training.inputs import dtype_name, is_integer

Dtype = torch.dtype

_ACCELERATORS = ("cuda", "xpu", "mps")

# Modules draw from generators that all threads share, and the exporter of ONNX files
# changes how optimizers are called: one epoch or export runs at a time.
torch_lock = ForkSafeLock()


def _end_openmp_threads() -> None:
    """End the OpenMP threads of the calling thread; its next product starts new ones.

    A forked child has none of them, but GNU's OpenMP would wait for them there.
    """
    soft = 1
    for library in _openmp_libraries():
        library.omp_pause_resource_all(soft)


@cache
def _openmp_libraries() -> list[Any]:
    libraries = ThreadpoolController().select(prefix="libgomp").lib_controllers
    return [library.dynlib for library in libraries]


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


def derive_seed(seed: int, *path: int) -> int:
    """Return a different seed for each path of integers, such as an epoch."""
    state = np.random.SeedSequence((seed, *path)).generate_state(1, np.uint64)
    return int(state[0] >> 1)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for the block, and restore them after it.

    Blocks of other threads wait, so that what each draws depends on its seed alone.
    """
    with torch_lock.held(), ExitStack() as restorations:
        for place in {torch.device("cpu"), device}:
            get_state, set_state = _random_state_access(place)
            restorations.callback(set_state, get_state())
            # torch.manual_seed would seed the other accelerators too.
            set_state(torch.Generator(place).manual_seed(seed).get_state())
        yield


def warm_up_backward(device: torch.device) -> None:
    """Initialise a GPU in torch's thread of the backward pass.

    torch warns if a matrix product is the first operation of that thread.
    """
    if device.type == "cuda":
        with torch.enable_grad():
            torch.ones((), device=device, requires_grad=True).exp().backward()


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Flush denormal numbers of this thread to zero in the block.

    Processors are slow with them. An optimizer's running averages decay to them if a
    gradient has long been zero, as for a rare word.
    """
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
