"""wespeaker's ECAPA-TDNN (with global context) as a function of its weights, from its public definition.

The library is not a package that can be installed for the tests. This has the names and shapes of its weights, and its
network as sums and products over them; nothing of its code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv1d

SCALE = 8


def weights(channels: int = 16, bands: int = 10, joined: int = 24, dim: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a small network; the attention has 128 channels, as always."""
    made: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def layer(name: str, *shape: int) -> None:
        inputs = shape[1] * (shape[2] if len(shape) > 2 else 1)
        made[f"{name}.weight"] = torch.randn(shape, generator=generator) / inputs**0.5
        made[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    def norm(name: str, size: int) -> None:
        made[f"{name}.weight"] = 0.5 + torch.rand(size, generator=generator)
        made[f"{name}.bias"] = 0.2 * torch.randn(size, generator=generator)
        made[f"{name}.running_mean"] = 0.2 * torch.randn(size, generator=generator)
        made[f"{name}.running_var"] = 0.5 + torch.rand(size, generator=generator)
        made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    width = channels // SCALE
    layer("layer1.conv", channels, bands, 5)
    norm("layer1.bn", channels)
    for number in (2, 3, 4):
        block = f"layer{number}.se_res2block"
        for outer in (0, 2):
            layer(f"{block}.{outer}.conv", channels, channels, 1)
            norm(f"{block}.{outer}.bn", channels)
        for group in range(SCALE - 1):
            layer(f"{block}.1.convs.{group}", width, width, 3)
            norm(f"{block}.1.bns.{group}", width)
        layer(f"{block}.3.linear1", 128, channels)
        layer(f"{block}.3.linear2", channels, 128)
    layer("conv", joined, 3 * channels, 1)
    layer("pool.linear1", 128, 3 * joined, 1)
    layer("pool.linear2", joined, 128, 1)
    norm("bn", 2 * joined)
    layer("linear", dim, 2 * joined)
    made["projection.weight"] = torch.randn(9, dim, generator=generator)  # the classifier of their training
    return made


def embedding(state: dict[str, Tensor], features: Tensor) -> Tensor:
    """``features [B, bands, T]`` to ``[B, dim]``, in evaluation mode."""

    def convolved(x: Tensor, name: str, dilation: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        reach = dilation * (weight.shape[2] - 1) // 2
        return conv1d(x, weight, state[f"{name}.bias"], padding=reach, dilation=dilation)

    def normed(x: Tensor, name: str) -> Tensor:
        statistics = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return batch_norm(x, *statistics)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = normed(convolved(features, "layer1.conv").relu(), "layer1.bn")
    outputs = []
    for number in (2, 3, 4):
        block = f"layer{number}.se_res2block"
        parts = normed(convolved(x, f"{block}.0.conv").relu(), f"{block}.0.bn").chunk(SCALE, dim=1)
        groups: list[Tensor] = []
        for k in range(SCALE - 1):
            given = parts[k] if k == 0 else parts[k] + groups[-1]
            groups.append(normed(convolved(given, f"{block}.1.convs.{k}", number).relu(), f"{block}.1.bns.{k}"))
        y = torch.cat([*groups, parts[-1]], dim=1)
        y = normed(convolved(y, f"{block}.2.conv").relu(), f"{block}.2.bn")
        gate = linear(linear(y.mean(dim=2), f"{block}.3.linear1").relu(), f"{block}.3.linear2").sigmoid()
        x = x + y * gate[:, :, None]
        outputs.append(x)
    x = convolved(torch.cat(outputs, dim=1), "conv").relu()
    mean = x.mean(dim=2, keepdim=True).expand_as(x)
    spread = (x.var(dim=2, keepdim=True) + 1e-7).sqrt().expand_as(x)
    attention = convolved(torch.cat([x, mean, spread], dim=1), "pool.linear1").tanh()
    share = convolved(attention, "pool.linear2").softmax(dim=2)
    first, second = (share * x).sum(dim=2), (share * x**2).sum(dim=2)
    pooled = torch.cat([first, (second - first**2).clamp(min=1e-7).sqrt()], dim=1)
    return linear(normed(pooled, "bn"), "linear")
