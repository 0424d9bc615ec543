"""`rayssl.random.draws` for torch tensors on any device. The same keys give the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rayssl.random.draws import fold

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def keys_torch(key: int, ids: Tensor) -> Tensor:
    """Keys int64 ``[B]`` for the integer tensor ``ids [B]``, on its device; they have the same bits as `keys_np`."""
    return _splitmix_torch(ids.to(torch.int64) ^ _signed(key))


def keys_joined(parts: Sequence[tuple[int, Tensor]]) -> Tensor:
    """What `keys_torch` gives for each ``(key, ids [B_i])``, one after the other: int64 ``[sum of B_i]``.

    Most of it is computed once for all, because on a GPU each operation is a launch.
    """
    return _splitmix_torch(torch.cat([ids.to(torch.int64) ^ _signed(key) for key, ids in parts]))


def uniform_torch(keys: Tensor, stream: int, count: int | None = None) -> Tensor:
    """Uniform float32 in [0, 1) for each of ``keys [B]`` int64: ``[B]``, or ``[B, count]`` with ``count``.

    Without ``count`` the numbers equal `uniform_np` to float32 precision. With it, a row's numbers are independent.
    """
    mixed = _splitmix_torch(keys ^ _signed(fold(stream)))
    if count is not None:
        steps = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * _signed(_GOLDEN)
        mixed = _splitmix_torch(mixed[..., None] + steps)
    # 24 bits fill the significand of a float32, so that no number is rounded up to 1.0
    return _shift_right(mixed, 40).to(torch.float32) * 2.0**-24


def _splitmix_torch(x: Tensor) -> Tensor:
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts int64 bits to the right and fills with zeros; torch's own ``>>`` fills with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
