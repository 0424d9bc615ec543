"""Which part of a source a corpus takes, so that two corpora of one source share no speaker.

A corpus for training and one for testing often come from the same folder. Both name the same source and the same rule;
one takes the part that the rule holds out, and the other takes the rest::

    train: {source: &source {...}, take: &take {part: rest, by: speaker, held_out: 0.1}, out: ...}
    test: {source: *source, take: {<<: *take, part: held_out}, out: ...}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from rayssl.data import columns
from rayssl.data.sources.base import Reference
from rayssl.errors import CorpusError
from rayssl.random import draws
from rayssl.schema import Config

_TAKEN = 44


class TakeConfig(Config):
    """The part of a source that a corpus takes. Whoever has no known name for ``by`` belongs to the rest."""

    part: Literal["held_out", "rest"]
    """``held_out`` takes what ``held_out`` names, ``rest`` takes everything else."""
    by: Literal["speaker", "recording", "utterance"] = "speaker"
    """What stays together: all utterances of a speaker, or of a recording (``SPEAKER/RECORDING`` where the speaker is
    known), or each ``utterance`` alone.
    """
    held_out: Annotated[float, Field(gt=0, lt=1)] | Annotated[list[str], Field(min_length=1)]
    """The names that are held out, or a share of all names. A share is drawn by a hash of each name: it holds about,
    not exactly, for few names, and a name keeps its part when others are added.
    """
    seed: int = 0
    """Another seed draws another share."""

    def of(self, references: Sequence[Reference]) -> list[Reference]:
        """The ``references`` that the corpus takes, in their order."""
        held = self._held([self._name(reference) for reference in references])
        wanted = self.part == "held_out"
        return [reference for reference, one in zip(references, held, strict=True) if one == wanted]

    def check(self, speakers: Iterable[str], where: str) -> None:
        """Raises `CorpusError`, which names ``where``, if a speaker is to be held out and is none of ``speakers``."""
        if self.part == "held_out" and self.by == "speaker" and isinstance(self.held_out, list):
            missing = sorted(set(self.held_out) - set(speakers))
            if missing:
                what = f"'{missing[0]}' is no speaker of the source" + (
                    f", nor are {len(missing) - 1} others" if missing[1:] else ""
                )
                raise CorpusError(f"{where}: take.held_out: {what}; correct the name")

    def _name(self, reference: Reference) -> str | None:
        if self.by == "speaker":
            return reference.speaker
        return reference.name if self.by == "utterance" else reference.recording_name()

    def _held(self, names: Sequence[str | None]) -> list[bool]:
        """Whether each of ``names`` is held out."""
        if isinstance(self.held_out, list):
            listed = set(self.held_out)
            return [name in listed for name in names]
        keys = draws.texts_np(draws.fold(self.seed, _TAKEN), *columns.texts(pa.array(names, pa.string())))
        drawn = draws.uniform_np(keys, _TAKEN) < self.held_out
        return [name is not None and bool(one) for name, one in zip(names, np.asarray(drawn), strict=True)]
