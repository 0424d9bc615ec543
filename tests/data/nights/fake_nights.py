"""A source of nights that are written as text, one character an epoch, and corpora that are prepared from it.

``W``, ``L``, ``D`` and ``R`` are stages, ``?`` is an epoch without one. ``n`` has a NaN, ``z`` (Light) is all zeros,
and ``h`` (Light) is half zeros. ``_`` is an epoch without audio, and neighbours are one hole. ``*`` is a remark, ``!``
a fault that ends the night, and ``^`` an error of the storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from rayssl.data import decode, mel, shards
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.mel import MelConfig
from rayssl.data.shards import Manifest
from rayssl.data.sources.base import Reference
from rayssl.data.sources.nights import EPOCH_SAMPLES, Dropped, Epoch, EpochOrDropped, NightSource, NightSourceConfig
from rayssl.errors import StorageError
from tests.data.corpora import prepare

SMALL = MelConfig(n_mels=4, hop_ms=1000, f_max=4000)  # pictures of 4 x 31 values
STAGE_OF = {"W": 0, "L": 1, "D": 2, "R": 3, "?": -1, "n": 0, "z": 1, "h": 1}


@lru_cache(maxsize=16)
def sound(night: str, index: int, kind: str = "L") -> np.ndarray:
    """The samples of an epoch: float32 ``[480000]``, other ones for every (night, index)."""
    if kind == "z":
        return np.zeros(EPOCH_SAMPLES, np.float32)
    draw = np.random.default_rng([index, *night.encode()])
    samples = np.tile(draw.uniform(-0.5, 0.5, 1200).astype(np.float32), EPOCH_SAMPLES // 1200)
    samples += np.float32(0.01) * np.sin(np.arange(EPOCH_SAMPLES, dtype=np.float32) * np.float32(0.002 + 1e-5 * index))
    if kind == "h":
        samples[: EPOCH_SAMPLES // 2] = 0
    if kind == "n":
        samples[1234] = np.nan
    return samples


class FakeNights(NightSource):
    """The nights of ``nights``: the text of each by its name ``subject/night``."""

    class Config(NightSourceConfig):
        nights: dict[str, str]

    config: Config

    def list(self) -> Iterator[Reference]:
        for name in self.config.nights:
            yield Reference(name, name.partition("/")[0], name)

    def place(self, reference: Reference) -> str:
        return f"fake:{reference.name}"

    def epochs(self, reference: Reference) -> Iterator[EpochOrDropped]:
        index = 0
        for kind, same in groupby(self.config.nights[reference.name]):
            count = len([*same])
            if kind == "*":
                yield Dropped("unscored: the labels end early", 0)
            elif kind == "!":
                raise decode.DecodeError(f"truncated: file {reference.name} ends at epoch {index}")
            elif kind == "^":
                raise StorageError(f"fake:{reference.name}: the network is down")
            elif kind == "_":
                yield Dropped(f"gap: nothing from epoch {index} on", count)
                index += count
            else:
                for at in range(index, index + count):
                    yield Epoch(at, STAGE_OF[kind], sound(reference.name, at, kind))
                index += count


def settings(nights: Mapping[str, str], out: Path | str, **changes: Any) -> PreparedCorpusConfig:
    """A corpus of ``nights`` with small pictures, in shards of at most 12 epochs; ``limits``: other keys of it."""
    source = {"name": f"{__name__}:FakeNights", "nights": dict(nights)}
    config = {"mel": SMALL, "shard_epochs": 12, **changes.pop("limits", {})}
    tree = {"source": source, "out": str(out), "format": "mel", "nights": config, **changes}
    return PreparedCorpusConfig.model_validate(tree)


def make(nights: Mapping[str, str], out: Path | str, **changes: Any) -> Manifest:
    """Prepares it, unit after unit."""
    return prepare(settings(nights, out, **changes))


def stored(name: str, kind: str, manifest: Manifest) -> np.ndarray:
    """What a shard has of the epoch ``name`` (``night/index``), int16: the bits of its picture, or its samples."""
    night, _, index = name.rpartition("/")
    samples = sound(night, int(index), kind)
    if manifest.mel is not None:
        return mel.picture(samples, manifest.mel, decode.RATE).reshape(-1).view(np.int16)
    return np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)


def rows(uri: Path | str) -> list[dict[str, Any]]:
    """All rows of the corpus in the order of ids, with their shard."""
    manifest = shards.read_manifest(str(uri))
    found = []
    for number, shard in enumerate(manifest.shards):
        found += [row | {"shard": number} for row in shards.read_shard(str(uri), shard).to_pylist()]
    return found
