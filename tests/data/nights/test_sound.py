"""Carriers, envelopes, and pieces that are added up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rayssl.data.decode import RATE
from rayssl.data.nights import sound
from rayssl.data.nights.sound import CARRIER, LONGEST, SoundPieces

SHAPES = [sound.BREATH_IN, sound.BREATH_OUT, sound.BURST, sound.SWELL]


def some(rng: np.random.Generator, count: int, seconds: float) -> SoundPieces:
    parts = [
        sound.pieces(rng, number, shape, rng.uniform(-1, seconds, count), rng.uniform(0.2, 6, count), rng.random(count))
        for number, shape in ((0, sound.BREATH_IN), (1, sound.BURST), (0, sound.FLAT))
    ]
    return sound.merged(parts)


def carriers(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal(CARRIER + LONGEST, dtype=np.float32) for _ in range(2)]


def test_rendering_is_the_sum_of_the_pieces() -> None:
    """Against the definition: piece after piece, over the whole time line."""
    rng = np.random.default_rng(0)
    found, sources, length = some(rng, 12, 20), carriers(rng), 20 * RATE
    expected = np.zeros(length + 2 * LONGEST)
    for k in range(len(found.start)):
        size, offset = found.size[k], found.offset[k]
        shape = 1.0 if found.shape[k] == sound.FLAT else sound.envelope(int(found.shape[k]), int(size))
        begin = found.start[k] + LONGEST
        expected[begin : begin + size] += found.gain[k] * shape * sources[found.carrier[k]][offset : offset + size]
    out = np.zeros(length, np.float32)
    sound.render(out, 0, found, sources)
    np.testing.assert_allclose(out, expected[LONGEST : LONGEST + length], rtol=0, atol=1e-5)
    assert (np.diff(found.start) >= 0).all()


def test_how_the_time_is_cut_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    found, sources = some(rng, 15, 30), carriers(rng)
    whole = np.zeros(30 * RATE, np.float32)
    sound.render(whole, 0, found, sources)
    parts = np.zeros_like(whole)
    edges = [0, 1, 4000, 4001, 100_000, 250_000, 480_000]
    for first, last in itertools.pairwise(edges):
        sound.render(parts[first:last], first, found, sources)
    assert np.array_equal(whole, parts)


def test_lengths_are_rounded_by_at_most_four_percent() -> None:
    wanted = np.geomspace(0.06, 7.5, 300)
    found = sound.pieces(np.random.default_rng(0), 0, sound.SWELL, np.zeros(300), wanted, np.ones(300))
    assert np.abs(np.log(found.size / RATE / wanted)).max() < 0.04
    assert len(set(found.size.tolist())) < 90
    longer = sound.pieces(np.random.default_rng(0), 0, sound.FLAT, np.zeros(2), np.array([1.23456, 99]), np.ones(2))
    assert longer.size.tolist() == [round(1.23456 * RATE), LONGEST]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [800, 16001, LONGEST])
def test_an_envelope_begins_and_ends_in_silence(shape: int, size: int) -> None:
    found = sound.envelope(shape, size)
    assert found.dtype == np.float32
    assert found.shape == (size,)
    assert found.max() == pytest.approx(1, abs=1e-3)
    assert found.min() >= 0
    assert max(found[0], found[-1]) < 1e-4


def test_breathing_in_peaks_late_and_breathing_out_early() -> None:
    assert 0.5 < sound.envelope(sound.BREATH_IN, 1001).argmax() / 1000 < 0.65
    assert 0.25 < sound.envelope(sound.BREATH_OUT, 1001).argmax() / 1000 < 0.4


def test_a_carrier_is_periodic_with_unit_power_and_the_response_s_spectrum() -> None:
    response = sound.band(200, 2000)
    found = sound.carrier(sound.white(0), response)
    assert found.dtype == np.float32
    assert found.shape == (CARRIER + LONGEST,)
    assert np.array_equal(found[:LONGEST], found[CARRIER:])
    assert np.mean(found[:CARRIER].astype(float) ** 2) == pytest.approx(1, abs=1e-4)
    power = np.abs(np.fft.rfft(found[:CARRIER])[1:]) ** 2
    bands = power.reshape(64, -1).mean(1)  # 125 Hz each
    expected = (response[1:] ** 2).reshape(64, -1).mean(1)
    np.testing.assert_allclose(bands / bands.sum(), expected / expected.sum(), rtol=0.12, atol=1e-3)


def test_a_band_loses_three_decibels_at_its_edges_and_falls_by_its_order() -> None:
    gain = lambda hertz, order: 20 * np.log10(sound.band(250, 2000, order)[round(hertz / 8000 * 1024)])  # noqa: E731
    assert gain(2000, 3) == pytest.approx(-3.01, abs=0.05)
    assert gain(250, 3) == pytest.approx(-3.01, abs=0.05)
    assert gain(8000, 2) == pytest.approx(-24.1, abs=0.1)  # two octaves, 12 dB each
    assert gain(1000, 3) == pytest.approx(0, abs=0.1)


def test_snores_have_their_pitch() -> None:
    for pitch in (60, 87, 130):
        found = sound.carrier(sound.snores(np.random.default_rng(0), pitch), sound.band(60, 400))[:CARRIER]
        power = np.abs(np.fft.rfft(found)) ** 2
        places = np.arange(len(power)) * RATE / CARRIER
        near = [power[np.abs(places - f) < 4].sum() for f in (pitch, 1.5 * pitch)]
        assert near[0] > 3 * near[1]


def test_banks_do_not_depend_on_global_state() -> None:
    before = sound.talk().copy(), sound.music(0).copy(), sound.white(1).copy(), sound.rustle().copy()
    np.random.seed(5)
    for made in (sound.talk, sound.music, sound.white, sound.rustle):
        made.cache_clear()
    after = sound.talk(), sound.music(0), sound.white(1), sound.rustle()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(each.dtype == np.complex64 and each.shape == (CARRIER // 2 + 1,) for each in after)
