"""Utterances of prepared corpora for judging a model: their samples, and those whose labels may be used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rayssl import storage
from rayssl.batches.selection import selection
from rayssl.data import decode, row_groups, shards
from rayssl.data.shards import Manifest
from rayssl.errors import CorpusError
from rayssl.experiment.config import Experiment

Ints = NDArray[np.int64]


def waves(uri: str, manifest: Manifest, ids: Ints) -> list[NDArray[np.int16]]:
    """The samples of the utterances ``ids`` of the corpus at ``uri``, in their order; each once.

    Only the row groups with these utterances are read. Raises `CorpusError` naming the shard that is damaged.
    """
    found: dict[int, NDArray[np.int16]] = {}
    for shard in manifest.shards:
        rows = np.unique(ids[(ids >= shard.first_id) & (ids < shard.first_id + shard.rows)]) - shard.first_id
        if not len(rows):
            continue
        read = row_groups.read_rows(uri, shard, rows, manifest.group_rows)
        for row, audio in zip(rows.tolist(), read.audio, strict=True):
            try:
                found[shard.first_id + row] = np.array(decode.pcm(audio, manifest.format))  # no view: the rest may go
            except CorpusError as error:
                raise CorpusError(f"{storage.join(uri, shard.path)}: utterance {row}: {error}") from None
    return [found[int(k)] for k in ids]


def column(uri: str, manifest: Manifest, name: str) -> list[object]:
    """One column of all utterances of a corpus, ``name``, ``speaker``, ``label`` or another one, in order of ids."""
    tables = [shards.read_shard(uri, shard, [name]) for shard in manifest.shards]
    return [value for table in tables for value in table[name].to_pylist()]


def labelled_clips(experiment: Experiment, manifest: Manifest) -> tuple[list[str], Ints, Ints]:
    """The names of the classes, and the ids ``[n]`` and classes ``[n]`` of training clips whose labels may be used."""
    uri = experiment.corpus.uri
    if experiment.labels is not None:
        chosen = selection(manifest, uri, experiment.labels.split, "labelled")
        ids, classes = chosen.ids_and_classes()
        return [each.name for each in manifest.splits[experiment.labels.split].classes], ids, classes
    names = shards.read_labels(uri)["label"]
    labels = np.asarray(column(uri, manifest, "label"), np.int64)
    ids = np.flatnonzero(labels >= 0)
    if not len(ids):
        raise CorpusError(f"{uri}: no clip has a label; prepare it with labels, or evaluate on trials")
    return names, ids, labels[ids]


def class_of(names: list[str], uri: str, manifest: Manifest) -> Ints:
    """For each utterance of the corpus at ``uri``, which of the classes ``names`` it has, or -1; int64 ``[N]``."""
    known = {name: k for k, name in enumerate(names)}
    mapped = np.array([*(known.get(name, -1) for name in shards.read_labels(uri)["label"]), -1])  # the last is for -1
    return np.asarray(mapped[np.asarray(column(uri, manifest, "label"), np.int64)], np.int64)
