"""How recordings become segments."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayssl.schema import Config


class SegmentsConfig(Config):
    """How ``prepare`` divides recordings of any length into segments, which are the utterances of the corpus."""

    detector: Literal["silero", "webrtc", "none"] = "silero"
    """What finds speech: ``silero`` (a network) or ``webrtc`` (lighter, less exact), both of the extra ``vad``. With
    ``none`` all audio counts, for sounds that are not speech.
    """
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """For ``silero``: the probability, between 0 and 1, above which a window of 32 ms is speech. Raise it if music or
    noise comes through.
    """
    mode: int = Field(default=2, ge=0, le=3)
    """For ``webrtc``: how strict it is, 0 to 3; 3 lets the least through."""
    min_s: float = Field(default=2.0, gt=0)
    """The shortest segment in seconds; shorter stretches of speech are left out."""
    max_s: float | None = Field(default=20.0, gt=0)
    """The longest segment in seconds, at least twice ``min_s``. Longer stretches are divided where speech is least
    likely in their second half. Null divides nothing.
    """
    pause_s: float = Field(default=0.5, ge=0)
    """Stretches of speech that are at most this many seconds apart make one segment."""
    pad_s: float = Field(default=0.1, ge=0)
    """How many seconds around speech stay in its segment, if they belong to no other segment."""
    duplicates: Literal["keep", "exact", "near"] = "near"
    """``exact`` leaves out recordings with the same samples as another one; ``near`` also segments that sound like
    another one, copies of another rate, codec or level; ``keep`` keeps all. Of copies that differ in length the longest
    stays.
    """

    @model_validator(mode="after")
    def _lengths_fit(self) -> SegmentsConfig:
        if self.max_s is not None and self.max_s < 2 * self.min_s:
            raise ValueError(f"max_s is {self.max_s:g}, it must be at least twice min_s ({self.min_s:g})")
        return self
