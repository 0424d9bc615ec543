"""Gather with gradient, sums over ranks, averaged gradients: the only calls of `torch.distributed`.

Convention: the training loss is the mean over ranks of each rank's own loss, which is what DDP's averaged gradients
minimise. Backward through a gather therefore *sums* what every rank wants of a row; a gather that returns only the own
rank's share would give the same loss and ``1/W`` of the cross-rank gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def process_group(rank: int, world: int, file: str) -> Iterator[None]:
    """A group of ``world`` gloo processes on this machine that meet through ``file``, which must not exist yet."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def replicated(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` with its gradients averaged over ranks; itself where there is one rank."""
    if world() == 1:
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def gather(x: Tensor) -> Tensor:
    """``x [B, ...]`` of every rank as ``[W*B, ...]`` in rank order, with gradient; all ranks give the same shape."""
    return x if world() == 1 else _Gather.apply(x)  # type: ignore[no-untyped-call]


def sum_over_ranks(x: Tensor) -> Tensor:
    """The elementwise sum of ``x`` over ranks, with gradient (which is summed over ranks too)."""
    return x if world() == 1 else _Sum.apply(x)  # type: ignore[no-untyped-call]


def gather_objects(value: Any) -> list[Any]:
    """Small Python values of every rank, in rank order, to every rank. Pickles: only between a job's own processes."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank. Pickles: only between a job's own processes."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Returns when every rank has come here."""
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
