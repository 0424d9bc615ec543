"""Takes batches as a rank does, with a pause in place of the step, and counts how long it waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rayssl.errors import UserError


@dataclass(frozen=True)
class Consumed:
    """How many seconds a consumer needed for its batches, and how many of them it waited."""

    seconds: float
    waited: float


def take(batches: Iterator[Any], steps: int, pause_s: float = 0.0) -> Consumed:
    """Takes ``steps`` of ``batches``. After each it sleeps for ``pause_s``. Raises `UserError` if there are too few."""
    waited, began = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        if next(batches, None) is None:
            raise UserError("the batches ended early; give fewer --steps, or a larger corpus")
        waited += time.perf_counter() - asked
        if pause_s:
            time.sleep(pause_s)
    return Consumed(time.perf_counter() - began, waited)
