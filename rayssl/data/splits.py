"""A split on storage: a small file that says what each utterance of a corpus is used for. The shards do not change.

    <uri>/splits/<name>.parquet    role int8, class int16; row i belongs to the utterance with id i

The role is a set of bits: 0 unused, 1 labelled, 2 unlabelled, 3 both. The class is the index of the utterance's class
among those that the classifier knows, even if the label must not be used; it is -1 if the class is unknown or not among
them. The manifest holds a `Split` with counts and a hash. `rayssl.data.labels` chooses the rows.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayssl import storage
from rayssl.data import listed
from rayssl.errors import CorpusError, StorageError
from rayssl.schema import Config

FOLDER = "splits"
LABELLED, UNLABELLED = 1, 2
MOST_CLASSES = 1 << 15  # the limit of an int16
_SCHEMA = pa.schema([pa.field("role", pa.int8(), nullable=False), pa.field("class", pa.int16(), nullable=False)])


class SplitClass(Config):
    """A class: its ``name``, its ``label`` (the index in the corpus), and the numbers of utterances in each role."""

    name: str
    label: int
    labelled: int
    unlabelled: int


class Split(Config):
    """The entry of a split in the manifest. An utterance that is labelled *and* unlabelled counts in both numbers.

    ``classes``: the classes that the classifier knows, in the order of its indices. ``open_set``: classes that occur
    only among the unlabelled utterances. ``unknown``: the number of unlabelled utterances that have no label in the
    corpus. ``notes``: one line for each case in which the corpus had fewer utterances than the settings ask for.
    """

    path: str
    settings: dict[str, Any]
    sha256: str
    labelled: int
    unlabelled: int
    classes: list[SplitClass]
    open_set: list[SplitClass]
    unknown: int
    notes: list[str]


def write(uri: str, name: str, roles: np.ndarray, classes: np.ndarray) -> tuple[str, str]:
    """Writes ``roles [N]`` and ``classes [N]`` atomically. Returns the path, relative to ``uri``, and the SHA-256."""
    table = pa.table({"role": pa.array(roles, pa.int8()), "class": pa.array(classes, pa.int16())}, schema=_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, len(roles)))
    path, data = f"{FOLDER}/{name}.parquet", buffer.getvalue()
    storage.write_bytes(storage.join(uri, path), data)
    return path, hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=4)
def columns(place: str, sha256: str) -> tuple[np.ndarray, np.ndarray]:
    """Roles int8 ``[N]`` and classes int16 ``[N]`` of the file at ``place``, read-only.

    The last four results stay in memory, with 3 bytes per utterance. Raises `CorpusError` if the file does not have the
    hash ``sha256``, which the manifest lists.
    """
    return _parse(listed.read(place, sha256))


def unchanged(uri: str, split: Split) -> bool:
    """Whether the file of ``split`` exists and has the hash that the manifest lists."""
    try:
        data = storage.read_bytes(storage.join(uri, split.path))
    except StorageError as error:
        if error.errno in storage.ABSENT:
            return False
        raise
    return hashlib.sha256(data).hexdigest() == split.sha256


def counted(
    roles: np.ndarray, labels: np.ndarray, names: Sequence[str], chosen: Sequence[int]
) -> tuple[list[SplitClass], int]:
    """The classes with the labels ``chosen`` and their counts, and the number of unlabelled rows without a label.

    ``roles [N]`` and ``labels [N]`` cover all utterances; ``names`` are the names of all labels.
    """
    per_role = [
        np.bincount(labels[(roles & role > 0) & (labels >= 0)], minlength=len(names)) for role in (LABELLED, UNLABELLED)
    ]
    classes = [
        SplitClass(name=names[k], label=k, labelled=int(per_role[0][k]), unlabelled=int(per_role[1][k])) for k in chosen
    ]
    return classes, int(np.count_nonzero((roles & UNLABELLED > 0) & (labels < 0)))


def problems(uri: str, splits: Mapping[str, Split], labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """Checks the files of ``splits`` of the corpus at ``uri``. One line for each problem; empty if there is none.

    ``labels [N]`` are the label indices of the corpus in the order of ids, ``names`` the names of the labels.
    """
    found = []
    for split in splits.values():
        place = storage.join(uri, split.path)
        columns, wrong = listed.examine(place, split.sha256, _parse, "roles and classes")
        found += wrong
        if columns is None:
            continue
        roles, classes = columns
        if len(roles) != len(labels):
            found.append(f"{place}: {len(roles)} rows, the corpus has {len(labels)}")
            continue
        found += [f"{place}: {problem}" for problem in _disagreements(split, roles, classes, labels, names)]
    return found


def _disagreements(
    split: Split, roles: np.ndarray, classes: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[str]:
    listed = [known.label for known in (*split.classes, *split.open_set)]
    if len(roles) and (roles.min() < 0 or roles.max() > LABELLED | UNLABELLED):
        return ["a role is out of range 0..3"]
    if any(label >= len(names) for label in listed):
        return ["the manifest's classes are not labels of the corpus"]
    class_of = np.full(len(names) + 1, -1, np.int16)  # the last entry is for label -1
    class_of[[known.label for known in split.classes]] = np.arange(len(split.classes))
    found = []
    if (classes != class_of[labels]).any():
        found.append("its classes do not fit the labels of the corpus")
    again, unknown = counted(roles, labels, names, listed)
    if again != [*split.classes, *split.open_set] or unknown != split.unknown:
        found.append("the number of utterances of a class differs from the manifest")
    totals = [int(np.count_nonzero(roles & role)) for role in (LABELLED, UNLABELLED)]
    if totals != [split.labelled, split.unlabelled]:
        found.append(
            f"{totals[0]} labelled and {totals[1]} unlabelled utterances, the manifest says {split.labelled} and "
            f"{split.unlabelled}"
        )
    return found


def _parse(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    table = listed.parquet(data)
    if not table.schema.equals(_SCHEMA):
        raise CorpusError("its columns are not those of a split")
    roles, classes = (table[name].to_numpy() for name in ("role", "class"))
    for column in (roles, classes):
        column.setflags(write=False)
    return roles, classes
