"""What a manifest says of segments."""

from __future__ import annotations

from pydantic import Field

from rayssl.schema import Config

PATH = "segments.parquet"


class LeftOut(Config):
    """What was left out for one reason: ``segments`` of it, 0 if what is left out is no segment, and seconds."""

    segments: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)


class SegmentsEntry(Config):
    """The entry of a corpus that was divided into segments in its manifest.

    ``path`` and ``sha256``: the table of segments, see `rayssl.data.segments.selection`. ``recordings``: that could be
    read, and their ``seconds``. ``kept``: segments, and their ``kept_seconds``. ``dropped``: the rest by reason.
    """

    path: str
    sha256: str
    recordings: int
    seconds: float
    kept: int
    kept_seconds: float
    dropped: dict[str, LeftOut]
