"""Source audio to mono 16 kHz, and every reason to refuse it."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import resample_poly

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
    stereo = np.stack([sine(1), -0.5 * sine(1)], axis=1)
    np.testing.assert_allclose(decode.decode(encoded(stereo, "WAV")), 0.25 * sine(1), atol=1e-4)


def test_channels_that_cancel_are_not_called_silent() -> None:
    stereo = encoded(np.stack([sine(1), -sine(1)], axis=1), "WAV")
    with pytest.raises(
        decode.DecodeError, match=r"^cancelled: the channels have opposite phases.*set channels to 'first'"
    ):
        decode.decode(stereo)
    np.testing.assert_allclose(decode.decode(stereo, "first"), sine(1), atol=1e-4)
    assert not decode.decode(encoded(np.zeros((100, 2)), "WAV")).any()


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


def level(samples: np.ndarray) -> float:
    """The power of the middle half in dB, relative to a tone of `tone`."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    return float(10 * np.log10(np.mean(middle**2) / 0.125 + 1e-30))


def tone(hertz: float, rate: int, seconds: float = 2.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [22050, 24000, 32000, 44100, 48000])
@pytest.mark.parametrize("hertz", [8100, 8400, 8800, 10000])
def test_tones_above_the_new_nyquist_do_not_alias(rate: int, hertz: int) -> None:
    assert level(decode.resample(tone(hertz, rate), rate)) < -120.0


@pytest.mark.parametrize("rate", [22050, 24000, 32000, 44100, 48000])
def test_tones_up_to_7500_hz_stay(rate: int) -> None:
    for hertz, loss in ((100, 0.02), (4000, 0.02), (7000, 0.02), (7500, 0.6)):
        assert abs(level(decode.resample(tone(hertz, rate), rate))) < loss


def test_the_measures_would_see_the_filter_of_scipy() -> None:
    poly = [resample_poly(tone(hertz, 44100), 160, 441) for hertz in (8400, 7500)]
    assert level(poly[0]) > -13.0
    assert level(poly[1]) < -1.8


@pytest.mark.parametrize("hertz", [500, 1000, 3000, 3600])
def test_a_higher_rate_has_no_images(hertz: int) -> None:
    made = decode.resample(tone(hertz, 8000), 8000)
    expected = tone(hertz, 16000)
    assert level(made - expected) < -90.0  # what images, delay and loss leave together


@pytest.mark.parametrize("rate", [1, 8000, 11025, 15999, 16001, 22050, 44100, 48000, 192000, 655350])
def test_a_length_is_rounded_up(rate: int) -> None:
    for count in (0, 1, 2, 3, 7, 100, rate // 3 + 1):
        assert len(decode.resample(np.ones(count, np.float32), rate)) == math.ceil(Fraction(count * 16000, rate))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_an_impulse_stays_where_it_was_and_silence_is_silent(rate: int) -> None:
    impulse = np.zeros(rate, np.float32)
    impulse[rate // 2] = 1.0
    made = decode.resample(impulse, rate)
    assert np.argmax(np.abs(made)) == 8000
    np.testing.assert_allclose(made[1:], made[:0:-1], atol=1e-6)  # a filter of linear phase
    assert not decode.resample(np.zeros(rate, np.float32), rate).any()


def test_resampling_depends_on_neither_dtype_nor_layout_nor_other_rows() -> None:
    samples = (0.1 * np.random.default_rng(0).standard_normal((3, 20001))).astype(np.float32)
    once = decode.resample(samples, 44100)
    assert once.dtype == np.float32
    assert np.array_equal(once, decode.resample(samples.astype(np.float64), 44100))
    assert np.array_equal(once, decode.resample(np.asfortranarray(samples), 44100))
    for row, made in zip(samples, once, strict=True):
        assert np.array_equal(made, decode.resample(row, 44100))
    assert np.array_equal(once, decode.resample(samples[None], 44100)[0])
    assert np.array_equal(decode.resample(samples, 16000), samples)


def test_long_audio_is_resampled_as_its_parts_are() -> None:
    long = (0.1 * np.random.default_rng(1).standard_normal(44100 * 60)).astype(np.float32)
    middle = slice(44100 * 30, 44100 * 31)
    whole = decode.resample(long, 44100)[16000 * 30 : 16000 * 31]
    np.testing.assert_allclose(whole[200:-200], decode.resample(long[middle], 44100)[200:-200], atol=1e-6)


def test_only_resampling_needs_soxr() -> None:
    code = "import sys\nfrom rayssl.data import shards, units\nassert 'soxr' not in sys.modules, 'imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
