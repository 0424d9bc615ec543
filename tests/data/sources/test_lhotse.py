"""Manifests that Lhotse itself writes, and what is refused of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from pydantic import ValidationError

from rayssl.data import decode
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.lhotse import LhotseConfig
from rayssl.errors import CorpusError
from tests.data.corpora import encoded, listed, read, sine

MONO, LEFT, RIGHT = sine(1, 3.0), sine(2, 4.0), sine(3, 4.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recording of one channel and a call of two, and everything that Lhotse writes of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mono.flac").write_bytes(encoded(MONO))
    soundfile.write("call.wav", np.stack([LEFT, RIGHT], axis=1), 16000)
    recordings = RecordingSet.from_recordings([Recording.from_file("mono.flac"), Recording.from_file("call.wav")])
    said = [
        SupervisionSegment("m1", "mono", 0.5, 1.25, 0, speaker="ann", language="en", custom={"place": "north"}),
        SupervisionSegment("m2", "mono", 2.0, 1.0, 0, speaker="ann", language="de"),
        SupervisionSegment("c1", "call", 1.0, 2.0, 0, speaker="bob", language="en"),
        SupervisionSegment("c2", "call", 0.25, 3.0, 1, speaker="eve", language="en"),
    ]
    supervisions = SupervisionSet.from_segments(said)
    recordings.to_file("recordings.jsonl.gz")
    supervisions.to_file("supervisions.jsonl")
    cuts = CutSet.from_manifests(recordings, supervisions)
    cuts.to_eager().to_file("cuts.jsonl.gz")
    cuts.trim_to_supervisions(keep_overlapping=False).to_eager().to_file("trimmed.jsonl")
    cuts.pad(duration=5).to_eager().to_file("padded.jsonl")
    cuts.perturb_speed(1.1).to_eager().to_file("faster.jsonl")
    cuts.resample(8000).to_eager().to_file("resampled.jsonl")
    return tmp_path


def config(folder: Path, **keys: Any) -> LhotseConfig:
    return LhotseConfig.model_validate({"uri": str(folder), **keys})


def check(found: dict[str, Any], name: str, samples: np.ndarray) -> None:
    audio = found[name]
    made = decode.decode(audio, "mean") if isinstance(audio, bytes) else audio
    np.testing.assert_allclose(made, samples, atol=2e-4)


def test_supervisions(folder: Path) -> None:
    lists = config(folder, recordings="recordings.jsonl.gz", supervisions="supervisions.jsonl", label="language")
    found = listed(lists)
    assert [(one.name, one.speaker, one.recording, one.label) for one in found] == [
        ("m1", "ann", "mono", "en"),
        ("m2", "ann", "mono", "de"),
        ("c1", "bob", "call", "en"),
        ("c2", "eve", "call", "en"),
    ]
    audio = read(lists, found)
    check(audio, "m1", MONO[8000:28000])
    check(audio, "m2", MONO[32000:48000])
    check(audio, "c1", LEFT[16000:48000])
    check(audio, "c2", RIGHT[4000:52000])
    assert CheckedSource(lists).place(found[0]) == "mono.flac (0.5 to 1.75 s)"


def test_recordings_and_cuts(folder: Path) -> None:
    lists = config(folder, recordings="recordings.jsonl.gz")
    audio = read(lists, listed(lists))
    assert audio["mono"] == (folder / "mono.flac").read_bytes()
    check(audio, "call", (LEFT + RIGHT) / 2)
    cuts = config(folder, cuts="trimmed.jsonl", label="custom.place")
    found = listed(cuts)
    assert {(one.speaker, one.label) for one in found} == {
        ("ann", "north"),
        ("ann", None),
        ("bob", None),
        ("eve", None),
    }
    audio = read(cuts, found)
    by_speaker = {one.speaker: one.name for one in found if one.speaker != "ann"}
    check(audio, by_speaker["bob"], LEFT[16000:48000])
    check(audio, by_speaker["eve"], RIGHT[4000:52000])
    # a cut of which the speakers differ has none, and so it is with labels
    whole = listed(config(folder, cuts="cuts.jsonl.gz", label="language"))
    assert {(one.recording, one.speaker, one.label) for one in whole} >= {("mono", "ann", None)}
    assert len(listed(config(folder, cuts="resampled.jsonl"))) == len(whole)


def test_audio_may_lie_elsewhere(folder: Path) -> None:
    (folder / "lists").mkdir()
    (folder / "recordings.jsonl.gz").rename(folder / "lists/recordings.jsonl.gz")
    lists = config(folder / "lists", recordings="recordings.jsonl.gz", audio=str(folder))
    assert set(read(lists, listed(lists))) == {"mono", "call"}
    lists = config(folder / "lists", recordings="recordings.jsonl.gz")
    assert str(read(lists, listed(lists))["mono"]).startswith("no such file; paths in manifests are relative")


REFUSED = {
    "padded.jsonl": r"padded\.jsonl: line 1: a MixedCut; MonoCut and MultiCut are read; save its audio, and list that$",
    "faster.jsonl": r"faster\.jsonl: line 1: '.*' is transformed \(Speed\); save its audio, list that$",
}


@pytest.mark.parametrize("name", REFUSED)
def test_audio_that_must_be_computed_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(CorpusError, match=REFUSED[name]):
        listed(config(folder, cuts=name))


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> LhotseConfig:
    lines = gzip.decompress((folder / "recordings.jsonl.gz").read_bytes()).splitlines()
    found = [json.loads(line) for line in lines]
    change(found[1])
    (folder / "edited.jsonl").write_text("\n".join(map(json.dumps, found)))
    return config(folder, recordings="edited.jsonl")


MISTAKES: dict[str, Callable[[dict[str, Any]], Any]] = {
    r"line 2: recording 'call' is a command; save its": lambda one: one["sources"][0].update(type="command"),
    r"line 2: no key 'duration', which Lhotse writes": lambda one: one.pop("duration"),
    r"line 2: not an object with an id": lambda one: one.pop("id"),
    r"line 2: a value of the wrong type": lambda one: one.update(sources=7),
    r"line 2: 'call' begins at 0 s and has -1 s": lambda one: one.update(duration=-1.0),
    r"line 2: recording 'call' has its channels in several files": lambda one: one.update(
        sources=[{"type": "file", "channels": [k], "source": f"{k}.wav"} for k in (0, 1)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_name_the_line(folder: Path, message: str) -> None:
    with pytest.raises(CorpusError, match=rf"edited\.jsonl: {message}"):
        listed(edited(folder, MISTAKES[message]))


def test_damaged_lists_are_told(folder: Path) -> None:
    data = (folder / "recordings.jsonl.gz").read_bytes()
    (folder / "cut.jsonl.gz").write_bytes(data[:-12])
    (folder / "plain.jsonl.gz").write_bytes(b"{}")
    (folder / "text.jsonl").write_text("id: a\n")
    for name, said in (("cut.jsonl.gz", "damaged"), ("plain.jsonl.gz", "damaged"), ("text.jsonl", "line 1: not JSON")):
        with pytest.raises(CorpusError, match=rf"{name}: {said}"):
            listed(config(folder, recordings=name))
    lists = config(folder, recordings="cut.jsonl.gz", supervisions="supervisions.jsonl")
    with pytest.raises(CorpusError):
        listed(lists)


def test_an_unknown_recording_and_missing_lists_are_told(folder: Path) -> None:
    (folder / "one.jsonl").write_text(
        gzip.decompress((folder / "recordings.jsonl.gz").read_bytes()).decode().split("\n")[0]
    )
    with pytest.raises(CorpusError, match=r"supervisions\.jsonl: line 3: one\.jsonl has no recording 'call'$"):
        listed(config(folder, recordings="one.jsonl", supervisions="supervisions.jsonl"))
    with pytest.raises(ValidationError, match="give cuts, or recordings with or without supervisions"):
        config(folder)
    with pytest.raises(ValidationError, match="cuts hold their supervisions"):
        config(folder, cuts="a", supervisions="b")
