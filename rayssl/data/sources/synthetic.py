"""Speech-like utterances generated from a seed. `rayssl.data.speech` describes the sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from rayssl.data import speech
from rayssl.data.sources.base import Reference, Source, SourceConfig


class SyntheticConfig(SourceConfig):
    """A generated source: ``speakers`` x ``recordings`` x ``utterances``."""

    name: Literal["synthetic"] = "synthetic"
    """Speech-like utterances generated from a seed; needs no data."""
    seed: int = 0
    """The seed of all speakers and utterances. Another seed gives other speakers."""
    speakers: int = Field(default=40, ge=1)
    """The number of different voices. Take a few hundred if speakers shall be told apart, and few for a quick try."""
    recordings: int = Field(default=4, ge=1)
    """The number of recordings of each speaker, which differ in their channel."""
    utterances: int = Field(default=4, ge=1)
    """The number of utterances of each recording."""
    seconds: float = Field(default=3.0, gt=0, le=60)
    """The length of each utterance in seconds, up to 60."""
    first_speaker: int = Field(default=0, ge=0)
    """The number of the first speaker. Two sources with the same seed share no speaker if their ranges of numbers do
    not overlap.
    """
    channel: float = Field(default=0.6, ge=0, le=2)
    """How much recordings differ in their channel, from 0 (not at all) to 2, as ``conditions.strength`` does."""
    words: int = Field(default=0, ge=0, le=1000, exclude_if=lambda value: not value)
    """The number of different words, which are the labels ``w000``, ``w001`` and so on. The utterances of a recording
    say them in turn, so take a multiple of this number as ``utterances``. With 0 speech is free, without labels.
    """
    likeness: float = Field(default=0.0, ge=0, le=1, exclude_if=lambda value: not value)
    """How alike the ``words`` are, from 0 to 1: the higher, the harder they are to tell apart. With 1 all are the same.
    """

    def describe(self) -> str:
        """Always the same text: there is no URI to name."""
        return "the synthetic source"


class Synthetic(Source):
    """The locator of an utterance is the numbers of its speaker, recording and utterance."""

    Config = SyntheticConfig
    config: SyntheticConfig

    def list(self) -> Iterator[Reference]:
        """Utterances in the order of their numbers."""
        config = self.config
        for s in range(config.first_speaker, config.first_speaker + config.speakers):
            for r in range(config.recordings):
                for u in range(config.utterances):
                    label = f"w{u % config.words:03d}" if config.words else None
                    yield Reference(f"s{s:05d}/r{r:02d}/u{u:03d}", f"s{s:05d}", f"r{r:02d}", label, (s, r, u))

    def read(self, reference: Reference) -> np.ndarray:
        """float32 ``[seconds * 16000]``."""
        config, (speaker, recording, utterance) = self.config, map(int, reference.locator)
        number = utterance % config.words if config.words else None
        word = None if number is None else speech.draw_word(config.seed, number, config.likeness)
        return speech.speak(
            config.seed, speaker, recording, utterance, seconds=config.seconds, channel=config.channel, word=word
        )
