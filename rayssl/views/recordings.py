"""Recorded noises and room responses, read from a rayssl corpus."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rayssl.data import decode, row_groups, shards
from rayssl.errors import ConfigError
from rayssl.random.draws import fold, keys_np, uniform_np
from rayssl.views.crops import cut

# A bank is kept on the training device: 512 clips of 6 s are 200 MB
MOST = 512


def read_recordings(uri: str, key: str, rate: int, samples: int | None, seed: int) -> list[NDArray[np.int16]]:
    """All that `each_recording` yields for the same arguments. Raises what it raises."""
    return list(each_recording(uri, key, rate, samples, seed))


def each_recording(uri: str, key: str, rate: int, samples: int | None, seed: int) -> Iterator[NDArray[np.int16]]:
    """At most `MOST` recordings, evenly spaced over the corpus at ``uri``. Silent ones are left out.

    With ``samples``, each is cut to that length at a position drawn from ``seed``; without, it is whole. Only the row
    groups of these recordings are read, and of a long recording only the cut is decoded. Raises
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
    found = False
    for shard in manifest.shards:
        inside = (ids >= shard.first_id) & (ids < shard.first_id + shard.rows)
        if not inside.any():
            continue
        read = row_groups.read_rows(uri, shard, ids[inside] - shard.first_id, manifest.group_rows)
        for audio, length, position in zip(read.audio, read.samples, positions[inside], strict=True):
            pcm = _decoded(audio, manifest.format, int(length), samples, float(position))
            if np.any(pcm):
                found = True
                yield pcm
    if not found:
        raise ConfigError(f"'{key}': the corpus {uri} holds no sound; name another one")


def _decoded(
    audio: memoryview, format: decode.Format, length: int, samples: int | None, position: float
) -> NDArray[np.int16]:
    """A recording of ``length`` samples: whole, or with ``samples`` what `cut` gives of the whole."""
    if samples is None or length <= samples:
        pcm = decode.pcm(audio, format)
        return pcm if samples is None or not len(pcm) else cut(pcm, samples, position)
    start = int(position * (length - samples + 1))
    part = np.empty(samples, dtype=np.int16)
    decode.pcm_parts(audio, format, length, [(start, start + samples)], part)
    return part
