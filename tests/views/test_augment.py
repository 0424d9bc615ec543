"""Augmentation: what holds for each alone and for all together; ratios, shares and probabilities; the recipes built."""

import math
from typing import Any

import pytest
import torch

from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch
from rayssl.views.augment import Augment, build_augment
from rayssl.views.distort import Distort
from rayssl.views.modules import build_recipes
from rayssl.views.recipes import AugmentConfig, ViewsConfig

RATE = 16000
NAMES = list(AugmentConfig.model_fields)
LENGTHS = [1600, 1601, 160, 1]


def augment(**parts: dict[str, Any]) -> Augment:
    return build_augment(AugmentConfig.model_validate(parts), RATE, 5)


def of(names: list[str], p: float) -> Augment:
    return augment(**{name: {"p": p} for name in names})


SETS = {name: [name] for name in NAMES} | {"all": NAMES}
ALWAYS = {key: of(names, 1.0) for key, names in SETS.items()}
OFTEN = {key: of(names, 0.5) for key, names in SETS.items()}
each = pytest.mark.parametrize("key", SETS)


def sound(rows: int, samples: int = 1600, level: float = 0.05) -> torch.Tensor:
    return level * torch.randn(rows, samples, generator=torch.Generator().manual_seed(rows))


def keys(rows: int) -> torch.Tensor:
    return keys_torch(fold(1), torch.arange(rows))


def square(rows: int, samples: int) -> torch.Tensor:
    """Rows of samples that are all 1 or -1, clipped throughout."""
    wave = torch.sin(2 * math.pi * 300 / RATE * (torch.arange(samples) + 0.5))
    return torch.where(wave >= 0, 1.0, -1.0).repeat(rows, 1)


def changed(out: torch.Tensor, wave: torch.Tensor) -> torch.Tensor:
    return (out != wave).any(dim=1)


@each
@pytest.mark.parametrize("samples", LENGTHS)
def test_result_is_new_and_in_range_and_the_input_left_alone(key: str, samples: int) -> None:
    wave = sound(16, samples, 0.6).clamp(-1, 1)
    before = wave.clone()
    for module in (ALWAYS[key], OFTEN[key]):
        out = module(wave, keys(16))
        assert torch.equal(wave, before) and out.data_ptr() != wave.data_ptr()
        assert out.shape == wave.shape and out.dtype == torch.float32
        assert torch.isfinite(out).all() and out.abs().max() <= 1.0
        assert not module.state_dict()


@each
@pytest.mark.parametrize("samples", LENGTHS[:3])  # noise may cancel a single sample
def test_silence_stays_silence_and_clipped_rows_survive(key: str, samples: int) -> None:
    wave = square(16, samples)
    wave[3] = 0.0
    out = ALWAYS[key](wave, keys(16))
    assert torch.equal(out[3], torch.zeros(samples))
    assert torch.isfinite(out).all() and out.abs().max() <= 1.0
    sounding = torch.arange(16) != 3
    assert (out[sounding].abs().amax(dim=1) > 0.05).all()


@each
@pytest.mark.parametrize("samples", [1600, 1601])
def test_rows_do_not_depend_on_the_batch_around_them(key: str, samples: int) -> None:
    wave, key_of = sound(8, samples), keys(8)
    wave[5, : samples // 2] = 0.0
    wave[6] = square(1, samples)[0]
    for module in (ALWAYS[key], OFTEN[key]):
        whole = module(wave, key_of)
        alone = torch.cat([module(wave[row : row + 1], key_of[row : row + 1]) for row in range(8)])
        torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(module(wave[order], key_of[order]), whole[order], rtol=0, atol=1e-6)
        assert torch.equal(module(wave, key_of), whole)


@each
def test_keys_choose_and_every_rank_builds_the_same(key: str) -> None:
    wave = sound(1).expand(32, -1)
    out = ALWAYS[key](wave, keys(32))
    assert len({tuple(row.tolist()) for row in out}) > 28
    assert torch.equal(of(SETS[key], 1.0)(wave, keys(32)), out)


def test_probability_zero_is_the_identity_bit_for_bit() -> None:
    wave = sound(8, 1601)
    wave[0], wave[1] = 0.0, square(1, 1601)[0]
    off = augment()
    assert torch.equal(off(wave, keys(8)), wave)
    assert not list(off.buffers())
    for out in (OFTEN[key](wave, keys(8)) for key in NAMES):
        assert 0 < changed(out, wave).sum() < 8  # and rows that are not chosen are what they were


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("pitch_shift", "time_stretch")])
def test_each_has_its_own_probability(name: str) -> None:
    wave = sound(1000, 400)
    assert changed(of([name], 0.3)(wave, keys(1000)), wave).float().mean().item() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("name", ["pitch_shift", "time_stretch"])
