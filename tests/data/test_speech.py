"""Generated speech: repeatable, different where it should be, and a task that is neither trivial nor hopeless."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.fft import dct

from rayssl.data import speech
from rayssl.data.sources.synthetic import SyntheticConfig
from rayssl.data.speech import draw_voice, synthesise


def speak(speaker: int, recording: int, utterance: int, seconds: float = 3.0, channel: float = 0.6) -> np.ndarray:
    return speech.speak(0, speaker, recording, utterance, seconds=seconds, channel=channel)


def statistics(wave: np.ndarray) -> np.ndarray:
    """Mean and deviation over time of cepstra: a speaker system of the simplest kind."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 400)[::160] * np.hamming(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    edges = np.concatenate([np.arange(2, 30, 2), np.geomspace(30, 240, 18).astype(int)])
    cepstra = dct(np.log(np.add.reduceat(power, edges, axis=1) + 1e-6), norm="ortho")[:, :20]
    return np.concatenate([cepstra.mean(0), cepstra.std(0)])


def equal_error(scores: np.ndarray, same: np.ndarray) -> float:
    order = np.argsort(-scores)
    hits = np.cumsum(same[order]) / same.sum()
    alarms = np.cumsum(~same[order]) / (~same).sum()
    return float(np.min(np.maximum(1 - hits, alarms)))


def test_an_utterance_is_a_function_of_its_numbers() -> None:
    wave = speak(1, 2, 3, seconds=1.0)
    assert wave.dtype == np.float32
    assert wave.shape == (16000,)
    assert np.isfinite(wave).all()
    assert 0.02 < np.sqrt(np.mean(wave**2)) <= np.abs(wave).max() <= 1
    assert np.array_equal(wave, speak(1, 2, 3, seconds=1.0))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not np.array_equal(wave, speak(*other, seconds=1.0))


def test_pitch_is_the_voices() -> None:
    for speaker in range(6):
        voice = replace(draw_voice(0, speaker), pitch_range=0.0, pitch_fall=0.0, jitter=0.0, breath=0.0)
        wave = synthesise(voice, np.random.default_rng(speaker), 32000)
        frames = np.lib.stride_tricks.sliding_window_view(wave, 800)[::400]
        frames = frames[np.argsort(-np.sum(frames**2, axis=1))[:20]]
        power = np.abs(np.fft.rfft(frames * np.hanning(800), 4096)) ** 2
        correlation = np.fft.irfft(power, axis=1)
        correlation /= correlation[:, :1]
        period = 16000 / voice.pitch
        at, between = (np.median(correlation[:, round(factor * period)]) for factor in (1, 1.5))
        assert at > between + 0.15


def errors_within_and_across(channel: float) -> tuple[float, float]:
    numbers = list(product(range(14), range(3), range(2)))  # speakers, recordings, utterances
    rows = np.array([statistics(speak(*number, seconds=2.5, channel=channel)) for number in numbers])
    rows = (rows - rows.mean(0)) / rows.std(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first, second = np.triu_indices(len(rows), 1)
    scores = (rows @ rows.T)[first, second]
    speakers, recordings = (np.array([number[k] for number in numbers]) for k in (0, 1))
    same = speakers[first] == speakers[second]
    one_recording = same & (recordings[first] == recordings[second])
    within, across = one_recording | ~same, ~one_recording
    return equal_error(scores[within], same[within]), equal_error(scores[across], same[across])


@pytest.mark.long
def test_the_recording_is_a_confound_and_speakers_differ_without_it() -> None:
    within, across = errors_within_and_across(channel=SyntheticConfig().channel)
    assert within < 0.2
    assert across > within + 0.15
    _, clean = errors_within_and_across(channel=0.0)
    assert 0.02 < clean < 0.25  # neither trivial nor hopeless


@pytest.mark.slow
def test_generation_is_fifty_times_faster_than_speech() -> None:
    import time

    speak(0, 0, 0)
    started = time.process_time()
    for speaker in range(10):
        speak(speaker, 0, 0)
    assert 10 * 3.0 / (time.process_time() - started) > 50


def spectra(word: speech.Word, speakers: int = 8) -> np.ndarray:
    """The mean log-spectrum over time of a word, by some speakers: ``[speakers, bands]`` of 250 Hz."""
    spoken = [speech.speak(3, s, 0, 0, seconds=1.0, channel=0, word=word) for s in range(speakers)]
    power = [(np.abs(np.fft.rfft(one)) ** 2)[:-1].reshape(32, -1).mean(axis=1) for one in spoken]
    return np.log(np.stack(power) + 1e-6)


def test_words_differ_less_the_more_alike_they_are() -> None:
    """Between two words, said by the same speakers; with likeness 1 they are the same sounds."""
    gaps = []
    for likeness in (0.0, 0.5, 1.0):
        first, second = (speech.draw_word(3, number, likeness) for number in (0, 1))
        gaps.append(float(np.abs(spectra(first) - spectra(second)).mean()))
    assert gaps[0] > 1.3 * gaps[1] > 0 and gaps[2] == 0, gaps


def test_a_word_has_pauses_around_it_and_is_said_differently_each_time() -> None:
    word = speech.draw_word(3, 4, 0.0)
    spoken = [speech.speak(3, 1, 0, u, seconds=1.0, channel=0, word=word) for u in range(20)]
    loud = np.stack([(one**2).reshape(100, -1).mean(axis=1) for one in spoken]) > 1e-5
    assert 0.5 < loud.mean() < 0.9
    assert len({int(row.argmax()) for row in loud}) > 5, "it begins anywhere"
    assert not any(np.array_equal(spoken[0], other) for other in spoken[1:])
