"""Segments: contents, tiling, uniform positions, independence of streams, and no torch in data tasks."""

import subprocess
import sys

import numpy as np
import pytest

from rayssl.random.draws import fold, keys_np
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
    short = [Segment(name="a", seconds=0.01, recipe="distort"), Segment(name="b", seconds=0.01, recipe="distort")]
    keys = keys_np(fold(1), np.arange(500))
    starts = np.array([[part[0] for part in cut_segments(PCM, short, key, 16000).values()] for key in keys])
    assert abs(np.corrcoef(starts.T)[0, 1]) < 0.15
    longer = [short[0], Segment(name="reference", seconds=0.05)]
    alone = cut_segments(PCM, longer, keys[3], 16000)
    assert alone["a"][0] == starts[3, 0]
    assert {name: len(part) for name, part in alone.items()} == {"a": 160, "reference": 800}


def test_data_tasks_start_without_torch() -> None:
    code = "import sys, rayssl.views.crops, rayssl.views.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_disjoint_segments_share_no_sample_and_reach_every_part() -> None:
    pcm = np.arange(1000, dtype=np.int16)
    pair = [Segment(name=name, seconds=0.3, recipe="distort", disjoint=True) for name in ("a", "b")]
    first, covered = [], set()
    for key in range(400):
        cuts = cut_segments(pcm, pair, key, 1000)
        a, b = set(cuts["a"].tolist()), set(cuts["b"].tolist())
        assert len(a) == len(b) == 300
        assert not a & b
        first.append(cuts["a"][0] < cuts["b"][0])
        covered |= a | b
    assert 0.4 < np.mean(first) < 0.6
    assert len(covered) == 1000


def test_disjoint_segments_of_a_short_utterance_fall_back_to_overlapping_ones() -> None:
    pcm = np.arange(500, dtype=np.int16)
    pair = [Segment(name=name, seconds=0.3, recipe="distort", disjoint=True) for name in ("a", "b")]
    plain = [segment.model_copy(update={"disjoint": False}) for segment in pair]
    for key in range(20):
        cuts, expected = cut_segments(pcm, pair, key, 1000), cut_segments(pcm, plain, key, 1000)
        for name in ("a", "b"):
            np.testing.assert_array_equal(cuts[name], expected[name])


def test_a_segment_that_is_not_disjoint_is_cut_as_without_the_others() -> None:
    pcm = np.arange(2000, dtype=np.int16)
    reference = Segment(name="reference", seconds=1.0)
    pair = [Segment(name=name, seconds=0.3, recipe="distort", disjoint=True) for name in ("a", "b")]
    plain = [segment.model_copy(update={"disjoint": False}) for segment in pair]
    together = cut_segments(pcm, [*pair, reference], 7, 1000)["reference"]
    np.testing.assert_array_equal(together, cut_segments(pcm, [*plain, reference], 7, 1000)["reference"])
