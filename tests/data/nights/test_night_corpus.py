"""Corpora of nights: what the shards hold, what is dropped and refused and why, and that nothing else decides it."""

from __future__ import annotations

import io
import json
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayssl.data import corpus, decode, integrity, shards, units
from rayssl.data.corpus import PrepareConfig, PreparedCorpusConfig
from rayssl.data.nights import writing
from rayssl.data.shards import Reject
from rayssl.data.sources.night_synthetic import SyntheticNights
from rayssl.data.sources.nights import STAGES
from rayssl.errors import ConfigError, CorpusError, StorageError
from rayssl.schema import parse
from tests.data.corpora import files_below, prepare
from tests.data.nights.fake_nights import SMALL, STAGE_OF, make, rows, settings, stored

NIGHTS = {
    "a/n0": "WWLLLDD__RRR?L",  # a gap
    "a/n1": "L" * 11 + "n" + "D" * 16,  # more than two shards; an epoch that is not finite at the end of the first
    "b/n0": "WLL*?h",
    "c/n0": "_WWWWWR_",
}
BAD = {"d/n0": "!", "d/n1": "WWD_R!", "e/n0": "zz", "e/n1": "n_n"}


def runs_of(uri: Path) -> list[tuple[int, ...]]:
    table = pq.read_table(uri / "nights.parquet")
    assert [str(field.type) for field in table.schema] == ["int64", "int32", "int32", "int32"]
    return [tuple(row.values()) for row in table.to_pylist()]


def expected_runs(uri: Path) -> list[tuple[int, ...]]:
    """From the rows: neighbours in a shard that are neighbours in a night are one run."""
    found: list[list[Any]] = []
    for number, row in enumerate(rows(uri)):
        night, _, index = row["name"].rpartition("/")
        at = (row["shard"], night, int(index))
        if found and found[-1][4] == (at[0], at[1], at[2] - 1):
            found[-1][1] += 1
            found[-1][4] = at
        else:
            found.append([number, 1, row["recording"], int(index), at])
    return [tuple(run[:4]) for run in found]


@pytest.mark.parametrize("format", ["mel", *(pytest.param(each, marks=pytest.mark.long) for each in ("flac", "pcm16"))])
def test_shards_hold_the_epochs_of_the_nights_in_order(tmp_path: Path, format: str) -> None:
    manifest = make(NIGHTS, tmp_path, format=format)
    found = rows(tmp_path)
    named = shards.read_labels(str(tmp_path))
    assert named["label"] == list(STAGES)
    by_night: dict[str, list[int]] = {}
    for row in found:
        night, _, index = row["name"].rpartition("/")
        kind = NIGHTS[night].replace("*", "")[int(index)]
        by_night.setdefault(night, []).append(int(index))
        assert row["label"] == STAGE_OF[kind] and kind not in "_n"
        assert named["speaker"][row["speaker"]] == night.partition("/")[0]
        assert named["recording"][row["recording"]] == f"{night.partition('/')[0]}/{night}"
        values = decode.pcm(row["audio"], manifest.format)
        assert row["samples"] == len(values) == np.prod(manifest.epoch_shape)
        np.testing.assert_array_equal(values, stored(row["name"], kind, manifest))
    wanted = {
        night: [k for k, kind in enumerate(text.replace("*", "")) if kind not in "_n"] for night, text in NIGHTS.items()
    }
    assert by_night == wanted
    assert manifest.rows == len(found) and manifest.seconds == 30.0 * len(found)
    assert manifest.epoch_shape == ((4, 31) if format == "mel" else (480000,))
    assert (manifest.mel == SMALL) == (format == "mel")
    assert integrity.verify(str(tmp_path)) == []


