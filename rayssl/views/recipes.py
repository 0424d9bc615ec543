"""The views of a method and how they are distorted. Configuration only, without torch: data tasks import this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field, model_validator

from rayssl import storage
from rayssl.schema import Config
from rayssl.views.bounds import Probability, Range
from rayssl.views.night_recipes import NightViewsConfig

RecordedKind = Literal["noise", "speech", "music"]
NoiseKind = Literal["white", "pink", "brown", "babble", "corpus", "noise", "speech", "music"]
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
    """Additive noise.

    First a kind is drawn (each is equally likely), then one of its clips, then a position in the clip.
    """

    p: Probability = 0.6
    """Probability, from 0 to 1, that a segment gets noise; 0 turns noise off."""
    snr_db: Range = (0.0, 15.0)
    """Range of the signal-to-noise ratio in dB, ``[low, high]``; it is drawn uniformly. Lower values are harder."""
    snr_db_of: dict[NoiseKind, Range] = {}
    """Ranges in dB for single kinds, by the name of the kind, in place of ``snr_db``. Published for speakers:
    ``{noise: [0, 15], speech: [13, 20], music: [5, 15]}``.
    """
    kinds: tuple[NoiseKind, ...] = Field(default=("white", "pink", "brown", "babble"), min_length=1)
    """The kinds of noise to draw from, each once. ``corpus`` takes recorded clips from ``corpus``; ``noise``,
    ``speech`` and ``music``, the parts of MUSAN, take theirs from ``corpora``. The others are generated from the seed.
    """
    corpus: str | None = None
    """Folder or URI of a prepared corpus of noises, for the kind ``corpus`` only. It must have the rate of the training
    corpus.
    """
    corpora: dict[RecordedKind, str] = {}
    """Folders or URIs of prepared corpora for the kinds ``noise``, ``speech`` and ``music``, by the name of the kind.
    They must have the rate of the training corpus.
    """
    clips: int = Field(default=16, ge=1)
    """The number of clips that are generated for each kind that is not recorded. More clips vary more and need more
    memory.
    """
    clip_s: float = Field(default=6.0, gt=0.0, le=60.0)
    """The length in seconds of each generated clip, up to 60."""

    @model_validator(mode="after")
    def _corpus_is_given(self) -> NoiseConfig:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("'kinds' names a kind twice; name each once")
        if ("corpus" in self.kinds) != (self.corpus is not None):
            raise ValueError("give 'corpus' (a URI) together with the kind 'corpus', or neither")
        recorded = {kind for kind in self.kinds if kind in get_args(RecordedKind)}
        if recorded ^ self.corpora.keys():
            one = min(recorded ^ self.corpora.keys())
            raise ValueError(f"give 'corpora.{one}' (a URI) together with the kind '{one}', or neither")
        if unused := sorted(self.snr_db_of.keys() - {*self.kinds}):
            raise ValueError(f"'snr_db_of.{unused[0]}' is of a kind that 'kinds' does not name; leave it out")
        return self

    def snr_db_by_kind(self) -> list[tuple[float, float]]:
        """The range of each of ``kinds``, in dB."""
        return [self.snr_db_of.get(kind, self.snr_db) for kind in self.kinds]

    def corpus_of(self, kind: NoiseKind) -> str | None:
        """The corpus that a kind is recorded in; None if it is generated."""
        recorded = {str(known): uri for known, uri in self.corpora.items()}
        return self.corpus if kind == "corpus" else recorded.get(kind)

    def located(self) -> NoiseConfig:
        """A copy with absolute paths."""
        corpora = {kind: storage.absolute(uri) for kind, uri in self.corpora.items()}
        return self.model_copy(update={"corpus": self.corpus and storage.absolute(self.corpus), "corpora": corpora})


class ReverbConfig(Config):
    """Reverberation with one of several room responses."""

    p: Probability = 0.4
    """Probability, from 0 to 1, that a segment is heard in a room; 0 turns reverberation off."""
    rooms: int = Field(default=64, ge=1)
    """The number of room responses that are generated from the seed. More rooms vary more."""
    rt60_s: Range = (0.1, 0.5)
    """Range of reverberation times, ``[low, high]`` in seconds: how long the sound of a room takes to fall by 60 dB.
    For generated rooms only.
    """
    length_s: float = Field(default=0.3, gt=0.0, le=2.0)
    """The length in seconds, at most 2, at which responses are cut. Longer ones cost more time and memory."""
    corpus: str | None = None
    """Folder or URI of a prepared corpus of room impulse responses, which replace the generated ones; null generates
    them.
    """

    @model_validator(mode="after")
    def _decays(self) -> ReverbConfig:
        if self.rt60_s[0] <= 0.0:
            raise ValueError("'rt60_s' must be above 0")
        return self


class GainConfig(Config):
    """A change of level, drawn uniformly from ``db`` in dB. If the peak would exceed 1, the row is scaled to peak 1."""

    p: Probability = 0.0
    """Probability, from 0 to 1, that the level of a segment changes; 0 turns it off."""
    db: Range = (-10.0, 6.0)
    """Range of the change of level in dB, ``[low, high]``; it is drawn uniformly."""


class DistortConfig(Config):
    """Reverberation, then noise, then gain, each with its own probability for each row."""

    noise: NoiseConfig = NoiseConfig()
    """Noise that is added after reverberation, generated or from a corpus."""
    reverb: ReverbConfig = ReverbConfig()
    """Reverberation, which comes first, with generated or recorded room responses."""
    gain: GainConfig = GainConfig()
    """A change of level, which comes last. It is off unless its ``p`` is set."""


class PitchShiftConfig(Config):
    """Changes the pitch but not the tempo."""

    p: Probability = 0.0
    """Probability, from 0 to 1, that the pitch of a segment is shifted; 0 turns it off."""
    semitones: Range = (-15.0, 15.0)
    """Range of the shift in semitones, ``[low, high]`` within -24 and 24; it is drawn uniformly."""

    @model_validator(mode="after")
    def _within_two_octaves(self) -> PitchShiftConfig:
        if not -24.0 <= self.semitones[0] <= self.semitones[1] <= 24.0:
            raise ValueError("'semitones' must be within -24 and 24")
        return self


class TimeStretchConfig(Config):
    """Changes the tempo but not the pitch. The end is cut or zero-padded."""

    p: Probability = 0.0
    """Probability, from 0 to 1, that the tempo of a segment changes; 0 turns it off."""
    rate: Range = (0.5, 1.5)
    """Range of the tempo, ``[low, high]`` within 0.25 and 4; it is drawn uniformly, and 2 is twice as fast."""

    @model_validator(mode="after")
    def _within_two_octaves(self) -> TimeStretchConfig:
        if not 0.25 <= self.rate[0] <= self.rate[1] <= 4.0:
            raise ValueError("'rate' must be within 0.25 and 4")
        return self


class WhiteNoiseConfig(Config):
    """White noise, added at a drawn level."""

    p: Probability = 0.0
    """Probability, from 0 to 1, that white noise is added to a segment; 0 turns it off."""
    snr_db: Range = (0.0, 20.0)
    """Range of the signal-to-noise ratio in dB, ``[low, high]``; it is drawn uniformly."""


class MixedNoiseConfig(Config):
    """White, brown or pink noise, each equally likely, added at a drawn level."""

    p: Probability = 0.0
    """Probability, from 0 to 1, that white, brown or pink noise is added to a segment; 0 turns it off."""
    snr_db: Range = (0.0, 20.0)
    """Range of the signal-to-noise ratio in dB, ``[low, high]``; it is drawn uniformly."""


class TimeShiftConfig(Config):
    """Rolls the row forward or back: samples that leave at one end enter at the other."""

    p: Probability = 0.0
    """Probability, from 0 to 1, that a segment is rolled in time; 0 turns it off."""
    most: float = Field(default=0.5, ge=0.0, le=1.0)
    """The longest shift, forward or back, as a share of the segment's length; the shift is drawn uniformly."""


