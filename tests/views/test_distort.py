"""Distortion: invariances, the ratio reached, the convolution against a direct one, probabilities, range."""

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch
from rayssl.views.distort import Distort, build_distort
from rayssl.views.recipes import DistortConfig

RATE = 16000
OFF = {"noise": {"p": 0.0}, "reverb": {"p": 0.0}, "gain": {"p": 0.0}}


def distort(**parts: dict[str, object]) -> Distort:
    return build_distort(DistortConfig.model_validate({**OFF, **parts}), RATE, 5)


def speech(rows: int, samples: int = 8000, level: float = 0.05) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, samples, generator=generator) * level


def keys(rows: int) -> torch.Tensor:
    return keys_torch(fold(1), torch.arange(rows))


ALL = distort(noise={"p": 0.7, "clip_s": 2.0, "clips": 4}, reverb={"p": 0.5, "rooms": 8}, gain={"p": 0.5})


def test_rows_do_not_depend_on_the_batch_around_them() -> None:
    wave, key = speech(16), keys(16)
    whole = ALL(wave, key)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ALL(wave[order], key[order]), whole[order], rtol=0, atol=1e-6)
    halves = torch.cat([ALL(wave[part], key[part]) for part in (slice(0, 8), slice(8, 16))])
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(ALL(wave[3:4], key[3:4])[0], whole[3], rtol=0, atol=1e-6)


def test_every_rank_builds_the_same_banks() -> None:
    config = ALL.config
    again, other = build_distort(config, RATE, 5), build_distort(config, RATE, 6)
    assert torch.equal(again(speech(8), keys(8)), ALL(speech(8), keys(8)))
    assert not torch.equal(other(speech(8), keys(8)), ALL(speech(8), keys(8)))


def test_keys_choose_the_distortion() -> None:
    wave = speech(1).expand(32, -1)
    assert len({tuple(row[:20].tolist()) for row in ALL(wave, keys(32))}) > 24


def test_input_is_left_alone_and_banks_are_no_state() -> None:
    wave = speech(8)
    before = wave.clone()
    out = ALL(wave, keys(8))
    assert torch.equal(wave, before)
    assert out.data_ptr() != wave.data_ptr()
    assert not ALL.state_dict()
    untouched = distort()(wave, keys(8))
    assert torch.equal(untouched, wave)
    assert untouched.data_ptr() != wave.data_ptr()


@pytest.mark.parametrize("level", [1e-4, 0.05, 0.6, 3.0])
def test_output_stays_in_range(level: float) -> None:
    loud = distort(noise={"p": 1.0, "clip_s": 1.0, "clips": 2}, reverb={"p": 0.5}, gain={"p": 1.0, "db": [0, 20]})
    out = loud(speech(32, level=level).clamp(-1, 1), keys(32))
    assert torch.isfinite(out).all()
    assert out.abs().max() <= 1.0


def test_too_loud_rows_are_scaled_not_clipped() -> None:
    wave = speech(8)
    out = distort(gain={"p": 1.0, "db": [40.0, 40.0]})(wave, keys(8))
    torch.testing.assert_close(out, wave / wave.abs().amax(dim=1, keepdim=True))


def test_silence_stays_silence() -> None:
    wave = speech(8)
    wave[2] = 0.0
    out = distort(noise={"p": 1.0}, reverb={"p": 1.0}, gain={"p": 1.0})(wave, keys(8))
    assert torch.equal(out[2], torch.zeros(8000))
    assert (out[[0, 1, 3]].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "babble"])
@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_ratio_is_reached(kind: str, snr: float) -> None:
    wave = speech(12, level=0.02)
    noisy = distort(noise={"p": 1.0, "snr_db": [snr, snr], "kinds": [kind], "clips": 3})(wave, keys(12))
    noise = (noisy - wave).double()
    reached = 10 * torch.log10(wave.double().square().mean(1) / noise.square().mean(1))
    torch.testing.assert_close(reached, torch.full_like(reached, snr), rtol=0, atol=0.1)


