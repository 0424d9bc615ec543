"""m4a, AAC and WebM by PyAV, and the line without it."""

from __future__ import annotations

import io
import sys
from typing import Any

import av
import numpy as np
import pytest

from rayssl.data import decode
from tests.data.corpora import sine

SAMPLES = sine(1, 2.0)
KINDS = {
    "m4a": ("ipod", "aac", 16000),
    "m4a 44.1 kHz": ("ipod", "aac", 44100),
    "mp4 alac": ("mp4", "alac", 16000),
    "aac": ("adts", "aac", 16000),
    "webm": ("webm", "libopus", 48000),
    "mka": ("matroska", "flac", 16000),
}


def made(kind: str, samples: np.ndarray = SAMPLES) -> bytes:
    """``samples [T]`` or ``[2, T]`` at 16 kHz, encoded by FFmpeg."""
    container, codec, rate = KINDS[kind]
    layout = "mono" if samples.ndim == 1 else "stereo"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(np.atleast_2d(samples).astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = 16000, 0
        fifo = av.AudioFifo()
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(part)
        size = stream.codec_context.frame_size or 960
        while (part := fifo.read(size, partial=True)) is not None:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tone_and_its_length_are_there(kind: str) -> None:
    found = decode.decode(made(kind))
    assert 32000 - 100 <= len(found) <= 32000 + 2048  # codecs pad both ends
    shifts = [np.dot(found[k : k + 20000], SAMPLES[:20000]) for k in range(2100) if k + 20000 <= len(found)]
    at = int(np.argmax(shifts))
    part = found[at : at + 20000]
    assert np.corrcoef(part, SAMPLES[:20000])[0, 1] > 0.98


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rest", [0.5, 0.8])
def test_a_file_that_was_cut_is_refused(kind: str, rest: float) -> None:
    data = made(kind)
    with pytest.raises(decode.DecodeError, match=r"^unreadable: "):
        decode.decode(data[: int(len(data) * rest)])


def test_two_channels_are_averaged_and_may_cancel() -> None:
    found = decode.decode(made("mp4 alac", np.stack([SAMPLES, 0 * SAMPLES])))
    np.testing.assert_allclose(found[:20000], 0.5 * SAMPLES[:20000], atol=1e-3)
    with pytest.raises(decode.DecodeError, match=r"^cancelled: "):
        decode.decode(made("mp4 alac", np.stack([SAMPLES, -SAMPLES])))


def test_damage_is_refused_or_decoded_and_nothing_else() -> None:
    chance = np.random.default_rng(0)
    for kind in KINDS:
        data = made(kind, SAMPLES[:8000])
        for _ in range(30):
            given = bytearray(data)
            for at in chance.integers(0, len(data), 4):
                given[at] = chance.integers(256)
            try:
                decode.decode(bytes(given), "mean")
            except decode.DecodeError:
                continue


def test_without_pyav_the_line_says_how_to_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made("m4a")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(decode.DecodeError, match=r"needs PyAV; pip install av, or convert: ffmpeg -i "):
        decode.decode(data)
