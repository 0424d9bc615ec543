"""Segments: contents, tiling, uniform positions, independence of streams, and no torch in data tasks."""

import subprocess
import sys

import numpy as np
import pytest

from rayssl.draws import fold, keys_np
from rayssl.views.crops import cut, cut_segments
from rayssl.views.recipes import Segment

PCM = np.arange(1000, dtype=np.int16)


def test_cut_is_a_copy_of_consecutive_samples() -> None:
    part = cut(PCM, 100, 0.5)
    assert part.dtype == np.int16
    assert np.array_equal(part, PCM[450:550])
    part[:] = 0
    assert PCM[450] == 450


def test_cut_reaches_both_ends() -> None:
    assert cut(PCM, 100, 0.0)[0] == 0
    assert cut(PCM, 100, np.nextafter(1.0, 0.0))[-1] == 999
    assert np.array_equal(cut(PCM, 1000, 0.99), PCM)


def test_short_utterances_are_repeated() -> None:
    assert cut(PCM[:3], 8, 0.0).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert cut(PCM[:3], 8, 0.34).tolist() == [1, 2, 0, 1, 2, 0, 1, 2]
    assert cut(PCM[5:6], 4, 0.9).tolist() == [5, 5, 5, 5]


def test_empty_utterance_is_refused() -> None:
    with pytest.raises(ValueError, match="without samples"):
        cut(PCM[:0], 4, 0.0)


def test_starts_are_uniform() -> None:
    positions = (np.arange(9_010) + 0.5) / 9_010
    starts = [int(cut(PCM, 100, p)[0]) for p in positions]
    assert np.array_equal(np.bincount(starts), np.full(901, 10))


def test_segments_take_their_own_streams() -> None:
    short = [Segment(name="a", seconds=0.01, distort=True), Segment(name="b", seconds=0.01, distort=True)]
    keys = keys_np(fold(1), np.arange(500))
    starts = np.array([[part[0] for part in cut_segments(PCM, short, key, 16000).values()] for key in keys])
    assert abs(np.corrcoef(starts.T)[0, 1]) < 0.15
    longer = [short[0], Segment(name="reference", seconds=0.05, distort=False)]
    alone = cut_segments(PCM, longer, keys[3], 16000)
    assert alone["a"][0] == starts[3, 0]
    assert {name: len(part) for name, part in alone.items()} == {"a": 160, "reference": 800}


def test_data_tasks_start_without_torch() -> None:
    code = "import sys, rayssl.views.crops, rayssl.views.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
