"""Segments: contents, tiling, uniform positions, independence of streams, and no torch in data tasks."""

import subprocess
import sys

import numpy as np
import pytest

from rayssl.random.draws import fold, keys_np
from rayssl.views import crops
from rayssl.views.crops import cut
from rayssl.views.recipes import Segment
from tests.views.whole import cut_segments

PCM = np.arange(1000, dtype=np.int16)


def segments_at(pcm: np.ndarray, starts: np.ndarray, segments: list[Segment], rate: int) -> dict[str, np.ndarray]:
    """The segments of an utterance that begin at ``starts [segments]``; after its last sample comes its first."""
    return {
        segment.name: pcm[(start + np.arange(segment.samples(rate))) % len(pcm)]
        for segment, start in zip(segments, starts, strict=True)
    }


def starts_of(length: int, segments: list[Segment], key: int, rate: int = 1000) -> np.ndarray:
    (starts,) = crops.starts(np.array([length]), segments, np.array([key], np.uint64), rate)
    return np.asarray(starts)


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


@pytest.mark.parametrize("count", range(1, 9))
def test_starts_are_those_of_one_utterance_at_a_time(count: int) -> None:
    """Short utterances too, down to one sample; any number of the segments disjoint, whether they fit or not."""
    random = np.random.default_rng(count)
    for _ in range(8):
        segments = [
            Segment(name=f"s{j}", seconds=float(random.integers(1, 300)) / 1000, disjoint=bool(random.integers(2)))
            for j in range(count)
        ]
        lengths = np.concatenate([[1, 2, 299], random.integers(1, 2000, 30)])
        together = sum(s.samples(1000) for s in segments if s.disjoint)
        lengths = np.append(lengths, [max(1, together), max(1, together - 1)])
        keys = keys_np(fold(7), random.integers(0, 1 << 60, len(lengths)))
        found = crops.starts(lengths, segments, keys, 1000)
        assert found.dtype == np.int64 and found.shape == (len(lengths), count)
        for length, key, starts in zip(lengths.tolist(), keys, found, strict=True):
            pcm = random.integers(-3000, 3000, length).astype(np.int16)
            expected = cut_segments(pcm, segments, key, 1000)
            for name, samples in segments_at(pcm, starts, segments, 1000).items():
                np.testing.assert_array_equal(samples, expected[name])


def test_segments_take_their_own_streams() -> None:
    short = [Segment(name="a", seconds=0.01, recipe="distort"), Segment(name="b", seconds=0.01, recipe="distort")]
    keys = keys_np(fold(1), np.arange(500))
    starts = crops.starts(np.full(500, 1000), short, keys, 16000)
    assert abs(np.corrcoef(starts.T)[0, 1]) < 0.15
    longer = [short[0], Segment(name="reference", seconds=0.05)]
    assert np.array_equal(crops.starts(np.full(500, 1000), longer, keys, 16000)[:, 0], starts[:, 0])


def test_data_tasks_start_without_torch() -> None:
    code = "import sys, rayssl.views.crops, rayssl.views.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_disjoint_segments_share_no_sample_and_reach_every_part() -> None:
    pair = [Segment(name=name, seconds=0.3, recipe="distort", disjoint=True) for name in ("a", "b")]
    starts = crops.starts(np.full(400, 1000), pair, np.arange(400, dtype=np.uint64), 1000)
    assert (np.abs(starts[:, 0] - starts[:, 1]) >= 300).all() and starts.min() >= 0 and starts.max() <= 700
    assert 0.4 < np.mean(starts[:, 0] < starts[:, 1]) < 0.6
    assert len({sample for start in starts.ravel().tolist() for sample in range(start, start + 300)}) == 1000


def test_disjoint_segments_of_a_short_utterance_fall_back_to_overlapping_ones() -> None:
    pair = [Segment(name=name, seconds=0.3, recipe="distort", disjoint=True) for name in ("a", "b")]
    plain = [segment.model_copy(update={"disjoint": False}) for segment in pair]
    for key in range(20):
        np.testing.assert_array_equal(starts_of(500, pair, key), starts_of(500, plain, key))


def test_a_segment_that_is_not_disjoint_is_cut_as_without_the_others() -> None:
    reference = Segment(name="reference", seconds=1.0)
    pair = [Segment(name=name, seconds=0.3, recipe="distort", disjoint=True) for name in ("a", "b")]
    plain = [segment.model_copy(update={"disjoint": False}) for segment in pair]
    assert starts_of(2000, [*pair, reference], 7)[2] == starts_of(2000, [*plain, reference], 7)[2]
