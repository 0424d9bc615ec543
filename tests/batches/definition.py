"""The definition of a stream in plain loops: order, pools, batches, segments. It shares no code with `plan` and `read`.

Every utterance of the corpus is known here (`Corpus`), so that nothing has to be read in parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from rayssl.batches import plan
from rayssl.batches.plan import Cursor
from rayssl.batches.selection import Selection
from rayssl.data import decode, shards, splits
from rayssl.data.shards import Manifest
from rayssl.random.draws import fold, keys_np, uniform_np
from rayssl.views import reading
from rayssl.views.reading import ReadSettings
from rayssl.views.recipes import Segment
from tests.data.corpora import write_labelled
from tests.views.whole import cut_segments

Entry = tuple[int, int, int, int]  # shard, row, turn, and how often the row comes in an epoch
Batch = tuple[bool, int, int, list[tuple[int, int]]]  # fill, epoch, step, and (id, turn) of each row


@dataclass(frozen=True)
class Corpus:
    """A corpus, its manifest, and the samples of all its utterances by id."""

    uri: str
    manifest: Manifest
    pcm: list[np.ndarray]


@dataclass(frozen=True)
class Knobs:
    """What the order of a stream depends on. ``entries_of``: see `tests.batches.night_definition`."""

    batch: int = 12
    unit_rows: int = 24
    shuffle_shards: int = 3
    seed: int = 3
    wrap: bool = False
    selection: Selection | None = None
    entries_of: Callable[[int, int], list[Entry]] | None = None

    def planned(self) -> dict[str, Any]:
        """The arguments of `plan.plan` and `plan.plan_steps`."""
        names = ("batch", "unit_rows", "shuffle_shards", "seed", "wrap", "selection")
        return {name: getattr(self, name) for name in names}


@contextmanager
def groups_of(rows: int) -> Iterator[None]:
    """Inside, shards are written with row groups of ``rows``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "GROUP_ROWS", rows)
        yield


def write(uri: str, sizes: Sequence[int], group_rows: int, **split: Any) -> Corpus:
    """Shards of ``sizes`` utterances with four classes; ``group_rows`` 0 is a corpus from before row groups existed.

    ``split``: by name, what is labelled.
    """
    random = np.random.default_rng(sum(sizes))
    labels = random.choice([0, 1, 1, 1, 2, 3, -1], sum(sizes)).tolist()
    with groups_of(group_rows or 1 << 20):
        manifest = write_labelled(uri, labels, ["bed", "cat", "dog", "owl"], split, sizes)
    if not group_rows:
        manifest = manifest.model_copy(update={"group_rows": 0})
    tables = [shards.read_shard(uri, shard, ["audio"]) for shard in manifest.shards]
    audio = [data for table in tables for data in table["audio"].to_pylist()]
    return Corpus(uri, manifest, [decode.pcm(data, manifest.format) for data in audio])


def entries(manifest: Manifest, shard: int, knobs: Knobs, epoch: int, *, once: bool = False) -> list[Entry]:
    """The entries of a shard in the order of its file; ``once``: without class-aware sampling."""
    if knobs.entries_of is not None:
        return knobs.entries_of(shard, epoch)
    rows, selection = range(manifest.shards[shard].rows), knobs.selection
    if selection is None or not selection.place:
        return [(shard, row, 0, 1) for row in rows]
    roles, classes = splits.columns(selection.place, selection.sha256)
    wanted = {"all": 3, "labelled": 1, "unlabelled": 2}[selection.roles]
    found = []
    for row in rows:
        name = manifest.shards[shard].first_id + row
        if not roles[name] & wanted:
            continue
        times = 1
        if selection.rates and not once:
            key = keys_np(fold(knobs.seed, 4, epoch), np.array([name]))
            rate, drawn = selection.rates[classes[name]], float(uniform_np(key, 4)[0])
            times = math.floor(Fraction(rate) + Fraction(drawn))
        found += [(shard, row, turn, times) for turn in range(times)]
    return found


