"""Sequences of log-mel pictures: closed forms of each part, draws by sequence or epoch, and bits that do not depend."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from rayssl.data import mel
from rayssl.data.mel import MelConfig
from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch
from rayssl.views import augment, distort, mixing, night, noises, rows
from rayssl.views.banks import RecordedBank
from rayssl.views.modules import build_night_recipes
from rayssl.views.night import NightAugment, build_night_augment
from rayssl.views.night_recipes import NightAugmentConfig
from rayssl.views.recipes import AugmentConfig, DistortConfig, ViewsConfig

RATE = 16000
MEL = MelConfig(hop_ms=1000.0)  # 31 frames
BANDS, FRAMES = 20, 31
NAMES = list(NightAugmentConfig.model_fields)
FEW = {"clips": 2, "clip_s": 7.0, "kinds": ["white", "hum"]}
each = pytest.mark.parametrize("name", NAMES)


def built(seed: int = 5, **parts: dict[str, Any]) -> NightAugment:
    if "noise" in parts:
        parts = {**parts, "noise": {**FEW, **parts["noise"]}}
    config = NightAugmentConfig.model_validate(parts)
    return build_night_augment(config, "strong", MEL, RATE, seed, RecordedBank.read)


def of(names: list[str], p: float, **more: Any) -> NightAugment:
    return built(**{name: {"p": p, **more} for name in names})


def nights(count: int, epochs: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randn(count, epochs, BANDS, FRAMES, generator=random) * 0.7 - 3.0


def keys(count: int) -> torch.Tensor:
    return keys_torch(fold(1), torch.arange(count))


def changed(out: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Which epochs differ in any bit, ``[B, N]``."""
    return (out != pictures).flatten(2).any(dim=2)


def added(out: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """The powers that were added."""
    return 10.0 ** out.double() - 10.0 ** pictures.double()


# What holds for all parts


@pytest.mark.parametrize("per", ["sequence", "epoch"])
@pytest.mark.parametrize("names", [[name] for name in NAMES] + [NAMES], ids=[*NAMES, "all"])
def test_rows_do_not_depend_on_the_batch_around_them(names: list[str], per: str) -> None:
    """To the bit: alone, in another order, divided among ranks, and on any number of threads."""
    pictures, key_of = nights(8), keys(8)
    threads = torch.get_num_threads()
    for p in (1.0, 0.5):
        module = of(names, p, per=per)
        whole = module(pictures, key_of)
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                alone = [module(pictures[row : row + 1], key_of[row : row + 1]) for row in range(8)]
                assert torch.equal(torch.cat(alone), whole)
        finally:
            torch.set_num_threads(threads)
        ranks = [of(names, p, per=per)(pictures[rank::2], key_of[rank::2]) for rank in range(2)]
        assert torch.equal(torch.stack(ranks, dim=1).flatten(0, 1), whole)
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(module(pictures[order], key_of[order]), whole[order])


def test_bits_of_a_large_picture_do_not_depend_on_threads_or_batch() -> None:
    """torch divides one long sum among threads. So the means are taken in steps."""
    large = MelConfig(n_mels=64)  # 64 x 1201
    parts = {"noise": {"p": 1.0, "kinds": ["white"], "clips": 1, "clip_s": 5.0}, "range": {"p": 1.0}}
    module = build_night_augment(NightAugmentConfig.model_validate(parts), "strong", large, RATE, 5, RecordedBank.read)
    pictures = torch.randn(3, 1, 64, 1201, generator=torch.Generator().manual_seed(0)) - 3.0
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            made += [torch.cat([module(pictures[row : row + 1], keys(3)[row : row + 1]) for row in range(3)])]
            made += [module(pictures, keys(3))]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(out, made[0]) for out in made)


def test_large_batches_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, module = nights(7), of(NAMES, 0.7)
    whole = module(pictures, keys(7))
    for most in (1, 2 * pictures[0].numel(), 3 * pictures[0].numel() + 1):
        monkeypatch.setattr(night, "_AT_ONCE", most)
        assert torch.equal(module(pictures, keys(7)), whole)


