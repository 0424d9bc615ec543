"""Types of numbers in the configuration of views: probabilities, and ranges from which a number is drawn."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the first bound must not exceed the second, got {list(bounds)}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