def test_shards_have_small_row_groups_and_runs_end_at_gaps_and_shards(tmp_path: Path) -> None:
    manifest = make(NIGHTS, tmp_path)
    names = [row["name"] for row in rows(tmp_path)]
    assert manifest.group_rows == 8
    for shard in manifest.shards:
        footer = pq.read_metadata(io.BytesIO((tmp_path / shard.path).read_bytes()))
        sizes = [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]
        assert sizes == [8] * (shard.rows // 8) + [shard.rows % 8] * (shard.rows % 8 > 0)
        assert shard.rows <= 12
        assert len({name.rpartition("/")[0] for name in names[shard.first_id : shard.first_id + shard.rows]}) == 1
    assert [shard.path for shard in manifest.shards] == sorted(shard.path for shard in manifest.shards)
    found = runs_of(tmp_path)
    assert found == expected_runs(tmp_path)
    named = shards.read_labels(str(tmp_path))["recording"]
    lengths: dict[str, list[tuple[int, int]]] = {}
    for _, epochs, night, index in found:
        lengths.setdefault(named[night].partition("/")[2], []).append((index, epochs))
    assert lengths == {
        "a/n0": [(0, 7), (9, 5)],  # the gap
        "a/n1": [(0, 11), (12, 1), (13, 12), (25, 3)],  # the NaN, and shards of 12
        "b/n0": [(0, 5)],
        "c/n0": [(1, 6)],
    }


def test_a_shard_ends_when_it_has_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_SHARD_BYTES", 3 * 960_000)
    manifest = make({"a/n0": "WLDRWLD"}, tmp_path, format="pcm16")
    assert [shard.rows for shard in manifest.shards] == [3, 3, 1]
    assert runs_of(tmp_path) == [(0, 3, 0, 0), (3, 3, 0, 3), (6, 1, 0, 6)]


def test_what_is_missing_is_counted_and_told(tmp_path: Path) -> None:
    manifest = make(NIGHTS | BAD, tmp_path)
    assert manifest.nights is not None
    assert manifest.nights.dropped == {"gap": 2 + 2 + 1, "not finite": 1}
    assert (manifest.nights.nights, manifest.nights.subjects) == (5, 4)
    kinds = Counter("".join(NIGHTS.values()) + "WWDR")
    stages = {"Wake": "W", "Light": "Lh", "Deep": "D", "REM": "R", "unscored": "?"}
    assert manifest.nights.stages == {name: sum(kinds[k] for k in of) for name, of in stages.items()}
    assert sum(manifest.nights.stages.values()) == manifest.rows
    rejects = shards.read_rejects(str(tmp_path))
    assert manifest.rejected == len(rejects)
    assert {(reject.name, reject.reason) for reject in rejects} == {
        ("a/n0", "gap: nothing from epoch 7 on"),
        ("b/n0", "unscored: the labels end early"),
        ("c/n0", "gap: nothing from epoch 0 on"),
        ("c/n0", "gap: nothing from epoch 7 on"),
        ("d/n0", "truncated: file d/n0 ends at epoch 0"),  # the whole night
        ("d/n1", "gap: nothing from epoch 3 on"),
        ("d/n1", "truncated: file d/n1 ends at epoch 5"),  # the rest of it
        ("e/n0", "silent: every sample is zero"),
        ("e/n1", "empty: no epoch of the night can be used (dropped: 1 gap, 2 not finite)"),
    }
    assert {reject.source for reject in rejects} == {f"fake:{reject.name}" for reject in rejects}
    assert {row["name"].rpartition("/")[0] for row in rows(tmp_path)} == {*NIGHTS, "d/n1"}
    assert integrity.verify(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("keys", "refused"),
    [
        ({"min_hours": 4 * 30 / 3600}, {}),
        (
            {"min_hours": 0.034},
            dict.fromkeys(("s/short", "s/half"), "too short: 0.03 h, nights.min_hours is 0.034"),
        ),
        ({"max_zero_share": 0.25}, {}),
        ({"max_zero_share": 0.2}, {"s/half": "silent: 25.0% of the samples are zero, nights.max_zero_share is 0.2"}),
        (
            {"min_hours": 0.06},
            {
                "s/cut": "too short: 0.04 h, nights.min_hours is 0.06; truncated: file s/cut ends at epoch 5",
                "s/half": "too short: 0.03 h, nights.min_hours is 0.06",
                "s/short": "too short: 0.03 h, nights.min_hours is 0.06",
            },
        ),
    ],
)
def test_limits_of_nights(tmp_path: Path, keys: dict[str, float], refused: dict[str, str]) -> None:
    """Exactly at a limit a night is good; shards that were written of a refused one do not stay."""
    nights = {"s/short": "WL_LD", "s/half": "hLhL", "s/cut": "LLLLL!", "s/long": "L" * 14}
    manifest = make(nights, tmp_path, limits=keys)
    whole = {reject.name: reject.reason for reject in shards.read_rejects(str(tmp_path)) if reject.name in refused}
    assert whole == refused
    assert {row["name"].rpartition("/")[0] for row in rows(tmp_path)} == set(nights) - set(refused)
    on_disk = {str(path.relative_to(tmp_path)) for path in (tmp_path / "shards").iterdir()}
    assert on_disk == {shard.path for shard in manifest.shards}


def test_nights_may_fail_unless_a_share_is_given_or_all_do(tmp_path: Path) -> None:
    assert make({"a/n0": "W", "b/n0": "!", "c/n0": "!"}, tmp_path / "most").rows == 1
    with pytest.raises(CorpusError, match=r"1 of 2 nights \(50\.0%\) cannot be used, first 'b/n0' \(truncated: .*0\.4"):
        make({"a/n0": "W!", "b/n0": "!"}, tmp_path / "share", max_reject_share=0.4)
    with pytest.raises(CorpusError, match=r"nothing is left after 1 rejects \(first: truncated: "):
        make({"b/n0": "!"}, tmp_path / "none")


@pytest.mark.parametrize("format", ["mel", pytest.param("flac", marks=pytest.mark.long)])
def test_the_order_of_work_and_interruptions_do_not_matter(tmp_path: Path, format: str) -> None:
    """Two reasons whose order would depend on which night ends first."""
    nights = NIGHTS | BAD
    make(nights, tmp_path / "one", format=format)
    prepare(settings(nights, tmp_path / "two", format=format), reverse=True)
    wanted = files_below(tmp_path / "one")
    assert files_below(tmp_path / "two") == wanted
    begun = settings(nights, tmp_path / "three", format=format)
    plan = corpus.plan(begun, 0)
    assert len(plan.units) == plan.count() == len(nights)
    for unit in plan.units[:5]:
        units.process(plan.work, unit)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "three/shards").iterdir()}
    assert before
    prepare(begun)
    assert files_below(tmp_path / "three") == wanted
    assert {path: path.stat().st_mtime_ns for path in before} == before  # they were not made again


