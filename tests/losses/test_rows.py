"""What losses share: rows of length 1 in a precision that suffices, and what of two views cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayssl.losses.rows import check_views, precise, unit


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision(given: torch.dtype, found: torch.dtype) -> None:
    x = torch.tensor([[3.0, 4.0]], dtype=given)
    assert precise(x).dtype == unit(x).dtype == found
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8]], dtype=found))


def test_a_row_of_zeros_stays() -> None:
    x = torch.zeros(1, 3, requires_grad=True)
    unit(x).sum().backward()
    assert unit(x).tolist() == [[0, 0, 0]] and x.grad is not None and x.grad.isfinite().all()


KEYS = torch.zeros(6, 3)
ROWS = KEYS[:2]


@pytest.mark.parametrize("offset", [0, 2, 4])
def test_rows_of_a_rank(offset: int) -> None:
    check_views(ROWS, ROWS, KEYS, KEYS, offset=offset, temperature=0.1)


@pytest.mark.parametrize(
    ("a", "b", "keys_a", "keys_b", "settings", "message"),
    [
        (ROWS, KEYS, KEYS, KEYS, {}, r"a \(2, 3\), b \(6, 3\) are not rows 0..2 of keys \(6, 3\), \(6, 3\)"),
        (ROWS, ROWS, KEYS, ROWS, {}, "are not rows 0..2 of keys"),
        (ROWS, ROWS, KEYS, KEYS, {"offset": 5}, "are not rows 5..7 of keys"),
        (ROWS, ROWS, KEYS, KEYS, {"offset": -1}, "are not rows -1..1 of keys"),
        (ROWS, ROWS, KEYS, KEYS, {"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_what_cannot_be(a: Any, b: Any, keys_a: Any, keys_b: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_views(a, b, keys_a, keys_b, **{"offset": 0, "temperature": 0.1, **settings})
