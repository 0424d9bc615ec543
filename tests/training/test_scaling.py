"""A factor for each tensor: the way of a GPU gives the bits of the plain one in every layout, without a wait."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayssl.training.scaling import scale_each_, scale_repeated_
from tests.training.waits import counted


def tensors(dtype: torch.dtype) -> list[Tensor]:
    """A scalar, a matrix, a transposed one, a kernel with channels last, and two views of one bucket."""
    torch.manual_seed(0)
    bucket = torch.randn(50)
    made = [
        *(torch.randn(()), torch.randn(4, 5), torch.randn(6, 3).t()),
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        *(bucket[:20].view(4, 5), bucket[20:50].view(10, 3)),
    ]
    return [each.to(dtype) for each in made]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_way_of_a_gpu_is_the_plain_one(dtype: torch.dtype) -> None:
    plain, repeated, factors = tensors(dtype), tensors(dtype), torch.rand(6).to(dtype)
    scale_each_(plain, factors)
    with counted():
        scale_repeated_(tensors(dtype), factors)  # the counts are on the device from now on
    with counted() as waits:
        scale_repeated_(repeated, factors)
    assert not waits
    for mine, other, before, factor in zip(repeated, plain, tensors(dtype), factors, strict=True):
        assert torch.equal(mine, other) and torch.equal(mine, before * factor) and mine.stride() == before.stride()
