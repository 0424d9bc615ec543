"""Every epoch of a night is scored, whatever its length, its gaps, the window, the stride and the scored positions."""

from __future__ import annotations

import numpy as np
import pytest

from rayssl.data.nights.scores import consecutive_runs
from rayssl.evaluation.windows import NightWindows, averaged, night_windows, window_starts


def cases(count: int) -> list[tuple[np.ndarray, int, int, tuple[int, int] | None]]:
    """Nights with gaps, windows, strides and scored ranges, small and large, drawn from one seed."""
    draw = np.random.default_rng([14])
    found = []
    for _ in range(count):
        sequence = int(draw.integers(1, 12))
        begin = int(draw.integers(0, sequence))
        scored = (begin, int(draw.integers(begin + 1, sequence + 1))) if draw.random() < 0.7 else None
        index = np.flatnonzero(draw.random(draw.integers(1, 60)) < draw.choice([0.5, 0.9, 1.0]))
        found.append((index, sequence, int(draw.integers(1, 15)), scored))
    return found


def test_every_epoch_counts_and_every_entry_is_its_neighbour() -> None:
    for index, sequence, stride, scored in cases(600):
        windows = night_windows(index, sequence=sequence, stride=stride, scored=scored)
        begin, end = scored or (0, sequence)
        assert windows.source.shape == windows.counts.shape and windows.source.shape[1] == sequence
        times = np.zeros(len(index), int)
        for source, counts in zip(windows.source, windows.counts, strict=True):
            assert not counts[:begin].any() and not counts[end:].any() and counts.any()
            # a window is one stretch of consecutive epochs, with the first and the last one repeated
            assert set(np.diff(source)) <= {0, 1} and set(np.diff(index[source])) <= {0, 1}
            stays = np.flatnonzero(np.diff(source) == 0)
            assert all(source[at] in (source[0], source[-1]) for at in stays)
            assert len(set(source[counts])) == counts.sum(), "a repeated entry counts"
            times[source[counts]] += 1
        assert (times > 0).all() if len(index) else len(windows.source) == 0


def test_what_is_averaged_is_the_mean_of_what_counts() -> None:
    draw = np.random.default_rng([3])
    for index, sequence, stride, scored in cases(100):
        windows = night_windows(index, sequence=sequence, stride=stride, scored=scored)
        given = draw.random((*windows.source.shape, 4)).astype(np.float32)
        given[~windows.counts] = np.nan  # what does not count may be anything
        found = averaged(windows, given, len(index))
        assert found.shape == (len(index), 4) and found.dtype == np.float32
        for row in range(len(index)):
            mine = [
                given[k, j].astype(np.float64)
                for k in range(len(windows.source))
                for j in range(sequence)
                if windows.counts[k, j] and windows.source[k, j] == row
            ]
            np.testing.assert_allclose(found[row], np.mean(mine, axis=0), atol=1e-7)


def test_a_function_of_the_epoch_alone_comes_back_as_it_is() -> None:
    of_epoch = np.random.default_rng([5]).dirichlet(np.ones(4), 300).astype(np.float32)
    windows = night_windows(np.arange(300), sequence=40, stride=20, scored=(10, 30))
    np.testing.assert_allclose(averaged(windows, of_epoch[windows.source], 300), of_epoch, atol=1e-7)


def test_middle_of_forty_scores_the_night_once() -> None:
    """SoundSleepNet's windows: 40 in, the middle 20 out, stride 20. 100 epochs are 5 windows without an overlap."""
    starts = window_starts(100, 40, 20, (10, 30))
    assert starts.tolist() == [-10, 10, 30, 50, 70]
    windows = night_windows(np.arange(100), sequence=40, stride=20, scored=(10, 30))
    assert windows.source[0].tolist() == [0] * 10 + list(range(30))
    assert windows.source[-1].tolist() == list(range(70, 100)) + [99] * 10
    assert sorted(windows.source[windows.counts]) == list(range(100))


def test_windows_that_score_all_overlap_by_the_stride() -> None:
    assert window_starts(100, 40, 20).tolist() == [0, 20, 40, 60]
    assert window_starts(95, 40, 20).tolist() == [0, 20, 40, 55]  # the last one is moved back
    assert window_starts(95, 40, 99).tolist() == [0, 40, 55]  # a stride beyond the window leaves no epoch out
    assert window_starts(40, 40, 20).tolist() == [0]


def test_a_short_night_is_padded_with_its_last_epoch_which_does_not_count_again() -> None:
    windows = night_windows(np.array([3, 4, 5]), sequence=6, stride=2)
    assert windows.source.tolist() == [[0, 1, 2, 2, 2, 2]]
    assert windows.counts.tolist() == [[True, True, True, False, False, False]]


def test_gaps_split_a_night_into_runs() -> None:
    index = np.array([0, 1, 2, 7, 8, 20])
    assert consecutive_runs(index) == [(0, 3), (3, 5), (5, 6)]
    windows = night_windows(index, sequence=4, stride=4)
    assert windows.source.tolist() == [[0, 1, 2, 2], [3, 4, 4, 4], [5, 5, 5, 5]]
    nothing = night_windows(np.zeros(0, int), sequence=4, stride=1)
    assert consecutive_runs(np.zeros(0, int)) == [] and averaged(nothing, np.zeros((0, 4, 3)), 0).shape == (0, 3)


def test_impossible_arguments_are_named() -> None:
    for scored in ((-1, 3), (2, 2), (0, 5)):
        with pytest.raises(ValueError, match=r"scored positions .* window of 4"):
            window_starts(9, 4, 2, scored)
    with pytest.raises(ValueError, match="stride 0"):
        window_starts(9, 4, 0)
    windows = night_windows(np.arange(9), sequence=4, stride=2)
    with pytest.raises(ValueError, match=r"expected probabilities \[4, 4, 'C'\], got \[4, 3, 2\]"):
        averaged(windows, np.zeros((4, 3, 2)), 9)
    with pytest.raises(ValueError, match="not every epoch is scored"):
        averaged(NightWindows(windows.source[:2], windows.counts[:2]), np.zeros((2, 4, 2)), 9)
    with pytest.raises(ValueError, match="NaN"):
        averaged(windows, np.full((4, 4, 2), np.nan), 9)
