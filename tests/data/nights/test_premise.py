"""The premise of staging sequences: one epoch tells little of the stage, the epochs around it tell much.

A linear classifier (balanced logistic regression) reads a few features of each epoch's picture: once those of one
epoch, once with their mean and deviation over the 21 epochs around it. Subjects are disjoint.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import find_peaks
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rayssl.data import mel
from rayssl.data.decode import RATE
from rayssl.data.nights import breathing, night
from rayssl.data.nights.night import NightSound
from rayssl.data.nights.room import Domain

MEL = mel.MelConfig(hop_ms=100)
AROUND = 10  # on both sides
Nights = tuple[list[np.ndarray], list[np.ndarray]]  # features [E, D] and stages [E] of each night


def features(picture: np.ndarray) -> np.ndarray:
    """20 numbers from a picture ``[20, 301]``: periodicity, intervals and heights of breaths, low and high bands."""
    picture = picture.astype(np.float32)
    low, high = picture[1:3].mean(0), picture[15:].mean(0)
    curve = np.convolve(picture[3:14].mean(0), np.ones(5) / 5, "valid")
    middle = np.median(curve)
    curve = curve - middle
    centred = curve - curve.mean()
    repeats = np.correlate(centred, centred, "full")[len(centred) - 1 :]
    repeats = repeats / repeats[0]
    period = 15 + int(repeats[15:90].argmax())  # 1.5 to 9 s
    peaks, _ = find_peaks(curve, distance=12, prominence=0.5 * curve.std())
    gaps, heights = np.diff(peaks), curve[peaks]
    some = len(gaps) > 1
    return np.array(
        [
            curve.std(), *np.percentile(curve, [10, 90]), curve.max(),
            repeats[period], period, repeats[2 * period - 3 : 2 * period + 4].max(),
            repeats[3 * period - 4 : 3 * period + 5].max() if 3 * period < 290 else 0,
            len(peaks), gaps.mean() if some else 0, gaps.std() / gaps.mean() if some else 1, gaps.max() if some else 0,
            heights.std() if some else 0,
            low.std(), low.max() - np.median(low), high.std(), high.max() - np.median(high),
            np.median(low) - middle, np.median(high) - middle, np.abs(np.diff(high)).mean(),
        ]
    )  # fmt: skip


def heard(subjects: range, domain: Domain, hours: float) -> Nights:
    found: Nights = ([], [])
    for subject in subjects:
        one = night.draw(7, subject, 0, domain=domain, hours=(hours, hours), label_flips=0.1)
        sound = NightSound(one)
        pictures = (mel.picture(sound.epoch(k), MEL, RATE) for k in range(len(one.labels)))
        found[0].append(np.array([features(picture) for picture in pictures]))
        found[1].append(one.labels)
    return found


def counted(subjects: range, hours: float) -> Nights:
    """What somebody could know at best who writes down every breath, snore, movement and word."""
    found: Nights = ([], [])
    for subject in subjects:
        one = night.draw(7, subject, 0, domain="hospital", hours=(hours, hours))
        epochs, rng = len(one.stages), one.rng(99)
        bouts = breathing.slow_process(rng, epochs, breathing.BOUT_EPOCHS)
        breaths = breathing.breathe(rng, one.sleeper, one.stages, bouts)
        moves = breathing.move(rng, one.sleeper, one.stages, bouts)
        words = breathing.talking(rng, one.stages, bouts)
        events = [moves.start, words.start, breaths.start[breaths.snored]]
        counts = [np.bincount((start / 30).astype(int), minlength=epochs)[:epochs] for start in events]
        rows = []
        for epoch in range(epochs):
            inside = (breaths.start / 30).astype(int) == epoch
            period, depth = breaths.period[inside], np.log(breaths.depth[inside])
            many = len(period) > 1
            spreads = [np.log(np.std(x) + 0.003) if many else 0.0 for x in (np.log(period), depth)]
            means = [float(np.mean(x)) if many else 0.0 for x in (period, depth)]
            rows.append([*spreads, *means, len(period), *(each[epoch] for each in counts)])
        found[0].append(np.array(rows, float))
        found[1].append(one.stages)
    return found


def around(values: np.ndarray) -> np.ndarray:
    """``values [E, D]`` beside their mean and deviation over the 21 and the mean over the 9 epochs around: [E, 4 D]."""
    padded = np.pad(values, ((AROUND, AROUND), (0, 0)), mode="edge")
    window = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1, axis=0)
    return np.concatenate([values, window.mean(-1), window.std(-1), window[..., 6:15].mean(-1)], axis=1)


def balanced(train: Nights, test: Nights) -> tuple[float, float]:
    """Balanced accuracy from one epoch, and from the epochs around it."""
    found = []
    for view in (lambda values: values, around):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, class_weight="balanced", max_iter=500))
        model.fit(np.concatenate([view(each) for each in train[0]]), np.concatenate(train[1]))
        predicted = model.predict(np.concatenate([view(each) for each in test[0]]))
        found.append(float(balanced_accuracy_score(np.concatenate(test[1]), predicted)))
    return found[0], found[1]


@pytest.mark.long
def test_even_perfect_ears_need_the_sequence() -> None:
    one, sequence = balanced(counted(range(24), 2.0), counted(range(1000, 1016), 2.0))
    assert 0.4 < one < 0.72
    assert sequence > one + 0.1
    assert 0.75 < sequence < 0.93


@pytest.mark.long
def test_one_epoch_tells_little_and_a_sequence_much_in_the_hospital() -> None:
    one, sequence = balanced(heard(range(12), "hospital", 1.5), heard(range(1000, 1008), "hospital", 1.5))
    assert 0.3 < one < 0.55
    assert sequence > one + 0.12
    assert 0.55 < sequence < 0.9


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("domain", "gain"), [("hospital", 0.12), ("home", 0.09)])
def test_one_epoch_tells_little_and_a_sequence_much(domain: Domain, gain: float) -> None:
    one, sequence = balanced(heard(range(20), domain, 2.0), heard(range(1000, 1012), domain, 2.0))
    assert 0.3 < one < 0.55
    assert sequence > one + gain
    assert 0.45 < sequence < 0.9


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_home_is_harder_than_the_hospital() -> None:
    hospital, home = (
        balanced(heard(range(12), domain, 2.0), heard(range(1000, 1008), domain, 2.0))
        for domain in ("hospital", "home")
    )
    assert home[1] < hospital[1] - 0.05
