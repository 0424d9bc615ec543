"""A plan depends on the settings and the listing: not on batches, their order, runs in files, or steps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayssl.data import columns, conditions, corpus, listing, naming, planning, shards, units
from rayssl.data.corpus import PreparedCorpusConfig, PreparePlan
from rayssl.data.sources.base import Reference
from rayssl.errors import CorpusError
from tests.data.corpora import files_below, folder_config
from tests.data.sources.tones import corpus_of, tones_file

CONDITIONS = {"count": 6, "per_utterance": 2}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "conditions": {"conditions": CONDITIONS},
    "join": {"join": {"min_s": 1.0}},
    "join conditions": {"join": {"min_s": 1.0}, "conditions": CONDITIONS},
    "join clips": {"join": {"min_s": 1.0}, "conditions": {**CONDITIONS, "per": "clip"}},
}


def synthetic(out: Path, **changes: Any) -> PreparedCorpusConfig:
    """A corpus of 600 utterances that are never spoken."""
    source = {"name": "synthetic", "speakers": 20, "recordings": 5, "utterances": 6}
    return PreparedCorpusConfig.model_validate({"source": source, "out": str(out), "shard_utterances": 32, **changes})


def batches(settings: PreparedCorpusConfig, size: int, references: Sequence[Reference] = ()) -> list[pa.RecordBatch]:
    """The listing in batches of ``size`` utterances, the last ones first."""
    references = references or list(settings.source.build().list())
    cut = [references[k : k + size] for k in range(0, len(references), size)]
    return [listing.rows(settings, 0, some) for some in cut[::-1]]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in pieces of four, of which two are merged at a time; steps of 100 rows."""
    monkeypatch.setattr(naming, "PIECE", 4)
    monkeypatch.setattr(naming, "_RANGE", 2)
    monkeypatch.setattr(naming, "_ROW_GROUP", 7)
    monkeypatch.setattr(planning, "_STEP_BYTES", 10_000)


def contents(plan: PreparePlan) -> list[Any]:
    """What the units of a plan have in their rows."""
    return [units._content(plan.work, unit) for unit in plan.units]


@pytest.mark.parametrize("way", list(WAYS))
def test_a_plan_in_files_is_that_in_memory(way: str, tmp_path: Path, small_pieces: None) -> None:
    settings = synthetic(tmp_path / "out", **WAYS[way])
    plan = corpus.plan(settings, 0)
    assert files_below(tmp_path) == {}
    files = corpus.plan(settings, 0, batches(settings, 70), run_bytes=10_000)
    assert {Path(path).name.partition("-")[0] for path in files_below(tmp_path)} >= {"units", "recording"}
    assert list(tmp_path.rglob("run-?????")) == []  # the sorted rows: they are in the units now
    assert (files.digest, files.sources) == (plan.digest, plan.sources) == (plan.digest, 600)
    assert [unit.digest for unit in files.units] == [unit.digest for unit in plan.units]
    assert contents(files) == contents(plan)
    for kind in shards.KINDS:
        assert files.names[kind].texts() == plan.names[kind].texts()
    corpus.discard(settings)
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize("way", list(WAYS))
def test_a_plan_has_every_rendering_once_with_its_names(way: str, tmp_path: Path) -> None:
    """Compared with a transcription in plain loops."""
    settings = synthetic(tmp_path / "out", **WAYS[way])
    plan = corpus.plan(settings, 0)
    wanted = set()
    for one in settings.source.build().list():
        shared = (
            settings.join is not None and settings.conditions is not None and settings.conditions.per == "recording"
        )
        drawn = one.recording_name() if shared else one.name
        under = [-1] if settings.conditions is None else conditions.chosen(settings.conditions, str(drawn))
        wanted |= {(one, condition, units.recording_name(one, condition)) for condition in under}
    for kind, known in (("speaker", {one.speaker for one, _, _ in wanted}), ("recording", {w[2] for w in wanted})):
        assert plan.names[kind].texts() == sorted(str(name) for name in known)
    speakers, recordings = (plan.names[kind].texts() for kind in ("speaker", "recording"))
    found, places = [], {}
    for number, content in enumerate(contents(plan)):
        assert [one.name for one in content.references] == sorted(one.name for one in content.references)
        assert [speakers[k] for k in content.speakers] == [one.speaker for one in content.references]
        assert set(content.labels) == {-1}
        for group in content.jobs:
            names = [content.references[position].name for position, _, _ in group]
            assert names == sorted(names) and len({job[1:] for job in group}) == 1
            assert settings.join is not None or len(group) == 1
            found += [(content.references[k], condition, recordings[r]) for k, condition, r in group]
            if settings.join is not None:
                assert places.setdefault(group[0][1:], number) == number
    assert len(found) == len(wanted) and set(found) == wanted
    if settings.join is None:
        sizes = [unit.utterances for unit in plan.units]
        assert max(sizes) - min(sizes) <= 1


def test_neighbours_in_the_source_are_not_neighbours_in_shards(tmp_path: Path) -> None:
    """The 30 utterances of a speaker are spread as chance spreads them, and another seed spreads them otherwise."""
    settings = synthetic(tmp_path / "out")
    unit_of = []
    for seed in (0, 1):
        held = contents(corpus.plan(settings, seed))
        unit_of.append({one.name: number for number, content in enumerate(held) for one in content.references})
    ordered = sorted(unit_of[0])
    together = np.mean([unit_of[0][a] == unit_of[0][b] for a, b in itertools.pairwise(ordered)])
    assert together < 0.1  # 1 of 19 by chance
    counts = np.zeros((20, 19))
    for name, unit in unit_of[0].items():
        counts[int(name[1:6]), unit] += 1
    assert counts.max() <= 7 and (counts > 0).sum(axis=1).min() >= 10
    assert np.mean([unit_of[0][name] == unit_of[1][name] for name in ordered]) < 0.1


