"""Repeats a step and compares the bits: so a processor that computes wrong without an error is found, and named.

A rank computes the loss and the gradients of its part twice before the step itself: from the same inputs, weights,
buffers and random states. Nothing is changed by it. On a healthy machine both are equal to the bit, because
deterministic kernels are used meanwhile.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rayssl import collectives
from rayssl.methods.base import Batch, Method, Recalled, Views


def verify(method: Method, views: Views, batch: Batch, recall: Recalled | None, *, bf16: bool, step: int) -> None:
    """Raises RuntimeError on every rank if a rank gets other bits when it computes a step again.

    Every rank must call this. It costs two more steps without the update.

    Args:
        method: the method that trains; its gradients, buffers and random states stay as they are.
        views, batch, recall: the inputs of the step.
        bf16: whether the step uses autocast.
        step: the number of the step, for the message.
    """
    inputs = method, views, batch, recall
    first, second = _results(*inputs, bf16=bf16), _results(*inputs, bf16=bf16)
    wrong = [name for name, value in first.items() if not _same(value, second[name])]
    found = collectives.gather_objects((platform.node(), len(wrong), wrong[:1]))
    told = [
        f"rank {rank} on {node}: {count} of its tensors, {names[0]} first"
        for rank, (node, count, names) in enumerate(found)
        if count
    ]
    if told:
        raise RuntimeError(
            f"step {step} has other bits when it is computed again ({'; '.join(told)}): take this machine out of the "
            "cluster, or set training.verify_every=0 if its kernels are not deterministic"
        )


def _results(method: Method, views: Views, batch: Batch, recall: Recalled | None, *, bf16: bool) -> dict[str, Tensor]:
    """The loss, its terms and the gradients of this rank's part."""
    names, weights = zip(*((name, p) for name, p in method.named_parameters() if p.requires_grad), strict=True)
    device = weights[0].device
    with unchanged(method, device), _deterministic():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = method(views)
        step = method.step(out, batch, recall)
        # not backward(): it would start the averaging over ranks
        gradients = torch.autograd.grad(step.loss, weights, allow_unused=True)
    found = {"loss": step.loss.detach(), **{name: value.detach() for name, value in step.terms.items()}}
    return found | {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether the bits are equal: NaN equals itself."""
    return torch.equal(one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))


@contextmanager
def unchanged(method: Method, device: torch.device) -> Iterator[None]:
    """A forward pass in here changes neither the buffers of ``method`` nor the random states.

    It changes copies of the buffers: the step itself still needs the ones that it has used.
    """
    own = [(module, name, value) for module in method.modules() for name, value in module.named_buffers(recurse=False)]
    copies = {id(value): value.clone() for _, _, value in own}
    for module, name, value in own:
        module._buffers[name] = copies[id(value)]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, name, value in own:
            module._buffers[name] = value


@contextmanager
def _deterministic() -> Iterator[None]:
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
