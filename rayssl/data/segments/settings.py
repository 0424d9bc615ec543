"""How recordings become segments."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayssl.schema import Config


class SegmentsConfig(Config):
    """How ``prepare`` divides recordings of any length into segments, which are the utterances of the corpus.

    ``detector`` finds speech: ``silero`` (a network; the package silero-vad carries it) or ``webrtc`` (light, less
    exact); the extra ``vad`` installs both. With ``none`` all audio counts, for sounds that are not speech.
    ``threshold``: silero's probability above which a window of 32 ms is speech. ``mode``: of webrtc, 0 to 3; 3 lets
    the least through.

    A segment has ``min_s`` to ``max_s`` seconds. Stretches of speech that are at most ``pause_s`` apart make one
    segment. Longer ones are divided, where speech is least likely in their second half. ``pad_s`` of what is around
    speech stays, if it belongs to no other segment. Without ``max_s`` nothing is divided.

    ``duplicates``: ``exact`` leaves out recordings with the same samples as another one, ``near`` also segments that
    sound like another one: copies of another rate, codec or level. Of copies that differ in length the longest stays.
    """

    detector: Literal["silero", "webrtc", "none"] = "silero"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    mode: int = Field(default=2, ge=0, le=3)
    min_s: float = Field(default=2.0, gt=0)
    max_s: float | None = Field(default=20.0, gt=0)
    pause_s: float = Field(default=0.5, ge=0)
    pad_s: float = Field(default=0.1, ge=0)
    duplicates: Literal["keep", "exact", "near"] = "near"

    @model_validator(mode="after")
    def _lengths_fit(self) -> SegmentsConfig:
        if self.max_s is not None and self.max_s < 2 * self.min_s:
            raise ValueError(f"max_s is {self.max_s:g}, it must be at least twice min_s ({self.min_s:g})")
        return self
