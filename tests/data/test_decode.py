"""Source audio to mono 16 kHz, and every reason to refuse it."""

from __future__ import annotations

import numpy as np
import pytest

from rayssl.data import decode
from rayssl.errors import CorpusError
from tests.data.corpora import encoded, sine


@pytest.mark.parametrize("format", ["flac", "pcm16"])
def test_a_corpus_keeps_samples_exactly(format: decode.Format) -> None:
    samples = decode.quantise(sine(1))
    assert np.array_equal(decode.pcm(decode.encode(samples, format), format), samples)


def test_quantising_reaches_both_ends_of_int16_and_never_wraps() -> None:
    assert decode.quantise(np.array([-1.5, -1.0, 0.0, 1.0, 1.5])).tolist() == [-32768, -32768, 0, 32767, 32767]


def test_two_channels_are_averaged() -> None:
    stereo = np.stack([sine(1), -sine(1)], axis=1)
    assert np.abs(decode.decode(encoded(stereo, "WAV"))).max() < 1e-4


@pytest.mark.parametrize(("policy", "factor"), [("mean", 0.5), ("first", 1.0)])
def test_more_than_two_channels_follow_the_setting(policy: decode.Channels, factor: float) -> None:
    four = np.stack([sine(1), sine(1), 0 * sine(1), 0 * sine(1)], axis=1)
    np.testing.assert_allclose(decode.decode(encoded(four, "WAV"), policy), factor * sine(1), atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_to_the_same_tone(rate: int) -> None:
    time = np.arange(rate) / rate
    samples = decode.decode(encoded(np.sin(2 * np.pi * 1000 * time) * 0.5, "WAV", rate=rate))
    assert len(samples) == 16000
    assert np.argmax(np.abs(np.fft.rfft(samples))) == 1000


def test_frequencies_above_the_new_nyquist_do_not_alias() -> None:
    time = np.arange(48000) / 48000
    samples = decode.decode(encoded(np.sin(2 * np.pi * 15000 * time) * 0.5, "WAV", rate=48000))
    assert np.abs(samples[200:-200]).max() < 0.01


WHOLE = encoded(sine(1))
FLOATS = np.array([0.1, np.nan, 0.2] * 100)
REFUSED = {
    "no bytes": (b"", "empty: the file has no bytes"),
    "no samples": (encoded(np.zeros(0), "WAV"), "empty: the file has no samples"),
    "text renamed": (b"this is not audio, whatever its name says\n" * 20, "unreadable: "),
    "truncated flac": (WHOLE[: len(WHOLE) // 2], "unreadable: "),
    "truncated wav": (encoded(sine(1), "WAV")[:5000], "unreadable: truncated after 5000 of 16044 bytes"),
    "flipped bytes": (WHOLE[:4000] + bytes(b ^ 0xFF for b in WHOLE[4000:4010]) + WHOLE[4010:], "unreadable: "),
    "nan": (encoded(FLOATS, "WAV", "FLOAT"), "not finite: "),
    "infinite": (encoded(np.where(np.isnan(FLOATS), np.inf, 0.1), "WAV", "FLOAT"), "not finite: "),
    "four channels": (encoded(np.zeros((100, 4)), "WAV"), "4 channels: set channels to 'mean' or 'first'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_audio_is_refused_with_its_reason(case: str) -> None:
    data, reason = REFUSED[case]
    with pytest.raises(decode.DecodeError) as caught:
        decode.decode(data)
    assert str(caught.value).startswith(reason)
    assert "0x" not in str(caught.value)  # an address would differ from run to run


@pytest.mark.parametrize("data", [WHOLE[: len(WHOLE) // 2], b"text", b"", encoded(sine(1), rate=8000)])
def test_damaged_shard_audio_is_a_corpus_error(data: bytes) -> None:
    with pytest.raises(CorpusError, match="verify"):
        decode.pcm(data, "flac")
