"""Training steps that are captured once as CUDA graphs and replayed.

On a GPU the kernels of a small student's step take less time than the host takes to
launch them. A CUDA graph is launched as a whole.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

Optimizer = torch.optim.Optimizer

# Takes indices of rows and the subclass weight; returns the loss and the total weight.
Step = Callable[[Tensor, float | Tensor], tuple[Tensor, Any]]

# Steps that run plainly first, so that nothing is set up during the capture.
_N_WARMUP_STEPS = 3

_GLOBAL_HOOKS = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_optimizer._global_optimizer_pre_hooks,
    torch_optimizer._global_optimizer_post_hooks,
)
MODULE_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
PARAMETER_HOOKS = "_backward_hooks", "_post_accumulate_grad_hooks"
_OPTIMIZER_HOOKS = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"


def can_capture(module: nn.Module, optimizer: Optimizer) -> bool:
    """Return whether a replay does all that a step does.

    A replay runs no Python. So all layers must be torch.nn's own, no hook may be set,
    and the optimizer must be torch's own and read its learning rates on the GPU, as the
    fused ones do.
    """
    groups = optimizer.param_groups
    return (
        all("capturable" in group and group.get("fused") for group in groups)
        and _is_own(optimizer, "torch.optim.", "step", _OPTIMIZER_HOOKS)
        and all(
            _is_own(layer, "torch.nn.", "forward", MODULE_HOOKS)
            and not _reads_device(layer)
            for layer in module.modules()
        )
        and not any(
            getattr(parameter, name)
            for parameter in module.parameters()
            for name in PARAMETER_HOOKS
        )
        and not any(_GLOBAL_HOOKS)
    )


def _is_own(obj: Any, package: str, method: str, hooks: tuple[str, ...]) -> bool:
    """Return whether an object is of the package, unchanged and without hooks."""
    return (
        type(obj).__module__.startswith(package)
        and method not in vars(obj)
        and not any(getattr(obj, name) for name in hooks)
    )


def _reads_device(layer: nn.Module) -> bool:
    """Return whether a layer asks the device for a number, which no graph can do."""
    # To count batches, or to find the vectors that are too long.
    return (
        getattr(layer, "momentum", 0.0) is None
        or getattr(layer, "max_norm", None) is not None
    )


class GraphedSteps:
    """Takes the first steps of each kind plainly, and replays the others.

    Steps with the same number of rows are of one kind, apart from those in which the
    subclasses have no weight. If a step cannot be captured, all run plainly.
    """

    def __init__(self, step: Step, optimizer: Optimizer, device: torch.device) -> None:
        self._step = step
        self._groups = optimizer.param_groups
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        # The graphs read the learning rates at these addresses, in every epoch.
        self._rates = [torch.zeros((), device=device) for _ in self._groups]
        self._n_taken: Counter[tuple[int, bool]] = Counter()
        self._captured: dict[tuple[int, bool], CapturedStep] = {}
        self._is_possible = True

    @contextmanager
    def epoch(self) -> Iterator[Step]:
        """Yield the step for an epoch, with the learning rates on the device."""
        rates_before = [group["lr"] for group in self._groups]
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                for group, rate in zip(self._groups, self._rates, strict=True):
                    group["lr"] = rate.fill_(group["lr"])
                yield self._take
        finally:
            for group, rate in zip(self._groups, rates_before, strict=True):
                group["lr"] = rate
            outer.wait_stream(self._stream)

    def release(self) -> None:
        """Free the graphs; one that is freed during another capture would spoil it."""
        self._captured.clear()

    def _take(self, index: Tensor, subclass_weight: float | Tensor) -> Any:
        kind = len(index), bool(subclass_weight)
        if self._is_possible and self._n_taken[kind] == _N_WARMUP_STEPS:
            self._capture(kind)
        self._n_taken[kind] += 1
        if self._is_possible and kind in self._captured:
            return self._captured[kind].replay(index, subclass_weight)
        return self._step(index, subclass_weight)

    def _capture(self, kind: tuple[int, bool]) -> None:
        n_rows, has_weight = kind
        index = torch.empty(n_rows, dtype=torch.int64, device=self._device)
        weight = torch.zeros((), device=self._device) if has_weight else 0.0
        before = [group["capturable"] for group in self._groups]
        try:
            # torch warns of such an optimizer in a plain step.
            for group in self._groups:
                group["capturable"] = True
            self._captured[kind] = CapturedStep(self._step, index, weight, self._pool)
        # What is wrong with the step itself is raised by the plain step.
        except BaseException as error:
            self._is_possible = False
            # The generator would refuse later draws as outside the failed capture.
            generator = torch.cuda.default_generators[self._device.index]
            generator.graphsafe_set_state(generator.clone_state())
            if not isinstance(error, Exception):
                raise
        finally:
            for group, was_capturable in zip(self._groups, before, strict=True):
                group["capturable"] = was_capturable


class CapturedStep:
    """A step as a CUDA graph, with the tensors that it reads and returns."""

    def __init__(
        self, step: Step, index: Tensor, weight: float | Tensor, pool: Any
    ) -> None:
        self._index, self._weight = index, weight
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(index.device)
        # Other threads may use the device during the capture.
        self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            self._returned = step(index, weight)
        except BaseException:
            # The end of a broken capture raises again, which would hide the reason.
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
        # The next replay overwrites the tensors that this one returns.
        return tuple(v.clone() if isinstance(v, Tensor) else v for v in self._returned)
