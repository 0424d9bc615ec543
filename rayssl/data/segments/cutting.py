"""From the probability of speech in each window to segments."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rayssl.data.resampling import RATE
from rayssl.data.segments.settings import SegmentsConfig

_LOWER = 0.15  # speech ends below the threshold less this, so that a stretch does not end at each weak sound
_SMOOTH = 5  # windows over which the least probable place is sought


class Segments(NamedTuple):
    """``kept``: (start, stop) of each segment in samples, ascending and apart. The others: samples that are in none.

    ``pauses``: where there is no speech. ``short``: (number, samples) of segments that were shorter than min_s.
    """

    kept: list[tuple[int, int]]
    pauses: int
    short: tuple[int, int]


def segments(probabilities: np.ndarray, window: int, samples: int, config: SegmentsConfig) -> Segments:
    """Divides a recording, see `SegmentsConfig`.

    Args:
        probabilities: of speech, float ``[N]``, of windows of ``window`` samples at 16 kHz.
        window: the samples of a window.
        samples: the length of the recording.
        config: how.
    """
    pause = config.pause_s * RATE / window
    pieces = []
    for start, stop in _joined(_stretches(probabilities, config.threshold), pause):
        pieces += _divided(probabilities, start, stop, config, window)
    pad = round(config.pad_s * RATE)
    bounds = [(start * window, min(samples, stop * window)) for start, stop in pieces]
    kept, short, short_samples, used = list[tuple[int, int]](), 0, 0, 0
    for number, (start, stop) in enumerate(bounds):
        before = bounds[number - 1][1] if number else 0
        behind = bounds[number + 1][0] if number + 1 < len(bounds) else samples
        room = samples if config.max_s is None else max(0, round(config.max_s * RATE) - (stop - start)) // 2
        start -= min(pad, (start - before) // 2 if number else start, room)  # two neighbours share a pause
        stop += min(pad, (behind - stop) // 2 if number + 1 < len(bounds) else behind - stop, room)
        used += stop - start
        if stop - start < config.min_s * RATE:
            short, short_samples = short + 1, short_samples + stop - start
        else:
            kept.append((start, stop))
    return Segments(kept, samples - used, (short, short_samples))


def _stretches(probabilities: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """(first, last + 1) of windows with speech: from one at the threshold on, until one falls clearly below it."""
    state = np.zeros(len(probabilities), np.int8)
    state[probabilities >= threshold] = 1
    state[probabilities < max(threshold - _LOWER, 0.01)] = -1
    # what is between both goes on as it was before
    known = np.where(state != 0, np.arange(len(state)), -1)
    last = np.maximum.accumulate(known) if len(known) else known
    speech = np.where(last >= 0, state[np.maximum(last, 0)] > 0, False)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speech, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _joined(stretches: list[tuple[int, int]], pause: float) -> list[tuple[int, int]]:
    """``stretches`` that are at most ``pause`` windows apart as one."""
    made = list[tuple[int, int]]()
    for start, stop in stretches:
        if made and start - made[-1][1] <= pause:
            made[-1] = (made[-1][0], stop)
        else:
            made.append((start, stop))
    return made


def _divided(
    probabilities: np.ndarray, start: int, stop: int, config: SegmentsConfig, window: int
) -> list[tuple[int, int]]:
    """A stretch as pieces of at most max_s: each ends where speech is least likely in its second half."""
    if config.max_s is None:
        return [(start, stop)]
    most, least = int(config.max_s * RATE / window), int(-(-config.min_s * RATE // window))
    made = []
    while stop - start > most:
        first = start + max(1, most // 2)
        last = min(start + most, max(first + 1, stop - least))  # what is left is no shorter than min_s
        at = first + _least(probabilities[first:last]) if config.detector != "none" else last
        made.append((start, at))
        start = at
    return [*made, (start, stop)]


def _least(probabilities: np.ndarray) -> int:
    """The middle of the `_SMOOTH` windows with the least speech; the last of equal ones."""
    smooth = np.convolve(probabilities, np.ones(_SMOOTH) / _SMOOTH, mode="same")
    return len(smooth) - 1 - int(np.argmin(smooth[::-1]))
