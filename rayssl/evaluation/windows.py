"""The windows of consecutive epochs that a sequence model reads, so that every epoch of a night is scored.

A window is ``sequence`` (N) consecutive epochs. A model scores the positions a <= j < b of a window, ``scored`` =
(a, b): all of them (0, N), or only the middle, as SoundSleepNet does (40 in, positions 10 to 30 out). Windows overlap,
and the probabilities of an epoch are averaged over the windows that score it. So every real epoch is scored once.

At the edges of a night, and where epochs are missing, a window reads the first or the last epoch again. Such repeated
entries do not count. No source says how to treat the edges: it is rayssl's choice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayssl.data.nights.scores import consecutive_runs

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Float32 = NDArray[np.float32]


class NightWindows(NamedTuple):
    """The k windows of a night of n epochs.

    ``source`` int64 ``[k, N]``: the row of the night in [0, n) that each entry reads. ``counts`` bool ``[k, N]``:
    whether the model's score of the entry is one of that row. Every row has at least one entry that counts.
    """

    source: Ints
    counts: Bools


def window_starts(length: int, sequence: int, stride: int, scored: tuple[int, int] | None = None) -> Ints:
    """The starts ``[k]``, rising, of windows over ``length`` consecutive epochs, so that each epoch is scored.

    The first window scores epoch 0 at its first scored position, so its start is ``-a``. The next ones follow every
    ``stride`` epochs (every b - a, if ``stride`` is larger). The last one is moved back, so that its last scored
    position is the last epoch, unless there are fewer epochs than scored positions. So a start may be below 0, and a
    window may go beyond the last epoch.

    Raises `ValueError` unless 0 <= a < b <= ``sequence``, and ``length`` and ``stride`` are at least 1.
    """
    begin, end = (0, sequence) if scored is None else scored
    if not 0 <= begin < end <= sequence:
        raise ValueError(f"scored positions {begin} to {end} do not lie in a window of {sequence} epochs")
    if length < 1 or stride < 1:
        raise ValueError(f"a window needs epochs and a stride, got {length} epochs and stride {stride}")
    last = max(0, length - (end - begin))  # the first epoch that the last window scores
    first_scored = np.append(np.arange(0, last, min(stride, end - begin)), last)
    return np.asarray(first_scored - begin, np.int64)


def night_windows(index: Ints, *, sequence: int, stride: int, scored: tuple[int, int] | None = None) -> NightWindows:
    """The windows of a night whose epochs have the positions ``index [n]``, rising.

    A jump of ``index`` ends a run of consecutive epochs; a window lies in one run. ``stride`` and ``scored`` are those
    of `window_starts`. Without epochs there are no windows (k = 0).
    """
    sources, counts = [], []
    inside = np.arange(sequence)
    begin, end = (0, sequence) if scored is None else scored
    for first, after in consecutive_runs(index):
        places = window_starts(after - first, sequence, stride, scored)[:, None] + inside
        real = (places >= 0) & (places < after - first)
        sources.append(first + places.clip(0, after - first - 1))
        counts.append(real & (inside >= begin) & (inside < end))
    if not sources:
        return NightWindows(np.zeros((0, sequence), np.int64), np.zeros((0, sequence), np.bool_))
    return NightWindows(np.concatenate(sources), np.concatenate(counts))


def averaged(windows: NightWindows, probabilities: Float32, length: int) -> Float32:
    """The probabilities of each of the night's ``length`` (n) epochs: float32 ``[n, C]``.

    ``probabilities [k, N, C]`` are the model's for the entries of the ``windows``; entries that do not count may hold
    anything. An epoch gets the mean of its entries that count. Rows that sum to 1 give rows that sum to 1.

    Raises `ValueError` if shapes do not fit, if an entry that counts is NaN or infinite, or if an epoch has no entry.
    """
    given = np.asarray(probabilities)
    if given.ndim != 3 or given.shape[:2] != windows.source.shape:
        raise ValueError(f"expected probabilities {[*windows.source.shape, 'C']}, got {list(given.shape)}")
    rows, values = windows.source[windows.counts], given[windows.counts].astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values).all(axis=1)).sum())} scores of epochs are NaN or infinite")
    times = np.bincount(rows, minlength=length)
    if len(times) != length or not times.all():
        raise ValueError(f"the windows are not those of a night of {length} epochs: not every epoch is scored")
    total = np.stack([np.bincount(rows, values[:, c], minlength=length) for c in range(given.shape[2])], axis=1)
    return np.asarray(total / times[:, None], np.float32)
