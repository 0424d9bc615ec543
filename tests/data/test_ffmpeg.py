"""Every format against every fault: what is decoded is as long as FFmpeg finds it, and what is cut is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from rayssl.data import decode
from rayssl.data.recordings import stream
from tests.data.corpora import encoded, sine

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SECONDS = 2.088
#: How FFmpeg writes a format: the suffix, its options, and by how many samples at 16 kHz decoders may differ (padding).
FORMATS: dict[str, tuple[str, str, int]] = {
    "wav": ("wav", "-c:a pcm_s16le", 0),
    "wav 24": ("wav", "-c:a pcm_s24le", 0),
    "wav float": ("wav", "-c:a pcm_f32le", 0),
    "wav 8 bit": ("wav", "-c:a pcm_u8", 0),
    "wav alaw 8 kHz": ("wav", "-c:a pcm_alaw -ar 8000", 1),
    "wav ms adpcm": ("wav", "-c:a adpcm_ms", 2000),
    "wav ima adpcm": ("wav", "-c:a adpcm_ima_wav", 2000),
    "rf64": ("wav", "-c:a pcm_s16le -rf64 always", 0),
    "w64": ("w64", "-c:a pcm_s16le", 0),
    "aiff": ("aiff", "-c:a pcm_s16be", 0),
    "au": ("au", "-c:a pcm_s16be", 0),
    "caf": ("caf", "-c:a pcm_s16be", 0),
    "flac": ("flac", "-c:a flac", 0),
    "flac 44.1 kHz": ("flac", "-c:a flac -ar 44100", 2),
    "vorbis": ("ogg", "-c:a libvorbis", 64),
    "opus": ("ogg", "-c:a libopus", 400),
    "mp3": ("mp3", "-c:a libmp3lame -b:a 64k", 1200),
    "mp3 variable": ("mp3", "-c:a libmp3lame -q:a 4", 1200),
    "mp3 without a header": ("mp3", "-c:a libmp3lame -b:a 64k -write_xing 0", 2400),
    "mp3 variable without a header": ("mp3", "-c:a libmp3lame -q:a 4 -write_xing 0", 2400),
    "m4a": ("m4a", "-c:a aac", 1200),
    "mp4 fragmented": ("mp4", "-c:a aac -movflags frag_keyframe+empty_moov", 1200),
    "aac": ("aac", "-c:a aac", 1200),
    "matroska": ("mka", "-c:a flac", 0),
    "webm": ("webm", "-c:a libopus", 400),
}
#: Formats that can be written to a pipe, so that their headers promise too little or too much.
PIPED = {
    "wav": "wav", "wav float": "wav", "w64": "w64", "au": "au", "flac": "flac", "vorbis": "ogg", "opus": "ogg",
    "mp3": "mp3", "mp3 variable": "mp3", "mp3 variable without a header": "mp3", "aac": "adts", "matroska": "matroska",
    "webm": "webm",
}  # fmt: skip
#: In these nothing tells how long they should be.
ENDLESS = {"mp3 without a header", "mp3 variable without a header"}


def ffmpeg(*arguments: str, given: bytes = b"") -> bytes:
    command = [FFMPEG, "-nostdin", "-loglevel", "error", "-y", *arguments]
    if given:
        command.remove("-nostdin")
    return subprocess.run(command, input=given or None, capture_output=True, timeout=60, check=True).stdout


def length(path: Path) -> int:
    """How many samples FFmpeg finds, at 16 kHz."""
    return len(ffmpeg("-i", str(path), "-f", "s16le", "-ac", "1", "-ar", "16000", "-")) // 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ffmpeg") / "source.wav"
    path.write_bytes(encoded(sine(3, SECONDS), "WAV"))
    return path


def check(path: Path, name: str, expected: int | None = None) -> None:
    """Both ways of decoding find what FFmpeg finds."""
    data, tolerance = path.read_bytes(), FORMATS[name][2]
    samples = decode.decode(data)
    assert abs(len(samples) - (length(path) if expected is None else expected)) <= tolerance
    with path.open("rb") as file:
        np.testing.assert_array_equal(np.concatenate(list(stream(file))), samples)


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS)
def test_whole_tagged_and_cut(name: str, source: Path) -> None:
    suffix, options, _ = FORMATS[name]
    path = source.parent / f"{name.replace(' ', '-')}.{suffix}"
    ffmpeg("-i", str(source), *options.split(), str(path))
    check(path, name)
    data = path.read_bytes()
    if suffix in ("mp3", "wav", "flac", "aiff"):
        path.write_bytes(data + b"TAG" + bytes(125))
        assert len(decode.decode(path.read_bytes())) == len(decode.decode(data))
    for share in (0.5, 0.9):
        cut = data[: int(share * len(data))]
        if name in ENDLESS:
            path.write_bytes(cut)
            assert abs(len(decode.decode(cut)) - length(path)) <= FORMATS[name][2]
            continue
        with pytest.raises(decode.DecodeError, match=r"^unreadable: "):
            decode.decode(cut)


@pytest.mark.long
@pytest.mark.parametrize("name", PIPED)
def test_written_to_a_pipe(name: str, source: Path) -> None:
    suffix, options, _ = FORMATS[name]
    path = source.parent / f"piped-{name.replace(' ', '-')}.{suffix}"
    path.write_bytes(ffmpeg("-i", str(source), *options.split(), "-f", PIPED[name], "-"))
    check(path, name, round(SECONDS * 16000) if name == "w64" else None)  # FFmpeg does not read its own
