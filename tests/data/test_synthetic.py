"""Generated speech: repeatable, different where it should be, and a task that is neither trivial nor hopeless."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rayssl.data.synthetic import SyntheticConfig, draw_voice, speak, synthesise, utterance_names


def statistics(wave: np.ndarray) -> np.ndarray:
    """Mean and deviation over time of log band energies: a speaker system of the simplest kind."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 400)[::160] * np.hamming(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    bands = np.log(np.add.reduceat(power, (2 ** np.linspace(2, 7.9, 24)).astype(int), axis=1) + 1e-6)
    return np.concatenate([bands.mean(0), bands.std(0)])


def equal_error(scores: np.ndarray, same: np.ndarray) -> float:
    order = np.argsort(-scores)
    hits = np.cumsum(same[order]) / same.sum()
    alarms = np.cumsum(~same[order]) / (~same).sum()
    return float(np.min(np.maximum(1 - hits, alarms)))


def test_an_utterance_is_a_function_of_its_numbers() -> None:
    config = SyntheticConfig(seconds=1.0)
    wave = speak(config, 1, 2, 3)
    assert wave.dtype == np.float32
    assert wave.shape == (16000,)
    assert np.isfinite(wave).all()
    assert 0.02 < np.sqrt(np.mean(wave**2)) <= np.abs(wave).max() <= 1
    assert np.array_equal(wave, speak(config, 1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not np.array_equal(wave, speak(config, *other))


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
        assert at > between + 0.3


def test_the_recording_is_a_confound() -> None:
    config = SyntheticConfig(speakers=14, recordings=3, utterances=2, seconds=1.5)
    numbers = list(utterance_names(config))
    rows = np.array([statistics(speak(config, *number)) for number in numbers])
    rows = (rows - rows.mean(0)) / rows.std(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first, second = np.triu_indices(len(rows), 1)
    scores = (rows @ rows.T)[first, second]
    speakers, recordings = (np.array([number[k] for number in numbers]) for k in (0, 1))
    same_speaker = speakers[first] == speakers[second]
    same_recording = same_speaker & (recordings[first] == recordings[second])
    within = equal_error(scores[same_recording | ~same_speaker], same_recording[same_recording | ~same_speaker])
    kept = ~same_recording
    across = equal_error(scores[kept], same_speaker[kept])
    assert within < 0.2
    assert across > within + 0.1
    assert across < 0.45


@pytest.mark.slow
def test_generation_is_fifty_times_faster_than_speech() -> None:
    import time

    config = SyntheticConfig()
    speak(config, 0, 0, 0)
    started = time.process_time()
    for speaker in range(10):
        speak(config, speaker, 0, 0)
    assert 10 * config.seconds / (time.process_time() - started) > 50
