"""Nights with a plausible hypnogram and a model's probabilities, made from a seed."""

from __future__ import annotations

import numpy as np

from rayssl.data.nights.scores import NightScores

WAKE, LIGHT, DEEP, REM = range(4)


def hypnogram(draw: np.random.Generator, epochs: int) -> np.ndarray:
    """Stages ``[epochs]``: wake, then cycles of about 90 minutes with deep sleep early and REM late."""
    stages = [WAKE] * int(draw.integers(10, 50))
    cycle = 0
    while len(stages) < epochs:
        deep, rem = max(0, int(draw.normal(60 - 18 * cycle, 8))), max(6, int(draw.normal(15 + 14 * cycle, 6)))
        for stage, length in ((LIGHT, int(draw.integers(30, 60))), (DEEP, deep), (LIGHT, int(draw.integers(20, 50)))):
            stages += [stage] * length
            stages += [WAKE] * int(draw.integers(1, 8)) if draw.random() < 0.4 else []
        stages += [REM] * rem
        cycle += 1
    return np.array(stages[:epochs], np.int64)


def night(number: int, *, subject: int | None = None, epochs: int = 840, skill: float = 2.5, gap: int = 0,
          seed: int = 0) -> NightScores:  # fmt: skip
    """A night, and a model that smooths over some epochs and confuses Deep and REM with Light."""
    draw = np.random.default_rng([seed, number])
    truth = hypnogram(draw, epochs)
    logits = np.eye(4)[truth] * skill * draw.uniform(0.7, 1.2)
    logits = np.apply_along_axis(lambda column: np.convolve(column, np.ones(7) / 7, mode="same"), 0, logits)
    noise = np.apply_along_axis(lambda c: np.convolve(c, np.ones(9) / 3, "same"), 0, draw.normal(size=(epochs, 4)))
    logits += 0.9 * noise + np.array([-0.2, 0.7, -0.1, 0.0])
    rows = np.exp(logits)
    index = np.arange(epochs)
    truth[draw.random(epochs) < 0.01] = -1
    keep = np.ones(epochs, bool)
    keep[epochs // 3 : epochs // 3 + gap] = False
    probabilities = (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)
    subject = number if subject is None else subject
    name = f"subject{subject:02}-night{number:02}"
    return NightScores(name, f"s{subject}", index[keep], truth[keep], probabilities[keep])


def certain(name: str, subject: str, truth: list[int], predicted: list[int], index: list[int] | None = None,
            classes: int = 4) -> NightScores:  # fmt: skip
    """A night with exactly these stages and predictions."""
    rows = np.eye(classes, dtype=np.float32)[predicted]
    place = np.arange(len(truth)) if index is None else np.array(index)
    return NightScores(name, subject, place, np.array(truth, np.int64), rows)
