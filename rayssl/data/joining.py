"""Joins short clips into utterances that are long enough to cut segments from.

Only clips of the same recording are joined and, if conditions are simulated, of the same condition. So a joined
utterance still has one speaker and one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from rayssl.schema import Config


class JoinConfig(Config):
    """Joins clips to longer utterances."""

    min_s: float = Field(gt=0)
    """Clips of a recording are joined until they have at least this many seconds."""
    leftover: Literal["keep", "reject"] = "keep"
    """What happens to a recording whose clips are shorter together: ``keep`` makes one short utterance of them,
    ``reject`` leaves them out.
    """


def join(lengths: Sequence[int], minimum: int) -> list[list[int]]:
    """Groups of consecutive clips that have at least ``minimum`` samples each. ``lengths [n]`` are those of the clips.

    If the last clips are too short for a group, they join the group before. If all clips together are too short, they
    form one group.
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
