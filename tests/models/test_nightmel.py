"""Pictures of epochs: those of `rayssl.data.mel`, of torchaudio and librosa's scale; epochs do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from rayssl.data.mel import MelConfig, picture, power
from rayssl.data.sources import nights
from rayssl.errors import ConfigError
from rayssl.models.nightmel import EPOCH_S, NightMel, NightMelConfig

RATE = 16000
SMALL = MelConfig(n_mels=8, hop_ms=100, win_ms=25, n_fft=400)
SHORT = 200  # Hz: an epoch of 6,000 samples


def frontend(rate: int = RATE, **settings: object) -> NightMel:
    return NightMel(NightMelConfig.model_validate(settings), rate)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Noise whose level changes from epoch to epoch and within."""
    generator = torch.Generator().manual_seed(seed)
    level = 10 ** torch.linspace(-4, -1, shape[-1])
    return torch.randn(*shape, generator=generator) * level


def short(**settings: object) -> NightMel:
    mel = {"n_mels": 6, "hop_ms": 500, "win_ms": 400, "n_fft": 80, "f_max": 100}
    return frontend(SHORT, mel=mel, **settings)


def test_an_epoch_is_that_of_the_sources() -> None:
    assert EPOCH_S == nights.EPOCH_S and frontend().epoch_samples == nights.EPOCH_SAMPLES
    assert frontend().samples_for(1) == frontend().samples_for(1201) == 480_000


@pytest.mark.parametrize("mel", [MelConfig(), SMALL], ids=["default", "window shorter than n_fft"])
def test_pictures_are_those_that_prepare_stores(mel: MelConfig) -> None:
    x = noise(2, 960_000)
    ours = frontend(mel=mel.model_dump()).pictures(x)
    assert ours.shape == (2, 2, mel.n_mels, mel.frames(480_000, RATE)) and ours.dtype == torch.float32
    for row in range(2):
        for epoch in range(2):
            samples = x[row, epoch * 480_000 : (epoch + 1) * 480_000].numpy()
            stored = picture(samples, mel, RATE)
            # float16 keeps 11 bits, and float32 sums of another order can fall on the other side of a rounding
            np.testing.assert_allclose(ours[row, epoch], stored.astype(np.float32), rtol=2**-10, atol=1e-3)
            np.testing.assert_allclose(
                frontend(mel=mel.model_dump()).power(torch.from_numpy(samples)), power(samples, mel, RATE), rtol=1e-3
            )


def test_torchaudio_has_the_same_powers() -> None:
    x = noise(1, 480_000)
    theirs = MelSpectrogram(RATE, 800, 800, 400, 0.0, 8000.0, n_mels=20, power=2.0)
    torch.testing.assert_close(frontend().power(x), theirs(x), rtol=1e-3, atol=1e-6)


def test_the_scale_is_decibels_below_the_maximum_cut_and_standardised() -> None:
    x = (0.01 + noise(1, 12_000).abs()) * torch.randn(12_000, generator=torch.Generator().manual_seed(3))
    x = x * torch.cat([torch.ones(6_000), torch.full((6_000,), 0.2)])
    model = short(floor_db=30)
    powers = model.power(x.view(1, 2, 6_000))
    for epoch in range(2):
        decibels = AmplitudeToDB("power", top_db=30)(powers[0, epoch])
        expected = (decibels - decibels.mean()) / decibels.std(correction=0)
        torch.testing.assert_close(model(x)[0, epoch], expected, rtol=1e-3, atol=1e-3)
    whole = AmplitudeToDB("power", top_db=30)(powers[0])
    expected = (whole - whole.mean()) / whole.std(correction=0)
    torch.testing.assert_close(short(floor_db=30, loudness="sequence")(x)[0], expected, rtol=1e-3, atol=1e-3)


def test_loudness_between_epochs_is_lost_or_kept() -> None:
    x = noise(1, 18_000)
    gains = torch.tensor([1.0, 0.1, 2.0]).repeat_interleave(6_000)
    epoch, sequence = short(), short(loudness="sequence")
    torch.testing.assert_close(epoch(x * gains), epoch(x), rtol=0, atol=2e-3)
    assert (sequence(x * gains) - sequence(x)).abs().max() > 0.3
    torch.testing.assert_close(sequence(0.3 * x), sequence(x), rtol=0, atol=2e-3)  # a gain of the whole is lost
    for model, dims in ((epoch, (2, 3)), (sequence, (1, 2, 3))):
        out = model(x)
        assert out.mean(dims).abs().max() < 1e-4 and (out.std(dims, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("loudness", ["epoch", "sequence"])
def test_the_colour_of_a_noise_is_lost_where_bands_are_centred(loudness: str) -> None:
    """A filter before the microphone adds a constant to each band of the picture in dB."""
    pictures = torch.rand(2, 3, 6, 61, generator=torch.Generator().manual_seed(0))
    coloured = pictures + torch.linspace(-2, 1, 6)[:, None]
    plain, centred = (short(loudness=loudness, centre=centre) for centre in ("none", "band"))
    assert not torch.allclose(plain(coloured), plain(pictures), atol=0.1)
    torch.testing.assert_close(centred(coloured), centred(pictures), rtol=0, atol=1e-4)
    dims = (3,) if loudness == "epoch" else (1, 3)
    assert centred(coloured).mean(dims).abs().max() < 1e-5


def test_epochs_do_not_see_each_other() -> None:
    x = noise(1, 18_000)
    other = x.clone()
    other[:, 6_000:12_000] = noise(1, 6_000, seed=5)
    model = short()
    before, after = model(x), model(other)
    assert torch.equal(before[:, ::2], after[:, ::2]) and not torch.allclose(before[:, 1], after[:, 1])
    torch.testing.assert_close(model(x[:, 6_000:12_000])[:, 0], before[:, 1])


def test_stored_pictures_give_what_samples_give() -> None:
    x = noise(2, 12_000)
    model = short()
    stored = model.pictures(x)
    assert torch.equal(model(stored), model(x))
    # float16, as stored: precise to 0.1 dB
    assert (model.pictures(stored.half()) - stored).abs().max() < 0.01
    assert (model(stored.half()) - model(x)).abs().max() < 0.01


def test_many_epochs_are_computed_in_parts() -> None:
    x = noise(3, 12 * 6_000)
    model = short()
    together = model.pictures(x)
    for epoch in (0, 5, 11):
        torch.testing.assert_close(model.pictures(x[1:2, epoch * 6_000 :][:, :6_000])[0, 0], together[1, epoch])


def test_silence_is_zero() -> None:
    for loudness in ("epoch", "sequence"):
        assert not short(loudness=loudness)(torch.zeros(1, 12_000)).any()


def test_float32_under_autocast_and_no_state() -> None:
    model, x = short(), noise(1, 6_000)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    assert found.dtype == torch.float32 and torch.equal(found, model(x))
    assert not model.state_dict()


@pytest.mark.parametrize(
    ("mel", "key"),
    [({"f_max": 9000}, "mel.f_max"), ({"n_fft": 400}, "mel.n_fft"), ({"hop_ms": 0.01}, "mel.hop_ms")],
)
def test_settings_that_do_not_fit_are_refused(mel: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"'encoder\.frontend\.{key}': "):
        frontend(mel=mel)