class FadeConfig(Config):
    """A fade in and a fade out.

    For each of them the length is drawn uniformly, and the shape from linear, logarithmic and exponential.
    """

    p: Probability = 0.0
    """Probability, from 0 to 1, that a segment fades in and out; 0 turns it off."""
    most: float = Field(default=0.5, ge=0.0, le=1.0)
    """The longest fade at either end, as a share of the segment's length."""


class TimeMaskConfig(Config):
    """Zeros in one interval of the row; its length and position are drawn uniformly."""

    p: Probability = 0.0
    """Probability, from 0 to 1, that an interval of a segment is silenced; 0 turns it off."""
    most: float = Field(default=0.125, ge=0.0, lt=1.0)
    """The longest silenced interval, as a share of the segment's length, below 1."""


class AugmentConfig(Config):
    """The augmentations of CLAR (Al-Tahan and Mohsenzadeh, 2021), each with its own probability for each row.

    They are applied in the order of these fields, not in the order of the YAML; `rayssl.views.augment` says why. An
    augmentation is off unless its ``p`` is set.
    """

    pitch_shift: PitchShiftConfig = PitchShiftConfig()
    """A change of pitch at the same tempo."""
    time_stretch: TimeStretchConfig = TimeStretchConfig()
    """A change of tempo at the same pitch."""
    white_noise: WhiteNoiseConfig = WhiteNoiseConfig()
    """White noise at a drawn signal-to-noise ratio."""
    mixed_noise: MixedNoiseConfig = MixedNoiseConfig()
    """White, brown or pink noise at a drawn signal-to-noise ratio."""
    time_shift: TimeShiftConfig = TimeShiftConfig()
    """A roll in time, in which the end becomes the beginning."""
    fade: FadeConfig = FadeConfig()
    """A fade in and a fade out, each with a length and a shape of its own."""
    time_mask: TimeMaskConfig = TimeMaskConfig()
    """An interval of silence."""
    gain: GainConfig = GainConfig()
    """A change of level."""


