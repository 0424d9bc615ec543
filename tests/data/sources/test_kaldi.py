"""Data folders of Kaldi."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayssl.data import decode
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.kaldi import KaldiConfig
from rayssl.errors import CorpusError
from tests.data.corpora import encoded, listed, read, sine

LONG = sine(1, 3.0)


def folder(root: Path, **files: str) -> KaldiConfig:
    """A data folder with two recordings of 3 s and 1 s; ``files`` are its lists, ``wav_scp`` for wav.scp."""
    (root / "audio").mkdir(exist_ok=True)
    (root / "audio" / "rec 1.flac").write_bytes(encoded(LONG))
    (root / "audio" / "rec2.wav").write_bytes(encoded(sine(2, 1.0), "WAV"))
    given = {"wav_scp": "r1 audio/rec 1.flac\nr2\taudio/rec2.wav\n", **files}
    for name, text in given.items():
        (root / name.replace("_", ".")).write_text(text)
    return KaldiConfig(uri=str(root), label="utt2lang" if "utt2lang" in files else None)


def test_entries_of_wav_scp_are_utterances(tmp_path: Path) -> None:
    config = folder(tmp_path, utt2spk="r1 ann\nr2 bob\n", utt2lang="r1 en\n")
    found = listed(config)
    assert [(one.name, one.speaker, one.recording, one.label) for one in found] == [
        ("r1", "ann", None, "en"),
        ("r2", "bob", None, None),
    ]
    assert read(config, found[::-1]) == {
        "r1": (tmp_path / "audio" / "rec 1.flac").read_bytes(),
        "r2": (tmp_path / "audio" / "rec2.wav").read_bytes(),
    }


def test_segments_are_utterances_of_their_recording(tmp_path: Path) -> None:
    segments = "a r1 0.5 1.25\nb r2 0 1.2\nc r1 1.25 3.0\nlate r2 2 3\n"
    config = folder(tmp_path, segments=segments, utt2spk="a ann\nb bob\nc ann\nlate bob\n")
    found = listed(config)
    assert [(one.name, one.speaker, one.recording) for one in found[:3]] == [
        ("a", "ann", "r1"),
        ("b", "bob", "r2"),
        ("c", "ann", "r1"),
    ]
    audio = read(config, found)
    whole = decode.decode((tmp_path / "audio" / "rec 1.flac").read_bytes())
    np.testing.assert_array_equal(audio["a"], whole[8000:20000])
    np.testing.assert_array_equal(audio["c"], whole[20000:48000])
    assert len(np.asarray(audio["b"])) == 16000  # a segment may end a little after its recording
    assert str(audio["late"]) == "segment outside of its recording: 2 to 3 s"
    assert CheckedSource(config).place(found[0]) == "audio/rec 1.flac (0.5 to 1.25 s)"


MISTAKES = {
    "wav.scp: entry 2 .'r2'. is a command; convert": {"wav_scp": "r1 a.wav\nr2 sph2pipe -f wav b.sph |\n"},
    "wav.scp: line 2: the key 'r1' comes twice": {"wav_scp": "r1 a.wav\nr1 b.wav\n"},
    "wav.scp: line 1: expected a key and a value, got 'r1'": {"wav_scp": "r1\n"},
    "segments: 'a': wav.scp has no recording 'r9'": {"segments": "a r9 0 1\n"},
    "segments: 'a': expected a recording, a start and an end": {"segments": "a r1 1 0.5\n"},
    "segments: 'b': expected a recording, a start and an end": {"segments": "a r1 0 1\nb r1 0 -1\n"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_name_the_file_and_the_entry(tmp_path: Path, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        listed(folder(tmp_path, **MISTAKES[message]))


def test_a_file_that_is_absent_is_refused(tmp_path: Path) -> None:
    config = folder(tmp_path, wav_scp="r1 nowhere.wav\n")
    assert str(read(config, listed(config))["r1"]).startswith("no such file; paths in wav.scp are relative")