@each
def test_result_is_new_float32_and_the_input_left_alone(name: str) -> None:
    pictures = nights(8)
    before = pictures.clone()
    for p in (0.0, 0.5, 1.0):
        out = of([name], p)(pictures, keys(8))
        assert torch.equal(pictures, before) and out.data_ptr() != pictures.data_ptr()
        assert out.shape == pictures.shape and out.dtype == torch.float32 and torch.isfinite(out).all()
    module = of([name], 1.0)
    half = pictures.half()
    assert torch.equal(module(half, keys(8)), module(half.float(), keys(8)))
    turned = pictures.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(module(turned, keys(8)), out)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(pictures, keys(8)), out)
    assert not module.state_dict()


@pytest.mark.parametrize("values", [nights(4), torch.full((4, 3, BANDS, FRAMES), -10.0)], ids=["sound", "silence"])
def test_probability_zero_is_the_identity_to_the_bit(values: torch.Tensor) -> None:
    off = built()
    assert torch.equal(off(values, keys(4)), values)
    assert not list(off.buffers())


@each
@pytest.mark.parametrize("per", ["sequence", "epoch"])
def test_each_has_its_own_probability_by_sequence_or_by_epoch(name: str, per: str) -> None:
    """What is not chosen keeps its bits."""
    pictures = nights(600, 4)
    chosen = changed(of([name], 0.3, per=per)(pictures, keys(600)), pictures)
    always = changed(of([name], 1.0, per=per)(pictures, keys(600)), pictures).float().mean().item()
    assert chosen.float().mean().item() == pytest.approx(0.3 * always, abs=0.05)
    together = (chosen.any(dim=1) == chosen.all(dim=1)).float().mean().item()
    assert together == 1.0 if per == "sequence" else together < 0.4  # .3**4 + .7**4 = .25


@each
def test_epochs_share_the_draws_of_a_sequence(name: str) -> None:
    """All epochs of a sequence are the same picture here. So they differ only by draws, and by where the noise is."""
    pictures = nights(50, 1).expand(-1, 5, -1, -1).contiguous()
    change = {per: of([name], 1.0, per=per)(pictures, keys(50)) for per in ("sequence", "epoch")}
    if name == "noise":
        assert (added(change["sequence"], pictures).sum(dim=(2, 3)).std(dim=1) < 1).all()
    else:
        assert torch.equal(change["sequence"], change["sequence"][:, :1].expand_as(pictures))
    first, second = change["epoch"][:, 0], change["epoch"][:, 1]
    assert (first != second).flatten(1).any(dim=1).float().mean() > 0.9


@each
@pytest.mark.parametrize("per", ["sequence", "epoch"])
def test_keys_choose(name: str, per: str) -> None:
    pictures = nights(1).expand(64, -1, -1, -1)
    out = of([name], 1.0, per=per)(pictures, keys(64))
    assert len({row.numpy().tobytes() for row in out}) > 56


@pytest.mark.parametrize("per", ["sequence", "epoch"])
def test_nothing_waits_for_the_host(per: str) -> None:
    """Fake tensors have no values: what reads one on the host, or has a shape that depends on one, raises."""
    module, pictures, key_of = of(NAMES, 0.5, per=per), nights(4), keys(4)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert module(fake.from_tensor(pictures), fake.from_tensor(key_of)).shape == pictures.shape
        with pytest.raises(DataDependentOutputException):
            fake.from_tensor(pictures)[0, 0, 0, 0].item()


