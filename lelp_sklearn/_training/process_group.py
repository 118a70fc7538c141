"""The processes that train one student together, as torchrun starts them."""

import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

_SECONDS_TO_RELEASE = 0.02

# All ranks count alike, so that a second group does not read the keys of the first.
_group_numbers = count()


@dataclass(frozen=True)
class Ranks:
    """One of `size` processes, which call the same functions in the same order."""

    rank: int = 0
    size: int = 1
    last_sent: list[Tensor] = field(default_factory=list, compare=False)

    @property
    def is_rank0(self) -> bool:
        """Whether this process decides, prints and writes for all of them."""
        return self.rank == 0

    @property
    def device_index(self) -> int | None:
        """Number of this process on its machine; None for a single process."""
        return int(os.environ["LOCAL_RANK"]) if self.size > 1 else None

    def share(self, index: Tensor) -> Tensor:
        """Return this process's part, perhaps empty, of the indices of a batch."""
        # Batch normalisation cannot take a part of one row.
        n_parts = max(1, min(self.size, len(index) // 2))
        return index[self.rank :: n_parts] if self.rank < n_parts else index[:0]

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """Return in all processes what `make` returns, or raises, in the first."""
        if self.size == 1:
            return make()
        value, failure, sent = None, None, [b""]
        if self.is_rank0:
            try:
                value = make()
                sent = [pickle.dumps((value, None))]
            # Whatever it is, the others must not wait for a value that never comes.
            except Exception as error:
                failure = error
                sent = [pickle.dumps((None, _sendable(error)))]
        dist.broadcast_object_list(sent, device=torch.device("cpu"))
        if not self.is_rank0:
            value, failure = pickle.loads(sent[0])
        if failure is not None:
            raise failure
        return cast(T, value)

    def on_rank0(self, make: Callable[[], T]) -> T | None:
        """Call `make` in the first process only; an error is raised in all."""
        made: list[T] = []
        self.broadcast_from_rank0(lambda: made.append(make()))
        return made[0] if made else None

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over the processes; None stays if no process has one."""
        if self.size == 1:
            return
        # In an order that is the same in all.
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            _sum_gradients([p for p in parameters if p.dtype == dtype])

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_module(self, module: nn.Module) -> None:
        """Copy the weights and buffers of the first process to all modules."""
        if self.size > 1:
            values = module.state_dict().values()
            self.last_sent[:] = [v for v in values if isinstance(v, Tensor)]
            for tensor in self.last_sent:
                dist.broadcast(tensor, src=0)


def _sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of parameters of one dtype, in one message."""
    has_gradient = [p.grad is not None for p in parameters]
    flat = torch.cat(
        [
            *(
                p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1)
                for p in parameters
            ),
            parameters[0].new_tensor(has_gradient),
        ]
    )
    dist.all_reduce(flat)
    *totals, counts = flat.split([*(p.numel() for p in parameters), len(has_gradient)])
    if not all(has_gradient):
        # An optimizer skips a weight without a gradient, but not one of gradient 0.
        has_gradient = [bool(count) for count in counts.tolist()]
    for p, total, has_any in zip(parameters, totals, has_gradient, strict=True):
        p.grad = total.view_as(p) if has_any else None


def _sendable(error: Exception) -> Exception:
    """Return an error, or one with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    # What cannot be pickled, or unpickled, fails in many ways.
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


SINGLE_PROCESS = Ranks()


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the other processes of a torchrun job for the block.

    Any other process is single. So are workers of joblib, which inherit the environment
    of their rank, and any thread but the main one. A group of the caller's own is used,
    and stays.
    """
    if not _is_rank():
        yield SINGLE_PROCESS
    elif dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
    else:
        # The first optimizer of a process imports modules of torch that keep a group,
        # if there is one: its threads would abort the process at the end.
        torch.optim.SGD([torch.zeros(1)])
        store, rank, size = next(iter(dist.rendezvous("env://")))
        prefixed = dist.PrefixStore(f"lelp_sklearn/{next(_group_numbers)}", store)
        dist.init_process_group(store=prefixed, rank=rank, world_size=size)
        ranks = Ranks(rank, size)
        try:
            yield ranks
        finally:
            # A thread of the group that releases a tensor needs Python's lock, which
            # older versions of torch hold while they wait for the thread. So the last
            # tensors are kept until the end, and others get the time to be released.
            time.sleep(_SECONDS_TO_RELEASE)
            dist.destroy_process_group()
            ranks.last_sent.clear()


def _is_rank() -> bool:
    return (
        dist.is_available()
        and dist.is_torchelastic_launched()
        and multiprocessing.current_process().name == "MainProcess"
        and threading.current_thread() is threading.main_thread()
        and int(os.environ["WORLD_SIZE"]) > 1
    )
