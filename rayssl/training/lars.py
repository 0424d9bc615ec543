"""Optimisers whose step in each layer is in proportion to the length (L2 norm) of the layer's weights.

A group of parameters with ``trust`` None is excluded. These are the biases and normalisation weights: their lengths say
nothing about the size of a good step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


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
            decay, trust = group["weight_decay"], group["trust"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                direction = p.grad.add(p, alpha=decay)
                if trust is not None:
                    length = _length(p)
                    direction.mul_(_ratio(trust * length, _length(p.grad) + decay * length))
                state = self.state[p]
                if not state:
                    state["velocity"] = torch.zeros_like(p)
                p.sub_(state["velocity"].mul_(group["momentum"]).add_(direction, alpha=group["lr"]))
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
            for p in group["params"]:
                if p.grad is None:
                    continue
                direction = self._adam(p, group).add_(p, alpha=group["weight_decay"])
                if group["trust"] is not None:
                    direction.mul_(_ratio(group["trust"] * _length(p), _length(direction)))
                p.sub_(direction, alpha=group["lr"])
        return loss

    def _adam(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's direction for ``p``, in a new tensor. Updates the moments."""
        assert p.grad is not None
        (first, second), state = group["betas"], self.state[p]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        state["step"] += 1
        state["mean"].lerp_(p.grad, 1 - first)
        state["square"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
        deviation = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        direction: Tensor = (state["mean"] / (1 - first ** state["step"])).div_(deviation)
        return direction


def _evaluated(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _length(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x)
    return length


def _ratio(of: Tensor, to: Tensor) -> Tensor:
    """``of / to``, and 1 where either is 0. It stays on the device, so that no step waits for it."""
    return torch.where((of > 0) & (to > 0), of / to, 1.0)