def test_an_error_of_the_storage_ends_the_work_in_the_middle_of_a_night(tmp_path: Path) -> None:
    """It is no reject. What was half done is done again, and shards that nobody lists go."""
    nights = NIGHTS | {"f/n0": "L" * 30 + "^"}
    whole = NIGHTS | {"f/n0": "L" * 30}
    with pytest.raises(StorageError, match="fake:f/n0: the network is down"):
        make(nights, tmp_path / "out")
    with pytest.raises(CorpusError, match="no prepared corpus"):
        shards.read_manifest(str(tmp_path / "out"))
    make(whole, tmp_path / "whole")
    make(whole, tmp_path / "out")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_a_night_that_failed_is_read_again(tmp_path: Path) -> None:
    config = settings(NIGHTS | BAD, tmp_path)
    plan = corpus.plan(config, 0)
    done = [units.process(plan.work, unit) for unit in plan.units]
    numbers = {record.digest: number for number, record in enumerate(done)}
    failed = {record.rejects[0].name for record in done if record.unusable()}
    assert failed == {"d/n0", "e/n0", "e/n1"}
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / ".work").glob("*.json")}
    again = [units.process(plan.work, unit) for unit in plan.units]
    assert again == done
    fresh = {int(path.stem) for path, written in records.items() if path.stat().st_mtime_ns != written}
    assert fresh == {numbers[record.digest] for record in done if record.unusable()}


def test_the_seed_changes_the_order_of_nights_and_nothing_else(tmp_path: Path) -> None:
    for seed in (0, 1):
        prepare(settings(NIGHTS, tmp_path / str(seed)), seed=seed)
    first, second = ([row["name"] for row in rows(tmp_path / str(seed))] for seed in (0, 1))
    assert first != second and sorted(first) == sorted(second)
    for names in (first, second):
        nights = [name.rpartition("/")[0] for name in names]
        assert len([*groupby(nights)]) == len(set(nights))  # each in one place


