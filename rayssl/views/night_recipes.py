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

    The shift is drawn uniformly and need not be whole; between two bands the picture is interpolated linearly, in
    log10.
    """

    p: Probability = 0.0
    """Probability, from 0 to 1, that a picture is shifted along its bands; 0 turns it off."""
    per: Per = "sequence"
    """Whether there is one draw for all epochs of a ``sequence``, or one for each ``epoch`` of sleep."""
    most: float = Field(default=0.2, ge=0.0, lt=1.0)
    """The longest shift up or down, as a share of the bands: 0.2 of 20 bands is 4."""


class NightNoiseConfig(Config):
    """Adds noise to the powers of the mel bands, not to their logarithm.

    First a kind is drawn from ``kinds``, each equally likely, then one of its clips, then a position in the clip. With
    ``per: sequence`` the clip runs on from epoch to epoch, and repeats at its end.

    The kind ``corpus`` takes clips from the rayssl corpus at ``corpus``: of at most 512 recordings, spaced evenly over
    it, one part of ``clip_s`` seconds each. Shorter recordings repeat. The default of ``clip_s`` shares no factor with
    30 s, so that a clip that repeats sounds different in each epoch.
    """

    p: Probability = 0.0
    """Probability, from 0 to 1, that noise is added; 0 turns noise off."""
    per: Per = "sequence"
    """Whether there is one draw for all epochs of a ``sequence``, or one for each ``epoch`` of sleep."""
    snr_db: Range = (-10.0, 10.0)
    """Range of the signal-to-noise ratio 10 log10(S / N) in dB, ``[low, high]``, drawn uniformly. S is the mean power
    of the whole sequence, also with ``per: epoch``, so that quiet epochs stay quiet beside loud ones. N is that of the
    noise in the sequence or, with ``per: epoch``, in the epoch.
    """
    kinds: tuple[HomeNoiseKind, ...] = Field(
        default=("white", "pink", "brown", "hum", "music", "tv", "babble"), min_length=1
    )
    """The kinds of noise to draw from, each once. ``hum`` is mains hum with a weak fan, ``music`` plucked notes, ``tv``
    a talker with music, ``babble`` many talkers, ``corpus`` recorded clips from ``corpus``; all others are generated
    from the seed.
    """
    corpus: str | None = None
    """Folder or URI of a prepared corpus of noises of a home, for the kind ``corpus`` only."""
    clips: int = Field(default=8, ge=1, le=512)
    """The number of clips that are generated for each kind but ``corpus``, up to 512. More clips vary more and need
    more memory.
    """
    clip_s: float = Field(default=37.0, ge=5.0, le=120.0)
    """The length in seconds of a clip, generated or taken from ``corpus``, from 5 to 120."""

    @model_validator(mode="after")
    def _kinds_and_corpus_agree(self) -> NightNoiseConfig:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("'kinds' names a kind twice; name each once")
        if ("corpus" in self.kinds) != (self.corpus is not None):
            raise ValueError("give 'corpus' (a URI) together with the kind 'corpus', or neither")
        return self


class NightRangeConfig(Config):
    """Changes the dynamic range: powers are raised to an exponent; the mean of the picture in log10 stays.

    The mean is that of the sequence, or, with ``per: epoch``, of the epoch.
    """

    p: Probability = 0.0
    """Probability, from 0 to 1, that the dynamic range changes; 0 turns it off."""
    per: Per = "sequence"
    """Whether there is one draw for all epochs of a ``sequence``, or one for each ``epoch`` of sleep."""
    exponent: Range = (0.8, 1.25)
    """Range of the exponent, ``[low, high]`` above 0, drawn log-uniformly. Below 1 loud and quiet come closer, above 1
    they part.
    """

    @model_validator(mode="after")
    def _is_a_power(self) -> NightRangeConfig:
        if self.exponent[0] <= 0.0:
            raise ValueError("'exponent' must be above 0")
        return self


class NightGainConfig(Config):
    """Changes the loudness."""

    p: Probability = 0.0
    """Probability, from 0 to 1, that the loudness changes; 0 turns it off."""
    per: Per = "sequence"
    """Whether there is one draw for all epochs of a ``sequence``, or one for each ``epoch`` of sleep."""
    db: Range = (-6.0, 6.0)
    """Range of the change of loudness in dB, ``[low, high]``; it is drawn uniformly."""


class NightMaskConfig(Config):
    """Masks of time and of bands, as SpecAugment (Park et al., Interspeech 2019). Width and position are uniform.

    They may overlap.
    """

    p: Probability = 0.0
    """Probability, from 0 to 1, that a picture is masked; 0 turns masks off."""
    per: Per = "epoch"
    """Whether the same places of all epochs of a ``sequence`` are masked, or each ``epoch`` of sleep has its own."""
    times: int = Field(default=1, ge=0, le=8)
    """The number of masks over time in an epoch of sleep, up to 8; 0 for none."""
    time_most: float = Field(default=0.1, ge=0.0, le=1.0)
    """The widest mask over time, as a share of an epoch's frames."""
    bands: int = Field(default=1, ge=0, le=8)
    """The number of masks over bands, up to 8; 0 for none."""
    band_most: float = Field(default=0.2, ge=0.0, lt=1.0)
    """The widest mask over bands, as a share of the bands, below 1."""
    fill: Literal["mean", "min"] = "mean"
    """What masked places get: the ``mean`` or the ``min`` of the epoch's picture in log10."""


class NightAugmentConfig(Config):
    """The parts of a recipe. They are applied in the order of these fields, not in the order of the YAML.

    Pitch comes first, on the clean sleeper. Then comes noise; range and gain are those of the device that hears both.
    Masks come last, so that nothing shows through them. A part is off unless its ``p`` is set.
    """

    pitch: NightPitchConfig = NightPitchConfig()
    """A shift of the picture along its bands, on the clean sleeper."""
    noise: NightNoiseConfig = NightNoiseConfig()
    """Noise of a home, generated or from a corpus."""
    range: NightRangeConfig = NightRangeConfig()
    """A change of the dynamic range, as a recorder may make it."""
    gain: NightGainConfig = NightGainConfig()
    """A change of loudness, as a recorder's distance or setting makes it."""
    mask: NightMaskConfig = NightMaskConfig()
    """Masks over time and bands."""

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

    Keys that are not given keep their values: to set ``strong.noise.corpus`` and ``strong.noise.kinds`` changes no
    other part.
    """

    weak: NightAugmentConfig = _WEAK
    """The weak recipe: by default pitch and gain, each with p 0.5, the gain within 3 dB up or down."""
    strong: NightAugmentConfig = _STRONG
    """The strong recipe: by default the pitch of the weak one, noise with p 0.8, and range, gain of up to 6 dB and
    masks with p 0.5 each.
    """

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
