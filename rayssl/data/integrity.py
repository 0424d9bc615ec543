"""Checks a whole corpus: every file against the manifest's counts and hashes, and all audio by decoding it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from rayssl import storage
from rayssl.data import decode, listed, shards
from rayssl.data import splits as split_files
from rayssl.data.nights import runs
from rayssl.data.shards import Manifest, Shard
from rayssl.data.sources.nights import UNSCORED_NAME
from rayssl.errors import CorpusError


def verify(uri: str) -> list[str]:
    """Checks the corpus at ``uri``. It reads every shard and decodes all audio.

    Returns:
        One line for each problem, with the file; an empty list if the corpus is undamaged.

    Raises:
        CorpusError: the manifest or the list of names is damaged or absent.
        StorageError: a file cannot be read.
    """
    manifest = shards.read_manifest(uri)
    named = shards.read_labels(uri)
    known = {kind: len(names) for kind, names in named.items()}
    counted = {"speaker": manifest.speakers, "recording": manifest.recordings, "label": manifest.labels}
    problems = [
        f"{storage.join(uri, shards.LABELS)}: {known[kind]} {kind} names, the manifest says {counted[kind]}"
        for kind in shards.KINDS
        if known[kind] != counted[kind]
    ]
    names = set[str]()
    for shard in manifest.shards:
        problems += _verify_shard(uri, shard, manifest, known, names)
    if manifest.nights is not None and not problems:
        keys = ["name", "speaker", "recording", "label"]
        parts = [shards.read_shard(uri, shard, keys) for shard in manifest.shards]
        problems += runs.problems(uri, manifest.nights, parts, [*named["label"], UNSCORED_NAME])
    if manifest.splits and not problems:  # the splits are compared with the labels in the shards, which must be right
        columns = [shards.read_shard(uri, shard, ["label"])["label"].to_numpy() for shard in manifest.shards]
        problems += split_files.problems(uri, manifest.splits, np.concatenate(columns), named["label"])
    return problems


def _verify_shard(uri: str, shard: Shard, manifest: Manifest, known: Mapping[str, int], names: set[str]) -> list[str]:
    place = storage.join(uri, shard.path)
    table, problems = listed.examine(place, shard.sha256, listed.parquet, "", shard.bytes)
    if table is None:
        return problems
    if not table.schema.equals(shards.SCHEMA):
        return [*problems, f"{place}: its columns are not those of a shard"]
    if table.num_rows != shard.rows:
        problems.append(f"{place}: {table.num_rows} rows, the manifest says {shard.rows}")
    for kind in shards.KINDS:
        indices = table[kind].to_numpy()
        if len(indices) and (indices.min() < -1 or indices.max() >= known[kind]):
            problems.append(f"{place}: {kind} index out of range -1..{known[kind] - 1}")
    epoch = None if manifest.nights is None else math.prod(manifest.epoch_shape)
    for name, audio, samples in zip(*(table[key].to_pylist() for key in ("name", "audio", "samples")), strict=True):
        problem = "the name is not unique" if name in names else _audio_problem(audio, samples, manifest.format)
        if not problem and epoch not in (None, samples):
            problem = f"{samples} values, an epoch of this corpus has {epoch}"
        names.add(name)
        if problem:
            problems.append(f"{place}: '{name}': {problem}")
    return problems


def _audio_problem(audio: bytes, samples: int, format: decode.Format) -> str:
    try:
        found = decode.pcm(audio, format)
    except CorpusError:
        return "the audio does not decode"
    if format == "mel" and not np.isfinite(found.view(np.float16)).all():
        return "its picture has values that are not finite"
    return "" if len(found) == samples else f"{len(found)} samples, the row says {samples}"
