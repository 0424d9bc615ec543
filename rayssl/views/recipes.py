"""The views of a method and how they are distorted. Configuration only, without torch: data tasks import this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from rayssl import storage
from rayssl.schema import Config
from rayssl.views.bounds import Probability, Range
from rayssl.views.night_recipes import NightViewsConfig

NoiseKind = Literal["white", "pink", "brown", "babble", "corpus"]
Recipe = Literal["none", "distort", "weak", "strong"]


class Segment(Config):
    """A part of an utterance that goes through the encoder. ``name`` is its key in the batch.

    ``recipe`` names the part of `ViewsConfig` that distorts it first. Segments marked ``disjoint`` share no sample with
    each other if the utterance is long enough for all of them.
    """

    name: str = Field(min_length=1)
    seconds: float = Field(gt=0.0)
    recipe: Recipe = "none"
    disjoint: bool = False

    def samples(self, rate: int) -> int:
        """The length in samples at ``rate`` Hz, at least 1."""
        return max(1, round(self.seconds * rate))


class NoiseConfig(Config):
    """Additive noise with probability ``p``, at a signal-to-noise ratio drawn uniformly from ``snr_db``.

    First a kind is drawn (each is equally likely), then one of its clips, then a position in the clip. The kind
    ``corpus`` takes clips from the rayssl corpus at ``corpus``. For every other kind, ``clips`` clips of ``clip_s``
    seconds are generated from the seed.
    """

    p: Probability = 0.6
    snr_db: Range = (0.0, 15.0)
    kinds: tuple[NoiseKind, ...] = Field(default=("white", "pink", "brown", "babble"), min_length=1)
    corpus: str | None = None
    clips: int = Field(default=16, ge=1)
    clip_s: float = Field(default=6.0, gt=0.0, le=60.0)

    @model_validator(mode="after")
    def _corpus_is_given(self) -> NoiseConfig:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("'kinds' names a kind twice; name each once")
        if ("corpus" in self.kinds) != (self.corpus is not None):
            raise ValueError("give 'corpus' (a URI) together with the kind 'corpus', or neither")
        return self


class ReverbConfig(Config):
    """Reverberation with probability ``p``, with one of ``rooms`` responses that are generated from the seed.

    ``rt60_s`` is the range of the times, in seconds, in which the sound of a room falls by 60 dB. Responses are cut at
    ``length_s`` seconds. With ``corpus`` the responses are read from that rayssl corpus instead.
    """

    p: Probability = 0.4
    rooms: int = Field(default=64, ge=1)
    rt60_s: Range = (0.1, 0.5)
    length_s: float = Field(default=0.3, gt=0.0, le=0.5)
    corpus: str | None = None

    @model_validator(mode="after")
    def _decays(self) -> ReverbConfig:
        if self.rt60_s[0] <= 0.0:
            raise ValueError("'rt60_s' must be above 0")
        return self


class GainConfig(Config):
    """A change of level, drawn uniformly from ``db`` in dB. If the peak would exceed 1, the row is scaled to peak 1."""

    p: Probability = 0.0
    db: Range = (-10.0, 6.0)


class DistortConfig(Config):
    """Reverberation, then noise, then gain, each with its own probability for each row."""

    noise: NoiseConfig = NoiseConfig()
    reverb: ReverbConfig = ReverbConfig()
    gain: GainConfig = GainConfig()


class PitchShiftConfig(Config):
    """Changes the pitch but not the tempo, by a number of semitones drawn uniformly from ``semitones``."""

    p: Probability = 0.0
    semitones: Range = (-15.0, 15.0)

    @model_validator(mode="after")
    def _within_two_octaves(self) -> PitchShiftConfig:
        if not -24.0 <= self.semitones[0] <= self.semitones[1] <= 24.0:
            raise ValueError("'semitones' must be within -24 and 24")
        return self


class TimeStretchConfig(Config):
    """Changes the tempo but not the pitch: ``rate`` times as fast, drawn uniformly. The end is cut or zero-padded."""

    p: Probability = 0.0
    rate: Range = (0.5, 1.5)

    @model_validator(mode="after")
    def _within_two_octaves(self) -> TimeStretchConfig:
        if not 0.25 <= self.rate[0] <= self.rate[1] <= 4.0:
            raise ValueError("'rate' must be within 0.25 and 4")
        return self


class WhiteNoiseConfig(Config):
    """White noise at a signal-to-noise ratio drawn uniformly from ``snr_db``."""

    p: Probability = 0.0
    snr_db: Range = (0.0, 20.0)


class MixedNoiseConfig(Config):
    """White, brown or pink noise, each equally likely, at a signal-to-noise ratio drawn uniformly from ``snr_db``."""

    p: Probability = 0.0
    snr_db: Range = (0.0, 20.0)


class TimeShiftConfig(Config):
    """Rolls the row forward or back: samples that leave at one end enter at the other.

    The shift is drawn uniformly, up to the share ``most`` of the length.
    """

    p: Probability = 0.0
    most: float = Field(default=0.5, ge=0.0, le=1.0)


class FadeConfig(Config):
    """A fade in and a fade out, each over at most the share ``most`` of the length.

    For each of them the length is drawn uniformly, and the shape from linear, logarithmic and exponential.
    """

    p: Probability = 0.0
    most: float = Field(default=0.5, ge=0.0, le=1.0)


class TimeMaskConfig(Config):
    """Zeros in one interval of at most the share ``most`` of the row; its length and position are drawn uniformly."""

    p: Probability = 0.0
    most: float = Field(default=0.125, ge=0.0, lt=1.0)


class AugmentConfig(Config):
    """The augmentations of CLAR (Al-Tahan and Mohsenzadeh, 2021), each with its own probability for each row.

    They are applied in the order of these fields, not in the order of the YAML; `rayssl.views.augment` says why. An
    augmentation is off unless its ``p`` is set.
    """

    pitch_shift: PitchShiftConfig = PitchShiftConfig()
    time_stretch: TimeStretchConfig = TimeStretchConfig()
    white_noise: WhiteNoiseConfig = WhiteNoiseConfig()
    mixed_noise: MixedNoiseConfig = MixedNoiseConfig()
    time_shift: TimeShiftConfig = TimeShiftConfig()
    fade: FadeConfig = FadeConfig()
    time_mask: TimeMaskConfig = TimeMaskConfig()
    gain: GainConfig = GainConfig()


class ViewsConfig(Config):
    """The lengths of segments, in seconds, and the recipes that segments name.

    ``disjoint``: the distorted segments of an utterance do not overlap if it is long enough. Then the method cannot
    recognise an utterance by words that both segments contain. In the published methods segments may overlap.
    ``night``: the recipes ``weak`` and ``strong`` of a corpus of nights, whose views are sequences of pictures.
    """

    segment_s: float = Field(default=2.0, gt=0.0)
    reference_s: float = Field(default=4.0, gt=0.0)
    disjoint: bool = False
    distort: DistortConfig = DistortConfig()
    weak: AugmentConfig = AugmentConfig()
    strong: AugmentConfig = AugmentConfig()
    night: NightViewsConfig = NightViewsConfig()

    def located(self) -> ViewsConfig:
        """A copy with absolute paths of the corpora of noises and rooms."""
        noise, reverb = (
            stage.model_copy(update={"corpus": stage.corpus and storage.absolute(stage.corpus)})
            for stage in (self.distort.noise, self.distort.reverb)
        )
        distort = self.distort.model_copy(update={"noise": noise, "reverb": reverb})
        return self.model_copy(update={"distort": distort, "night": self.night.located()})


@dataclass(frozen=True)
class SegmentPlan:
    """The segments of each epoch e.

    ``own[e]``: those of the method's own stream. ``fill[e]``: those of the pass that fills the memory before the epoch;
    empty if there is no such pass. ``labelled``: those of the labelled stream, the same in every epoch.
    """

    own: tuple[tuple[Segment, ...], ...]
    fill: tuple[tuple[Segment, ...], ...]
    labelled: tuple[Segment, ...] = ()

    def of_unit(self, stream: str, epoch: int, *, fill: bool = False, cycles: bool = False) -> tuple[Segment, ...]:
        """The segments that are cut from the utterances of a unit of ``epoch`` of the stream ``stream``.

        If the stream ``cycles``, ``epoch`` counts its own passes. ``fill``: those of the pass that fills the memory
        before the epoch.
        """
        if stream == "labelled":
            return self.labelled
        return self.fill[epoch] if fill else self.own[0 if cycles else epoch]

    @property
    def fills(self) -> frozenset[int]:
        """The epochs before which a pass fills the memory."""
        return frozenset(epoch for epoch, segments in enumerate(self.fill) if segments)
