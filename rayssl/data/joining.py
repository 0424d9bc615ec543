"""Short clips joined into utterances that are long enough to crop from.

Only clips of one recording (and, where conditions are simulated, one condition) are joined, so that the joined
utterance still has one speaker and one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from rayssl.schema import Config


class JoinConfig(Config):
    """Utterances of at least ``min_s`` seconds. ``leftover``: what to do with a recording that is shorter in total."""

    min_s: float = Field(gt=0)
    leftover: Literal["keep", "reject"] = "keep"


def join(lengths: Sequence[int], minimum: int) -> list[list[int]]:
    """Groups of consecutive clips, each of at least ``minimum`` samples; ``lengths [n]`` are the clips' samples.

    A rest that is too short is added to the group before it; when all clips together are too short there is one group.
    """
    groups: list[list[int]] = []
    current: list[int] = []
    for clip, _ in enumerate(lengths):
        current.append(clip)
        if sum(lengths[k] for k in current) >= minimum:
            groups.append(current)
            current = []
    if current and groups:
        groups[-1] += current
    elif current:
        groups.append(current)
    return groups