def test_no_stream_of_draws_is_used_for_two_purposes(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def recording(keys: torch.Tensor, stream: int, count: int | None = None) -> torch.Tensor:
        used.append(stream)
        return draw(keys, stream, count)

    draw = night.uniform_torch
    for module in (night, rows, mixing, augment):
        monkeypatch.setattr(module, "uniform_torch", recording)
    strong = {name: {"p": 1.0} for name in NAMES} | {"mask": {"p": 1.0, "times": 8, "bands": 8}}
    built(**strong)(nights(2), keys(2))
    mine = used.copy()
    assert len(set(mine)) == len(mine) == 12 + 32 and {stream // 100 for stream in mine} == {5}
    used.clear()
    wave, always = torch.ones(2, 1600), {name: {"p": 1.0} for name in AugmentConfig.model_fields}
    augment.build_augment(AugmentConfig.model_validate(always), RATE, 5)(wave, keys(2))
    parts = {name: {"p": 1.0} for name in DistortConfig.model_fields}
    distort.build_distort(DistortConfig.model_validate(parts), RATE, 5)(wave, keys(2))
    assert {stream // 100 for stream in used} == {2, 4}


# Pitch


RAMP = torch.arange(BANDS, dtype=torch.float32)[:, None].expand(-1, FRAMES)


def shifts_of(config: dict[str, Any], count: int, epochs: int = 3) -> torch.Tensor:
    """The shift of each epoch, ``[B, N]``, as the middle band of a ramp shows it."""
    out = built(pitch=config)(RAMP.expand(count, epochs, -1, -1), keys(count))
    middle = BANDS // 2
    return middle - out[:, :, middle, 0]


@pytest.mark.parametrize("per", ["sequence", "epoch"])
def test_pitch_moves_bands_by_a_fractional_number_and_repeats_the_edge(per: str) -> None:
    config = {"p": 1.0, "per": per}
    shifts, pictures = shifts_of(config, 40), nights(40)
    out = built(pitch=config)(pictures, keys(40)).numpy()
    bands = np.arange(BANDS)
    for row, epoch in np.ndindex(40, 3):
        places = np.clip(bands - shifts[row, epoch].item(), 0, BANDS - 1)
        expected = [np.interp(places, bands, column) for column in pictures[row, epoch].numpy().T]
        np.testing.assert_allclose(out[row, epoch], np.transpose(expected), atol=2e-5)
    assert (shifts.diff(dim=1) == 0).all() == (per == "sequence")


def test_pitch_by_whole_bands_is_the_shifted_picture() -> None:
    pictures = nights(30)
    for row, shift in enumerate(shifts_of({"p": 1.0, "most": 0.2}, 30)[:, 0].tolist()):
        for bands in (1, 3):
            most = 0.2 * bands / abs(shift)  # makes the shift of this row `bands`, up or down
            if most < 0.9:
                out = built(pitch={"p": 1.0, "most": most})(pictures, keys(30))[row]
                if shift > 0:
                    expected = torch.cat((pictures[row, :, :1].expand(-1, bands, -1), pictures[row, :, :-bands]), 1)
                else:
                    expected = torch.cat((pictures[row, :, bands:], pictures[row, :, -1:].expand(-1, bands, -1)), 1)
                torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


def test_pitch_goes_both_ways_up_to_the_share() -> None:
    shifts = shifts_of({"p": 1.0, "most": 0.2}, 1000)
    assert torch.histc(shifts, 8, -4, 4).min() > 90 * 3 and shifts.abs().max() <= 4.0
    assert torch.equal(shifts_of({"p": 1.0, "most": 0.0}, 10), torch.zeros(10, 3))


# Noise


@pytest.mark.parametrize("snr", [-10.0, 0.0, 10.0])
@pytest.mark.parametrize("per", ["sequence", "epoch"])
def test_noise_has_the_drawn_ratio_to_the_mean_power_of_the_sequence(snr: float, per: str) -> None:
    pictures = nights(12)
    pictures[:, 1] -= 1.0  # a quiet epoch: its noise is not quieter
    noise = added(built(noise={"p": 1.0, "per": per, "snr_db": [snr, snr]})(pictures, keys(12)), pictures)
    signal = (10.0 ** pictures.double() - mel.FLOOR).mean(dim=(1, 2, 3))
    level = noise.mean(dim=(2, 3)) if per == "epoch" else noise.mean(dim=(1, 2, 3))[:, None]
    reached = 10 * torch.log10(signal[:, None] / level)
    torch.testing.assert_close(reached, torch.full_like(reached, snr), rtol=0, atol=0.02)


@pytest.mark.parametrize(("per", "draws"), [("sequence", 1), ("epoch", 5)])
def test_ratios_fill_their_range(per: str, draws: int) -> None:
    pictures = nights(300, 5)
    noise = added(built(noise={"p": 1.0, "per": per, "snr_db": [-10, 10]})(pictures, keys(300)), pictures)
    signal = (10.0 ** pictures.double()).mean(dim=(1, 2, 3))
    level = noise.mean(dim=(2, 3)) if per == "epoch" else noise.mean(dim=(1, 2, 3))[:, None]
    ratios = 10 * torch.log10(signal[:, None] / level)
    assert ratios.shape[1] == draws and -10.1 < ratios.min() < -9 and 9 < ratios.max() < 10.1
    assert torch.histc(ratios, 4, -10, 10).min() > 55 * draws


def test_a_clip_runs_on_from_epoch_to_epoch_and_repeats_at_its_end() -> None:
    """The noise of epoch n, frame t is the clip's at start + 30 n + t, at its end from the beginning."""
    hops = 43
    clip = 1.0 + torch.rand(2, BANDS, hops, generator=torch.Generator().manual_seed(1))
    config = NightAugmentConfig.model_validate({"noise": {"p": 1.0, "snr_db": [0, 0]}})
    pictures = nights(40, 6)
    noise = added(NightAugment(config, MEL, RATE, [clip])(pictures, keys(40)), pictures)
    seen = set()
    for row in noise:
        heard = torch.cat((row[0], *row[1:, :, 1:]), dim=1)  # the last frame of an epoch is the first of the next
        assert torch.allclose(row[:-1, :, -1], row[1:, :, 0], rtol=1e-3)
        candidates = {
            (which, start): clip[which][:, (start + torch.arange(6 * 30 + 1)) % hops].double()
            for which in range(2)
            for start in range(hops)
        }
        errors = {at: (heard / heard.mean() - it / it.mean()).abs().max().item() for at, it in candidates.items()}
        best = min(errors, key=lambda at: errors[at])
        assert errors[best] < 0.01
        seen.add(best)
    assert {which for which, _ in seen} == {0, 1} and len({start for _, start in seen}) > 15


def test_kinds_are_equally_likely_however_many_clips_they_have() -> None:
    banks = [torch.zeros(count, BANDS, 31) for count in (1, 5, 2)]
    for kind, bank in enumerate(banks):
        bank[:, kind] = 1.0
    config = NightAugmentConfig.model_validate({"noise": {"p": 1.0, "per": "epoch", "snr_db": [0, 0]}})
    pictures = nights(300)
    noise = added(NightAugment(config, MEL, RATE, banks)(pictures, keys(300)), pictures).mean(dim=3)
    counts = noise.argmax(dim=2).flatten().bincount(minlength=3)
    assert (counts[:3].sum() == 900) and counts[:3].min() > 250


def test_silence_stays_silence_and_clips_without_power_do_no_harm() -> None:
    silence = torch.full((8, 3, BANDS, FRAMES), -10.0)
    out = of(["noise"], 1.0)(silence, keys(8))
    torch.testing.assert_close(out, silence, rtol=0, atol=1e-4)
    config = NightAugmentConfig.model_validate({"noise": {"p": 1.0}})
    out = NightAugment(config, MEL, RATE, [torch.zeros(1, BANDS, 31)])(nights(8), keys(8))
    torch.testing.assert_close(out, nights(8), rtol=0, atol=1e-5)


def test_added_powers_are_those_of_mixed_sounds() -> None:
    """Powers of independent sounds add in the mean over frames, so the picture of mixed samples agrees."""
    config, random = MelConfig(hop_ms=50.0), np.random.default_rng(3)
    sound = (noises.generate("pink", 1, 30 * RATE, RATE, 1)[0] * 0.05).astype(np.float32)
    noise = random.standard_normal(30 * RATE).astype(np.float32)
    powers = [mel.power(wave, config, RATE) for wave in (sound, noise)]
    noise *= math.sqrt(powers[0].mean() / powers[1].mean() / 10.0**0.3)
    mixed = torch.from_numpy(mel.power(sound + noise, config, RATE)).mean(dim=1)
    recipe = NightAugmentConfig.model_validate({"noise": {"p": 1.0, "snr_db": [3, 3], "kinds": ["white"], "clips": 2}})
    module = build_night_augment(recipe, "strong", config, RATE, 5, RecordedBank.read)
    picture = torch.from_numpy(mel.picture(sound, config, RATE))[None, None]
    made = (10.0 ** module(picture, keys(1)))[0, 0].mean(dim=1)
    torch.testing.assert_close(made, mixed, rtol=0.1, atol=0)


# Range, gain, masks


@pytest.mark.parametrize("per", ["sequence", "epoch"])
def test_range_is_a_power_around_the_mean(per: str) -> None:
    pictures = nights(400)
    pictures[:, 1] += 1.0
    out = of(["range"], 1.0, per=per)(pictures, keys(400)).double()
    places = (1, 2, 3) if per == "sequence" else (2, 3)
    mean, kept = pictures.double().mean(places, keepdim=True), out.mean(places, keepdim=True)
    torch.testing.assert_close(kept, mean, rtol=0, atol=1e-5)
    exponent = out.std(places, keepdim=True) / pictures.double().std(places, keepdim=True)
    torch.testing.assert_close(out, mean + exponent * (pictures - mean), rtol=0, atol=1e-4)
    assert 0.79999 < exponent.min() < 0.81 and 1.23 < exponent.max() < 1.25001
    assert (exponent < 1.0).double().mean().item() == pytest.approx(0.5, abs=0.06)  # .8 and 1.25 are opposite


@pytest.mark.parametrize("per", ["sequence", "epoch"])
def test_gain_adds_a_constant(per: str) -> None:
    pictures = nights(400)
    shift = of(["gain"], 1.0, per=per, db=[-6, 3])(pictures, keys(400)) - pictures
    constant = shift.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(shift, constant.expand_as(shift), rtol=0, atol=1e-5)
    assert -0.6001 < constant.min() < -0.58 and 0.28 < constant.max() < 0.3001
    exact = of(["gain"], 1.0, per=per, db=[10, 10])(pictures, keys(400))
    torch.testing.assert_close(exact, pictures + 1.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("per", ["sequence", "epoch"])
@pytest.mark.parametrize("fill", ["mean", "min"])
def test_masks_are_intervals_of_time_and_of_bands_with_the_fill(per: str, fill: str) -> None:
    pictures = nights(500)
    settings = {"time_most": 0.2, "band_most": 0.25, "fill": fill}
    out = of(["mask"], 1.0, per=per, **settings)(pictures, keys(500))
    inside = out != pictures
    inside |= (pictures == pictures.amin(dim=(2, 3), keepdim=True)) & (fill == "min") & inside.all(2, keepdim=True)
    value = pictures.mean(dim=(2, 3)) if fill == "mean" else pictures.amin(dim=(2, 3))
    torch.testing.assert_close(out, torch.where(inside, value[..., None, None], pictures), rtol=0, atol=1e-5)
    least = pictures == pictures.amin(dim=(2, 3), keepdim=True)  # may be masked and does not show it
    frames, bands = ((inside | least).all(dim=of) & inside.any(dim=of) for of in (2, 3))
    for places, length, most in ((frames, FRAMES, 6), (bands, BANDS, 5)):
        width = places.sum(dim=2)
        assert width.max() == most and (width.flatten().bincount(minlength=most + 1) > 1500 / (most + 1) * 0.6).all()
        assert (torch.nn.functional.pad(places.int(), (1, 1)).diff(dim=2).abs().sum(dim=2) <= 2).all()
        assert places.any(dim=(0, 1)).sum() == length
        assert ((places == places[:, :1]).all() == (per == "sequence")).item()
    assert torch.equal(inside | least, frames[:, :, None] | bands[..., None] | least)


def test_several_masks_and_none() -> None:
    pictures = nights(300)
    masked = [
        (of(["mask"], 1.0, times=times, bands=bands)(pictures, keys(300)) != pictures).float().mean().item()
        for times, bands in ((0, 0), (1, 0), (4, 0), (0, 3), (8, 8))
    ]
    assert masked[0] == 0.0 and masked[0] < masked[1] < masked[2] and masked[3] > 0.15 and masked[4] > masked[2]


def test_masks_hide_noise_and_gain() -> None:
    """The fill is one value for each epoch: nothing of what comes before shows through."""
    parts: dict[str, dict[str, Any]] = {name: {"p": 1.0, "per": "sequence"} for name in NAMES}
    parts["mask"] |= {"time_most": 1.0, "fill": "min"}
    out = built(**parts)(nights(60), keys(60))
    constant = (out == out.amin(dim=(2, 3), keepdim=True)).all(dim=2)
    assert constant.any(dim=2).float().mean() > 0.8


# The recipes


def test_recipes_have_banks_only_where_they_need_them_and_every_rank_builds_the_same() -> None:
    views = ViewsConfig.model_validate({"night": {"strong": {"noise": FEW}}})
    recipes, again = (build_night_recipes(views, MEL, RATE, 5) for _ in range(2))
    assert list(recipes) == ["weak", "strong"] and not recipes.state_dict()
    assert not list(recipes["weak"].buffers()) and len(list(recipes["strong"].buffers())) == 3
    pictures = nights(16)
    for name in recipes:
        out = recipes[name](pictures, keys(16))
        assert torch.equal(out, again[name](pictures, keys(16))) and 4 < changed(out, pictures).sum() <= 48
    other = build_night_recipes(views, MEL, RATE, 6)["strong"]
    assert not torch.equal(other(pictures, keys(16)), out)
