"""A source in a user's file, and ones that break the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.sources.base import SourceConfig
from rayssl.data.sources.registry import SOURCES

TONES = """
from collections.abc import Iterator

import numpy as np
from pydantic import Field

from rayssl.data.decode import DecodeError
from rayssl.data.sources.base import Reference, Source, SourceConfig
from rayssl.schema import Config


class Pitch(Config):
    lowest: float = 200.0


class Tones(Source):
    class Config(SourceConfig):
        speakers: int = Field(default=3, ge=1)
        tones: int = 4
        pitch: Pitch = Pitch()

    config: Config

    def list(self) -> Iterator[Reference]:
        for speaker in range(self.config.speakers):
            for tone in range(self.config.tones):
                yield Reference(f"p{speaker}/{tone}", f"p{speaker}", "room", None, (speaker, tone))

    def read(self, reference: Reference) -> np.ndarray:
        speaker, tone = map(int, reference.locator)
        if tone == 9:
            raise DecodeError("too high: nobody hears it")
        hertz = self.config.pitch.lowest * (1 + speaker) + 10 * tone
        return np.float32(0.2) * np.sin(2 * np.pi * hertz * np.arange(4000, dtype=np.float32) / 16000)
"""


def tones_file(folder: Path, old: str = "", new: str = "", base: str = TONES) -> str:
    """``folder``/tones.py with a change, as ``name`` in a YAML."""
    assert old in base
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tones.py").write_text(base.replace(old, new, 1) if old else base)
    return f"{folder}/tones.py:Tones"


def tones_config(folder: Path, old: str = "", new: str = "", **keys: object) -> SourceConfig:
    """The settings of the source in `tones_file`."""
    return SOURCES.read({"name": tones_file(folder, old, new), **keys})


def corpus_of(source: dict[str, Any] | SourceConfig, out: Path | str, **changes: object) -> PreparedCorpusConfig:
    """A corpus of it, in shards of five utterances."""
    return PreparedCorpusConfig.model_validate({"source": source, "out": str(out), "shard_utterances": 5, **changes})
