"""Log-mel features against torchaudio, standardised samples, and feature masks."""

import pytest
import torch
from torchaudio.transforms import MelSpectrogram

from rayssl.errors import ConfigError
from rayssl.models.frontends import FeatureMask, FeatureMaskConfig, LogMel, LogMelConfig, Raw, RawConfig
from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch


@pytest.mark.parametrize(("rate", "n_fft", "f_max"), [(16000, 512, 7600.0), (16000, 400, 8000.0), (8000, 256, 3800.0)])
def test_torchaudio_parity(rate: int, n_fft: int, f_max: float) -> None:
    wave = torch.randn(3, rate) * 0.1
    ours = LogMel(LogMelConfig(n_fft=n_fft, f_max=f_max, normalise=False), rate)(wave)
    mel = MelSpectrogram(
        rate, n_fft, rate // 40, rate // 100, 20.0, f_max, n_mels=40, window_fn=torch.hamming_window, power=2.0
    )
    assert ours.shape == (3, 40, 101)
    torch.testing.assert_close(ours, torch.log(mel(wave) + 1e-6), rtol=1e-5, atol=1e-5)


def test_a_tone_is_in_its_band() -> None:
    wave = 0.5 * torch.sin(2 * torch.pi * 1000.0 * torch.arange(16000) / 16000)[None]
    features = LogMel(LogMelConfig(normalise=False), 16000)(wave)
    # 40 bands, equally spaced on the mel scale from 20 to 7600 Hz: centres at edge + (k + 1) * step
    mel = [2595 * torch.log10(torch.tensor(1 + hertz / 700)).item() for hertz in (20.0, 7600.0, 1000.0)]
    assert features[0, :, 50].argmax() == round((mel[2] - mel[0]) / ((mel[1] - mel[0]) / 41)) - 1


def test_normalisation_removes_a_gain() -> None:
    frontend = LogMel(LogMelConfig(), 16000)
    wave = torch.randn(2, 16000) * 0.2
    features = frontend(wave)
    assert features.mean(dim=2).abs().max() < 1e-5
    torch.testing.assert_close(frontend(3.0 * wave), features, rtol=0, atol=1e-3)


@pytest.mark.parametrize("window", ["hamming", "hann"])
def test_mean_and_variance_are_those_of_instance_norm(window: str) -> None:
    """As the public code for SSPS computes them: torchaudio's spectrogram up to 8 kHz, logarithm, InstanceNorm1d."""
    config = LogMelConfig.model_validate({"window": window, "f_min": 0, "f_max": 8000, "normalise": "mean_variance"})
    shape = {"hamming": torch.hamming_window, "hann": torch.hann_window}[window]
    mel = MelSpectrogram(16000, 512, 400, 160, n_mels=40, window_fn=shape)
    wave = torch.randn(3, 16000) * torch.linspace(0.01, 0.3, 16000)
    wave[2] = 0.0
    expected = torch.nn.InstanceNorm1d(40)(torch.log(mel(wave) + 1e-6))
    features = LogMel(config, 16000)(wave)
    torch.testing.assert_close(features[:2], expected[:2], rtol=1e-4, atol=1e-4)
    assert features[2].abs().max() < 1e-3  # silence: what the rounding of its mean leaves
    torch.testing.assert_close(features[:2].std(dim=2, correction=0), torch.ones(2, 40), rtol=0, atol=1e-3)


def test_true_is_the_mean() -> None:
    wave = torch.randn(2, 8000)
    by_name, as_before = (LogMel(LogMelConfig(normalise=value), 16000)(wave) for value in ("mean", True))
    assert torch.equal(by_name, as_before)
    plain = LogMel(LogMelConfig(normalise=False), 16000)(wave)
    assert torch.equal(as_before, plain - plain.mean(dim=2, keepdim=True))


def test_float32_under_autocast_and_no_state() -> None:
    frontend = LogMel(LogMelConfig(), 16000)
    wave = torch.randn(2, 8000)
    with torch.autocast("cpu", torch.bfloat16):
        features = frontend(wave)
    assert features.dtype == torch.float32
    assert torch.equal(features, frontend(wave))
    assert not frontend.state_dict()


