"""Preparation without Ray: the same result however it was made, rejects with reasons, restarts, conditions, joins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from rayssl.data import corpus, decode, integrity, shards, units
from rayssl.data.corpus import PrepareConfig, PreparedCorpusConfig
from rayssl.errors import ConfigError, CorpusError
from rayssl.schema import parse
from tests.data import corpora
from tests.data.corpora import encoded, files_below, folder_config, prepare, sine

CONDITIONS = {"count": 6, "per_utterance": 2}


SPLIT = {"labelled": {"share": 0.5}}


def rows_of(uri: Path) -> list[dict[str, object]]:
    manifest = shards.read_manifest(str(uri))
    return [row for shard in manifest.shards for row in shards.read_shard(str(uri), shard).to_pylist()]


@pytest.mark.parametrize(
    "changes", [{}, {"conditions": CONDITIONS}, {"conditions": CONDITIONS, "join": {"min_s": 1.0}}]
)
def test_two_preparations_are_equal_byte_for_byte(tmp_path: Path, changes: dict[str, object]) -> None:
    for out, reverse in (("one", False), ("two", True)):
        prepare(folder_config(tmp_path / "in", tmp_path / out, **changes), reverse=reverse)
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
    assert integrity.verify(str(tmp_path / "one")) == []


def test_the_seed_changes_the_order_and_nothing_else(tmp_path: Path) -> None:
    for seed in (0, 1):
        prepare(folder_config(tmp_path / "in", tmp_path / str(seed)), seed=seed)
    first, second = ([str(row["name"]) for row in rows_of(tmp_path / str(seed))] for seed in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)
    assert first != sorted(first)


def test_an_interrupted_preparation_goes_on_and_keeps_what_is_finished(tmp_path: Path) -> None:
    prepare(folder_config(tmp_path / "in", tmp_path / "whole"))
    settings = folder_config(tmp_path / "in", tmp_path / "out")
    plan = corpus.plan(settings, 0)
    assert len(plan.units) > 1
    done = units.process(plan.work, plan.units[0])
    assert done.shard is not None
    finished = tmp_path / "out" / done.shard.path
    before = finished.stat().st_ino, finished.stat().st_mtime_ns
    with pytest.raises(CorpusError, match="run rayssl prepare"):
        shards.read_manifest(str(tmp_path / "out"))  # nobody takes the half for the whole
    prepare(settings)
    assert (finished.stat().st_ino, finished.stat().st_mtime_ns) == before
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_records_of_other_settings_are_not_taken_over(tmp_path: Path) -> None:
    prepare(folder_config(tmp_path / "in", tmp_path / "whole", format="pcm16"))
    for format in ("flac", "pcm16"):
        settings = folder_config(tmp_path / "in", tmp_path / "out", format=format)
        plan = corpus.plan(settings, 0)
        units.process(plan.work, plan.units[0])
    prepare(settings)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_a_complete_corpus_is_recognised_and_another_is_not_overwritten(tmp_path: Path) -> None:
    settings = folder_config(tmp_path / "in", tmp_path / "out")
    assert corpus.prepared(settings, corpus.plan(settings, 0)) is None
    manifest = prepare(settings)
    assert corpus.prepared(settings, corpus.plan(settings, 0)) == manifest
    with pytest.raises(CorpusError, match=r"out: holds a corpus that was made with other settings.*--overwrite"):
        corpus.prepared(settings, corpus.plan(settings, 7))
    corpus.clear(settings)
    assert files_below(tmp_path / "out") == {}


BROKEN = {
    "text.wav": (b"this is text\n" * 50, "unreadable: format not recognised"),
    "half.flac": (encoded(sine(1))[:6000], "unreadable: "),
    "nothing.wav": (b"", "empty: the file has no bytes"),
    "nan.wav": (encoded(np.full(8000, np.nan), "WAV", "FLOAT"), "not finite: "),
    "short.wav": (encoded(sine(1, 0.05)), "too short: 0.050 s, min_s is 0.1"),
    "surround.wav": (encoded(np.zeros((8000, 6)), "WAV"), "6 channels: set channels"),
    "silent.wav": (encoded(np.zeros(8000), "WAV"), "silent: "),
}


def test_rejects_are_recorded_with_their_reasons(tmp_path: Path) -> None:
    files = corpora.clips() | {f"spk0/rec0/{name}": data for name, (data, _) in BROKEN.items()}
    settings = folder_config(tmp_path / "in", tmp_path / "out", files, max_reject_share=0.5, conditions=CONDITIONS)
    manifest = prepare(settings)
    assert manifest.rows == 24
    assert manifest.rejected == len(BROKEN)  # once each, however many renderings were wanted
    rejects = {reject.name: reject for reject in shards.read_rejects(settings.out)}
    for name, (_, reason) in BROKEN.items():
        reject = rejects[f"spk0/rec0/{name}"]
        assert reject.reason.startswith(reason)
        assert reject.source.endswith(name)


def test_too_many_rejects_fail_with_count_share_first_and_key(tmp_path: Path) -> None:
    files = corpora.clips() | {"spk0/rec0/text.wav": b"this is text\n" * 50}
    settings = folder_config(tmp_path / "in", tmp_path / "out", files)
    message = r"1 of 13 utterances \(7\.7%\).*'spk0/rec0/text\.wav' \(unreadable.*max_reject_share \(now 0\.01\)"
    with pytest.raises(CorpusError, match=message):
        prepare(settings)
    assert not (tmp_path / "out" / shards.MANIFEST).exists()
    (tmp_path / "in/spk0/rec0/text.wav").write_bytes(encoded(sine(40)))  # mended: the next try looks again
    assert prepare(settings).rows == 13


def test_conditions_are_recordings_of_their_own(tmp_path: Path) -> None:
    manifest = prepare(folder_config(tmp_path / "in", tmp_path / "out", conditions=CONDITIONS))
    rows = rows_of(tmp_path / "out")
    names = shards.read_labels(str(tmp_path / "out"))
    assert manifest.rows == len(rows) == 24
    for row in rows:
        clip, _, condition = str(row["name"]).partition("#c")
        speaker, recording, _ = clip.split("/")
        assert names["recording"][int(str(row["recording"]))] == f"{speaker}/{recording}#c{condition}"
        assert names["speaker"][int(str(row["speaker"]))] == speaker
    assert len({row["audio"] for row in rows}) == 24


@pytest.mark.parametrize(("leftover", "expected"), [("keep", 6), ("reject", 5)])
def test_joined_clips_share_speaker_and_recording(tmp_path: Path, leftover: str, expected: int) -> None:
    files = corpora.clips()
    del files["spk0/rec0/06.flac"]  # spk0/rec0 keeps one clip of 0.5 s, every other recording two
    join = {"min_s": 0.9, "leftover": leftover}
    settings = folder_config(tmp_path / "in", tmp_path / "out", files, join=join)
    manifest = prepare(settings)
    rows = {str(row["name"]): row for row in rows_of(tmp_path / "out")}
    assert manifest.rows == len(rows) == expected
    joined = decode.pcm(bytes(rows["spk1/rec0/000"]["audio"]), "flac")  # type: ignore[arg-type]
    parts = [decode.quantise(decode.decode(files[f"spk1/rec0/{k}.flac"])) for k in ("01", "07")]
    assert np.array_equal(joined, np.concatenate(parts))
    reasons = [reject.reason for reject in shards.read_rejects(settings.out)]
    assert len(reasons) == (leftover == "reject")
    assert all(reason.startswith("too short to join: all clips together are 0.500 s") for reason in reasons)


def test_joined_clips_share_their_condition(tmp_path: Path) -> None:
    settings = folder_config(tmp_path / "in", tmp_path / "out", join={"min_s": 0.9}, conditions=CONDITIONS)
    assert prepare(settings).rows == 6 * 2
    rows = rows_of(tmp_path / "out")
    names = shards.read_labels(settings.out)["recording"]
    assert all(row["samples"] == 16000 for row in rows)
    assert sorted(str(row["name"]) for row in rows) == sorted(f"{name}/000" for name in names)


def test_each_clip_has_conditions_of_its_own_where_they_are_drawn_per_clip(tmp_path: Path) -> None:
    files = corpora.clips(30)
    settings = folder_config(
        tmp_path / "in", tmp_path / "out", files, join={"min_s": 0.5}, conditions={**CONDITIONS, "per": "clip"}
    )
    manifest = prepare(settings)
    rows, names = rows_of(tmp_path / "out"), shards.read_labels(settings.out)["recording"]
    assert manifest.rows == 30 * 2  # every clip is an utterance here, so each can be found again by its recording
    per_recording = {name: sum(names[int(str(row["recording"]))] == name for row in rows) for name in names}
    for recording in {name.split("#")[0] for name in names}:
        counts = [count for name, count in per_recording.items() if name.startswith(f"{recording}#")]
        assert sum(counts) == 2 * 5 and len(counts) > 2, "five clips under two each, not all under the same two"


def test_unknown_facts_are_minus_one(tmp_path: Path) -> None:
    uri = corpora.write_folder(tmp_path / "in", corpora.clips())
    prepare(
        PreparedCorpusConfig.model_validate({"source": {"name": "folder", "uri": uri}, "out": str(tmp_path / "out")})
    )
    assert {(row["speaker"], row["recording"], row["label"]) for row in rows_of(tmp_path / "out")} == {(-1, -1, -1)}


def test_shards_are_about_equal(tmp_path: Path) -> None:
    manifest = prepare(folder_config(tmp_path / "in", tmp_path / "out", corpora.clips(31, 0.2), shard_utterances=10))
    assert sorted(shard.rows for shard in manifest.shards) == [10, 10, 11]


def test_mistakes_are_told_before_any_audio_is_read(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(CorpusError, match="none: no utterances found"):
        corpus.plan(folder_config(tmp_path / "none", tmp_path / "out", {}), 0)
    folder = {"name": "folder", "uri": corpora.write_folder(tmp_path / "in", corpora.clips())}
    settings = PreparedCorpusConfig.model_validate({"source": folder, "out": "x", "join": {"min_s": 1}})
    with pytest.raises(CorpusError, match=r"join needs recordings, and 12 utterances have none \(first 'spk0/rec0/00"):
        corpus.plan(settings, 0)
    for name in ("a", "b"):
        corpora.write_parquet(tmp_path / "rows" / f"{name}.parquet", corpora.clips())
    rows = {"name": "parquet", "uri": str(tmp_path / "rows")}
    with pytest.raises(CorpusError, match=r"two utterances are named 'spk0/rec0/00\.flac'"):
        corpus.plan(PreparedCorpusConfig.model_validate({"source": rows, "out": "x"}), 0)
    trials = {"t": {"out": "y", "source": "z"}}
    with pytest.raises(ValidationError, match=r"trials\.t\.source"):
        PreparedCorpusConfig.model_validate({"source": rows, "out": "x", "join": {"min_s": 1}, "trials": trials})


def labelled_config(folder: Path, out: Path, **changes: object) -> PreparedCorpusConfig:
    """The clips of `folder_config`, their speakers as labels."""
    uri = corpora.write_folder(folder, corpora.clips())
    source = {"name": "folder", "uri": uri, "layout": ["label", "recording"]}
    return PreparedCorpusConfig.model_validate({"source": source, "out": str(out), "shard_utterances": 5, **changes})


def test_splits_of_a_complete_corpus_change_without_its_audio(tmp_path: Path) -> None:
    """What comes out is what a preparation from nothing makes; only the manifest and the splits are written."""
    plain = labelled_config(tmp_path / "in", tmp_path / "out")
    wanted = {"half": SPLIT, "few": {"labelled": {"per_class": 1}, "open_set": ["spk1"]}}
    split = labelled_config(tmp_path / "in", tmp_path / "out", splits=wanted)
    plan = corpus.plan(plain, 0)
    assert corpus.plan(split, 0).digest == plan.digest
    before = prepare(plain)
    assert before.splits == {} and corpus.renew_splits(plain, before) is before
    files = {path: path.stat() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    found = corpus.prepared(split, plan)
    assert found is not None
    after = corpus.renew_splits(split, found)
    assert after == shards.read_manifest(split.out) == before.model_copy(update={"splits": after.splits})
    assert list(after.splits) == ["half", "few"] and after.fingerprint == before.fingerprint
    for path, stat in files.items():
        if path.name != shards.MANIFEST:
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert prepare(labelled_config(tmp_path / "in", tmp_path / "new", splits=wanted)) == after
    assert files_below(tmp_path / "new") == files_below(tmp_path / "out")
    assert integrity.verify(split.out) == [] and corpus.renew_splits(split, after) is after
    corpus.clear(split)
    assert files_below(tmp_path / "out") == {}


def test_only_changed_and_damaged_splits_are_made_again_and_others_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = labelled_config(tmp_path / "in", out, splits={"kept": SPLIT, "other": SPLIT, "damaged": SPLIT})
    manifest = prepare(first)
    kept, damaged = (out / "splits" / f"{name}.parquet" for name in ("kept", "damaged"))
    before, sound = kept.stat(), damaged.read_bytes()
    damaged.write_bytes(sound[:-1])
    changed = {"labelled": {"per_class": 3}, "seed": 4}
    second = labelled_config(tmp_path / "in", out, splits={"other": changed, "damaged": SPLIT, "kept": SPLIT})
    assert corpus.renew_splits(second, manifest).splits["other"].labelled == 9
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert damaged.read_bytes() == sound
    third = labelled_config(tmp_path / "in", out, splits={"other": changed})
    assert list(corpus.renew_splits(third, shards.read_manifest(str(out))).splits) == ["other"]
    assert [path.name for path in (out / "splits").iterdir()] == ["other.parquet"]
    assert integrity.verify(str(out)) == []


def test_a_corpus_made_before_there_were_splits_is_read(tmp_path: Path) -> None:
    settings = labelled_config(tmp_path / "in", tmp_path / "out")
    manifest = prepare(settings)
    place = tmp_path / "out" / shards.MANIFEST
    tree = json.loads(place.read_text())
    del tree["splits"]
    place.write_text(json.dumps(tree))
    assert shards.read_manifest(settings.out) == manifest
    assert corpus.prepared(settings, corpus.plan(settings, 0)) == manifest


def test_splits_that_do_not_fit_are_told_before_any_audio_is_read(tmp_path: Path) -> None:
    wanted = {"s": {**SPLIT, "open_set": ["spk7"]}}
    settings = labelled_config(tmp_path / "in", tmp_path / "out", splits=wanted)
    with pytest.raises(CorpusError, match=r"out: splits\.s\.open_set: 'spk7' is no label.*did you mean 'spk[012]'"):
        corpus.plan(settings, 0)
    settings = folder_config(tmp_path / "in", tmp_path / "out", splits={"s": SPLIT})
    with pytest.raises(CorpusError, match=r"out: splits\.s: the corpus has no labels"):
        corpus.plan(settings, 0)
    tree = {"corpora": {"a": {"out": "o", "source": {"name": "folder", "uri": "u"}, "splits": {"x/y": SPLIT}}}}
    with pytest.raises(ConfigError, match=r"c\.yaml: 'corpora\.a\.splits\.x/y.*match pattern"):
        parse(PrepareConfig, tree, "c.yaml")