def test_ratios_fill_their_range() -> None:
    wave = speech(400, 1600, level=0.01)
    noise = distort(noise={"p": 1.0, "snr_db": [0, 10], "clips": 3})(wave, keys(400)) - wave
    reached = 10 * torch.log10(wave.square().mean(1) / noise.square().mean(1))
    counts = torch.histc(reached, 5, 0, 10)
    assert counts.sum() >= 398
    assert counts.min() > 50


def test_each_kind_has_its_own_range() -> None:
    """The kind of a row is known by its ratio, where the ranges do not overlap; the others take ``snr_db``."""
    ranges = {"white": [-10, -5], "babble": [20, 25]}
    mixed = distort(noise={"p": 1.0, "snr_db": [5, 10], "snr_db_of": ranges, "kinds": ["white", "pink", "babble"]})
    wave = speech(300, 1600, level=0.01)
    noise = mixed(wave, keys(300)) - wave
    reached = 10 * torch.log10(wave.square().mean(1) / noise.square().mean(1))
    within = [((reached > low - 0.1) & (reached < high + 0.1)) for low, high in ((-10, -5), (5, 10), (20, 25))]
    assert all(60 < int(part.sum()) < 140 for part in within)
    assert torch.stack(within).any(dim=0).all()
    for part, (low, high) in zip(within, ((-10, -5), (5, 10), (20, 25)), strict=True):
        assert torch.histc(reached[part], 2, low, high).min() > 20


def test_equal_ranges_draw_as_one_range() -> None:
    settings = {"p": 1.0, "clips": 3, "kinds": ["white", "pink"], "snr_db": [0, 15]}
    by_kind = distort(noise=settings | {"snr_db_of": {"white": [0, 15]}})
    torch.testing.assert_close(by_kind(speech(64), keys(64)), distort(noise=settings)(speech(64), keys(64)))


def test_a_room_then_noise_always() -> None:
    """The published "both": every row is reverberated and noisy; "all": half of them each, independently."""
    wave = speech(400, 1600, level=0.01)
    for p, shares in ((1.0, (1.0, 1.0)), (0.5, (0.5, 0.75))):
        parts = {"reverb": {"p": p, "rooms": 4}, "noise": {"p": p, "clips": 2}}
        wet = distort(reverb=parts["reverb"])(wave, keys(400))
        both = distort(**parts)(wave, keys(400))
        assert (wet != wave).any(dim=1).float().mean().item() == pytest.approx(shares[0], abs=0.06)
        assert (both != wave).any(dim=1).float().mean().item() == pytest.approx(shares[1], abs=0.06)
        noisy = (both != wet).any(dim=1)
        assert noisy.float().mean().item() == pytest.approx(p, abs=0.06)


def test_reverberation_is_the_convolution_at_the_rows_power() -> None:
    wet = distort(reverb={"p": 1.0, "rooms": 1, "length_s": 0.2})
    wave = speech(4)
    assert wet.room_bank is not None
    response = wet.room_bank[0].double().numpy()
    for row, result in zip(wave.double().numpy(), wet(wave, keys(4)).double().numpy(), strict=True):
        expected = fftconvolve(row, response)[:8000]
        expected *= np.sqrt((row**2).mean() / (expected**2).mean())
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_reverberation_does_not_move_the_onset() -> None:
    wave = torch.zeros(3, 8000)
    wave[:, 5000] = 0.5
    wet = distort(reverb={"p": 1.0})(wave, keys(3))
    assert wet[:, :5000].abs().max() < 1e-6
    assert (wet[:, 5000] > 0.1).all()


def test_each_part_has_its_own_probability() -> None:
    wave = speech(1000, 400)
    for part, p in (("noise", 0.3), ("reverb", 0.6), ("gain", 0.8)):
        changed = (distort(**{part: {"p": p}})(wave, keys(1000)) != wave).any(dim=1).float().mean()
        assert changed.item() == pytest.approx(p, abs=0.06)


def test_crops_longer_than_the_clips_are_filled() -> None:
    wave = speech(4, 8000)
    noise = distort(noise={"p": 1.0, "clip_s": 0.2, "clips": 2, "kinds": ["white"]})(wave, keys(4)) - wave
    assert (noise[:, -100:].abs().amax(dim=1) > 0).all()
