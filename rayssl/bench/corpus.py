"""A corpus to measure with: a few utterances of generated speech, repeated. It exists while it is measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rayssl import storage
from rayssl.data import decode, shards, speech
from rayssl.data.shards import KINDS, Manifest

_DISTINCT = 32
_SHARD_ROWS = 256


@contextmanager
def synthetic(
    into: str, *, utterances: int, seconds: float, format: decode.Format, seed: int
) -> Iterator[tuple[str, Manifest]]:
    """A corpus of ``utterances`` of ``seconds`` each: its URI and its manifest. It is removed at the end.

    ``into``: the folder or URI below which it lies; empty for a temporary folder.
    """
    uri = storage.join(storage.absolute(into or tempfile.gettempdir()), f"rayssl-bench-{os.urandom(4).hex()}")
    try:
        yield uri, write(uri, utterances, seconds, format, seed)
    finally:
        storage.remove(uri, recursive=True)


def write(uri: str, utterances: int, seconds: float, format: decode.Format, seed: int) -> Manifest:
    """Writes the corpus to ``uri``."""
    kinds = min(utterances, _DISTINCT)
    pcm = [decode.quantise(speech.speak(seed, k, 0, 0, seconds=seconds, channel=1.0)) for k in range(kinds)]
    audio = [decode.encode(samples, format) for samples in pcm]
    parts = []
    for index, first in enumerate(range(0, utterances, _SHARD_ROWS)):
        numbers = np.arange(first, min(utterances, first + _SHARD_ROWS))
        columns: dict[str, Any] = {
            "name": [f"{k:08d}" for k in numbers],
            "audio": [audio[k % kinds] for k in numbers],
            "samples": [len(pcm[k % kinds]) for k in numbers],
            **{kind: [-1] * len(numbers) for kind in KINDS},
        }
        parts.append(shards.write_shard(uri, (index,), columns))
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    shards.write_labels(uri, names)
    return shards.write_manifest(uri, parts, format=format, names=names, rejected=0, settings={})
