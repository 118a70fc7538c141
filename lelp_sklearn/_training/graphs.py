"""Steps that are recorded once and replayed.

On a GPU the kernels of a small student's step take less time than the host takes to
launch them. A recording, a CUDA graph, is launched as one.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Optimizer = torch.optim.Optimizer

# Takes indices of rows and the subclass weight; gives the loss and the mass.
Step = Callable[[Tensor, float | Tensor], tuple[Tensor, Any]]

RECORDING_DEVICE = "cuda"

# Before a step is recorded, so that what is set up once is there.
_TIMES_TAKEN = 3

# Only modules of these packages are recorded: what others do in Python, such as a draw
# of the host's generator, a recording would not do again.
_KNOWN_PACKAGES = "torch.nn.modules.", "lelp_sklearn."


def can_be_recorded(module: nn.Module, optimizer: Optimizer) -> bool:
    """Tell whether all that changes from step to step is tensors of one GPU.

    The optimizer has to read its learning rates there, as torch's fused ones do.
    """
    groups = optimizer.param_groups
    devices = {p.device.type for group in groups for p in group["params"]}
    return (
        devices == {RECORDING_DEVICE}
        and all("capturable" in group and group.get("fused") for group in groups)
        and all(map(_is_known, module.modules()))
    )


def _is_known(module: nn.Module) -> bool:
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    return type(module).__module__.startswith(_KNOWN_PACKAGES) and not any(hooks)


def set_learning_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a group of parameters, where it is if it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


class RecordedSteps:
    """Takes each kind of step a few times as it is written, then from a recording.

    Steps of the same number of rows are of one kind, but for those in which subclasses
    no longer count. If a recording fails all go on as they are written.

    Parameters
    ----------
    step : callable
        What is to be taken.
    optimizer : torch.optim.Optimizer
        What moves the weights.
    device : torch.device
        Where the tensors are.
    """

    def __init__(self, step: Step, optimizer: Optimizer, device: torch.device) -> None:
        self._step = step
        self._groups = optimizer.param_groups
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        # A recording reads them where they lie, in every epoch.
        self._rates = [torch.zeros((), device=device) for _ in self._groups]
        self._taken: Counter[tuple[int, bool]] = Counter()
        self._recordings: dict[tuple[int, bool], Recording] = {}
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
        kind = len(index), bool(subclass_weight)
        if kind not in self._recordings and not self._record(kind):
            return self._step(index, subclass_weight)
        return self._recordings[kind].replay(index, subclass_weight)

    def _record(self, kind: tuple[int, bool]) -> bool:
        """Record a kind of step if it is time for it; tell whether it is recorded."""
        self._taken[kind] += 1
        if not self._is_possible or self._taken[kind] <= _TIMES_TAKEN:
            return False
        n_rows, counts = kind
        index = torch.empty(n_rows, dtype=torch.int64, device=self._device)
        weight = torch.zeros((), device=self._device) if counts else 0.0
        before = [group["capturable"] for group in self._groups]
        try:
            # Not before: torch warns of such an optimizer in a plain step.
            for group in self._groups:
                group["capturable"] = True
            self._recordings[kind] = Recording(self._step, index, weight, self._pool)
        # A layer may ask the device for a number, or need what a recording cannot hold.
        except RuntimeError:
            self._is_possible = False
        finally:
            for group, was in zip(self._groups, before, strict=True):
                group["capturable"] = was
        return self._is_possible


class Recording:
    """A step with the tensors that it reads and those that it gives.

    Nothing is computed while it is recorded.
    """

    def __init__(
        self, step: Step, index: Tensor, weight: float | Tensor, pool: Any
    ) -> None:
        self._index, self._weight = index, weight
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(index.device)
        # Other threads may use the device meanwhile.
        self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            self._made = step(index, weight)
        finally:
            self._graph.capture_end()

    def replay(self, index: Tensor, weight: float | Tensor) -> tuple[Any, ...]:
        """Take the step with other rows and another weight."""
        self._index.copy_(index)
        if isinstance(self._weight, Tensor):
            self._weight.fill_(weight)
        self._graph.replay()
        # The next replay writes over what this one gives.
        return tuple(m.clone() if isinstance(m, Tensor) else m for m in self._made)
