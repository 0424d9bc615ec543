"""Noise of a home: unit power, spectra by kind, mel powers of mean 1, and clips that differ."""

import numpy as np
import pytest

from rayssl.data import mel
from rayssl.data.mel import MelConfig
from rayssl.views import home_noises, noises

RATE = 16000
MEL = MelConfig(hop_ms=100.0)
SAMPLES = 6 * RATE
KINDS = ("white", "pink", "brown", "hum", "music", "tv", "babble")
each = pytest.mark.parametrize("kind", KINDS)


@each
def test_waves_have_unit_power_and_no_mean_and_clips_differ(kind: str) -> None:
    clips = noises.generate(kind, 3, SAMPLES, RATE, 7)
    assert clips.shape == (3, SAMPLES) and clips.dtype == np.float32
    np.testing.assert_allclose(np.mean(np.square(clips, dtype=np.float64), axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(clips.mean(axis=1), 0.0, atol=1e-4)
    again, other = noises.generate(kind, 3, SAMPLES, RATE, 7), noises.generate(kind, 3, SAMPLES, RATE, 8)
    assert np.array_equal(clips, again) and not np.array_equal(clips, other)
    assert np.abs(np.corrcoef(clips)[np.triu_indices(3, 1)]).max() < 0.9


@each
def test_powers_have_mean_one_are_read_only_and_as_long_as_the_hops(kind: str) -> None:
    powers = home_noises.generated(kind, 9, SAMPLES, MEL, RATE, 7)  # more than are made at once
    assert powers.shape == (9, 20, 60) and powers.dtype == np.float32 and not powers.flags.writeable
    np.testing.assert_allclose(powers.mean(axis=(1, 2)), 1.0, rtol=1e-5)
    assert (powers >= 0).all() and len({clip.tobytes() for clip in powers}) == 9


def test_powers_are_those_of_the_waves() -> None:
    wave = noises.generate("white", 1, SAMPLES, RATE, 3)[0] * 0.1
    powers = home_noises.from_recordings([(wave * 32768).astype(np.int16)], SAMPLES, MEL, RATE)[0]
    expected = mel.power(wave, MEL, RATE)[:, :60]
    np.testing.assert_allclose(powers, expected / expected.mean(), rtol=0.02)


def test_spectra() -> None:
    """Hum lies in multiples of 50 or 60 Hz; music and television below 4 kHz; the pauses of a talker show in time."""
    spectra = {kind: np.abs(np.fft.rfft(noises.generate(kind, 4, SAMPLES, RATE, 2))) ** 2 for kind in KINDS}
    hertz = np.fft.rfftfreq(SAMPLES, 1 / RATE)
    for spectrum in spectra["hum"]:
        shares = [
            sum(spectrum[np.abs(hertz - mains * n) < 1].sum() for n in range(1, 25)) / spectrum.sum()
            for mains in (50, 60)
        ]
        assert max(shares) > 0.88
    for kind in ("music", "tv"):
        assert (spectra[kind][:, hertz < 4000].sum(axis=1) / spectra[kind].sum(axis=1) > 0.85).all()
    low = {kind: spectra[kind][:, hertz < 500].sum() / spectra[kind].sum() for kind in ("white", "pink", "brown")}
    assert low["white"] == pytest.approx(500 / 8000, abs=0.01) and low["white"] < low["pink"] < low["brown"]


def test_music_and_television_change_over_time_and_a_fan_does_not() -> None:
    level = {kind: home_noises.generated(kind, 4, SAMPLES, MEL, RATE, 2).sum(axis=1) for kind in KINDS}
    varies = {kind: float(np.mean(of.std(axis=1) / of.mean(axis=1))) for kind, of in level.items()}
    assert max(varies["white"], varies["hum"]) < 0.25 < min(varies["music"], varies["tv"])


def test_recordings_are_taken_one_by_one_and_silent_ones_left_out() -> None:
    sound = (noises.generate("pink", 1, SAMPLES, RATE, 1)[0] * 3000).astype(np.int16)
    given = (pcm for pcm in (sound, np.zeros(RATE, np.int16), sound[: 2 * RATE]))
    powers = home_noises.from_recordings(given, SAMPLES, MEL, RATE)
    assert powers.shape == (2, 20, 60)
    np.testing.assert_allclose(powers[1][:, 1:20], powers[1][:, 21:40], rtol=1e-3)  # 2 s repeat
    with pytest.raises(ValueError, match="no recording holds any sound"):
        home_noises.from_recordings([np.zeros(RATE, np.int16)], SAMPLES, MEL, RATE)
