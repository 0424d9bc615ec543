"""Tempo and pitch: tones stay where they belong; torchaudio's vocoder at one rate; reading against a closed form."""

import math

import pytest
import torch
import torchaudio

from rayssl.views.stretch import frame_samples, pitched, read_at, stretched, vocoded

RATE = 16000
FRAME = frame_samples(RATE)


def tone(hertz: float, samples: int = RATE) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * hertz / RATE * torch.arange(samples, dtype=torch.float64)).float()


def noise(rows: int, samples: int = RATE) -> torch.Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(rows))


def factors(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def peak_hertz(wave: torch.Tensor) -> torch.Tensor:
    """Frequency of the strongest bin of each row, the rows' ends faded out."""
    samples = wave.shape[1]
    spectrum = torch.fft.rfft(wave * torch.hann_window(samples)).abs()
    return spectrum.argmax(dim=1) * RATE / samples


def test_frames_are_about_32_ms() -> None:
    assert [frame_samples(rate) for rate in (8000, 16000, 22050, 48000)] == [256, 512, 512, 2048]
    assert frame_samples(100) == 16


@pytest.mark.parametrize("semitones", [-15.0, -12.0, -0.5, 0.0, 7.0, 12.0, 15.0])
def test_pitch_moves_a_tone_by_its_factor(semitones: float) -> None:
    factor = 2.0 ** (semitones / 12)
    out = pitched(tone(440)[None], factors(factor), FRAME)
    assert out.shape == (1, RATE)
    assert peak_hertz(out).item() == pytest.approx(440 * factor, rel=0.02)
    inner = out[0, 1600:-1600]
    assert inner.square().mean().sqrt().item() == pytest.approx(0.5 / math.sqrt(2), rel=0.02)


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.0, 1.5])
def test_tempo_keeps_the_tone_and_ends_in_time(rate: float) -> None:
    out = stretched(tone(440)[None], factors(rate), RATE, FRAME)
    assert peak_hertz(out[:, :10000]).item() == pytest.approx(440, rel=0.02)
    level = out.reshape(10, -1).square().mean(dim=1).sqrt()
    sounding = min(10, int(10 / rate))
    inner = level[1 : sounding - 1]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5 / math.sqrt(2)), rtol=0.02, atol=0)
    silent_from = int(RATE / rate) + FRAME
    assert not out[:, silent_from:].abs().gt(1e-5).any()


@pytest.mark.parametrize("rate", [0.5, 1.0, 1.5])
def test_events_move_with_the_tempo(rate: float) -> None:
    wave = torch.zeros(1, RATE)
    wave[0, 6000:6400] = noise(1, 400)[0]
    power = stretched(wave, factors(rate), RATE, FRAME)[0].square()
    centre = (power * torch.arange(RATE)).sum() / power.sum()
    assert centre.item() == pytest.approx(6200 / rate, abs=FRAME / 2)


def test_pitch_keeps_events_in_their_places() -> None:
    wave = torch.zeros(3, RATE)
    wave[:, 6000:8000] = noise(1, 2000)
    out = pitched(wave, factors(0.5, 1.3, 2.0), FRAME).square()
    centre = (out * torch.arange(RATE)).sum(dim=1) / out.sum(dim=1)
    torch.testing.assert_close(centre, torch.full((3,), 7000.0), rtol=0, atol=FRAME / 2)


def test_nothing_happens_at_factor_one() -> None:
    wave = noise(3)
    torch.testing.assert_close(stretched(wave, factors(1, 1, 1), RATE, FRAME), wave, rtol=0, atol=2e-6)
    torch.testing.assert_close(pitched(wave, factors(1, 1, 1), FRAME), wave, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rate", [0.5, 0.75, 1.0, 1.375])  # binary fractions: both floor the same times
def test_vocoder_is_torchaudios_at_a_constant_rate(rate: float) -> None:
    """The magnitudes, and the phases up to a turn of each bin, which is anchored elsewhere."""
    hop, wave = FRAME // 4, noise(3, 8000).double()
    window = torch.hann_window(FRAME, dtype=torch.float64)
    spectrum = torch.stft(wave, FRAME, hop, window=window, return_complex=True)
    advance = torch.linspace(0, math.pi * hop, FRAME // 2 + 1, dtype=torch.float64)[:, None]
    expected = torchaudio.functional.phase_vocoder(spectrum, rate, advance)
    count = int((spectrum.shape[2] - 1) / rate)  # torchaudio's next frames fade into two empty ones
    mine = vocoded(spectrum.to(torch.complex64), factors(rate).expand(3), count).to(torch.complex128)
    expected = expected[:, :, :count]
    torch.testing.assert_close(mine.abs(), expected.abs(), rtol=1e-4, atol=1e-5)
    turn = mine * expected.conj() / expected.abs().square()
    torch.testing.assert_close(turn, turn[:, :, :1].expand_as(turn), rtol=0, atol=1e-3)


def test_each_row_has_its_own_factor() -> None:
    wave, factor = noise(4, 4000), factors(0.5, 0.9, 1.4, 2.1)
    for change in (lambda w, f: pitched(w, f, FRAME), lambda w, f: stretched(w, f, 4000, FRAME)):
        alone = torch.cat([change(wave[row : row + 1], factor[row : row + 1]) for row in range(4)])
        torch.testing.assert_close(change(wave, factor), alone, rtol=0, atol=1e-6)


def test_what_would_pass_half_the_sampling_rate_is_left_out() -> None:
    """A tone of 6 kHz, an octave higher, must not come back as one of 4 kHz."""
    low, high = tone(1000), tone(6000)
    out = pitched((low + high)[None] / 2, factors(2.0), FRAME)
    only = pitched(low[None] / 2, factors(2.0), FRAME)
    torch.testing.assert_close(out[:, 1000:-1000], only[:, 1000:-1000], rtol=0, atol=2e-3)


@pytest.mark.parametrize(("hertz", "error"), [(440.0, 1e-3), (3000.0, 5e-3)])
def test_reading_between_samples(hertz: float, error: float) -> None:
    wave, times = tone(hertz)[None], torch.linspace(10.0, 15900.0, 5000, dtype=torch.float64)[None]
    expected = 0.5 * torch.sin(2 * math.pi * hertz / RATE * times).float()
    torch.testing.assert_close(read_at(wave, times), expected, rtol=0, atol=error)
    whole = torch.arange(RATE + 40, dtype=torch.float64)[None]
    read = read_at(wave, whole)
    torch.testing.assert_close(read[:, :RATE], wave, rtol=0, atol=1e-7)
    assert read[:, RATE:].abs().max() < 1e-12
