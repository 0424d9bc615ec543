"""Recorded noises and room responses, read from a rayssl corpus."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rayssl.data import decode, shards
from rayssl.data.shards import Shard
from rayssl.errors import ConfigError
from rayssl.random.draws import fold, keys_np, uniform_np
from rayssl.views.crops import cut

# A bank is kept on the training device: 512 clips of 6 s are 200 MB
MOST = 512


def read_recordings(uri: str, key: str, rate: int, samples: int | None, seed: int) -> list[NDArray[np.int16]]:
    """At most `MOST` recordings, evenly spaced over the corpus at ``uri``. Silent ones are left out.

    With ``samples``, each is cut to that length at a position drawn from ``seed``; without, it is whole. Raises
    `ConfigError`, which names the configuration's ``key``, if the corpus has another rate than ``rate`` Hz or contains
    no sound.
    """
    manifest = shards.read_manifest(uri)
    if manifest.rate != rate:
        raise ConfigError(
            f"'{key}': the corpus {uri} is at {manifest.rate} Hz, the run's at {rate} Hz; prepare it again"
        )
    ids = np.unique(np.linspace(0, manifest.rows - 1, min(MOST, manifest.rows)).astype(np.int64))
    positions = uniform_np(keys_np(fold(seed), ids), 0)
    recordings = []
    for shard in manifest.shards:
        inside = (ids >= shard.first_id) & (ids < shard.first_id + shard.rows)
        if not inside.any():
            continue
        encoded = _audio(uri, shard, ids[inside] - shard.first_id)
        for audio, position in zip(encoded, positions[inside], strict=True):
            pcm = decode.pcm(audio, manifest.format)
            if samples is not None and len(pcm):
                pcm = cut(pcm, samples, float(position))
            if np.any(pcm):
                recordings.append(pcm)
    if not recordings:
        raise ConfigError(f"'{key}': the corpus {uri} holds no sound; name another one")
    return recordings


def _audio(uri: str, shard: Shard, rows: NDArray[np.int64]) -> Iterator[bytes]:
    """The encoded audio of ``rows`` of one shard, in their order."""
    audio = shards.read_shard(uri, shard, ["audio"]).column("audio")
    for row in rows:
        yield audio[int(row)].as_py()