def order(manifest: Manifest, knobs: Knobs, epoch: int, *, once: bool = False) -> list[Entry]:
    """The entries of an epoch before neighbours are mixed: windows of shards, whose row groups are permuted."""
    purpose = () if knobs.selection is None else knobs.selection.purpose
    drawn = np.random.default_rng([knobs.seed, 1, epoch, *purpose]).permutation(len(manifest.shards))
    held = [found for k in map(int, drawn) if (found := entries(manifest, k, knobs, epoch, once=once))]
    windows = math.ceil(len(held) / knobs.shuffle_shards)
    firsts = [math.ceil(window * len(held) / windows) for window in range(windows)]
    groups: list[tuple[int, list[Entry]]] = []
    for place, shard in enumerate(held):
        by_group: dict[int, list[Entry]] = {}
        for entry in shard:
            by_group.setdefault(entry[1] // (manifest.group_rows or 1 << 20), []).append(entry)
        window = sum(first <= place for first in firsts)
        groups += [(window, by_group[group]) for group in sorted(by_group)]
    random = np.random.default_rng([knobs.seed, 5, epoch, *purpose]).random(len(groups))
    permuted = sorted(range(len(groups)), key=lambda k: (groups[k][0], random[k]))
    return [entry for k in permuted for entry in groups[k][1]]


def parts_of(batch: int) -> int:
    """1, 2, 4, ...: as many pools as leave each at least ``plan._PART_ROWS`` rows of a batch."""
    fitting = [p for p in (1, 2, 4, 8, 16) if batch % p == 0 and (p == 1 or batch // p >= plan._PART_ROWS)]
    return max(fitting)


def one_pass(manifest: Manifest, knobs: Knobs, epoch: int, steps: int, *, fill: bool = False) -> list[Batch]:
    """The batches of a pass of ``steps`` steps."""
    purpose = () if knobs.selection is None else knobs.selection.purpose
    ordered = order(manifest, knobs, epoch, once=fill)
    rows = []
    for k in range(steps * knobs.batch):
        lap, (shard, row, turn, times) = k // len(ordered), ordered[k % len(ordered)]
        rows.append((manifest.shards[shard].first_id + row, 0 if fill else turn + lap * times))
    parts = parts_of(knobs.batch)
    width, found = knobs.batch // parts, list[Batch]()
    each = max(1, knobs.unit_rows // width)
    for begin in range(0, steps, each):
        count = min(each, steps - begin)
        pools = []
        for part in range(parts):
            first = begin * knobs.batch + part * count * width
            random = np.random.default_rng([knobs.seed, 2, epoch, begin, part, *purpose])
            pools.append([rows[first + int(k)] for k in random.permutation(count * width)])
        for step in range(count):
            mixed = [row for pool in pools for row in pool[step * width : (step + 1) * width]]
            found.append((fill, epoch, begin + step, mixed))
    return found


def stream(manifest: Manifest, knobs: Knobs, epochs: int, fills: Sequence[int] = ()) -> list[Batch]:
    """The batches of ``epochs`` epochs."""
    chosen = knobs.selection
    expected = manifest.rows if chosen is None else chosen.epoch_rows
    once = manifest.rows if chosen is None else chosen.rows_total
    steps = math.ceil(expected / knobs.batch) if knobs.wrap else expected // knobs.batch
    found = []
    for epoch in range(epochs):
        if epoch in fills:
            found += one_pass(manifest, knobs, epoch, math.ceil(once / knobs.batch), fill=True)
        found += one_pass(manifest, knobs, epoch, steps)
    return found


def segments_of(
    corpus: Corpus, knobs: Knobs, epoch: int, rows: Sequence[tuple[int, int]], cut: Sequence[Segment]
) -> Any:
    """The segments of ``rows``, (id, turn) each, in ``epoch``: by name ``[B, samples]``."""
    purpose = () if knobs.selection is None else knobs.selection.purpose
    seed, found = fold(knobs.seed, 3, epoch, *purpose), []
    for name, turn in rows:
        key = keys_np(seed, np.array([name + (turn << 44)]))[0]
        found.append(cut_segments(corpus.pcm[name], cut, key, corpus.manifest.rate))
    return {segment.name: np.stack([each[segment.name] for each in found]) for segment in cut}


def read(
    corpus: Corpus, knobs: Knobs, cut: Sequence[Segment], start: Cursor, epochs: int, ranks: int = 1, **more: Any
) -> list[dict[str, Any]]:
    """What `plan` and `read` give of the same: the batches of all ranks as those of one, which the ranks divide."""
    units = plan.plan(corpus.manifest, start=start, epochs=epochs, ranks=ranks, **knobs.planned(), **more)
    return merged(corpus, knobs, cut, list(units), ranks)


def merged(
    corpus: Corpus, knobs: Knobs, cut: Sequence[Segment], units: Sequence[Any], ranks: int
) -> list[dict[str, Any]]:
    """The batches of ``units``, each the concatenation of what the ranks get."""
    settings = ReadSettings(corpus.uri, corpus.manifest, knobs.seed, knobs.batch, ranks, knobs.selection)
    by_rank: list[list[dict[str, Any]]] = [[] for _ in range(ranks)]
    for unit in units:
        for packed in reading.read(unit, settings, cut):
            by_rank[packed.rank] += packed.batches()
    return [joined(parts) for parts in zip(*by_rank, strict=True)]


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The batch of all ranks, from what each of them has."""
    facts = ("epoch", "step", "fill")
    assert [part["rank"] for part in parts] == list(range(len(parts)))
    assert len({tuple(part[name] for name in facts) for part in parts}) == 1
    arrays = parts[0].keys() - {*facts, "rank"}
    return {name: parts[0][name] for name in facts} | {n: np.concatenate([p[n] for p in parts]) for n in arrays}


def assert_same(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Bit by bit."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
