"""Which views a method sees, and what is done to them: configuration only, no torch (data tasks read it too)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rayssl import storage
from rayssl.schema import Config

NoiseKind = Literal["white", "pink", "brown", "babble", "corpus"]
Recipe = Literal["none", "distort", "weak", "strong"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the first bound must not exceed the second, got {list(bounds)}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


class Segment(Config):
    """One stretch of an utterance that goes through the encoder; its ``name`` is its key in the batch.

    ``recipe`` names the part of `ViewsConfig` that it goes through first. Segments marked ``disjoint`` share no sample
    with each other where the utterance is long enough for all of them.
    """

    name: str = Field(min_length=1)
    seconds: float = Field(gt=0.0)
    recipe: Recipe = "none"
    disjoint: bool = False

    def samples(self, rate: int) -> int:
        """Length in samples at ``rate`` Hz, at least 1."""
        return max(1, round(self.seconds * rate))


class NoiseConfig(Config):
    """Additive noise, mixed in at a signal-to-noise ratio drawn uniformly from ``snr_db``.

    A kind is drawn first (each equally likely), then one of its clips, then a position. Kind ``corpus`` takes clips
    from the rayssl corpus at ``corpus``; the others are generated from the seed, ``clips`` of ``clip_s`` seconds each.
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
            raise ValueError("each of 'kinds' may be named once")
        if ("corpus" in self.kinds) != (self.corpus is not None):
            raise ValueError("give 'corpus' (a URI) together with the kind 'corpus', or neither")
        return self


class ReverbConfig(Config):
    """Reverberation with one of ``rooms`` responses, generated from the seed or read from the rayssl corpus ``corpus``.

    ``rt60_s`` is the range of times in which a generated room's sound falls by 60 dB; responses end at ``length_s``.
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
    """A change of level, drawn uniformly from ``db``; a row whose peak would exceed 1 is scaled back to peak 1."""

    p: Probability = 0.0
    db: Range = (-10.0, 6.0)


class DistortConfig(Config):
    """Reverberation, then noise, then gain, each with its own probability for each row."""

    noise: NoiseConfig = NoiseConfig()
    reverb: ReverbConfig = ReverbConfig()
    gain: GainConfig = GainConfig()


class PitchShiftConfig(Config):
    """Another pitch at the same tempo, by a number of semitones drawn uniformly from ``semitones``."""

    p: Probability = 0.0
    semitones: Range = (-15.0, 15.0)

    @model_validator(mode="after")
    def _within_two_octaves(self) -> PitchShiftConfig:
        if not -24.0 <= self.semitones[0] <= self.semitones[1] <= 24.0:
            raise ValueError("'semitones' must be within -24 and 24")
        return self


class TimeStretchConfig(Config):
    """Another tempo at the same pitch, ``rate`` times as fast (drawn uniformly); cut or zero-padded at the end."""

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
    """A roll, forward or back, by at most the share ``most`` of the length: what leaves at one end enters at the other.

    The share is drawn uniformly.
    """

    p: Probability = 0.0
    most: float = Field(default=0.5, ge=0.0, le=1.0)


class FadeConfig(Config):
    """A fade in and a fade out, each over at most the share ``most`` of the length and with a shape of its own.

    Shares are drawn uniformly, shapes from linear, logarithmic and exponential.
    """

    p: Probability = 0.0
    most: float = Field(default=0.5, ge=0.0, le=1.0)


class TimeMaskConfig(Config):
    """Zeros in one stretch of at most the share ``most`` of the length; share and position are drawn uniformly."""

    p: Probability = 0.0
    most: float = Field(default=0.125, ge=0.0, lt=1.0)


class AugmentConfig(Config):
    """The augmentations of CLAR (Al-Tahan and Mohsenzadeh, 2021), each with its own probability for each row.

    They are applied in the order of these fields, whatever their order in the YAML (`rayssl.views.augment` says why);
    all are off until they are given a ``p``.
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
    """Lengths of the segments that methods ask for, in seconds, and the recipes that their segments name.

    ``disjoint``: the distorted segments of an utterance do not overlap (where it is long enough), so that what was said
    in both cannot tell utterances apart; the published methods let them overlap.
    """

    segment_s: float = Field(default=2.0, gt=0.0)
    reference_s: float = Field(default=4.0, gt=0.0)
    disjoint: bool = False
    distort: DistortConfig = DistortConfig()
    weak: AugmentConfig = AugmentConfig()
    strong: AugmentConfig = AugmentConfig()

    def located(self) -> ViewsConfig:
        """The same with absolute paths of the corpora of noises and rooms."""
        noise, reverb = (
            stage.model_copy(update={"corpus": stage.corpus and storage.absolute(stage.corpus)})
            for stage in (self.distort.noise, self.distort.reverb)
        )
        distort = self.distort.model_copy(update={"noise": noise, "reverb": reverb})
        return self.model_copy(update={"distort": distort})


@dataclass(frozen=True)
class SegmentPlan:
    """The segments of each epoch: ``own[e]`` of the method's stream, ``fill[e]`` of the pass before the epoch (none: no
    pass), and ``labelled`` of the labelled stream, in every epoch.
    """

    own: tuple[tuple[Segment, ...], ...]
    fill: tuple[tuple[Segment, ...], ...]
    labelled: tuple[Segment, ...] = ()

    @property
    def fills(self) -> frozenset[int]:
        """The epochs that a pass comes before."""
        return frozenset(epoch for epoch, wanted in enumerate(self.fill) if wanted)
