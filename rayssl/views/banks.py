"""Banks that are read from a corpus: which of them a configuration names, and how one is made. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rayssl.random.draws import fold
from rayssl.views import noises, rooms
from rayssl.views.recipes import NoiseConfig, ReverbConfig, ViewsConfig
from rayssl.views.recordings import read_recordings


@dataclass(frozen=True)
class RecordedBank:
    """A bank ``[n, samples]`` of noise clips or of room responses at ``rate`` Hz, made from the corpus at ``corpus``.

    ``key`` is the configuration's key that names the corpus. Equal fields give the same bits in every process.
    """

    kind: Literal["noises", "rooms"]
    corpus: str
    key: str
    rate: int
    samples: int
    seed: int

    def read(self) -> NDArray[np.float32]:
        """Reads the corpus and makes the bank.

        Raises `ConfigError` if the corpus has another rate or contains no sound, `CorpusError` if there is none.
        """
        if self.kind == "rooms":
            whole = read_recordings(self.corpus, self.key, self.rate, None, self.seed)
            return rooms.from_recordings(whole, self.samples)
        cuts = read_recordings(self.corpus, self.key, self.rate, self.samples, self.seed)
        return noises.from_recordings(cuts, self.samples)


#: Gives a bank, which may be read-only: `RecordedBank.read`, or what shares one array among all ranks.
BankSource: TypeAlias = Callable[[RecordedBank], NDArray[np.float32]]


def of_noise(config: NoiseConfig, rate: int, seed: int) -> RecordedBank | None:
    """The bank of the noise kind ``corpus``; None if no noise is added, or none from a corpus."""
    if config.p == 0.0 or config.corpus is None:
        return None
    samples = round(config.clip_s * rate)
    return RecordedBank("noises", config.corpus, "views.distort.noise.corpus", rate, samples, fold(seed, 203))


def of_reverb(config: ReverbConfig, rate: int, seed: int) -> RecordedBank | None:
    """The bank of recorded rooms; None if there is no reverberation, or its rooms are generated."""
    if config.p == 0.0 or config.corpus is None:
        return None
    samples = max(1, round(config.length_s * rate))
    return RecordedBank("rooms", config.corpus, "views.distort.reverb.corpus", rate, samples, fold(seed, 204))


def recorded(views: ViewsConfig, rate: int, seed: int) -> list[RecordedBank]:
    """Every bank that `rayssl.views.modules.build_recipes` asks for with the same arguments."""
    both = (of_noise(views.distort.noise, rate, seed), of_reverb(views.distort.reverb, rate, seed))
    return [bank for bank in both if bank is not None]
