"""The NumPy pictures of epochs of sleep against torchaudio."""

import numpy as np
import pytest
import torch
import torchaudio

from rayssl.data import mel
from rayssl.data.mel import MelConfig
from rayssl.schema import parse


@pytest.mark.parametrize("config", [MelConfig(), MelConfig(hop_ms=100, n_mels=40, win_ms=25, f_min=50, f_max=7000)])
def test_equals_torchaudio(config: MelConfig) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, 16000 * 3).astype(np.float32)
    spectrogram = torchaudio.transforms.MelSpectrogram(
        16000,
        n_fft=config.n_fft,
        win_length=round(16 * config.win_ms),
        hop_length=round(16 * config.hop_ms),
        f_min=config.f_min,
        f_max=config.f_max,
        n_mels=config.n_mels,
    )
    expected = spectrogram(torch.from_numpy(wave)).numpy()
    found = mel.power(wave, config, 16000)
    assert found.shape == expected.shape == (config.n_mels, config.frames(len(wave), 16000))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-4 * expected.max() * 1e-2)


def test_published_shape() -> None:
    picture = mel.picture(np.zeros(480000, np.float32), MelConfig(), 16000)
    assert picture.shape == (20, 1201)
    assert picture.dtype == np.float16
    assert (picture == -10).all()


def test_a_picture_is_precise_to_a_tenth_of_a_decibel() -> None:
    wave = np.random.default_rng(1).uniform(-1, 1, 48000).astype(np.float32) * np.geomspace(1e-4, 1, 48000)
    exact = 10 * np.log10(mel.power(wave, MelConfig(), 16000).astype(np.float64) + mel.FLOOR)
    assert np.abs(10 * mel.picture(wave, MelConfig(), 16000).astype(np.float64) - exact).max() < 0.1


def test_bands_must_be_in_order() -> None:
    with pytest.raises(Exception, match="f_min=8000 must be below f_max=1000"):
        parse(MelConfig, {"f_min": 8000, "f_max": 1000}, "x.yaml")
