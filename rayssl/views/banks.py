"""Banks that are read from a corpus: which of them a configuration names, and how one is made. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rayssl.data.mel import MelConfig
from rayssl.random.draws import fold
from rayssl.views import home_noises, noises, rooms
from rayssl.views.night_recipes import NightNoiseConfig
from rayssl.views.recipes import NoiseConfig, NoiseKind, ReverbConfig, ViewsConfig
from rayssl.views.recordings import each_recording, read_recordings


@dataclass(frozen=True)
class RecordedBank:
    """A bank ``[n, samples]`` of noise clips or of room responses at ``rate`` Hz, made from the corpus at ``corpus``.

    ``key`` is the configuration's key that names the corpus. Equal fields give the same bits in every process. A bank
    of ``mel_powers`` is ``[n, F, C]`` instead: noise clips of ``samples`` samples as powers in the bands of ``mel``.
    """

    kind: Literal["noises", "rooms", "mel_powers"]
    corpus: str
    key: str
    rate: int
    samples: int
    seed: int
    mel: MelConfig | None = None

    def read(self) -> NDArray[np.float32]:
        """Reads the corpus and makes the bank.

        Raises `ConfigError` if the corpus has another rate or contains no sound, `CorpusError` if there is none.
        """
        if self.kind == "rooms":
            whole = read_recordings(self.corpus, self.key, self.rate, None, self.seed)
            return rooms.from_recordings(whole, self.samples)
        if self.kind == "mel_powers":
            assert self.mel is not None
            parts = each_recording(self.corpus, self.key, self.rate, self.samples, self.seed)
            return home_noises.from_recordings(parts, self.samples, self.mel, self.rate)
        cuts = read_recordings(self.corpus, self.key, self.rate, self.samples, self.seed)
        return noises.from_recordings(cuts, self.samples)


#: Gives a bank, which may be read-only: `RecordedBank.read`, or what shares one array among all ranks.
BankSource: TypeAlias = Callable[[RecordedBank], NDArray[np.float32]]


def of_noise(config: NoiseConfig, kind: NoiseKind, rate: int, seed: int) -> RecordedBank | None:
    """The bank of a kind of noise; None if no noise is added, or if this kind is generated."""
    corpus = config.corpus_of(kind)
    if config.p == 0.0 or corpus is None:
        return None
    key = "views.distort.noise." + ("corpus" if kind == "corpus" else f"corpora.{kind}")
    return RecordedBank("noises", corpus, key, rate, round(config.clip_s * rate), fold(seed, 203))


def of_reverb(config: ReverbConfig, rate: int, seed: int) -> RecordedBank | None:
    """The bank of recorded rooms; None if there is no reverberation, or its rooms are generated."""
    if config.p == 0.0 or config.corpus is None:
        return None
    samples = max(1, round(config.length_s * rate))
    return RecordedBank("rooms", config.corpus, "views.distort.reverb.corpus", rate, samples, fold(seed, 204))


def recorded(views: ViewsConfig, rate: int, seed: int) -> list[RecordedBank]:
    """Every bank that `rayssl.views.modules.build_recipes` asks for with the same arguments."""
    noise = views.distort.noise
    every = (*(of_noise(noise, kind, rate, seed) for kind in noise.kinds), of_reverb(views.distort.reverb, rate, seed))
    return [bank for bank in every if bank is not None]


def of_night_noise(config: NightNoiseConfig, recipe: str, mel: MelConfig, rate: int, seed: int) -> RecordedBank | None:
    """The bank of the noise kind ``corpus`` of ``views.night.<recipe>``; None as for `of_noise`."""
    if config.p == 0.0 or config.corpus is None:
        return None
    key, samples = f"views.night.{recipe}.noise.corpus", round(config.clip_s * rate)
    return RecordedBank("mel_powers", config.corpus, key, rate, samples, fold(seed, 503), mel)


def recorded_for_nights(views: ViewsConfig, mel: MelConfig, rate: int, seed: int) -> list[RecordedBank]:
    """Every bank that `rayssl.views.modules.build_night_recipes` asks for with the same arguments."""
    recipes = (("weak", views.night.weak), ("strong", views.night.strong))
    both = [of_night_noise(recipe.noise, name, mel, rate, seed) for name, recipe in recipes]
    return [bank for bank in both if bank is not None]