class ViewsConfig(Config):
    """The lengths of segments, and the recipes that segments name."""

    segment_s: float = Field(default=2.0, gt=0.0)
    """The length in seconds of the segments that the loss compares. Shorter segments are harder and cheaper; 2 to 4 are
    usual for speakers. A shorter utterance is repeated to fill one.
    """
    reference_s: float = Field(default=4.0, gt=0.0)
    """The length in seconds of the undistorted segment of which SSPS makes an utterance's reference for clustering.
    Other methods do not use it.
    """
    disjoint: bool = False
    """Whether the distorted segments of an utterance do not overlap, if it is long enough. Then the method cannot
    recognise an utterance by words that both segments contain. In the published methods segments may overlap.
    """
    distort: DistortConfig = DistortConfig()
    """The recipe ``distort`` of the self-supervised methods: reverberation, noise and gain."""
    weak: AugmentConfig = AugmentConfig()
    """The recipe ``weak`` of the semi-supervised methods. All its parts are off by default: give each part that you
    want its ``p``.
    """
    strong: AugmentConfig = AugmentConfig()
    """The recipe ``strong`` of CLAR and of the semi-supervised methods. All its parts are off by default: give each
    part that you want its ``p``.
    """
    night: NightViewsConfig = NightViewsConfig()
    """The recipes ``weak`` and ``strong`` of a corpus of nights, whose views are sequences of pictures."""

    def located(self) -> ViewsConfig:
        """A copy with absolute paths of the corpora of noises and rooms."""
        corpus = self.distort.reverb.corpus
        reverb = self.distort.reverb.model_copy(update={"corpus": corpus and storage.absolute(corpus)})
        distort = self.distort.model_copy(update={"noise": self.distort.noise.located(), "reverb": reverb})
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
