"""Generated noise: spectra, seeds, unit power; recorded noise; transform lengths."""

import numpy as np
import pytest

from rayssl.views.noises import fast_length, from_recordings, generate

RATE = 16000


def octave_power(clips: np.ndarray, low: float) -> float:
    spectrum = np.abs(np.fft.rfft(clips, axis=1)) ** 2
    frequency = np.fft.rfftfreq(clips.shape[1], 1 / RATE)
    return float(spectrum[:, (frequency >= low) & (frequency < 2 * low)].sum())


@pytest.mark.parametrize(("kind", "db_per_octave"), [("white", 3.01), ("pink", 0.0), ("brown", -3.01)])
def test_colours_have_their_slopes(kind: str, db_per_octave: float) -> None:
    clips = generate(kind, 4, 48000, RATE, 1)
    slope = 10 * np.log10(octave_power(clips, 3200) / octave_power(clips, 100)) / 5
    assert slope == pytest.approx(db_per_octave, abs=0.3)


def test_babble_is_modulated_and_low() -> None:
    clips = generate("babble", 3, 48000, RATE, 1)
    assert octave_power(clips, 300) > 10 * octave_power(clips, 4000)
    level = np.sqrt((clips.reshape(3, -1, 800) ** 2).mean(axis=2))
    # 50 ms levels of steady Gaussian noise would vary by 3 %
    assert (level.std(axis=1) / level.mean(axis=1)).min() > 0.15


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "babble"])
def test_clips_follow_from_the_seed(kind: str) -> None:
    first, again, other = (generate(kind, 3, 16000, RATE, seed) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert np.abs(np.corrcoef(first)[0, 1:]).max() < 0.9
    np.testing.assert_allclose((first**2).mean(axis=1), 1.0, rtol=1e-4)


def test_recordings_become_clips_of_unit_power() -> None:
    loud, quiet, silent = np.full(50, 3000), np.arange(1, 4), np.zeros(9)
    clips = from_recordings([part.astype(np.int16) for part in (loud, quiet, silent)], 12)
    assert clips.shape == (2, 12)
    np.testing.assert_allclose((clips**2).mean(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(clips[1, 3:6], clips[1, :3])
    with pytest.raises(ValueError, match="sound"):
        from_recordings([silent.astype(np.int16)], 12)


def test_fast_length_is_the_next_5_smooth_number() -> None:
    smooth = [n for n in range(1, 5000) if _strip(n) == 1]
    for samples in range(1, 4860):
        assert fast_length(samples) == next(n for n in smooth if n >= samples)


def _strip(n: int) -> int:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n
