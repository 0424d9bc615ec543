"""Joining and cutting, against a night that is laid out second by second."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pytest

from rayssl.data import decode, resampling
from rayssl.data.decode import DecodeError
from rayssl.data.nights import timeline
from rayssl.data.nights.timeline import AudioRun, cut, joined
from rayssl.data.resampling import resampled
from rayssl.data.sources.nights import Dropped


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample is a second: an epoch has 30 samples."""
    monkeypatch.setattr(timeline, "RATE", 1)
    monkeypatch.setattr(resampling, "RATE", 1)
    monkeypatch.setattr(timeline, "EPOCH_SAMPLES", 30)


def run(start: int, seconds: int, missing: int = 0) -> AudioRun:
    """Each sample is its second / 10,000."""

    def blocks(skip: int) -> Iterator[np.ndarray]:
        values = (start + np.arange(skip, seconds, dtype=np.float32)) / 10000
        yield from (values[at : at + 7] for at in range(0, len(values), 7))

    faults = [(float(missing), "truncated: x")] if missing else []
    return AudioRun(f"f{start}", float(start), seconds, 1.0, blocks, 0.0, faults)


@pytest.mark.parametrize("seed", range(60))
def test_epochs_and_what_is_missing(seed: int, coarse: None) -> None:
    draws = np.random.default_rng(seed)
    runs, at = [], 0
    for _ in range(draws.integers(1, 8)):
        seconds = int(draws.integers(1, 200))
        runs.append(run(at, seconds, int(draws.integers(1, 90)) if draws.random() < 0.3 else 0))
        at = max(0, at + seconds + int(draws.choice([0, 0, draws.integers(1, 90), -draws.integers(1, 20)])))
    boundary = int(draws.integers(-40, 40))
    covered = {second for one in runs for second in range(int(one.start), int(one.start) + one.samples)}
    ends = max(covered) + 1
    last = runs[-1]
    promised = ends + sum(int(missing) for missing, _ in last.faults)
    whole = [
        index
        for index in range((promised - boundary % 30) // 30 + 1)
        if all(boundary % 30 + 30 * index + k in covered for k in range(30))
    ]
    indices, dropped, missing = [], 0, 0
    for one in cut(joined(runs), boundary):
        if isinstance(one, Dropped):
            dropped += one.epochs
            assert one.epochs >= 0
            continue
        index, samples = one
        seconds = np.rint(samples * 10000).astype(int)
        assert np.array_equal(seconds, boundary % 30 + 30 * index + np.arange(30))
        missing += index - (indices[-1] if indices else -1) - 1
        assert dropped == missing  # what is missing before an epoch was told before it
        indices.append(index)
    assert indices == whole
    assert dropped == max(0, (promised - boundary % 30) // 30) - len(whole)


def test_each_hole_has_its_epochs(coarse: None) -> None:
    runs = [run(0, 70, missing=35), run(200, 70), run(265, 100)]
    found = [one for one in cut(joined(runs, datetime(2020, 1, 1, 23, 59)), 0) if isinstance(one, Dropped)]
    assert [one.epochs for one in found] == [2, 3, 0]
    assert found[1].reason == "gap: f0 ends at 2020-01-02 00:00:10, f200 begins at 2020-01-02 00:02:20"
    assert found[2].reason.startswith("overlap: f265 begins at 2020-01-02 00:03:25")


def test_a_fault_while_reading_keeps_what_came_before(coarse: None) -> None:
    """The rest of that stretch is dropped with the fault's reason, and later stretches are read."""
    whole = run(0, 200)

    def broken(skip: int) -> Iterator[np.ndarray]:
        yield from itertools.islice(whole.blocks(skip), 10)
        raise DecodeError("truncated: f0 ends")

    runs = [AudioRun("f0", 0.0, 200, 1.0, broken, 0.0), run(300, 60)]
    found = list(cut(joined(runs), 0))
    assert [one[0] for one in found if not isinstance(one, Dropped)] == [0, 1, 10, 11]
    assert [(one.reason, one.epochs) for one in found if isinstance(one, Dropped)] == [
        ("truncated: f0 ends", 5),
        ("gap: f0 ends at second 200, f300 begins at second 300", 3),
    ]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 50.0 / 3 * 1000])
@pytest.mark.parametrize("length", range(50001, 50008))
def test_blocks_of_any_size_resample_to_the_same_bits(length: int, rate: float) -> None:
    draws = np.random.default_rng(0)
    samples = draws.normal(0, 0.5, length).astype(np.float32)
    edges = [0, *sorted(draws.integers(0, len(samples), 12).tolist()), len(samples)]
    blocks = [samples[a:b] for a, b in itertools.pairwise(edges)]
    made = np.concatenate(list(resampled(blocks, rate)))
    assert len(made) == int(-(-len(samples) * 16000 // rate))
    if rate == int(rate):
        assert np.array_equal(made, decode.resample(samples, int(rate)).clip(-1, 1))
    assert np.array_equal(made, np.concatenate(list(resampled([samples], rate))))
