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


def cut_segments(
    pcm: NDArray[np.int16], segments: Sequence[Segment], key: int | np.uint64, rate: int
) -> dict[str, NDArray[np.int16]]:
    """Cuts all ``segments`` of an utterance: by name, each ``[segment.samples(rate)]``; ``rate`` in Hz.

    ``key`` (64 bits) is the key of the utterance in this epoch. Segment ``j`` has its own stream of draws. So its
    position depends neither on the other segments nor on the process that cuts it. Only the positions of disjoint
    segments depend on each other.
    """
    keys = np.array([key], dtype=np.uint64)
    positions = [float(uniform_np(keys, FIRST_STREAM + j)[0]) for j in range(len(segments))]
    cuts = {s.name: cut(pcm, s.samples(rate), position) for s, position in zip(segments, positions, strict=True)}
    apart = [j for j, segment in enumerate(segments) if segment.disjoint]
    lengths = np.array([segments[j].samples(rate) for j in apart])
    spare = len(pcm) - int(lengths.sum())
    if len(apart) < 2 or spare < 0:
        return cuts
    # the order of the segments is drawn; the spare samples are divided at random before, between and after them
    order = np.argsort([float(uniform_np(keys, _ORDER_STREAM + j)[0]) for j in apart])
    gaps = np.floor(np.sort([positions[j] for j in apart]) * (spare + 1)).astype(int)
    starts = gaps + np.concatenate([[0], np.cumsum(lengths[order])[:-1]])
    for place, start in zip(order, starts, strict=True):
        segment = segments[apart[place]]
        cuts[segment.name] = pcm[start : start + segment.samples(rate)].copy()
    return cuts
