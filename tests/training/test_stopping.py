"""Told to leave at any step, the loop saves there; resumed it does what it would have done, to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.experiment.config import Experiment
from rayssl.training import checkpoint
from rayssl.training.stopping import Stopping
from tests.runs import DASO_METHOD, FEW, SPLITS, SSPS_METHOD, batches, build, content, experiment, fit, records
from tests.runs import write_corpus as write

STEPS = 9
METHODS: dict[str, dict[str, Any]] = {
    "ssps": SSPS_METHOD,
    "ssps_fill": {**SSPS_METHOD, "references": "fill"},
    "daso": DASO_METHOD,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write(folder, (9, 10, 6), splits=SPLITS)
    return folder


@pytest.fixture(scope="module", params=list(METHODS))
def whole(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[[Path], Experiment], Experiment, dict[str, Any]]:
    """How to make the experiment in another folder, the experiment that was not interrupted, and what came of it."""

    def made(folder: Path) -> Experiment:
        few = (*FEW, "training.epoch_steps=3") if request.param == "daso" else ()
        return experiment(folder, corpus, *few, method=METHODS[request.param])

    settings = made(tmp_path_factory.mktemp("whole"))
    return made, settings, content(fit(settings))


def stopping_after(calls: int) -> Stopping:
    """Rings at the ``calls``-th question (from 1); asked before every step and every batch that fills the memory."""
    asked = iter(range(1, calls + 1))
    return Stopping(lambda: next(asked) == calls, every_s=0.0)


@pytest.mark.parametrize("calls", [3, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 5, 8))])
def test_stopped_and_resumed_equals_uninterrupted(
    whole: tuple[Callable[[Path], Experiment], Experiment, dict[str, Any]], tmp_path: Path, calls: int
) -> None:
    made, settings, expected = whole
    mine = made(tmp_path)
    loop = build(mine)
    loop.state.stopping = stopping_after(calls)
    loop.fit(batches(mine, loop))
    assert loop.stopped and loop.step <= calls
    fills = getattr(mine.method, "references", None) == "fill"
    assert fills or loop.step == calls
    if loop.state.log is not None:
        loop.state.log.close()
    assert checkpoint.steps(mine.run)[-1:] == [loop.step]
    assert checkpoint.read_meta(checkpoint.locate(mine.run, "last")).step == loop.step
    torch.testing.assert_close(content(fit(mine)), expected, rtol=0, atol=0)
    for kind in ("step", "epoch", "refresh", "classes"):
        assert records(mine.run, kind) == records(settings.run, kind)


def test_told_while_the_memory_is_filled_it_leaves_at_once(corpus: Path, tmp_path: Path) -> None:
    """Half of a pass is not saved, and the checkpoint of the epoch before is there."""
    mine = experiment(tmp_path, corpus, method=METHODS["ssps_fill"])
    loop = build(mine)
    loop.state.stopping = stopping_after(4)  # three steps of the first epoch, then the first batch that fills
    loop.fit(batches(mine, loop))
    assert loop.stopped and loop.step == 3 and checkpoint.steps(mine.run) == [3]
    assert loop.state.memory is not None and not records(mine.run, "refresh")


def test_told_before_the_last_step_it_has_finished(corpus: Path, tmp_path: Path) -> None:
    mine = experiment(tmp_path, corpus)
    loop = build(mine)
    loop.state.stopping = stopping_after(STEPS)
    assert loop.fit(batches(mine, loop))["loss"] == records(mine.run, "epoch")[-1]["loss"]
    assert loop.cursor.epoch == 3


def test_short_steps_are_asked_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """About once in every_s, at most twice as many steps apart as before; long ones at every step."""
    now = [0.0]
    monkeypatch.setattr("rayssl.training.stopping.time.perf_counter", lambda: now[0])
    asked: list[float] = []
    stopping = Stopping(lambda: bool(asked.append(now[0])), every_s=1.0)
    for _ in range(1000):
        now[0] += 0.01
        assert not stopping.agreed()
    gaps = [round(100 * (after - before)) for before, after in itertools.pairwise(asked)]
    assert gaps[:6] == [2, 4, 8, 16, 32, 64] and set(gaps[6:]) <= {99, 100, 101}
    asked.clear()
    for _ in range(400):
        now[0] += 3.0
        stopping.agreed()
    assert len(asked) >= 300


def test_nobody_leaves_who_is_not_told() -> None:
    assert not any(Stopping().agreed() for _ in range(10))
