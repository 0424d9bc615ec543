"""Gather with gradient, sums over ranks, averaged gradients. No other file calls `torch.distributed`.

Convention: the training loss is the mean over ranks of each rank's own loss. This is what DDP minimises, because DDP
averages gradients. The backward pass of `gather` therefore *sums* the gradients that all ranks have for a row. If it
returned the gradient of its own rank only, the loss would be the same, but the cross-rank gradient would be ``1/W``
of the right one.

In a method, with ``W`` ranks and ``a [B, D]`` on each::

    keys = collectives.gather(a)           # [W*B, D], with gradient
    offset = collectives.rank() * len(a)   # the row of this rank's first utterance in keys

With one rank every function works without a process group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

_TURN_S = 5.0  # the longest that other ranks wait in one communication for something that rank 0 waits for


def world() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def everyone() -> Any:
    """The process group of all ranks, for a function of torch that takes one."""
    return dist.group.WORLD


@contextmanager
def process_group(rank: int, world: int, file: str) -> Iterator[None]:
    """Joins this process to a gloo group of ``world`` processes on this machine; leaves the group at the end.

    Args:
        rank: the number of this process, 0..world-1.
        world: how many processes join. Each of them calls this function with the same ``file``.
        file: a path through which the processes find each other. The file must not exist yet.
    """
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def replicated(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` wrapped in DDP, which averages its gradients over ranks. With one rank: ``module`` itself."""
    if world() == 1:
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def gather(x: Tensor) -> Tensor:
    """The rows ``x [B, ...]`` of all W ranks, with gradient.

    Args:
        x: this rank's rows. All ranks must call, with the same shape and dtype.

    Returns:
        ``[W*B, ...]`` in rank order; with one rank ``x`` itself. The gradient of ``x`` is the sum, over ranks, of the
        gradients that reach its rows.
    """
    return x if world() == 1 else _Gather.apply(x)  # type: ignore[no-untyped-call]


def sum_over_ranks(x: Tensor) -> Tensor:
    """The elementwise sum of ``x`` over ranks, with gradient. The gradient is summed over ranks too.

    All ranks must call, with the same shape and dtype. With one rank the result is ``x`` itself.
    """
    return x if world() == 1 else _Sum.apply(x)  # type: ignore[no-untyped-call]


def gather_objects(value: Any) -> list[Any]:
    """The ``value`` of every rank, in rank order; every rank gets the whole list. All ranks must call.

    For small Python values. They are sent as pickles, so use it only between the processes of one job.
    """
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """The ``value`` of rank 0, on every rank. All ranks must call; the other ranks' values are ignored.

    The value is sent as a pickle, so use it only between the processes of one job.
    """
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_rank_0(done: Callable[[float], bool]) -> None:
    """Returns on every rank when ``done(seconds)`` is True on rank 0, however long that takes.

    ``done`` waits for at most so many seconds; it is called on rank 0 alone. No communication lasts longer than one
    call, so that a wait of an hour is not taken for a rank that has stopped.
    """
    while not broadcast_object(rank() != 0 or done(_TURN_S)):
        pass


def on_rank_0(action: Callable[[], T]) -> T:
    """What ``action`` returns on rank 0, on every rank. A ValueError or OSError of it is raised on every rank.

    All kinds of `rayssl.errors.UserError` are one of these two.
    """
    found: tuple[T | None, ValueError | OSError | None] = None, None
    if rank() == 0:
        try:
            found = action(), None
        except (ValueError, OSError) as error:
            if world() == 1:
                raise
            found = None, error
    value, failed = broadcast_object(found)
    if failed is not None:
        raise failed
    return value  # type: ignore[no-any-return]


def share_buffers(module: nn.Module) -> None:
    """Gives every rank the buffers of rank 0, as DDP does before each forward pass in training."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Waits until every rank has called it."""
    if world() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world())[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
