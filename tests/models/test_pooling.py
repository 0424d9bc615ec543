"""What is traced for an export pools as PyTorch does."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rayssl.models.pooling import pool_plane, pool_time


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 15, 16, 17, 18])
def test_over_time(exporting: None, length: int) -> None:
    x = torch.randn(2, 3, length).relu()
    assert torch.equal(pool_time(x, 4), F.max_pool1d(x, 4, ceil_mode=True))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (8, 9), (7, 8)])
def test_over_a_plane(exporting: None, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size).relu()
    assert torch.equal(pool_plane(x), F.max_pool2d(x, 3, stride=2, padding=1))
