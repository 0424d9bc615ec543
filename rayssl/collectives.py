"""Gather with gradient, sums over ranks, averaged gradients. No other file calls `torch.distributed`.

Convention: the training loss is the mean over ranks of each rank's own loss. This is what DDP minimises, because DDP
averages gradients. The backward pass of `gather` therefore *sums* the gradients that all ranks have for a row. If it
returned the gradient of its own rank only, the loss would be the same, but the cross-rank gradient would be ``1/W``
of the right one.

In a method, with ``W`` ranks and ``a [B, D]`` on each::

    keys = collectives.gather(a)           # [W*B, D], with gradient
    offset = collectives.rank() * len(a)   # the row of this rank's first utterance in keys

With one rank every function works without a process group. With GPUs the group has two backends, `GPU_BACKEND`:
tensors of a GPU go by NCCL; Python objects, barriers and figures go by gloo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

GPU_BACKEND = "cpu:gloo,cuda:nccl"  # of a group whose ranks have GPUs

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


def join(backend: str, rank: int, world: int, timeout_s: float, device: torch.device) -> None:
    """Joins this process, whose tensors are on ``device``, to the group that MASTER_ADDR and MASTER_PORT name.

    Args:
        backend: ``gloo``, or `GPU_BACKEND`.
        rank: the number of this process, 0..world-1.
        world: how many processes join.
        timeout_s: a communication that takes longer is an error.
        device: it becomes the current one if it is a GPU.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, init_method="env://", rank=rank, world_size=world, timeout=timeout)


def leave() -> None:
    """Leaves the group that `join` joined, and gives a GPU's unused memory back."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def replicated(module: nn.Module, device: torch.device, differing: Sequence[tuple[nn.Module, str]]) -> nn.Module:
    """``module`` wrapped in DDP, which averages its gradients over ranks. With one rank: ``module`` itself.

    Every rank gets the weights and buffers of rank 0. Afterwards, only ``differing`` buffers are shared again, before
    each forward pass and in one message: see `rayssl.models.buffers`. DDP itself would send all of them, and a queue of
    negatives is 67 MB. All other buffers are equal on the ranks, or not read.

    ``static_graph`` is not set: it spares a search for unused parameters, which is off, and it costs a copy of each
    output.
    """
    if world() == 1:
        return module
    share_buffers(module)
    devices = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    wrapped.register_forward_pre_hook(lambda *_: share(differing))
    return wrapped


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


def sum_on_host(x: Tensor) -> Tensor:
    """The elementwise sum of ``x`` over ranks, on the CPU and without gradient. All ranks must call.

    For figures: they go between hosts, so that no stream of a GPU takes part, and a rank that waits long for others
    does not run into the time limit of NCCL.
    """
    total = x.detach().cpu()
    if world() > 1:
        total = total.clone()
        dist.all_reduce(total)
    return total


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
    """Gives every rank all buffers of rank 0."""
    share([(part, name) for part in module.modules() for name, _ in part.named_buffers(recurse=False)])


@torch.no_grad()
def share(buffers: Sequence[tuple[nn.Module, str]]) -> None:
    """Gives every rank the values of rank 0 of ``buffers``, owners and names, in one message for each dtype."""
    if world() == 1:
        return
    for same in _by_dtype([getattr(owner, name) for owner, name in buffers]):
        flat = torch.cat([each.flatten() for each in same])
        dist.broadcast(flat, src=0)
        if rank() != 0:
            _unflatten(flat, same)


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Replaces each gradient of ``module`` by its mean over ranks, as DDP does in a backward pass.

    All ranks must call, and have gradients of the same parameters.
    """
    if world() == 1:
        return
    for same in _by_dtype([p.grad for p in module.parameters() if p.grad is not None]):
        flat = torch.cat([each.flatten() for each in same]).div_(world())
        dist.all_reduce(flat)
        _unflatten(flat, same)


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def _unflatten(flat: Tensor, into: list[Tensor]) -> None:
    parts = flat.split([each.numel() for each in into])
    torch._foreach_copy_(into, [part.view_as(each) for part, each in zip(parts, into, strict=True)])


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
