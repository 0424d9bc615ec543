"""Optimisers whose step in each layer is in proportion to the length (L2 norm) of the layer's weights.

A group of parameters with ``trust`` None is excluded. These are the biases and normalisation weights: their lengths say
nothing about the size of a good step.

Each operation is one call for all parameters of a group: on a GPU that is a few launches, and not one for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rayssl.training.scaling import scale_each_


class Lars(torch.optim.Optimizer):
    """SGD with momentum m and layer-wise rates (You, Gitman and Ginsburg, 2017, Algorithm 1).

    For each parameter ``w`` with gradient ``g`` and decay ``b``: ``r = trust * |w| / (|g| + b * |w|)``,
    ``v <- m * v + lr * r * (g + b * w)``, ``w <- w - v``. In groups without ``trust``, r = 1. Where ``w`` is all zeros,
    r = 1 too: otherwise ``w`` would stay zero. As in the paper, the rate ``lr`` is inside ``v``: a change of ``lr``
    affects later steps only. In `torch.optim.SGD` it rescales past steps as well.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float | None = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; the value of ``closure``, evaluated first, if given."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            weights, gradients = _with_gradient(group)
            if not weights:
                continue
            decay, trust = group["weight_decay"], group["trust"]
            directions = torch._foreach_add(gradients, weights, alpha=decay)
            if trust is not None:
                length = _lengths(weights)
                scale_each_(directions, _ratios(trust * length, _lengths(gradients) + decay * length))
            for p in weights:
                if not self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
            velocities = [self.state[p]["velocity"] for p in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, directions, alpha=group["lr"])
            torch._foreach_sub_(weights, velocities)
        return loss


class AdamLars(torch.optim.Optimizer):
    """Adam's direction at layer-wise rates: what CLAR calls Adam with LARS, in LAMB's form (You et al., ICLR 2020).

    With Adam's corrected moments ``m`` and ``s`` and decay ``b``: ``u = m / (sqrt(s) + eps) + b * w``,
    ``w <- w - lr * |w| / |u| * u``. In groups without ``trust`` the ratio is 1: this is Adam with decoupled decay. It
    is 1 as well where ``w`` or ``u`` is all zeros. So ``lr`` is the share of its own length by which a layer moves.

    Public code scales the gradients by LARS's ratio and gives them to Adam. This has no effect: ``m`` and ``sqrt(s)``
    are both in proportion to the gradients, so that a constant factor cancels. A factor that changes from step to step
    only changes the weights of past gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        trust: float | None = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; the value of ``closure``, evaluated first, if given."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            weights, gradients = _with_gradient(group)
            if not weights:
                continue
            directions = self._adam(weights, gradients, group)
            torch._foreach_add_(directions, weights, alpha=group["weight_decay"])
            if group["trust"] is not None:
                scale_each_(directions, _ratios(group["trust"] * _lengths(weights), _lengths(directions)))
            torch._foreach_sub_(weights, directions, alpha=group["lr"])
        return loss

    def _adam(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Adam's directions for ``weights``, in new tensors. Updates the moments."""
        first, second = group["betas"]
        states = [self.state[p] for p in weights]
        for p, state in zip(weights, states, strict=True):
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
            state["step"] += 1
        means, squares = [state["mean"] for state in states], [state["square"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        deviations = torch._foreach_div(squares, [1 - second ** state["step"] for state in states])
        torch._foreach_sqrt_(deviations)
        torch._foreach_add_(deviations, group["eps"])
        directions: list[Tensor] = list(torch._foreach_div(means, [1 - first ** state["step"] for state in states]))
        torch._foreach_div_(directions, deviations)
        return directions


def _evaluated(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _with_gradient(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of ``group`` that have a gradient, and their gradients."""
    weights = [p for p in group["params"] if p.grad is not None]
    return weights, [p.grad for p in weights]


def _lengths(tensors: list[Tensor]) -> Tensor:
    """The L2 norms of n ``tensors``, ``[n]``."""
    return torch.stack(list(torch._foreach_norm(tensors)))


def _ratios(of: Tensor, to: Tensor) -> Tensor:
    """``of / to [n]``, and 1 where either is 0. They stay on the device, so that no step waits."""
    return torch.where((of > 0) & (to > 0), of / to, 1.0)
