"""Segments cut from a whole utterance, one utterance at a time: what `crops.starts` and `packed` must give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayssl.random.draws import uniform_np
from rayssl.views.crops import FIRST_STREAM, cut
from rayssl.views.recipes import Segment


def cut_segments(
    pcm: np.ndarray, segments: Sequence[Segment], key: int | np.uint64, rate: int
) -> dict[str, np.ndarray]:
    """All ``segments`` of an utterance with ``key``: by name, each ``[segment.samples(rate)]``."""
    keys = np.array([key], dtype=np.uint64)
    positions = [float(uniform_np(keys, FIRST_STREAM + j)[0]) for j in range(len(segments))]
    cuts = {s.name: cut(pcm, s.samples(rate), position) for s, position in zip(segments, positions, strict=True)}
    apart = [j for j, segment in enumerate(segments) if segment.disjoint]
    lengths = np.array([segments[j].samples(rate) for j in apart])
    spare = len(pcm) - int(lengths.sum())
    if len(apart) < 2 or spare < 0:
        return cuts
    order = np.argsort([float(uniform_np(keys, 150 + j)[0]) for j in apart])
    gaps = np.floor(np.sort([positions[j] for j in apart]) * (spare + 1)).astype(int)
    starts = gaps + np.concatenate([[0], np.cumsum(lengths[order])[:-1]])
    for place, start in zip(order, starts, strict=True):
        segment = segments[apart[place]]
        cuts[segment.name] = pcm[start : start + segment.samples(rate)].copy()
    return cuts
