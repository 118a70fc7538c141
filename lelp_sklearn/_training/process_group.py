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
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

_SECONDS_TO_LET_GO = 0.02

# All ranks count alike, so that a second group does not read the keys of the first.
_group_numbers = count()


@dataclass(frozen=True)
class Ranks:
    """This process among `size` that call the same functions in the same order."""

    rank: int = 0
    size: int = 1
    last_sent: list[Tensor] = field(default_factory=list, compare=False)

    @property
    def is_rank0(self) -> bool:
        """Whether this process decides, prints and writes for all."""
        return self.rank == 0

    @property
    def device_index(self) -> int | None:
        """Number of this process on its machine; None where it is alone."""
        return int(os.environ["LOCAL_RANK"]) if self.size > 1 else None

    def share(self, index: Tensor) -> Tensor:
        """Give this process's part, perhaps none, of the indices of a batch.

        No part is of one row, in which batch normalisation has nothing to normalise,
        unless the batch is.
        """
        n_parts = max(1, min(self.size, len(index) // 2))
        return index[self.rank :: n_parts] if self.rank < n_parts else index[:0]

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """Let the first process make a value, or fail, for all of them."""
        if self.size == 1:
            return make()
        made: list[T] = []
        failure: Exception | None = None
        sent: list[Any] = [None]
        if self.is_rank0:
            try:
                made.append(make())
                sent[0] = pickle.dumps((made[0], None))
            # Whatever it is, the others must not wait for a value that never comes.
            except Exception as error:
                failure = error
                sent[0] = pickle.dumps((None, _sendable(error)))
        dist.broadcast_object_list(sent, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if made:
            return made[0]
        value, of_first = pickle.loads(sent[0])
        if of_first is not None:
            raise of_first
        return cast(T, value)

    def on_rank0(self, make: Callable[[], T]) -> T | None:
        """Let the first process make a value for itself, or fail for all of them."""
        made: list[T] = []
        self.broadcast_from_rank0(lambda: made.append(make()))
        return made[0] if made else None

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the gradients of all processes up; where none has one there is none."""
        if self.size == 1:
            return
        # In an order that is the same in all.
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            _sum_gradients([p for p in parameters if p.dtype == dtype])

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor of all processes up, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_module(self, module: nn.Module) -> None:
        """Give the modules of all processes the weights and buffers of the first."""
        if self.size > 1:
            held = [t for t in module.state_dict().values() if isinstance(t, Tensor)]
            self.last_sent[:] = held
            for tensor in held:
                dist.broadcast(tensor, src=0)


def _sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add the gradients of parameters of one dtype up, in one message."""
    found = [p.grad is not None for p in parameters]
    flat = torch.cat(
        [
            *(
                p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1)
                for p in parameters
            ),
            parameters[0].new_tensor(found),
        ]
    )
    dist.all_reduce(flat)
    *totals, counts = flat.split([*(p.numel() for p in parameters), len(found)])
    if not all(found):
        # An optimizer lets a weight without a gradient be, but not one of gradient 0.
        found = [bool(count) for count in counts.tolist()]
    for p, total, is_found in zip(parameters, totals, found, strict=True):
        p.grad = total.view_as(p) if is_found else None


def _sendable(error: Exception) -> Exception:
    """Give an error as it is, or as its text where it does not survive the way."""
    try:
        pickle.loads(pickle.dumps(error))
    # What cannot be pickled, or read again, says so in many ways.
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


SINGLE_PROCESS = Ranks()


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the other processes of a torchrun job; a process by itself is alone.

    Workers of joblib, which inherit the environment of their rank, are alone too, and
    so is any thread but the main one. A group that the caller made is used and left.
    """
    if not _is_rank():
        yield SINGLE_PROCESS
    elif dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
    else:
        # The first optimizer of a process imports modules of torch that hold on to a
        # group, if there is one: its threads would abort the process at the end.
        torch.optim.SGD([torch.zeros(1)])
        store, rank, size = next(iter(dist.rendezvous("env://")))
        prefixed = dist.PrefixStore(f"lelp_sklearn/{next(_group_numbers)}", store)
        dist.init_process_group(store=prefixed, rank=rank, world_size=size)
        ranks = Ranks(rank, size)
        try:
            yield ranks
        finally:
            # A thread of the group that lets go of a tensor wants Python's lock, which
            # older versions of torch hold while they wait for the thread. So the last
            # tensors are kept until the end, and others get the time to go.
            time.sleep(_SECONDS_TO_LET_GO)
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
