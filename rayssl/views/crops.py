"""Cuts segments from the samples of an utterance. NumPy only: it runs in data tasks, which must start without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rayssl.random.draws import uniform_np
from rayssl.views.recipes import Segment

# Crops use the streams 100..199, `distort` 200..299, feature masks 300..399, `augment` 400..499.
FIRST_STREAM = 100
_ORDER_STREAM = 150


def cut(pcm: NDArray[np.int16], samples: int, position: float) -> NDArray[np.int16]:
    """``samples`` consecutive samples of ``pcm [n]``, as a copy of shape ``[samples]``.

    ``position`` in [0, 1) chooses the start, uniformly over all possible starts. If the utterance is shorter than the
    segment, it is repeated end to start, and the position chooses the sample to begin with, so that two segments still
    differ. Raises `ValueError` for an utterance without samples.
    """
    length = len(pcm)
    if length == 0:
        raise ValueError("an utterance without samples cannot be cut")
    if length >= samples:
        start = int(position * (length - samples + 1))
        return pcm[start : start + samples].copy()
    start = int(position * length)
    return np.resize(np.concatenate((pcm[start:], pcm[:start])), samples)


def starts(
    lengths: NDArray[np.integer], segments: Sequence[Segment], keys: NDArray[np.uint64], rate: int
) -> NDArray[np.int64]:
    """Where the ``segments`` of utterances begin, in samples: int64 ``[n, segments]``.

    ``lengths [n]`` in samples, at least 1; ``rate`` in Hz. ``keys [n]`` are the keys of the utterances in this epoch.
    Segment ``j`` has its own stream of draws. So its position depends neither on the other segments nor on the process
    that computes it. Only the positions of disjoint segments depend on each other. If an utterance is shorter than a
    segment, the segment begins anywhere and goes on at the utterance's beginning.
    """
    sizes = np.array([segment.samples(rate) for segment in segments], np.int64)
    positions = np.stack([uniform_np(keys, FIRST_STREAM + j) for j in range(len(segments))], axis=1)
    room = lengths[:, None] - sizes + 1
    found: NDArray[np.int64] = (positions * np.where(room > 0, room, lengths[:, None])).astype(np.int64)
    apart = [j for j, segment in enumerate(segments) if segment.disjoint]
    spare = lengths - sizes[apart].sum()
    fits = np.flatnonzero(spare >= 0)
    if len(apart) < 2 or not len(fits):
        return found
    # the order of the segments is drawn; the spare samples are divided at random before, between and after them
    drawn = np.stack([uniform_np(keys[fits], _ORDER_STREAM + j) for j in apart], axis=1)
    order = np.argsort(drawn, axis=1)
    gaps = np.floor(np.sort(positions[fits][:, apart], axis=1) * (spare[fits, None] + 1)).astype(np.int64)
    before = np.cumsum(sizes[apart][order], axis=1) - sizes[apart][order]
    found[fits[:, None], np.array(apart)[order]] = gaps + before
    return found
