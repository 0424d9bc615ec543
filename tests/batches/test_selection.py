"""Streams over the utterances of a split: which rows come when, cycling, wrapping, class-aware, on any ranks."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.batches import cache
from rayssl.batches.cache import ShardCache
from rayssl.batches.order import ShardRange
from rayssl.batches.plan import Cursor, ReadUnit, cycle_position, plan, plan_steps, steps_per_epoch
from rayssl.batches.selection import Role, Selection, selection
from rayssl.data import row_groups, splits
from rayssl.data.shards import Manifest
from rayssl.errors import CorpusError
from rayssl.views import reading
from rayssl.views.reading import ReadSettings
from rayssl.views.recipes import Segment
from tests.data.corpora import write_labelled

NAMES = ["bed", "cat", "dog", "owl"]
SIZES = (13, 1, 30, 22, 1, 17)  # the rows of the shards
SEGMENTS = (Segment(name="anchor", seconds=0.02, recipe="distort"),)
# cat is 40 times, bed 20, dog 10, owl (the open set) 8; 6 have no label
LABELS = np.random.default_rng(2).permutation([1] * 40 + [0] * 20 + [2] * 10 + [3] * 8 + [-1] * 6).tolist()
WANTED = {
    "third": {"labelled": {"share": 0.3}, "open_set": ["owl"]},
    "few": {"labelled": {"per_class": 1}, "open_set": ["owl"]},
    "tail": {"labelled": {"most": 12, "gamma": 4}, "open_set": ["owl"]},
    "both": {"labelled": {"per_class": 5}, "unknown": True, "keep_labelled_in_unlabelled": True},
    "all": {"labelled": {"per_class": 5}, "unknown": True},
    "none": {"labelled": {"share": 1}},
}
Corpus = tuple[str, Manifest]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    uri = str(tmp_path_factory.mktemp("corpus"))
    return uri, write_labelled(uri, LABELS, NAMES, WANTED, SIZES)


def roles_of(corpus: Corpus, split: str) -> np.ndarray:
    uri, manifest = corpus
    return splits.columns(f"{uri}/{manifest.splits[split].path}", manifest.splits[split].sha256)[0]


def labelled(corpus: Corpus, split: str = "third", **changes: Any) -> Selection:
    return selection(corpus[1], corpus[0], split, "labelled", **changes)


def read(
    corpus: Corpus, units: Any, chosen: Selection | None, *, batch: int = 8, ranks: int = 1
) -> list[dict[str, Any]]:
    uri, manifest = corpus
    rows = []
    for unit in units:
        # units and selections go through tasks
        fields = json.loads(json.dumps(asdict(unit)))
        pools = tuple(tuple(ShardRange(**piece) for piece in pool) for pool in fields.pop("pools"))
        assert ReadUnit(pools=pools, **fields) == unit
        settings = pickle.loads(pickle.dumps(ReadSettings(uri, manifest, 3, batch, ranks, chosen)))
        found = [row for packed in reading.read(unit, settings, SEGMENTS) for row in packed.batches()]
        rows += sorted(found, key=lambda row: (row["step"], row["rank"]))  # a rank gets the steps of a block at once
    return rows


def stream(
    corpus: Corpus,
    chosen: Selection | None,
    start: int = 0,
    steps: int = 12,
    *,
    batch: int = 8,
    ranks: int = 1,
    **more: Any,
) -> list[dict[str, Any]]:
    knobs = {"seed": 3, "batch": batch, "unit_rows": 10, "selection": chosen, **more}
    return read(corpus, plan_steps(corpus[1], start_step=start, steps=steps, **knobs), chosen, batch=batch, ranks=ranks)


def whole_epochs(corpus: Corpus, chosen: Selection | None, count: int = 3, **more: Any) -> list[dict[str, Any]]:
    knobs: dict[str, Any] = {"seed": 3, "batch": 8, "unit_rows": 10, "selection": chosen, **more}
    return read(corpus, plan(corpus[1], epochs=count, start=Cursor(), **knobs), chosen, batch=knobs["batch"])


def ids_of(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.concatenate([row["id"] for row in rows])


def assert_equal(one: list[dict[str, Any]], other: list[dict[str, Any]], but: tuple[str, ...] = ()) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - set(but):
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("roles", ["all", "labelled", "unlabelled"])
@pytest.mark.parametrize("split", list(WANTED))
def test_rows_are_those_of_the_role(corpus: Corpus, split: str, roles: Role) -> None:
    chosen = selection(corpus[1], corpus[0], split, roles)
    bits = roles_of(corpus, split) & {"all": 3, "labelled": 1, "unlabelled": 2}[roles]
    found = [chosen.rows_of(k) + shard.first_id for k, shard in enumerate(corpus[1].shards)]
    assert [len(rows) for rows in found] == list(chosen.counts)
    np.testing.assert_array_equal(np.concatenate(found), np.flatnonzero(bits))
    assert chosen.rows_total == chosen.epoch_rows == np.count_nonzero(bits)
    listed = corpus[1].splits[split]
    assert chosen.rows_total == (
        getattr(listed, roles) if roles != "all" else np.count_nonzero(roles_of(corpus, split))
    )


def test_a_selection_is_small(corpus: Corpus) -> None:
    """It holds numbers per shard and per class, and no rows."""
    uri, _ = corpus
    chosen = labelled(corpus, class_aware=True)
    assert len(chosen.bounds) == len(SIZES) + 1 and len(chosen.counts) == len(SIZES) and len(chosen.rates) == 3
    assert chosen.place.startswith("/") and uri in chosen.place  # tasks run in other folders


def test_everything_is_in_the_order_of_no_selection(corpus: Corpus) -> None:
    """Without a split, and with one that uses every utterance for either role: then only the labels differ."""
    plain = whole_epochs(corpus, None)
    assert_equal(whole_epochs(corpus, selection(corpus[1], corpus[0])), plain)
    split = whole_epochs(corpus, selection(corpus[1], corpus[0], "all"))
    assert_equal(split, plain, but=("label", "truth"))
    assert all((row["turn"] == 0).all() and (row["truth"] == row["label"]).all() for row in plain)
    np.testing.assert_array_equal(np.concatenate([row["label"] for row in plain]), np.array(LABELS)[ids_of(plain)])


def test_labels_are_told_of_the_labelled_and_truth_of_the_known(corpus: Corpus) -> None:
    classes = np.array([0, 1, 2, -1, -1])  # bed, cat, dog; owl is open-set; -1 has no label
    roles = roles_of(corpus, "third")
    for part, told in (("labelled", True), ("unlabelled", False), ("all", True)):
        rows = whole_epochs(corpus, selection(corpus[1], corpus[0], "third", part), wrap=True)  # type: ignore[arg-type]
        for row in rows:
            truth = classes[np.array(LABELS)[row["id"]]]
            assert row["label"].dtype == row["truth"].dtype == row["turn"].dtype == np.int32
            np.testing.assert_array_equal(row["truth"], truth)
            np.testing.assert_array_equal(row["label"], np.where(told & (roles[row["id"]] & 1 > 0), truth, -1))
        seen = np.unique(np.concatenate([row["truth"] for row in rows])).tolist()
        assert seen == ([0, 1, 2] if part == "labelled" else [-1, 0, 1, 2])
    both = whole_epochs(corpus, selection(corpus[1], corpus[0], "both", "unlabelled"))
    assert any((roles_of(corpus, "both")[row["id"]] == 3).any() for row in both)
    assert all((row["label"] == -1).all() for row in both)  # a label is not told in the unlabelled stream


def test_an_epoch_of_a_selection_has_each_row_at_most_once_and_leaves_others_out(corpus: Corpus) -> None:
    chosen = labelled(corpus)
    assert chosen.rows_total == 21 and steps_per_epoch(84, 8, chosen) == 2
    rows = whole_epochs(corpus, chosen, 6)
    wanted, left = set(np.flatnonzero(roles_of(corpus, "third") == 1).tolist()), set()
    for epoch in range(6):
        ids = ids_of([row for row in rows if row["epoch"] == epoch]).tolist()
        assert len(ids) == 16 == len(set(ids)) and set(ids) <= wanted
        left.add(tuple(sorted(wanted - set(ids))))
    assert len(set(left)) > 2  # the end of the group that comes last, of four


def test_labelled_and_unlabelled_have_orders_of_their_own(corpus: Corpus) -> None:
    """With the same seed: else an utterance of both streams would be cut alike in both."""
    parts: tuple[Role, ...] = ("labelled", "unlabelled")
    streams = [whole_epochs(corpus, selection(corpus[1], corpus[0], "both", part)) for part in parts]
    cuts = [
        {int(k): wave for row in found if row["epoch"] == 0 for k, wave in zip(row["id"], row["anchor"], strict=True)}
        for found in streams
    ]
    shared = cuts[0].keys() & cuts[1].keys()
    assert len(shared) > 10 and sum(np.array_equal(cuts[0][k], cuts[1][k]) for k in shared) < len(shared) / 2


@pytest.mark.parametrize("more", [{}, {"wrap": True}])
@pytest.mark.parametrize("aware", [False, True])
def test_the_stream_cycles_and_resumes_anywhere_on_any_ranks(corpus: Corpus, aware: bool, more: dict[str, Any]) -> None:
    chosen = labelled(corpus, class_aware=aware)
    each = steps_per_epoch(0, 8, chosen, **more)
    assert each == (4 if aware and not more else 5 if aware else 3 if more else 2)
    whole = stream(corpus, chosen, 0, 12, **more)
    assert [Cursor(row["epoch"], row["step"]) for row in whole] == [cycle_position(t, each) for t in range(12)]
    assert_equal(whole, whole_epochs(corpus, chosen, -(-12 // each), **more)[:12])
    for start in range(0, 12, 5):
        for count in (1, 12 - start):
            assert_equal(stream(corpus, chosen, start, count, **more), whole[start : start + count])
    shared = stream(corpus, chosen, ranks=2, **more)
    assert [row["rank"] for row in shared] == [0, 1] * 12
    for k, expected in enumerate(whole):
        for name in ("id", "label", "truth", "turn", "anchor"):
            parts = [row[name] for row in shared[2 * k : 2 * k + 2]]
            np.testing.assert_array_equal(np.concatenate(parts), expected[name], err_msg=name)


def test_no_steps_are_no_units(corpus: Corpus) -> None:
    assert stream(corpus, labelled(corpus), 5, 0) == []
    assert cycle_position(0, 7) == Cursor(0, 0) and cycle_position(20, 7) == Cursor(2, 6)


@pytest.mark.parametrize(
    ("split", "batch"), [("few", 8), ("few", 1), ("few", 3), ("third", 8), ("third", 21), ("third", 64)]
)
def test_wrapping_repeats_the_order_until_a_batch_is_full(corpus: Corpus, split: str, batch: int) -> None:
    """Every row in every epoch; the last batch is made whole with the first rows of the order, as often as it takes.

    The unit holds the epoch, so that all its rows are mixed.
    """
    chosen = labelled(corpus, split)
    count = chosen.rows_total
    steps = -(-count // batch)
    assert steps_per_epoch(0, batch, chosen, wrap=True) == steps
    every = set(np.flatnonzero(roles_of(corpus, split) == 1).tolist())
    rows = whole_epochs(corpus, chosen, 2, batch=batch, wrap=True, unit_rows=100)
    assert len(rows) == 2 * steps
    for epoch in range(2):
        found = [row for row in rows if row["epoch"] == epoch]
        turns = np.concatenate([row["turn"] for row in found])
        assert len(turns) == steps * batch
        for turn in range(-(-steps * batch // count)):
            ids = ids_of(found)[turns == turn].tolist()
            assert len(set(ids)) == len(ids) == min(count, steps * batch - turn * count)
            assert set(ids) == every if len(ids) == count else set(ids) < every
        waves = np.concatenate([row["anchor"] for row in found])
        pairs = {(int(k), w.tobytes()) for k, w in zip(ids_of(found), waves, strict=True)}
        assert len(pairs) >= len(waves) - 0.2 * (len(waves) - count)  # another segment every time (of 481)


def test_a_small_set_that_wraps_reads_each_shard_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, manifest = corpus
    monkeypatch.setattr(cache, "LABELLED", ShardCache())
    chosen, asked = labelled(corpus), list[str]()
    whole = row_groups.read_rows
    monkeypatch.setattr(row_groups, "read_rows", lambda *args: (asked.append(args[1].path), whole(*args))[1])
    (unit,) = plan_steps(manifest, seed=3, batch=64, start_step=0, steps=1, selection=chosen, wrap=True)
    assert len(unit.pools[0]) > 2 * len(SIZES)
    assert len(list(reading.read(unit, ReadSettings(uri, manifest, 3, 64, 1, chosen), SEGMENTS))) == 1
    assert sorted(asked) == sorted(manifest.shards[k].path for k, n in enumerate(chosen.counts) if n)


def test_a_pass_that_fills_a_memory_has_every_selected_row(corpus: Corpus) -> None:
    """Once each, also where the epoch itself is class-aware; only those that make the last batch whole come twice."""
    for aware in (False, True):
        chosen = labelled(corpus, class_aware=aware)
        rows = [row for row in whole_epochs(corpus, chosen, 2, fills=[1]) if row["fill"]]
        ids = ids_of(rows)
        assert len(rows) == 3 and len(ids) == 24 and {row["epoch"] for row in rows} == {1}
        assert set(ids.tolist()) == set(np.flatnonzero(roles_of(corpus, "third") == 1).tolist())
        assert all((row["turn"] == 0).all() for row in rows)
        trained = [row for row in whole_epochs(corpus, chosen, 2, fills=[1]) if not row["fill"]]
        assert_equal(trained, whole_epochs(corpus, chosen, 2))


def test_without_a_selection_an_epoch_can_wrap_too(corpus: Corpus) -> None:
    rows = whole_epochs(corpus, None, 1, wrap=True)
    turns = np.concatenate([row["turn"] for row in rows])
    assert len(rows) == 11 and sorted(ids_of(rows)[turns == 0].tolist()) == list(range(84))
    assert turns.tolist().count(1) == 4 and {row["turn"].max() for row in rows[:-1]} == {0}  # in the last batch alone


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_class_aware_rows_come_as_often_as_their_class_is_rare(corpus: Corpus, power: float) -> None:
    """floor(r) or one more of each row, r = (n_max / n)^power; class sums within five deviations of n r over epochs."""
    chosen = labelled(corpus, "third", class_aware=True, power=power)
    numbers = np.array([6, 12, 3])  # bed, cat, dog
    rates = (12 / numbers) ** power
    assert chosen.rates == pytest.approx(rates) and chosen.epoch_rows == int((numbers * rates).sum() + 1e-6)
    assert chosen.rows_total == 21
    count, sums = 60, np.zeros(3)
    members = np.flatnonzero(roles_of(corpus, "third") == 1)
    for epoch in range(count):
        times = np.zeros(84, np.int64)
        for k, shard in enumerate(corpus[1].shards):
            rows = chosen.rows_of(k)
            times[shard.first_id + rows] = chosen.times(k, rows, 3, epoch)
            found, turns, number = chosen.entries(k, 3, epoch)
            expected = [
                (row, turn, n) for row, n in zip(rows, times[shard.first_id + rows], strict=True) for turn in range(n)
            ]
            assert list(zip(found, turns, number, strict=True)) == expected
        classes = np.array(LABELS)[members]
        assert ((times[members] == np.floor(rates)[classes]) | (times[members] == np.ceil(rates)[classes])).all()
        sums += np.bincount(classes, times[members], minlength=3)
    part = rates - np.floor(rates)
    deviation = np.sqrt(count * numbers * part * (1 - part))
    assert (np.abs(sums - count * numbers * rates) <= 5 * deviation + 1e-9).all()
    if power == 1:
        assert (sums == count * 12).all()


def test_class_aware_epochs_are_balanced_and_have_the_same_number_of_batches(corpus: Corpus) -> None:
    """The order is cut or repeated to the expected length; an utterance's turns are numbered and cut anew."""
    chosen = labelled(corpus, "tail", class_aware=True)
    assert [c.labelled for c in corpus[1].splits["tail"].classes] == [6, 12, 3] and chosen.epoch_rows == 36
    half = labelled(corpus, "tail", class_aware=True, power=0.5)
    assert half.epoch_rows == int(12 + 6 * 2**0.5 + 6)
    lengths = set()
    for epoch in range(12):
        lengths.add(sum(len(half.entries(k, 3, epoch)[0]) for k in range(len(SIZES))))
        units = plan(corpus[1], seed=3, batch=13, epochs=epoch + 1, start=Cursor(epoch), selection=half)
        rows = read(corpus, units, half, batch=13)
        assert len(rows) == 2 == steps_per_epoch(0, 13, half)
        found = sorted((int(k), int(t)) for row in rows for k, t in zip(row["id"], row["turn"], strict=True))
        assert len(set(found)) == 26  # no turn twice
    assert min(lengths) < 26 < max(lengths)  # both cases have come
    rows = whole_epochs(corpus, chosen, 3, batch=12)
    for epoch in range(3):
        found = [row for row in rows if row["epoch"] == epoch]
        assert np.bincount(np.concatenate([row["truth"] for row in found])).tolist() == [12, 12, 12]
        pairs = [
            (k, t, w.tobytes()) for row in found for k, t, w in zip(row["id"], row["turn"], row["anchor"], strict=True)
        ]
        assert len({pair[:2] for pair in pairs}) == 36
        assert len({(k, wave) for k, _, wave in pairs}) > 33  # of 481 positions


