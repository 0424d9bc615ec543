"""The features of other toolkits, compared with theirs."""

from __future__ import annotations

import pytest
import torch
from torchaudio.compliance import kaldi

from rayssl.errors import ConfigError
from rayssl.models.encoder import EncoderConfig, build_encoder
from rayssl.models.fbank import Fbank, FbankConfig
from rayssl.schema import parse

RATE = 16000


def speech(rows: int = 2, samples: int = 12345) -> torch.Tensor:
    """Noise whose level and colour change over time, so that bands and frames differ."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, samples, generator=generator)
    level = 10 ** (-4 * torch.rand(rows, 1, generator=generator) * torch.linspace(0, 1, samples))
    return (0.2 * level * torch.cumsum(noise, dim=1) / samples**0.5 + 0.01 * level * noise).clamp(-1, 1)


@pytest.mark.parametrize("bands", [24, 80])
def test_kaldi(bands: int) -> None:
    wave = speech()
    ours = Fbank(FbankConfig(style="kaldi", n_mels=bands), RATE)(wave)
    for row, found in zip(wave, ours, strict=True):
        how = {"num_mel_bins": bands, "frame_length": 25, "frame_shift": 10, "dither": 0.0, "window_type": "hamming"}
        wanted = kaldi.fbank(row[None] * 32768, sample_frequency=RATE, use_energy=False, **how)
        wanted = wanted - wanted.mean(dim=0)
        assert wanted.std() > 0.3
        torch.testing.assert_close(found, wanted.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bands", [24, 80])
def test_speechbrain(bands: int) -> None:
    theirs = pytest.importorskip("speechbrain.lobes.features").Fbank(n_mels=bands)
    norm = pytest.importorskip("speechbrain.processing.features").InputNormalization(
        norm_type="sentence", std_norm=False
    )
    wave = speech()
    wanted = norm(theirs(wave), torch.ones(len(wave)))
    found = Fbank(FbankConfig(style="speechbrain", n_mels=bands), RATE)(wave)
    assert wanted.std() > 1
    torch.testing.assert_close(found, wanted.transpose(1, 2), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("style", ["kaldi", "speechbrain"])
def test_the_least_number_of_samples(style: str) -> None:
    frontend = FbankConfig(style=style).build(RATE)
    for frames in (1, 5):
        least = frontend.samples_for(frames)
        assert frontend(torch.randn(1, least)).shape == (1, 80, frames)
        if frames > 1:
            assert frontend(torch.randn(1, least - 1)).shape[2] == frames - 1
    assert torch.isfinite(frontend(torch.zeros(1, 4000))).all()


def test_it_is_a_front_end_of_ecapa() -> None:
    backbone = {"name": "ecapa", "channels": 16, "embedding_dim": 12}
    encoder = build_encoder(parse(EncoderConfig, {"frontend": {"name": "fbank"}, "backbone": backbone}, "test"), RATE)
    assert encoder(torch.randn(3, 8000)).shape == (3, 12)
    with pytest.raises(ConfigError, match=r"'encoder\.frontend\.n_mels': .* bands are narrower"):
        FbankConfig(style="speechbrain", n_mels=300).check(RATE)
