"""From probabilities of speech to segments: what is in none of them is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from rayssl.data.segments import cutting
from rayssl.data.segments.settings import SegmentsConfig

WINDOW, RATE = 512, 16000
SECOND = 31.25  # windows


def config(**keys: Any) -> SegmentsConfig:
    return SegmentsConfig.model_validate({"pad_s": 0, **keys})


def speech(*stretches: tuple[float, float], seconds: float) -> np.ndarray:
    """1 in the stretches, from and to seconds; else 0."""
    made = np.zeros(round(seconds * SECOND))
    for start, stop in stretches:
        made[round(start * SECOND) : round(stop * SECOND)] = 1
    return made


def cut(probabilities: np.ndarray, **keys: Any) -> list[tuple[float, float]]:
    found = cutting.segments(probabilities, WINDOW, len(probabilities) * WINDOW, config(**keys))
    return [(start / RATE, stop / RATE) for start, stop in found.kept]


def test_pauses_divide_and_short_pauses_do_not() -> None:
    found = cut(speech((1, 4), (4.32, 7), (9, 12), seconds=20))
    np.testing.assert_allclose(found, [(1, 7), (9, 12)], atol=0.04)
    found = cut(speech((1, 4), (4.32, 7), (9, 12), seconds=20), pause_s=0.1)
    np.testing.assert_allclose(found, [(1, 4), (4.32, 7), (9, 12)], atol=0.04)


def test_weak_moments_inside_speech_do_not_end_it() -> None:
    probabilities = speech((1, 9), seconds=10)
    probabilities[100:150] = 0.4  # above .35, where speech ends
    np.testing.assert_allclose(cut(probabilities, pause_s=0), [(1, 9)], atol=0.04)
    probabilities[100:150] = 0.3
    assert len(cut(probabilities, pause_s=0)) == 2


def test_long_speech_is_divided_where_it_is_least_likely() -> None:
    probabilities = speech((0, 50), seconds=50)
    probabilities[round(16 * SECOND) - 2 : round(16 * SECOND) + 3] = 0.4
    found = cut(probabilities)
    np.testing.assert_allclose(found[0], (0, 16), atol=0.04)
    assert all(2 <= stop - start <= 20 for start, stop in found)
    assert sum(stop - start for start, stop in found) == pytest.approx(50, abs=0.04)
    assert cut(probabilities, max_s=None) == [(0, pytest.approx(50, abs=0.04))]


def test_equal_parts_without_a_detector() -> None:
    found = cut(np.ones(round(65 * SECOND)), detector="none")
    assert [round(stop - start) for start, stop in found] == [20, 20, 20, 5]
    found = cut(np.ones(round(61 * SECOND)), detector="none")
    assert min(stop - start for start, stop in found) >= 2


@pytest.mark.parametrize("seed", range(50))
def test_everything_is_counted_once(seed: int) -> None:
    draws = np.random.default_rng(seed)
    smooth = np.convolve(draws.random(4000), np.ones(draws.integers(1, 60)), mode="same")
    probabilities = smooth / smooth.max()
    samples = len(probabilities) * WINDOW - int(draws.integers(0, WINDOW))
    how = config(
        threshold=float(draws.choice([0.3, 0.5, 0.7])), min_s=1, max_s=float(draws.choice([2, 5, 20])),
        pause_s=float(draws.choice([0, 0.3])), pad_s=float(draws.choice([0, 0.1, 1])),
    )  # fmt: skip
    found = cutting.segments(probabilities, WINDOW, samples, how)
    flat = [at for bounds in found.kept for at in bounds]
    assert flat == sorted(flat)
    assert all(0 <= start < stop <= samples for start, stop in found.kept)
    lengths = [stop - start for start, stop in found.kept]
    assert all(RATE <= length <= how.max_s * RATE for length in lengths)  # type: ignore[operator]
    assert sum(lengths) + found.pauses + found.short[1] == samples


def test_no_speech_and_no_audio() -> None:
    assert cutting.segments(np.zeros(100), WINDOW, 100 * WINDOW, config()) == ([], 100 * WINDOW, (0, 0))
    assert cutting.segments(np.zeros(0), WINDOW, 0, config()) == ([], 0, (0, 0))


def test_lengths_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"max_s is 3, it must be at least twice min_s \(2\)"):
        config(max_s=3)