def test_bands_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"frontend\.f_max.*4000 Hz"):
        LogMel(LogMelConfig(), 8000)
    with pytest.raises(ConfigError, match=r"frontend\.n_fft"):
        LogMel(LogMelConfig(), 48000)


def test_raw_samples_are_standardised_row_by_row() -> None:
    wave = torch.randn(3, 4000) * torch.tensor([[1e-3], [0.2], [0.9]]) + torch.tensor([[0.0], [0.1], [-0.5]])
    out = Raw(RawConfig())(wave)
    expected = (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(out[:, 0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(Raw(RawConfig())(0.01 * wave[1:]), out[1:], rtol=1e-3, atol=1e-3)
    assert torch.equal(Raw(RawConfig(normalise=False))(wave), wave[:, None])


def test_raw_silence_stays_quiet() -> None:
    """Zeros, an offset, and less than a step of 16 bits do not become noise at full scale."""
    dither = 1e-6 * torch.randn(4000)
    wave = torch.stack((torch.zeros(4000), torch.full((4000,), 0.7), dither))
    out = Raw(RawConfig())(wave)
    assert not out[0].any() and out[1].abs().max() < 0.05 and out[2].std() < 0.2


def test_raw_is_float32_under_autocast_and_keeps_no_state() -> None:
    wave = torch.randn(2, 1000)
    with torch.autocast("cpu", torch.bfloat16):
        out = Raw(RawConfig())(wave.bfloat16())
    assert out.dtype == torch.float32 and torch.equal(out, Raw(RawConfig())(wave.bfloat16()))
    assert not Raw(RawConfig()).state_dict()


def masked(config: FeatureMaskConfig, rows: int) -> torch.Tensor:
    """Bool ``[rows, 40, 100]``: what the mask sets to 0."""
    keys = keys_torch(fold(2), torch.arange(rows))
    return FeatureMask(config)(torch.ones(rows, 40, 100), keys) == 0


def test_masks_have_the_widths_asked_for() -> None:
    hit = masked(FeatureMaskConfig(p=1.0, freq_masks=1, freq_width=6, time_masks=0), 2000)
    assert (hit == hit[:, :, :1]).all()
    widths = hit[:, :, 0].sum(1)
    counts = torch.bincount(widths, minlength=7)
    assert len(counts) == 7
    assert counts.min() > 2000 / 7 * 0.8
    edges = (hit[:, 1:, 0] != hit[:, :-1, 0]).sum(1)
    assert edges.max() <= 2
    assert hit[:, 0, 0].any()
    assert hit[:, -1, 0].any()


def test_time_masks_add_up() -> None:
    hit = masked(FeatureMaskConfig(p=1.0, freq_masks=0, time_masks=3, time_width=10), 500)
    assert (hit == hit[:, :1]).all()
    assert 10 < hit[:, 0].sum(1).max() <= 30
    assert (hit[:, 0, 1:] != hit[:, 0, :-1]).sum(1).max() > 2


def test_mask_probability_rows_and_input() -> None:
    config = FeatureMaskConfig(p=0.4)
    rate = masked(config, 2000).any(dim=(1, 2)).float().mean().item()
    # an applied pair of masks is empty in 1 of 7 * 11 cases
    assert rate == pytest.approx(0.4 * (1 - 1 / 77), abs=0.04)
    features = torch.randn(8, 40, 100)
    before = features.clone()
    keys = keys_torch(fold(2), torch.arange(8))
    out = FeatureMask(config)(features, keys)
    assert torch.equal(features, before)
    assert torch.equal(FeatureMask(config)(features[5:6], keys[5:6])[0], out[5])
    assert torch.equal(FeatureMask(FeatureMaskConfig())(features, keys), features)


def test_masks_wider_than_the_features_cover_at_most_all() -> None:
    config = FeatureMaskConfig(p=1.0, freq_width=500, time_width=500)
    assert torch.isfinite(FeatureMask(config)(torch.ones(50, 5, 7), torch.arange(50))).all()


def test_masks_cover_all_channels_alike() -> None:
    keys = keys_torch(fold(2), torch.arange(8))
    features = torch.randn(8, 3, 40, 100)
    mask = FeatureMask(FeatureMaskConfig(p=1.0))
    out = mask(features, keys)
    assert out.shape == features.shape
    for channel in range(3):
        assert torch.equal(out[:, channel], mask(features[:, channel], keys))
