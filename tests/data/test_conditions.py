"""Simulated conditions: chosen by seed and name, audible, and level with the source."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from rayssl.data import conditions
from rayssl.data.conditions import ConditionsConfig
from tests.data.corpora import sine


def test_choice_follows_seed_and_name_and_is_balanced() -> None:
    config = ConditionsConfig(count=8, per_utterance=3)
    names = [f"clip{k}" for k in range(800)]
    chosen = [conditions.chosen(config, name) for name in names]
    assert chosen == [conditions.chosen(config, name) for name in names]
    assert all(len(set(c)) == 3 and c == sorted(c) for c in chosen)
    counts = Counter(k for c in chosen for k in c)
    assert set(counts) == set(range(8))
    assert all(240 <= count <= 360 for count in counts.values())  # 300 expected, deviation 14
    other = ConditionsConfig(count=8, per_utterance=3, seed=9)
    assert chosen != [conditions.chosen(other, name) for name in names]


def test_a_rendering_keeps_length_level_and_range() -> None:
    wave = 0.2 * sine(3, 1.0)  # quiet: only peaks that would clip are turned down
    for condition in conditions.draw_all(ConditionsConfig()):
        heard = conditions.render(wave, condition, [1])
        assert heard.dtype == np.float32
        assert heard.shape == wave.shape
        assert np.abs(heard).max() <= 1
        assert abs(20 * np.log10(np.std(heard) / np.std(wave))) < 1.5


def test_a_condition_is_the_same_channel_for_everyone_and_no_other() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)  # white: its spectrum is the channel's
    drawn = conditions.draw_all(ConditionsConfig(codecs=False))

    def colour(number: int, seed: int) -> np.ndarray:
        heard = conditions.render(wave, drawn[number], [seed])
        power = np.abs(np.fft.rfft(heard.reshape(-1, 400) * np.hanning(400))).mean(0)
        return 20 * np.log10(power[4:190])

    same = np.std(colour(0, 1) - colour(0, 2))
    different = [np.std(colour(0, 1) - colour(k, 1)) for k in range(1, 8)]
    assert same < 1
    assert min(different) > 3


def test_loud_audio_does_not_clip() -> None:
    wave = np.sign(sine(3, 1.0))
    for condition in conditions.draw_all(ConditionsConfig(codecs=False)):
        heard = conditions.render(wave, condition, [1])
        assert np.mean(np.abs(heard) > 0.985) < 0.001


def test_strength_zero_is_clean() -> None:
    wave = sine(3, 1.0)
    for condition in conditions.draw_all(ConditionsConfig(strength=0)):
        heard = conditions.render(wave, condition, [1])
        assert np.corrcoef(wave, heard)[0, 1] > 0.999


def test_noise_is_as_loud_as_the_condition_says() -> None:
    wave = sine(3, 2.0)
    condition = conditions.draw([0, 3], codecs=False)
    first, second = (conditions.render(wave, condition, [seed]) for seed in (1, 2))
    noise_db = 20 * np.log10(np.std(first - second) / np.sqrt(2) / np.std(first))
    assert abs(-noise_db - condition.snr_db) < 1


def test_more_per_utterance_than_there_are_is_an_error() -> None:
    with pytest.raises(ValidationError, match="only 2 conditions"):
        ConditionsConfig(count=2, per_utterance=3)


def test_the_conditions_of_many_are_those_of_each() -> None:
    config = ConditionsConfig(count=7, per_utterance=3, seed=4)
    names = [f"s{k}/r{k % 3}/\u00e9" for k in range(50)]
    many = conditions.chosen_many(config, names)
    assert many.dtype == np.int16 and many.tolist() == [conditions.chosen(config, name) for name in names]
