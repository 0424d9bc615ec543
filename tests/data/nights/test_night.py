"""One night: what it sounds like, and what may not tell the stage."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from rayssl.data.decode import RATE
from rayssl.data.nights import night, room, sound
from rayssl.data.nights.night import GeneratedNight, NightSound
from rayssl.data.nights.room import Domain
from rayssl.data.sources.nights import EPOCH_SAMPLES, UNSCORED


def drawn(subject: int, domain: Domain = "hospital", hours: float = 0.5, **changes: object) -> GeneratedNight:
    return night.draw(5, subject, 0, domain=domain, hours=(hours, hours), **changes)  # type: ignore[arg-type]


@cache
def of_kind(kind: str) -> GeneratedNight:
    found = (drawn(k, "home", ood_share=1.0) for k in range(60))
    return next(each for each in found if each.kind == kind)


def loudness(samples: np.ndarray) -> np.ndarray:
    """RMS of each tenth of a second."""
    return np.sqrt(np.mean(samples.reshape(-1, RATE // 10).astype(float) ** 2, axis=1))


@pytest.mark.parametrize("domain", ["hospital", "home"])
def test_epochs_in_any_order_are_the_same_and_in_range(domain: Domain) -> None:
    one, two = (NightSound(drawn(3, domain, 0.1)) for _ in range(2))
    forward = [one.epoch(k) for k in range(12)]
    backward = [two.epoch(k) for k in range(11, -1, -1)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    for samples in forward:
        assert (samples.dtype, samples.shape) == (np.float32, (EPOCH_SAMPLES,))
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1
    assert not np.array_equal(forward[0], forward[1])


def test_seed_subject_and_night_decide() -> None:
    keys = [(5, 1, 0), (5, 1, 0), (6, 1, 0), (5, 2, 0), (5, 1, 1)]
    first, *others = (NightSound(night.draw(*key, domain="home", hours=(0.05, 0.05))).epoch(2) for key in keys)
    assert [np.array_equal(first, other) for other in others] == [True, False, False, False]


def test_nights_of_a_subject_share_the_body_but_not_the_room() -> None:
    one, two, other = (night.draw(5, who, k, domain="home", hours=(1, 1)) for who, k in ((1, 0), (1, 1), (2, 0)))
    assert one.sleeper.tract == two.sleeper.tract != other.sleeper.tract
    assert one.sleeper.rate == pytest.approx(two.sleeper.rate, rel=0.2)
    assert one.room.snr_db != two.room.snr_db
    assert not np.array_equal(one.stages, two.stages)


def test_the_floor_is_at_the_stated_distance_below_a_breath() -> None:
    """The loudest tenths of quiet breaths against an empty room, between 200 and 2000 Hz."""
    plain = drawn(0)
    quiet = replace(
        plain.room, tick_db=None, traffic=0.0, bumps=0.0, hum_db=-90.0, microphone=np.ones(1025, np.float32)
    )
    for snr in (0.0, 12.0):
        floor = room.floor(np.random.default_rng(0), replace(quiet, snr_db=snr))
        power = np.abs(np.fft.rfft(floor.astype(float))) ** 2
        places = np.arange(len(power)) * RATE / room.FLOOR
        inside = 2 * power[(places >= 200) & (places <= 2000)].sum() / room.FLOOR**2
        assert inside == pytest.approx(1, rel=0.03)
    heard = NightSound(replace(plain, kind="empty_room", room=replace(quiet, snr_db=12.0)))
    gains = heard._gains[:4]
    level = 10 ** (plain.sleeper.level_db / 20)
    for index, gain in enumerate(gains):
        power = np.abs(np.fft.rfft(heard.epoch(index).astype(float))) ** 2
        places = np.arange(len(power)) / 30
        inside = 2 * power[(places >= 200) & (places <= 2000)].sum() / EPOCH_SAMPLES**2
        assert 10 * np.log10(level**2 * gain**2 / inside) == pytest.approx(12, abs=0.5)


def test_hum_is_at_its_frequency_and_level() -> None:
    heard = drawn(0).room
    for hertz in (50.0, 60.0):
        with_hum = room.floor(np.random.default_rng(0), replace(heard, tick_db=None, hum_hz=hertz, hum_db=0.0))
        without = room.floor(np.random.default_rng(0), replace(heard, tick_db=None, hum_hz=hertz, hum_db=-200.0))
        hum = with_hum - without
        assert np.mean(hum.astype(float) ** 2) == pytest.approx(1, rel=0.01)
        assert np.abs(np.fft.rfft(hum)).argmax() * RATE / room.FLOOR == pytest.approx(hertz, abs=0.05)


def test_a_breath_is_heard_where_it_is() -> None:
    """The loudness of a quiet night follows the breaths: correlation with the sum of their envelopes."""
    found = next(each for each in map(drawn, range(40)) if each.room.snr_db > 20 and each.sleeper.snorer == 0)
    heard = NightSound(found)
    pieces, level = heard._pieces, np.zeros(EPOCH_SAMPLES * len(found.stages) + sound.LONGEST)
    for start, size, _, _, shape, gain in zip(
        pieces.start, pieces.size, pieces.carrier, pieces.offset, pieces.shape, pieces.gain, strict=True
    ):
        level[start : start + size] += gain * sound.envelope(int(shape), int(size))
    for index in (3, 17, 40):
        expected = level[index * EPOCH_SAMPLES : (index + 1) * EPOCH_SAMPLES].reshape(-1, RATE // 10).mean(1)
        assert np.corrcoef(np.log(expected + 1e-3), np.log(loudness(heard.epoch(index)) + 1e-3))[0, 1] > 0.8


@pytest.mark.parametrize("kind", ["empty_room", "music"])
def test_nobody_s_night_has_no_stages(kind: str) -> None:
    found = of_kind(kind)
    assert (found.labels == UNSCORED).all()
    assert found.partner is None
    shapes = set(NightSound(found)._pieces.shape.tolist())
    assert not shapes & {sound.BREATH_IN, sound.BREATH_OUT}
    assert (sound.FLAT in shapes) == (kind == "music" or bool(found.room.programmes))


def test_music_lasts_the_whole_night() -> None:
    heard = NightSound(of_kind("music"))
    pieces = heard._pieces
    tune = pieces.shape == sound.FLAT
    ends = (pieces.start + pieces.size)[tune]
    assert np.array_equal(pieces.start[tune][1:], ends[:-1])
    assert (pieces.start[tune][0], ends[-1] >= 60 * EPOCH_SAMPLES) == (0, True)
    steps = np.diff(pieces.offset[tune]) % sound.CARRIER
    assert (steps == pieces.size[tune][:-1]).all()  # the carrier goes on where it stopped


def test_two_sleepers_are_equally_loud_and_the_first_is_scored() -> None:
    found = of_kind("two_sleepers")
    assert found.partner is not None
    assert abs(found.partner_db) <= 3
    assert np.array_equal(found.labels, found.stages)
    assert not np.array_equal(found.stages, found.partner_stages)


def test_the_share_of_nights_out_of_distribution() -> None:
    kinds = [drawn(k, "home", 0.02, ood_share=0.3).kind for k in range(600)]
    shares = {kind: kinds.count(kind) / 600 for kind in ("sleeper", *night.OUT_OF_DISTRIBUTION)}
    assert shares.pop("sleeper") == pytest.approx(0.7, abs=0.05)
    assert all(share == pytest.approx(0.1, abs=0.035) for share in shares.values())
    assert {drawn(k, "home", 0.02).kind for k in range(50)} == {"sleeper"}


def test_labels_do_not_change_the_sound() -> None:
    clean = drawn(4, hours=1.0)
    noisy = drawn(4, hours=1.0, label_flips=1.0, unscored=0.2)
    assert np.array_equal(clean.stages, noisy.stages)
    assert np.array_equal(clean.labels, clean.stages)
    assert not np.array_equal(noisy.labels, noisy.stages)
    assert np.array_equal(NightSound(clean).epoch(5), NightSound(noisy).epoch(5))


def test_domains_differ_as_stated() -> None:
    hospital, home = ([drawn(k, domain).room for k in range(150)] for domain in ("hospital", "home"))
    assert all(5 <= each.snr_db <= 25 for each in hospital)
    assert all(-10 <= each.snr_db <= 10 for each in home)
    assert not any(each.programmes or each.partner_db for each in hospital)
    assert 0.25 < np.mean([bool(each.programmes) for each in home]) < 0.55
    assert 0.25 < np.mean([each.partner_db is not None for each in home]) < 0.55
    at_50_hz = [each.microphone[np.searchsorted(sound.hertz(), 50)] for each in home]
    assert max(at_50_hz) < 0.6 < min(each.microphone[np.searchsorted(sound.hertz(), 50)] for each in hospital)


@pytest.mark.long
def test_the_level_tells_the_subject_and_not_the_stage() -> None:
    """The median loudness of an epoch varies far more between subjects than between stages of a subject."""
    means = np.full((10, 4), np.nan)
    for subject in range(10):
        found = drawn(subject, hours=2.0)
        heard = NightSound(found)
        epochs = range(0, len(found.stages), 4)
        level = np.array([20 * np.log10(np.median(loudness(heard.epoch(k)))) for k in epochs])
        for stage in range(4):
            if (found.stages[::4] == stage).sum() >= 3:
                means[subject, stage] = level[found.stages[::4] == stage].mean()
    within = np.nanmean(means - np.nanmean(means, axis=1, keepdims=True), axis=0)
    assert np.nanstd(np.nanmean(means, axis=1)) > 2 * np.std(within)
