"""Recordings become a corpus of segments: what is left out is counted, restarts go on, the order does not matter."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from rayssl.data import corpus, decode, integrity, shards, units
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.segments import detectors, examined, planned
from rayssl.data.segments.selection import select
from rayssl.data.shards import Manifest
from rayssl.errors import CorpusError
from rayssl.runtime.prepare import Prepared
from tests.data.corpora import encoded, prepare, write_folder
from tests.data.segments.talks import talk

TALKS = {"ann/a.flac": talk(0, (4.0, 3.0, 5.0)), "bob/b.wav": talk(1, (3.0, 1.0, 25.0)), "eve/c.mp3": talk(2, (6.0,))}
FORMATS = {"flac": ("FLAC", "PCM_16"), "wav": ("WAV", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}
WEBRTC = {"detector": "webrtc", "mode": 3}


def files() -> dict[str, bytes]:
    made = {name: encoded(samples, *FORMATS[name[-4:].strip(".")]) for name, samples in TALKS.items()}
    again = soundfile.read(io.BytesIO(made["ann/a.flac"]), dtype="int16")[0]
    buffer = io.BytesIO()
    soundfile.write(buffer, again, 16000, format="WAV")
    made["ann/copy.wav"] = buffer.getvalue()
    made["bob/worse.mp3"] = encoded(0.5 * TALKS["bob/b.wav"], "MP3", "MPEG_LAYER_III")
    return made


def config(tmp_path: Path, out: str = "out", **changes: Any) -> PreparedCorpusConfig:
    source = {"name": "folder", "uri": str(tmp_path / "in"), "layout": ["speaker"]}
    keys = {"source": source, "out": str(tmp_path / out), "format": "pcm16", "segments": WEBRTC, **changes}
    return PreparedCorpusConfig.model_validate(keys)


def rows(settings: PreparedCorpusConfig, manifest: Manifest) -> dict[str, dict[str, Any]]:
    found = [row for shard in manifest.shards for row in shards.read_shard(settings.out, shard).to_pylist()]
    return {row["name"]: row for row in found}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "in", files())
    return tmp_path


def test_segments_are_excerpts_with_their_times(folder: Path) -> None:
    settings = config(folder)
    manifest = prepare(settings)
    assert integrity.verify(settings.out) == []
    found = rows(settings, manifest)
    assert len(found) == 7  # 4, 3, 5; 3, 25 in two; 6. Of the copies of bob either stays
    for name, row in found.items():
        recording, _, times = name.partition("@")
        start, stop = (round(float(time) * 16000) for time in times.split("-"))
        whole = decode.quantise(decode.decode((folder / "in" / recording).read_bytes()))
        np.testing.assert_array_equal(decode.pcm(row["audio"], "pcm16"), whole[start:stop])
        assert 2 * 16000 <= row["samples"] <= 20 * 16000
    names = shards.read_labels(settings.out)
    assert names["speaker"] == ["ann", "bob", "eve"]
    assert {"ann/ann/a.flac", "eve/eve/c.mp3"} < set(names["recording"])


def test_what_is_left_out_is_counted_and_listed(folder: Path) -> None:
    settings = config(folder)
    manifest = prepare(settings)
    entry = manifest.segments
    assert entry is not None and entry.recordings == 5 and entry.kept == manifest.rows
    lost = entry.dropped
    assert entry.kept_seconds == pytest.approx(manifest.seconds, abs=0.01)
    assert entry.seconds == pytest.approx(entry.kept_seconds + sum(each.seconds for each in lost.values()), abs=0.05)
    assert lost["duplicate"].segments == 1
    assert lost["duplicate"].seconds == pytest.approx(len(TALKS["ann/a.flac"]) / 16000, abs=0.01)
    assert lost["near duplicate"].segments >= 3
    table = pq.read_table(f"{settings.out}/segments.parquet").to_pylist()
    reasons = {row["recording"]: row["reason"] for row in table if row["reason"]}
    assert reasons["ann/copy.wav"] == "duplicate of 'ann/a.flac'"
    # of two copies the longer one stays, or the first of both
    assert any(reason.startswith("near duplicate of 'bob/") for reason in reasons.values())
    kept = {f"{row['recording']}@{row['start']:.3f}-{row['stop']:.3f}" for row in table if not row["reason"]}
    assert kept == set(rows(settings, manifest))
    lines = Prepared(out=settings.out, manifest=manifest, reused=False, wall_s=1.0, reasons={}, trials={}).lines(
        "talks"
    )
    assert lines[1].startswith(f"  cut from 5 recordings of {entry.seconds / 3600:.2f} h: {entry.kept} segments of ")
    assert [line.rpartition(": ")[2] for line in lines[2:]] == list(lost)


@pytest.mark.parametrize("duplicates", ["keep", "exact", "near"])
def test_duplicates_stay_if_they_are_wanted(folder: Path, duplicates: str) -> None:
    manifest = prepare(config(folder, segments={**WEBRTC, "duplicates": duplicates}))
    assert manifest.segments is not None
    lost = set(manifest.segments.dropped) & {"duplicate", "near duplicate"}
    assert lost == {"keep": set(), "exact": {"duplicate"}, "near": {"duplicate", "near duplicate"}}[duplicates]


def test_the_corpus_does_not_depend_on_the_order_or_on_interruptions(folder: Path) -> None:
    first = prepare(config(folder, shard_utterances=3))
    assert len(first.shards) > 1
    again = prepare(config(folder, "again", shard_utterances=3), reverse=True)
    assert first.fingerprint == again.fingerprint and first.segments == again.segments
    settings = config(folder, "other", shard_utterances=3)
    assert settings.segments is not None
    work = corpus.prepare_work(settings, 0)
    found = list(planned.examine_all(work))[::-1]
    plan = corpus.plan(settings, 0, selection=select(found, settings.segments))
    assert plan.digest == first.settings["plan"]


def test_a_restart_does_not_examine_a_recording_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(folder)
    work = corpus.prepare_work(settings, 0)
    asked = planned.asked(work)
    for references in asked[:3]:
        list(planned.examined(work, references))
    heard = list[str]()
    read = examined.blocks
    monkeypatch.setattr(
        examined,
        "blocks",
        lambda source, reference, channels: heard.append(reference.name) or read(source, reference, channels),
    )
    manifest = prepare(settings)
    assert len(heard) == len(asked) - 3
    # a complete corpus is found without a look at its recordings
    from rayssl.data.segments.selection import digest

    listed = digest(reference for some in planned.asked(work) for reference in some)
    assert corpus.divided(settings, listed) == manifest
    assert corpus.divided(config(folder, segments={**WEBRTC, "min_s": 3}), listed) is None
    (folder / "in/bob/b.wav").unlink()
    listed = digest(reference for some in planned.asked(work) for reference in some)
    assert corpus.divided(settings, listed) is None


def test_an_unusable_recording_is_a_reject_and_is_examined_again(folder: Path) -> None:
    (folder / "in/eve/d.flac").write_bytes(files()["ann/a.flac"][:20000])
    (folder / "in/eve/e.wav").write_bytes(encoded(np.zeros(50000), "WAV"))
    with pytest.raises(CorpusError, match=r"2 of 7 recordings \(28\.6%\) cannot be used, first 'eve/d\.flac' \(unrea"):
        prepare(config(folder))
    settings = config(folder, max_reject_share=0.5)
    manifest = prepare(settings)
    reasons = {reject.name: reject.reason for reject in shards.read_rejects(settings.out)}
    assert reasons["eve/e.wav"] == "silent: every sample is zero" and reasons["eve/d.flac"].startswith("unreadable")
    assert manifest.rejected == 2 and manifest.segments is not None and manifest.segments.recordings == 5


def test_no_speech_anywhere_is_one_line(tmp_path: Path) -> None:
    quiet = (1e-4 * np.random.default_rng(0).standard_normal(80000)).astype(np.float32)
    write_folder(tmp_path / "in", {"a/a.flac": encoded(quiet)})
    with pytest.raises(
        CorpusError, match=r"out: no segment is left of 1 recordings \(5\.0 s no speech\); lower segments"
    ):
        prepare(config(tmp_path))


def test_all_audio_without_a_detector_from_a_tar(tmp_path: Path) -> None:
    samples = talk(0, (30.0,))
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/a.tar", "w") as tar:
        for name in ("one.flac", "two.flac"):
            data = encoded(samples if name == "one.flac" else samples[::-1].copy())
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    segments = {"detector": "none", "max_s": 10}
    settings = config(tmp_path, source={"name": "webdataset", "uri": str(tmp_path / "in")}, segments=segments)
    manifest = prepare(settings)
    assert manifest.rows == 8 and manifest.seconds == pytest.approx(66.0, abs=0.1)
    assert manifest.recordings == 2


@pytest.mark.parametrize("changes", [{"conditions": {"count": 4, "per_utterance": 2}}, {"format": "flac"}])
def test_conditions_and_formats_go_with_segments(folder: Path, changes: dict[str, Any]) -> None:
    plain = prepare(config(folder, "plain"))
    manifest = prepare(config(folder, **changes))
    assert manifest.rows == plain.rows * (2 if "conditions" in changes else 1)
    assert integrity.verify(str(folder / "out")) == []


def test_settings_that_do_not_go_together() -> None:
    for changes, message in (
        ({"join": {"min_s": 4}}, "join does not go with segments"),
        ({"source": {"name": "synthetic_nights"}, "format": "flac"}, "segments does not go with a source of nights"),
    ):
        with pytest.raises(ValueError, match=message):
            config(Path("x"), **changes)


def test_units_need_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit gets about as many seconds as fit, whatever shard_utterances says."""
    from rayssl.data.segments import selection

    monkeypatch.setattr(selection, "_SHARD_S", 12.0)
    write_folder(tmp_path / "in", files())
    settings = config(tmp_path)
    plan = corpus.plan(settings, 0)
    sizes: Sequence[int] = [unit.utterances for unit in plan.units]
    assert len(sizes) >= 3
    done = [units.process(plan.work, unit) for unit in plan.units]
    assert max(record.shard.seconds for record in done if record.shard) < 3 * 12.0


def test_the_detector_is_looked_for_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"segments\.detector: webrtc needs webrtcvad; pip install 'rayssl\[vad\]'"):
        prepare(config(folder))