def test_what_cannot_be_selected_is_told(corpus: Corpus, tmp_path: Path) -> None:
    uri, manifest = corpus
    with pytest.raises(CorpusError, match=r"has no split 'thrid' \(splits: third, few, .*\); add it to splits and run"):
        selection(manifest, uri, "thrid")
    with pytest.raises(ValueError, match="need a split"):
        selection(manifest, uri, None, "labelled")
    with pytest.raises(ValueError, match="class_aware is for the labelled"):
        selection(manifest, uri, "third", "all", class_aware=True)
    with pytest.raises(ValueError, match="power is -1"):
        labelled(corpus, class_aware=True, power=-1)
    few = labelled(corpus, "few")
    with pytest.raises(CorpusError, match=r"split 'few' has 3 labelled utterances and a batch of them is 8: .* empty"):
        list(plan(manifest, seed=3, batch=8, epochs=1, start=Cursor(), selection=few))
    empty = selection(manifest, uri, "none", "unlabelled")
    with pytest.raises(CorpusError, match=r"split 'none' has 0 unlabelled utterances"):
        steps_per_epoch(84, 8, empty, wrap=True)
    found = manifest.splits["few"].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(CorpusError, match=r"few\.parquet: not the file that the manifest lists"):
        selection(manifest.model_copy(update={"splits": {"few": found}}), uri, "few")
