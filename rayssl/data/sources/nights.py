"""The interface of a source of nights: it lists nights, and reads them one epoch of sleep (30 s) at a time.

A night source is a `Source` whose references are nights: ``name`` is the night's, ``speaker`` the subject's, and
``recording`` its night. `rayssl prepare` calls `NightSource.epochs` instead of ``read``, so that a night never
lies in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import numpy as np

from rayssl.data import decode
from rayssl.data.mel import EPOCH_S as EPOCH_S
from rayssl.data.sources.base import Reference, Source, SourceConfig

EPOCH_SAMPLES = EPOCH_S * decode.RATE
STAGES: tuple[str, ...] = ("Wake", "Light", "Deep", "REM")
UNSCORED = -1
UNSCORED_NAME = "unscored"


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """One epoch of sleep.

    ``index``: how many epochs after the beginning of the night it starts. If it jumps, epochs are missing. ``stage``:
    an index into `STAGES`, or `UNSCORED`. ``samples``: float32 ``[EPOCH_SAMPLES]`` in [-1, 1], mono at 16 kHz.
    """

    index: int
    stage: int
    samples: np.ndarray


@dataclass(frozen=True, slots=True)
class Dropped:
    """``epochs`` epochs that are missing. ``reason``: a kind, and after ": " what happened; it names the file."""

    reason: str
    epochs: int


EpochOrDropped: TypeAlias = Epoch | Dropped


class NightSourceConfig(SourceConfig):
    """The settings of a source of nights. A corpus that is made from it is a corpus of nights."""


class NightSource(Source):
    """A source whose references are nights. A subclass implements `list` and `epochs`."""

    config: NightSourceConfig

    def epochs(self, reference: Reference) -> Iterator[EpochOrDropped]:
        """The epochs of a night in order of ``index``, and what is missing.

        Raises:
            DecodeError: the night, or the rest of it, cannot be used. What came before is kept.
        """
        raise NotImplementedError(f"{type(self).__name__}.epochs is not implemented")

    def begins(self, reference: Reference) -> datetime | None:
        """The local time at which epoch 0 of a night begins, or None if it is unknown; year 1 is an unknown day.

        Raises:
            DecodeError: the night cannot be used.
        """
        return None

    def read(self, reference: Reference) -> np.ndarray:
        """All epochs of a night, one after the other: float32 ``[T]``. Only for tools; a night may be 2 GB."""
        found = [each.samples for each in self.epochs(reference) if isinstance(each, Epoch)]
        return np.concatenate(found) if found else np.zeros(0, np.float32)
