"""How sequences of log-mel pictures of epochs of sleep are augmented. Configuration only, without torch.

Each part has ``p``, its probability, and ``per``. With ``per: sequence`` there is one draw for all epochs of a
sequence: whether the part is applied, and every number it needs. With ``per: epoch`` each epoch has draws of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from rayssl import storage
from rayssl.schema import Config
from rayssl.views.bounds import Probability, Range

Per = Literal["sequence", "epoch"]
HomeNoiseKind = Literal["white", "pink", "brown", "hum", "music", "tv", "babble", "corpus"]


class NightPitchConfig(Config):
    """Shifts the picture along its bands. Up and down are equally likely; bands at the edge repeat.

    ``most``: the longest shift, as a share of the bands: .2 of 20 bands is 4. The shift is drawn uniformly and need not
    be whole; between two bands the picture is interpolated linearly, in log10.
    """

    p: Probability = 0.0
    per: Per = "sequence"
    most: float = Field(default=0.2, ge=0.0, lt=1.0)


class NightNoiseConfig(Config):
    """Adds noise to the powers of the mel bands, not to their logarithm.

    ``snr_db``: 10 log10(S / N) is drawn uniformly from it, in dB. S is the mean power of the whole sequence, also with
    ``per: epoch``, so that quiet epochs stay quiet beside loud ones. N is the mean power of the noise in the sequence,
    or, with ``per: epoch``, in the epoch.

    First a kind is drawn from ``kinds``, each equally likely, then one of its clips, then a position in the clip. With
    ``per: sequence`` the clip runs on from epoch to epoch, and repeats at its end.

    The kind ``corpus`` takes clips from the rayssl corpus at ``corpus``: of at most 512 recordings, spaced evenly over
    it, one part of ``clip_s`` seconds each. Shorter recordings repeat. For every other kind, ``clips`` clips of
    ``clip_s`` seconds are generated from the seed. ``hum`` is mains hum with a weak fan, ``music`` plucked notes,
    ``tv`` a talker with music, ``babble`` many talkers. The default of ``clip_s`` shares no factor with 30 s, so that a
    clip that repeats sounds different in each epoch.
    """

    p: Probability = 0.0
    per: Per = "sequence"
    snr_db: Range = (-10.0, 10.0)
    kinds: tuple[HomeNoiseKind, ...] = Field(
        default=("white", "pink", "brown", "hum", "music", "tv", "babble"), min_length=1
    )
    corpus: str | None = None
    clips: int = Field(default=8, ge=1, le=512)
    clip_s: float = Field(default=37.0, ge=5.0, le=120.0)

    @model_validator(mode="after")
    def _kinds_and_corpus_agree(self) -> NightNoiseConfig:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("'kinds' names a kind twice; name each once")
        if ("corpus" in self.kinds) != (self.corpus is not None):
            raise ValueError("give 'corpus' (a URI) together with the kind 'corpus', or neither")
        return self


class NightRangeConfig(Config):
    """Changes the dynamic range: powers are raised to an exponent; the mean of the picture in log10 stays.

    ``exponent`` is drawn log-uniformly from it: below 1 loud and quiet come closer, above 1 they part. The mean is that
    of the sequence, or, with ``per: epoch``, of the epoch.
    """

    p: Probability = 0.0
    per: Per = "sequence"
    exponent: Range = (0.8, 1.25)

    @model_validator(mode="after")
    def _is_a_power(self) -> NightRangeConfig:
        if self.exponent[0] <= 0.0:
            raise ValueError("'exponent' must be above 0")
        return self


class NightGainConfig(Config):
    """Changes the loudness by a number of dB that is drawn uniformly from ``db``."""

    p: Probability = 0.0
    per: Per = "sequence"
    db: Range = (-6.0, 6.0)


class NightMaskConfig(Config):
    """Masks of time and of bands, as SpecAugment (Park et al., Interspeech 2019). Width and position are uniform.

    ``times`` masks of at most the share ``time_most`` of an epoch's frames, and ``bands`` masks of at most the share
    ``band_most`` of the bands. They may overlap. ``fill``: masked places get the epoch's ``mean`` or its ``min``, both
    of the picture in log10. With ``per: sequence`` the same places of all epochs are masked.
    """

    p: Probability = 0.0
    per: Per = "epoch"
    times: int = Field(default=1, ge=0, le=8)
    time_most: float = Field(default=0.1, ge=0.0, le=1.0)
    bands: int = Field(default=1, ge=0, le=8)
    band_most: float = Field(default=0.2, ge=0.0, lt=1.0)
    fill: Literal["mean", "min"] = "mean"


class NightAugmentConfig(Config):
    """The parts of a recipe. They are applied in the order of these fields, not in the order of the YAML.

    Pitch comes first, on the clean sleeper. Then comes noise; range and gain are those of the device that hears both.
    Masks come last, so that nothing shows through them. A part is off unless its ``p`` is set.
    """

    pitch: NightPitchConfig = NightPitchConfig()
    noise: NightNoiseConfig = NightNoiseConfig()
    range: NightRangeConfig = NightRangeConfig()
    gain: NightGainConfig = NightGainConfig()
    mask: NightMaskConfig = NightMaskConfig()

    def located(self) -> NightAugmentConfig:
        """A copy with the absolute path of the corpus of noises."""
        noise = self.noise.model_copy(update={"corpus": self.noise.corpus and storage.absolute(self.noise.corpus)})
        return self.model_copy(update={"noise": noise})


_WEAK = NightAugmentConfig(pitch=NightPitchConfig(p=0.5), gain=NightGainConfig(p=0.5, db=(-3.0, 3.0)))
_STRONG = NightAugmentConfig(
    pitch=NightPitchConfig(p=0.5),
    noise=NightNoiseConfig(p=0.8),
    range=NightRangeConfig(p=0.5),
    gain=NightGainConfig(p=0.5),
    mask=NightMaskConfig(p=0.5),
)


class NightViewsConfig(Config):
    """The recipes of a corpus of nights.

    ``weak``: pitch with p .5, gain with p .5 and +-3 dB. ``strong``: the same pitch, noise with p .8, range, gain of
    +-6 dB and masks with p .5. Keys that are not given keep these values: to set ``strong.noise.corpus`` and
    ``strong.noise.kinds`` changes no other part.
    """

    weak: NightAugmentConfig = _WEAK
    strong: NightAugmentConfig = _STRONG

    @model_validator(mode="before")
    @classmethod
    def _others_keep_their_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {**given, **{name: _over(of.model_dump(), given[name]) for name, of in _BOTH.items() if name in given}}

    def located(self) -> NightViewsConfig:
        """A copy with absolute paths of the corpora of noises."""
        return self.model_copy(update={"weak": self.weak.located(), "strong": self.strong.located()})


_BOTH = {"weak": _WEAK, "strong": _STRONG}


def _over(defaults: Any, given: Any) -> Any:
    """``given``, and where both are mappings also the keys of ``defaults`` that it lacks, at every depth."""
    if not (isinstance(defaults, dict) and isinstance(given, Mapping)):
        return given
    return {**defaults, **{key: _over(defaults.get(key), value) for key, value in given.items()}}
