"""Verification on pseudo-trials: a figure like the EER that needs no speakers.

Of each utterance there are two segments, each distorted in its own way. A pseudo-target is the pair of the two segments
of one utterance; a pseudo-non-target is a pair of segments of two utterances. Both kinds take the utterance in place of
the speaker, as the losses of contrastive learning do: the channel of a recording helps here and not in true trials, and
two utterances may be of one speaker. So it is for comparing checkpoints and settings, not a figure of its own.

The distortion is always the same one, whatever the run trains with, so that runs can be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl.evaluation.scoring import unit_rows
from rayssl.evaluation.verification import eer
from rayssl.random import draws, draws_torch
from rayssl.views.distort import Distort, build_distort
from rayssl.views.recipes import DistortConfig, NoiseConfig, ReverbConfig

Waves = list[NDArray[np.int16]]

_SEED, _PURPOSE = 0, 47  # the seed is no run's: banks and draws are the same for all
_STEPS = 8  # short segments are rounded down to a multiple of 1/8 of a whole one: fewer lengths, larger batches


def distortion(rate: int) -> Distort:
    """The distortion of pseudo-trials at ``rate`` Hz: always a room, then always noise at 5 to 15 dB."""
    noise, reverb = NoiseConfig(p=1.0, snr_db=(5.0, 15.0)), ReverbConfig(p=1.0)
    return build_distort(DistortConfig(noise=noise, reverb=reverb), rate, _SEED)


def segments(waves: Sequence[NDArray[np.int16]], longest: int, least: int) -> tuple[list[int], Waves, Waves]:
    """The beginning and the end of each utterance, without a sample in common.

    Args:
        waves: n utterances ``[T_i]``.
        longest: samples of a segment, if the utterance has twice as many; else it is about half of the utterance.
        least: utterances whose segments would be shorter are left out.

    Returns:
        The places in ``waves`` of those that are used, and the first and the second segment of each.
    """
    step = max(1, longest // _STEPS)
    used, first, second = list[int](), Waves(), Waves()
    for place, wave in enumerate(waves):
        length = min(longest, len(wave) // 2)
        rounded = length // step * step
        length = rounded if rounded >= least else length
        if length >= max(1, least):
            used.append(place)
            first.append(wave[:length])
            second.append(wave[-length:])
    return used, first, second


def distorted(waves: Waves, ids: NDArray[np.int64], side: int, distort: Distort, batch: int = 64) -> Waves:
    """``waves`` of the utterances ``ids [n]`` after ``distort``, on its device; ``side``: 0 or 1, other draws for each.

    The result for an utterance does not depend on the others.
    """
    device = next((buffer.device for buffer in distort.buffers()), torch.device("cpu"))
    keys = draws_torch.keys_torch(draws.fold(_SEED, _PURPOSE, side), torch.from_numpy(np.asarray(ids, np.int64)))
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, wave in enumerate(waves):
        by_length[len(wave)].append(place)
    found: dict[int, NDArray[np.int16]] = {}
    for members in by_length.values():
        for start in range(0, len(members), batch):
            part = members[start : start + batch]
            given = torch.from_numpy(np.stack([waves[place] for place in part])).to(device).float() / 32768.0
            made = (distort(given, keys[part].to(device)) * 32767.0).round().to(torch.int16).cpu().numpy()
            found.update(zip(part, made, strict=True))
    return [found[place] for place in range(len(waves))]


def pseudo_eer(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The EER in [0, 0.5] of n pseudo-targets, row k of ``first [n, D]`` with row k of ``second [n, D]``, by cosine.

    The n (n - 1) pseudo-non-targets are all other pairs of a row of ``first`` and a row of ``second``. Raises
    `ValueError` for fewer than two rows, or for rows that are zero or not finite.
    """
    if len(first) < 2:
        raise ValueError(f"pseudo-trials need two utterances at least, got {len(first)}")
    cosines = unit_rows(first, len(second)) @ unit_rows(second, len(first)).T
    same = np.eye(len(cosines), dtype=bool)
    return eer(cosines[same], cosines[~same])