def test_overwriting_leaves_nothing_of_the_nights(tmp_path: Path) -> None:
    make(NIGHTS, tmp_path)
    corpus.clear(settings(NIGHTS, tmp_path))
    assert files_below(tmp_path) == {}


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    def broken(change: str, **more: Any) -> PreparedCorpusConfig:
        return settings({"a/n0": "W"}, tmp_path / change, **more)

    for key, value, hint in (
        ("conditions", {"count": 2, "per_utterance": 1}, "leave it out"),
        ("join", {"min_s": 1}, "leave it out"),
        ("channels", "mean", r"set source\.channels"),
        ("min_s", 3, r"set nights\.min_hours"),
    ):
        with pytest.raises(ValueError, match=rf"{key} does not go with a source of nights; {hint}"):
            broken("x", **{key: value})
    with pytest.raises(ValueError, match=r"splits\.few\.labelled would divide nights; give splits\.few\.nights"):
        broken("x", splits={"few": {"labelled": {"share": 0.5}}})
    tree: dict[str, Any] = {"source": {"name": "synthetic"}, "out": "x"}
    with pytest.raises(ConfigError, match=r"splits\.few\.nights needs a source of nights; give splits\.few\.labelled"):
        parse(PrepareConfig, {"corpora": {"a": {**tree, "splits": {"few": {"nights": {}}}}}}, "c.yaml")
    for more, name in (({"format": "mel"}, "format: mel"), ({"nights": {}}, "nights")):
        with pytest.raises(ConfigError, match=rf"{name} needs a source of nights; source\.name=synthetic"):
            parse(PrepareConfig, {"corpora": {"a": {**tree, **more}}}, "c.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("reference._replace(speaker=None)", r"night 'a/n0' has no subject; give it as Reference\.speaker"),
        ("reference._replace(recording=None)", r"night 'a/n0' has no recording; give it as Reference\.recording"),
        ("reference._replace(recording='x')", r"3 nights are 2 recordings of subjects; each night must be a recording"),
        ("reference._replace(name='x')", r"two nights are named 'x'; names must be unique"),
    ],
)
def test_a_source_must_name_its_nights_and_subjects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    """Else nights without a recording would be one night in the evaluation."""
    text = f"""
from tests.data.nights.fake_nights import FakeNights
class Nameless(FakeNights):
    class Config(FakeNights.Config):
        pass
    def list(self):
        for reference in super().list():
            yield {change}
"""
    (tmp_path / "source.py").write_text(text)
    nights = {"a/n0": "W", "a/n1": "W", "b/n0": "W"}
    tree = {"source": {"name": f"{tmp_path}/source.py:Nameless", "nights": nights}, "out": str(tmp_path / "out")}
    with pytest.raises(CorpusError, match=message) as caught:
        prepare(PreparedCorpusConfig.model_validate(tree))
    assert "\n" not in str(caught.value)


def test_synthetic_nights_become_a_corpus(tmp_path: Path) -> None:
    """Of the default source: every epoch of every night, with the stages and pictures of its source."""
    parts = [{"subjects": 2, "nights": 2, "hours": 0.03, "domain": "home"}]
    tree = {"source": {"name": "synthetic_nights", "seed": 3, "parts": parts}, "out": str(tmp_path), "format": "pcm16"}
    config = PreparedCorpusConfig.model_validate(tree)
    manifest = prepare(config)
    source = config.source.build()
    assert isinstance(source, SyntheticNights) and manifest.nights is not None
    wanted = {
        f"{reference.name}/{epoch.index:04d}": (epoch.stage, decode.quantise(epoch.samples))
        for reference in source.list()
        for epoch in source.epochs(reference)
    }
    found = {row["name"]: row for row in rows(tmp_path)}
    assert found.keys() == wanted.keys() and len(found) == 4 * 4 == manifest.rows
    for name, (stage, samples) in wanted.items():
        assert found[name]["label"] == stage
        np.testing.assert_array_equal(decode.pcm(found[name]["audio"], "pcm16"), samples)
    assert (manifest.nights.nights, manifest.nights.subjects, manifest.recordings) == (4, 2, 4)


def test_corpora_without_nights_are_those_of_before(tmp_path: Path) -> None:
    """These digests are of the commit before there were nights: finished corpora are not made again."""
    for digest, more in (
        ("19a68f9fd189fd67", {}),
        (
            "3386f25ccec991ea",
            {"format": "pcm16", "join": {"min_s": 1.0}, "conditions": {"count": 4, "per_utterance": 2}},
        ),
    ):
        tree = {"source": {"name": "synthetic", "speakers": 3}, "out": str(tmp_path), "shard_utterances": 5, **more}
        assert corpus.plan(PreparedCorpusConfig.model_validate(tree), 7).digest == digest


def test_a_manifest_of_before_is_read_and_its_splits_stay(tmp_path: Path) -> None:
    source = {"name": "synthetic", "speakers": 2, "recordings": 1, "utterances": 2, "seconds": 0.2}
    tree = {"source": source, "out": str(tmp_path)}
    config = PreparedCorpusConfig.model_validate(tree)
    manifest = prepare(config)
    place = tmp_path / shards.MANIFEST
    written = json.loads(place.read_text())
    assert (written.pop("nights"), written.pop("mel")) == (None, None)
    place.write_text(json.dumps(written))
    assert shards.read_manifest(str(tmp_path)) == manifest
    assert corpus.prepared(config, corpus.plan(config, 0)) == manifest
    assert integrity.verify(str(tmp_path)) == []


def test_rejects_are_told_of_the_night(tmp_path: Path) -> None:
    """A remark is no epoch that is missing."""
    manifest = make({"a/n0": "**W*"}, tmp_path)
    assert manifest.nights is not None and manifest.nights.dropped == {}
    reason = "unscored: the labels end early"
    assert shards.read_rejects(str(tmp_path)) == [Reject(name="a/n0", source="fake:a/n0", reason=reason)]
