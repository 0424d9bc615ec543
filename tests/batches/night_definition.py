"""The definition of a stream of sequences of epochs of sleep, in plain loops. It shares no code with `Sequences`.

The rows of the whole corpus are known here. The order of sequences is the one of `tests.batches.definition`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from rayssl.batches.selection import Role
from rayssl.batches.sequences import sequences
from rayssl.data import splits
from rayssl.data.shards import Manifest
from rayssl.random.draws import fold, keys_np, uniform_np
from rayssl.views.recipes import Segment
from tests.batches import definition
from tests.batches.definition import Entry, Knobs
from tests.data.nights import fake_nights

CUT = (Segment(name="weak", seconds=30, recipe="weak"), Segment(name="strong", seconds=30, recipe="strong"))
BITS = {"all": 3, "labelled": 1, "unlabelled": 2}
PURPOSES: dict[str, tuple[int, ...]] = {"all": (), "labelled": (1,), "unlabelled": (2,)}


@dataclass(frozen=True)
class NightCorpus:
    """A corpus of `fake_nights`: its rows by id, and what each epoch's values are."""

    uri: str
    manifest: Manifest
    rows: list[dict[str, Any]]
    values: list[np.ndarray]

    @classmethod
    def of(cls, nights: Mapping[str, str], uri: Path | str, **changes: Any) -> NightCorpus:
        """Prepared at ``uri``."""
        manifest = fake_nights.make(nights, uri, **changes)
        rows, values = fake_nights.rows(uri), []
        for row in rows:
            night, _, index = row["name"].rpartition("/")
            values.append(fake_nights.stored(row["name"], nights[night][int(index)], manifest))
        return cls(str(uri), manifest, rows, values)

    def role(self, split: str | None, number: int) -> int:
        """The role of the row with this id."""
        if split is None:
            return 3
        made = self.manifest.splits[split]
        return int(splits.columns(f"{self.uri}/{made.path}", made.sha256)[0][number])

    def runs(self, shard: int, split: str | None, role: str) -> list[list[int]]:
        """The ids of each run of a shard that has the role."""
        found: list[list[int]] = []
        before: Any = None
        for number, row in enumerate(self.rows):
            night, _, index = row["name"].rpartition("/")
            if row["shard"] != shard or not self.role(split, number) & BITS[role]:
                before = None
                continue
            if before == (night, int(index) - 1):
                found[-1].append(number)
            else:
                found.append([number])
            before = night, int(index)
        return found


def starts(count: int, length: int, seed: int, epoch: int, purpose: tuple[int, ...], first: int) -> list[int]:
    """Where the sequences of a run of ``count`` epochs begin, whose first one has the id ``first``."""
    if count <= length:
        return [0]
    if length == 1:
        return list(range(count))
    whole, rest = divmod(count, length)
    possible = list(range(1, length)) if rest == 0 else list(range(length - rest + 1))
    drawn = float(uniform_np(keys_np(fold(seed, 6, epoch, *purpose), np.array([first])), 6)[0])
    moved = possible[floor(drawn * len(possible))]
    return [min(max(k * length - moved, 0), count - length) for k in range(whole + 1)]


def knobs_of(corpus: NightCorpus, length: int, split: str | None = None, role: Role = "all", **more: Any) -> Knobs:
    """The settings of a stream, with its sequences as rayssl has them, and as they are defined here."""
    selection = sequences(corpus.manifest, corpus.uri, split, role, length)
    knobs = Knobs(selection=selection, **more)

    def entries(shard: int, epoch: int) -> list[Entry]:
        first_id = corpus.manifest.shards[shard].first_id
        found = []
        for run in corpus.runs(shard, split, role):
            begun = starts(len(run), length, knobs.seed, epoch, PURPOSES[role], run[0])
            found += [(shard, run[0] - first_id + start, 0, 1) for start in begun]
        return found

    total = sum(len(entries(shard, 0)) for shard in range(len(corpus.manifest.shards)))
    assert total == selection.rows_total == selection.epoch_rows
    return replace(knobs, entries_of=entries)


def expected(
    corpus: NightCorpus, knobs: Knobs, epochs: int, *, split: str | None = None, role: str = "all"
) -> Iterator[dict[str, Any]]:
    """The batches of ``epochs`` passes with everything that `rayssl.views.reading` gives."""
    length = knobs.selection.length  # type: ignore[union-attr]
    after = {run[k]: run[k + 1] for s in range(len(corpus.manifest.shards)) for run in corpus.runs(s, split, role)
             for k in range(len(run) - 1)}  # fmt: skip
    for fill, epoch, step, begun in definition.stream(corpus.manifest, knobs, epochs):
        ids, turns = [], []
        for number, turn in begun:
            for _ in range(length):
                ids.append(number)
                turns.append(turn)
                number = after.get(number, number)
        yield (
            {"epoch": epoch, "step": step, "fill": fill}
            | columns(corpus, ids, split, role)
            | {
                "turn": np.array(turns, np.int32),
                **{segment.name: np.stack([corpus.values[number] for number in ids]) for segment in CUT},
            }
        )


def columns(corpus: NightCorpus, ids: Sequence[int], split: str | None, role: str) -> dict[str, np.ndarray]:
    """The columns of the rows ``ids``."""
    rows = [corpus.rows[number] for number in ids]
    found = {key: np.array([row[key] for row in rows], np.int32) for key in ("speaker", "recording", "label")}
    truth = found["label"].copy()
    for k, number in enumerate(ids):
        if split is not None and (role == "unlabelled" or not corpus.role(split, number) & 1):
            found["label"][k] = -1
    return {"id": np.array(ids, np.int64), **found, "truth": truth}