def test_only_the_chosen_rows_are_remade(name: str) -> None:
    wave = sound(200, 160)
    out, always = of([name], 0.3)(wave, keys(200)), ALWAYS[name](wave, keys(200))
    chosen = changed(out, wave)
    assert chosen.float().mean().item() == pytest.approx(0.3, abs=0.1)
    torch.testing.assert_close(out[chosen], always[chosen], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["white_noise", "mixed_noise"])
@pytest.mark.parametrize("snr", [0.0, 20.0])
def test_ratio_is_reached(name: str, snr: float) -> None:
    wave = sound(12, level=0.02)
    noise = (augment(**{name: {"p": 1.0, "snr_db": [snr, snr]}})(wave, keys(12)) - wave).double()
    reached = 10 * torch.log10(wave.double().square().mean(1) / noise.square().mean(1))
    torch.testing.assert_close(reached, torch.full_like(reached, snr), rtol=0, atol=0.1)


def test_mixed_noise_has_three_colours_and_white_noise_one() -> None:
    """The share of the power above 2 kHz is .75 of white noise, little of pink, next to none of brown."""
    wave = sound(300, 4000, 0.02)
    for name, least in (("white_noise", [0, 0, 300]), ("mixed_noise", [70, 70, 70])):
        noise = augment(**{name: {"p": 1.0, "snr_db": [0, 0]}})(wave, keys(300)) - wave
        power = torch.fft.rfft(noise * torch.hann_window(4000)).abs().square()
        share = power[:, 500:].sum(dim=1) / power.sum(dim=1)
        counts = torch.bucketize(share, torch.tensor([0.08, 0.55])).bincount(minlength=3)
        assert all(count >= low for count, low in zip(counts.tolist(), least, strict=True)), counts


def test_shares_fill_their_ranges() -> None:
    """Rolls go both ways by up to half; masks are up to an eighth; fades reach in from either end up to half."""
    wave = torch.zeros(500, 800)
    wave[:, 400] = 0.5
    place = ALWAYS["time_shift"](wave, keys(500)).argmax(dim=1)
    assert torch.histc(place.float(), 8, 0, 800).min() > 35
    wave = torch.full((500, 800), 0.5)
    masked = ALWAYS["time_mask"](wave, keys(500)) == 0
    width = masked.sum(dim=1)
    assert width.max() in (99, 100) and width.min() <= 1 and 45 < width.float().mean() < 55
    assert masked[:, 5:-5].any(dim=0).all()
    assert (masked.int().diff(dim=1).abs().sum(dim=1) <= 2).all()
    faded = ALWAYS["fade"](wave, keys(500))
    for part in (faded[:, :400], faded[:, 400:].flip(1)):
        length = (part < 0.5).sum(dim=1)
        assert torch.histc(length.float(), 4, 0, 400).min() > 85
        assert (part.diff(dim=1) >= 0).all()


def test_the_row_is_masked_after_all_noise_and_scaled_last() -> None:
    wave = sound(8, level=0.3).clamp(-1, 1)
    parts = {name: {"p": 1.0} for name in ("mixed_noise", "time_shift", "fade", "time_mask")}
    out = augment(**parts, gain={"p": 1.0, "db": [30, 30]})(wave, keys(8))
    assert ((out == 0).sum(dim=1) > 0).sum() >= 7  # a mask may have width 0
    torch.testing.assert_close(out.abs().amax(dim=1), torch.ones(8))


def test_rows_of_bfloat16_autocast_are_computed_in_float32() -> None:
    wave = sound(4)
    with torch.autocast("cpu", torch.bfloat16):
        out = ALWAYS["all"](wave, keys(4))
    assert torch.equal(out, ALWAYS["all"](wave, keys(4))) and not out.requires_grad


def test_recipes_have_banks_only_where_they_need_them() -> None:
    views = ViewsConfig.model_validate(
        {
            "distort": {"noise": {"p": 0.0}, "reverb": {"p": 0.0}},
            "weak": {"time_shift": {"p": 1.0}},
            "strong": {"white_noise": {"p": 0.5}},
        }
    )
    recipes = build_recipes(views, RATE, 5)
    assert list(recipes) == ["distort", "weak", "strong"] and isinstance(recipes["distort"], Distort)
    assert [sum(b.numel() for b in recipes[name].buffers()) > 9 for name in recipes] == [False, False, True]
    wave = sound(8)
    assert torch.equal(recipes["distort"](wave, keys(8)), wave)
    assert changed(recipes["weak"](wave, keys(8)), wave).any()
    assert not recipes.state_dict()
