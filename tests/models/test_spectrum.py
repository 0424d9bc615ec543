"""The three channels against numpy's Fourier transform and torchaudio, one frame and one row at a time."""

import math

import numpy as np
import pytest
import torch
from torchaudio.transforms import MelSpectrogram

from rayssl.errors import ConfigError
from rayssl.models.spectrum import Spectrum, SpectrumConfig, _triangles

RATE = 8000
SMALL = SpectrumConfig(n_fft=256, hop_ms=8.0, bins=20, f_min=60.0, f_max=3900.0, normalise=False)


def centre(config: SpectrumConfig, k: int) -> float:
    """Hz of row ``k``."""
    return config.f_min * (config.f_max / config.f_min) ** (k / config.bins)


def transforms(wave: np.ndarray, config: SpectrumConfig) -> np.ndarray:
    """Complex ``[frames, n_fft / 2 + 1]`` of one row of samples."""
    hop, half = round(RATE * config.hop_ms / 1000), config.n_fft // 2
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.n_fft) / config.n_fft)
    padded = np.pad(wave, half, mode="reflect")
    starts = range(0, len(padded) - config.n_fft + 1, hop)
    return np.stack([np.fft.rfft(window * padded[start : start + config.n_fft]) for start in starts])


def test_log_power_and_phase_by_hand() -> None:
    wave = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0)) * 0.1
    ours = Spectrum(SMALL, RATE)(wave)
    spacing = RATE / SMALL.n_fft
    assert ours.shape == (2, 3, 20, 1 + 2000 // 64)
    for row in range(2):
        spectrum = transforms(wave[row].double().numpy(), SMALL)
        for k in range(SMALL.bins):
            below, here, above = (centre(SMALL, k + step) for step in (-1, 0, 1))
            weights = []
            for b in range(SMALL.n_fft // 2 + 1):
                away = b * spacing - here
                side = max(spacing, here - below if away < 0 else above - here)
                weights.append(max(0.0, 1 - abs(away) / side))
            power = np.abs(spectrum) ** 2 @ np.array(weights) / sum(weights)
            np.testing.assert_allclose(ours[row, 0, k], np.log(power + 1e-6), rtol=1e-4, atol=1e-4)
            phase = np.angle(spectrum[:, round(here / spacing)])
            turned = np.exp(1j * phase) - np.exp(1j * ours[row, 1, k].double().numpy())
            assert np.abs(turned).max() < 1e-3
    assert ours[:, 1].abs().max() <= math.pi + 1e-6


def test_log_mel_is_torchaudios() -> None:
    wave = torch.randn(2, 2000) * 0.1
    mel = MelSpectrogram(RATE, 256, 256, 64, 60.0, 3900.0, n_mels=20, power=2.0)
    torch.testing.assert_close(Spectrum(SMALL, RATE)(wave)[:, 2], torch.log(mel(wave) + 1e-6), rtol=1e-4, atol=1e-4)


def test_rows_closer_than_bins_are_interpolated_and_no_bin_between_far_rows_is_skipped() -> None:
    edges = torch.tensor([9.8, 10.2, 10.7, 11.0, 20.0, 40.0, 60.0], dtype=torch.float64)
    weights = _triangles(edges, 65)
    torch.testing.assert_close(weights.sum(0), torch.ones(5, dtype=torch.float64))
    values = torch.randn(65, dtype=torch.float64)
    expected = np.interp([10.2, 10.7], np.arange(65), values.numpy())
    torch.testing.assert_close((values @ weights)[:2], torch.from_numpy(expected))
    assert weights[:, 2].nonzero().flatten().tolist() == list(range(11, 20))
    assert (weights[10:60].sum(1) > 0).all()


def test_a_tone_is_in_its_row_with_its_phase() -> None:
    config = SpectrumConfig(f_min=125.0, bins=60, normalise=False)  # six octaves: row 30 at 1000 Hz, which is bin 128
    time = torch.arange(16000) / 16000
    out = Spectrum(config, 16000)(0.5 * torch.cos(2 * torch.pi * 1000.0 * time + 0.7)[None])[0]
    assert out.shape == (3, 60, 126)
    assert (out[0, :, 10:-10].argmax(0) == 30).all()
    # frames begin every 128 samples, 1024 before their centre: whole periods of 16 samples
    torch.testing.assert_close(out[1, 30, 10:-10], torch.full((106,), 0.7), rtol=0, atol=1e-3)


@pytest.mark.parametrize("gain", [1.0, 0.2])
def test_each_channel_of_each_utterance_is_standardised(gain: float) -> None:
    wave = torch.randn(3, 4000) * 0.3
    out = Spectrum(SpectrumConfig(n_fft=1024, hop_ms=16.0, bins=64), 16000)(gain * wave)
    assert out.shape == (3, 3, 64, 16)
    variance, mean = torch.var_mean(out, (2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3, 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones(3, 3), rtol=0, atol=1e-3)
    alone = Spectrum(SpectrumConfig(n_fft=1024, hop_ms=16.0, bins=64), 16000)(gain * wave[1:2])
    torch.testing.assert_close(alone, out[1:2], rtol=1e-4, atol=1e-4)


def test_silence_is_finite_and_without_power() -> None:
    out = Spectrum(SMALL.model_copy(update={"normalise": True}), RATE)(torch.zeros(2, 2000))
    assert torch.isfinite(out).all() and out[:, [0, 2]].abs().max() < 0.01


def test_float32_under_autocast_and_no_state() -> None:
    frontend = Spectrum(SMALL, RATE)
    wave = torch.randn(2, 2000)
    with torch.autocast("cpu", torch.bfloat16):
        features = frontend(wave)
    assert features.dtype == torch.float32
    assert torch.equal(features, frontend(wave))
    assert not frontend.state_dict()


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.frontend\.f_max.*4000 Hz"):
        Spectrum(SpectrumConfig(), 8000)
    with pytest.raises(ConfigError, match=r"encoder\.frontend\.bins': 128 mel bands.*raise encoder\.frontend\.n_fft"):
        Spectrum(SpectrumConfig(n_fft=256), 16000)
    with pytest.raises(ConfigError, match=r"encoder\.frontend\.hop_ms"):
        Spectrum(SpectrumConfig(hop_ms=0.01), 16000)
