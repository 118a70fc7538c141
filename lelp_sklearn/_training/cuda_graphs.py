"""Steps that are recorded once and replayed.

On a GPU the kernels of a small student's step take less time than the host takes to
launch them. A recording, a CUDA graph, is launched as one.
"""

import gc
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from lelp_sklearn._training.host_state import has_hooks, host_state, is_plain

Optimizer = torch.optim.Optimizer

# Takes indices of rows and the subclass weight; gives the loss and the mass.
Step = Callable[[Tensor, float | Tensor], tuple[Tensor, Any]]

RECORDING_DEVICE = "cuda"

# How torch begins to say that the host waits, and that it does not notice all of it.
_WAITED = "called a synchronizing CUDA operation"
_WATCHES = "Synchronization debug mode is a prototype"

_pause = threading.Lock()

# Before a step is recorded, so that what is set up once is there.
_TIMES_TAKEN = 3


def can_be_recorded(module: nn.Module, optimizer: Optimizer) -> bool:
    """Tell whether the steps are a GPU's, and nobody's functions are called in them.

    The optimizer has to read its learning rates there, as torch's fused ones do.
    """
    groups = optimizer.param_groups
    devices = {p.device.type for group in groups for p in group["params"]}
    return (
        devices == {RECORDING_DEVICE}
        and all("capturable" in group and group.get("fused") for group in groups)
        and is_plain(optimizer)
        and not has_hooks(module)
    )


def set_learning_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a group of parameters, where it is if it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


@contextmanager
def waits_noticed() -> Iterator[list[str]]:
    """Give a list that gets an entry whenever the host waits for the device.

    As where a layer asks it for a number: no recording can do so, and one that is tried
    and fails leaves torch with less than before.
    """
    waits: list[str] = []
    mode, show = torch.cuda.get_sync_debug_mode(), warnings.showwarning
    filters = cast(list[Any], warnings.filters)

    def listen(message: Warning | str, *about: Any, **options: Any) -> None:
        if str(message).startswith(_WAITED):
            waits.append(str(message))
        elif not str(message).startswith(_WATCHES):
            show(message, *about, **options)

    # Put there by hand: the functions for it would let all warnings be told anew.
    heard = "always", re.compile(f"{_WAITED}|{_WATCHES}"), Warning, None, 0
    filters.insert(0, heard)
    warnings.showwarning = listen
    try:
        torch.cuda.set_sync_debug_mode("warn")
        yield waits
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        warnings.showwarning = show
        with suppress(ValueError):
            filters.remove(heard)


def renew_generator(device: torch.device) -> None:
    """Free the generator of a device from a recording that failed.

    It would take every later draw for one that belongs there, and refuse it.
    """
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(generator.clone_state())


@contextmanager
def collection_paused() -> Iterator[None]:
    """Collect no garbage: an old recording that is freed meanwhile spoils a new one.

    One thread after the other, or the first to end would let it be collected again.
    """
    with _pause:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


class GraphedSteps:
    """Takes each kind of step a few times as it is written, then from a recording.

    Steps of the same number of rows are of one kind, but for those in which subclasses
    no longer count. If a step changes something on the host, which a recording would
    not do, or cannot be recorded, all go on as they are written.

    Parameters
    ----------
    step : callable
        What is to be taken.
    module : nn.Module
        What it trains.
    optimizer : torch.optim.Optimizer
        What moves the weights.
    device : torch.device
        Where the tensors are.
    """

    def __init__(
        self,
        step: Step,
        module: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
    ) -> None:
        self._step = step
        self._module = module
        self._groups = optimizer.param_groups
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        # A recording reads them where they lie, in every epoch.
        self._rates = [torch.zeros((), device=device) for _ in self._groups]
        self._taken: Counter[tuple[int, bool]] = Counter()
        self._recordings: dict[tuple[int, bool], CapturedStep] = {}
        self._is_possible = True

    @contextmanager
    def epoch(self) -> Iterator[Step]:
        """Give what takes a step; meanwhile the learning rates are on the device."""
        before = [group["lr"] for group in self._groups]
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                for group, own in zip(self._groups, self._rates, strict=True):
                    group["lr"] = own.fill_(group["lr"])
                yield self._take
        finally:
            for group, rate in zip(self._groups, before, strict=True):
                group["lr"] = rate
            outer.wait_stream(self._stream)

    def _take(self, index: Tensor, subclass_weight: float | Tensor) -> Any:
        if not self._is_possible:
            return self._step(index, subclass_weight)
        kind = len(index), bool(subclass_weight)
        if kind in self._recordings:
            return self._recordings[kind].replay(index, subclass_weight)
        if self._taken[kind] == _TIMES_TAKEN:
            self._record(kind)
            return self._take(index, subclass_weight)
        self._taken[kind] += 1
        before = host_state(self._module)
        with waits_noticed() as waits:
            made = self._step(index, subclass_weight)
        # The first step of all sets up what the others find.
        waited = bool(waits) and self._taken[kind] > 1
        same = before is not None and before == host_state(self._module)
        self._is_possible = same and not waited
        return made

    def _record(self, kind: tuple[int, bool]) -> None:
        n_rows, counts = kind
        index = torch.empty(n_rows, dtype=torch.int64, device=self._device)
        weight = torch.zeros((), device=self._device) if counts else 0.0
        before = [group["capturable"] for group in self._groups]
        try:
            # Not before: torch warns of such an optimizer in a plain step.
            for group in self._groups:
                group["capturable"] = True
            self._recordings[kind] = CapturedStep(self._step, index, weight, self._pool)
        # A layer may need what a recording cannot hold, and say so in its own way; what
        # is wrong with it anyhow the plain step will tell.
        except BaseException as reason:
            self._is_possible = False
            renew_generator(self._device)
            if not isinstance(reason, Exception):
                raise
        finally:
            for group, was in zip(self._groups, before, strict=True):
                group["capturable"] = was


class CapturedStep:
    """A step with the tensors that it reads and those that it gives.

    Nothing is computed while it is recorded.
    """

    def __init__(
        self, step: Step, index: Tensor, weight: float | Tensor, pool: Any
    ) -> None:
        self._index, self._weight = index, weight
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(index.device)
        with collection_paused():
            # Other threads may use the device meanwhile.
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self._made = step(index, weight)
            except BaseException:
                # Of what is broken torch tells once more, which would hide the reason.
                with suppress(RuntimeError):
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def replay(self, index: Tensor, weight: float | Tensor) -> tuple[Any, ...]:
        """Take the step with other rows and another weight."""
        self._index.copy_(index)
        if isinstance(self._weight, Tensor):
            self._weight.fill_(weight)
        self._graph.replay()
        # The next replay writes over what this one gives.
        return tuple(m.clone() if isinstance(m, Tensor) else m for m in self._made)