def test_a_corpus_from_a_plan_in_files_is_the_same(tmp_path: Path, small_pieces: None) -> None:
    """Also if the first attempt was interrupted, and was planned in memory."""
    made = []
    for out, size in (("one", 12), ("two", 3)):
        settings = folder_config(tmp_path / "in", tmp_path / out, **WAYS["join conditions"])
        first = corpus.plan(settings, 0)
        units.process(first.work, first.units[1])
        plan = corpus.plan(settings, 0, batches(settings, size), run_bytes=1 if size == 3 else None)
        assert (plan.units[0].data == b"") == (size == 3)
        corpus.finish(settings, plan, [units.process(plan.work, unit) for unit in plan.units])
        made.append(files_below(tmp_path / out))
    assert made[0] == made[1]


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("run_bytes", [1, None])
def test_a_repeated_name_is_found_wherever_it_is(way: str, run_bytes: int | None, tmp_path: Path) -> None:
    settings = synthetic(tmp_path / "out", **WAYS[way])
    references = list(settings.source.build().list())
    # in the other places of the listing, with another recording: only the name is the same
    references.append(references[3]._replace(speaker="x", recording="y", locator=(9, 9, 9)))
    with pytest.raises(CorpusError, match=r"synthetic source: two utterances are named 's00000/r00/u003'; names must"):
        corpus.plan(settings, 0, batches(settings, 50, references), run_bytes=run_bytes)


@pytest.mark.parametrize("way", ["plain", "join"])
def test_names_with_the_same_hash_are_told_apart(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing.draws, "texts_np", lambda key, offsets, data: np.full(len(offsets) - 1, key, np.uint64))
    settings = synthetic(tmp_path / "out", **WAYS[way])
    plan = corpus.plan(settings, 0)
    again = corpus.plan(settings, 0, batches(settings, 7), run_bytes=1)
    assert again.digest == plan.digest
    names = [one.name for content in contents(plan) for one in content.references]
    assert names == sorted(names) and len(names) == 600
    assert way == "join" or len(plan.units) == 19


def test_locators_come_back_as_they_were() -> None:
    odd: list[tuple[str | int, ...]] = [
        ("a", 1),
        ('q"uote', 2),
        ("back\\slash", -3),
        ("tab\t", 1 << 70),
        (),
        ("é", "1"),
    ]
    odd += [(7,), ("x",), (1, 2, 3), ("line\nend", 0)]
    for locators in (odd, *([one] for one in odd)):
        texts = listing._locators(locators).to_pylist()
        assert [tuple(json.loads(text)) for text in texts] == locators
        assert texts == [json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in locators]


def test_a_name_that_is_not_unicode_is_told(tmp_path: Path) -> None:
    name = tones_file(tmp_path, 'f"p{speaker}/{tone}"', 'f"p{speaker}/{tone}" + chr(0xDC80)')
    with pytest.raises(CorpusError, match=r"tones\.py:Tones: lists 'p0/0\\udc80', which is not valid Unicode; rename"):
        corpus.plan(corpus_of({"name": name}, tmp_path / "out"), 0)


def test_a_digest_is_of_values_alone() -> None:
    """Not of what lies in memory: a slice and a copy, a null over bytes and a null without bytes are the same."""
    rows = pa.record_batch([pa.array(["x", "a", None, "", "bc"]), pa.array([0, 1, 2, 3, 4], pa.int32())], ["a", "b"])
    copy = pa.record_batch([pa.array(["a", None, "", "bc"]), pa.array([1, 2, 3, 4], pa.int32())], ["a", "b"])
    over = pa.StringArray.from_buffers(4, *copy["a"].buffers()[1::-1][:1], pa.py_buffer(b"abc"))
    assert over.to_pylist() != copy["a"].to_pylist()  # the null is an empty text here
    bounds = np.array([0, 3, 4])

    def digests(batch: pa.RecordBatch) -> list[str]:
        return columns.digests(batch, bounds, iter([b"1", b"2"]))

    assert digests(rows.slice(1)) == digests(copy)
    assert digests(copy.set_column(0, "a", over))[0] != digests(copy)[0]
    assert digests(copy)[0] != columns.digests(copy, bounds, iter([b"3", b"2"]))[0]


@pytest.mark.parametrize("unique", [False, True])
def test_names_of_runs_are_merged(unique: bool, tmp_path: Path, small_pieces: None) -> None:
    rng = np.random.default_rng(0)
    drawn = [[f"n{k}" for k in rng.choice(200, size)] for size in (50, 1, 80, 0, 30)]
    if unique:
        drawn = [sorted({*names}.difference(*drawn[:k])) for k, names in enumerate(drawn)]
    for place in (None, str(tmp_path / "names-")):
        runs, codes = [], []
        for names in drawn:
            code, held = naming.coded(pa.array([*names, None], pa.string()), unique=False)
            runs.append(naming.run_names(held, None if place is None else f"{place}run-{len(runs)}"))
            codes.append(code)
        merged, indices = naming.merge(runs, place, unique)
        texts = merged.texts()
        assert texts == sorted({name for names in drawn for name in names}) and merged.count == len(texts)
        for names, code, index in zip(drawn, codes, indices, strict=True):
            assert [texts[k] for k in index[code][:-1]] == names and index[code][-1] == -1
    assert len(list(tmp_path.iterdir())) > 10
