"""``memory.ahead``: one request to the memory for several steps. Fewer calls, and resuming is as exact as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import resolve
from rayssl.training import checkpoint
from rayssl.training.context import Answer, InProcessMemory
from rayssl.training.stopping import Stopping
from tests.runs import DASO_METHOD, FEW, SPLITS, batches, build, content, experiment, fit, records, write_corpus

STEPS = 12  # three epochs of four: groups of three steps and of one


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, (12, 12, 8))
    return folder


def settings_of(folder: Path, corpus: Path, *more: str, ahead: int = 3) -> Experiment:
    return experiment(folder, corpus, f"memory.ahead={ahead}", *more)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, dict[str, Any]]:
    settings = settings_of(tmp_path_factory.mktemp("whole"), corpus)
    return settings, content(fit(settings))


class Counted(InProcessMemory):
    """Notes how many rows each request gave and asked for."""

    def __init__(self, memory: InProcessMemory) -> None:
        super().__init__(memory.memory)
        self.calls: list[tuple[int, int]] = []

    def exchange(self, remember: Any, ids: np.ndarray | None, epoch: int) -> Answer:
        self.calls.append((sum(len(each.ids) for each in remember), 0 if ids is None else len(ids)))
        return super().exchange(remember, ids, epoch)


def counted(settings: Experiment) -> list[tuple[int, int]]:
    from rayssl.training.recalling import Recaller

    loop = build(settings)
    assert isinstance(loop.state.memory, InProcessMemory)
    memory = loop.state.memory = Counted(loop.state.memory)
    loop.recaller = Recaller(memory, loop.state.ahead, loop.state.steps_per_epoch)
    loop.fit(batches(settings, loop))
    return memory.calls


def test_a_group_is_one_request(corpus: Path, tmp_path: Path) -> None:
    """The first epoch only remembers; the others ask for a group before its first step."""
    calls = counted(settings_of(tmp_path / "three", corpus))
    assert calls == [(24, 0), (8, 0), *([(0, 24), (24, 8), (8, 0)] * 2)]
    calls = counted(settings_of(tmp_path / "one", corpus, ahead=1))
    assert calls == [*[(8, 0)] * 4, *([(0, 8), *[(8, 8)] * 3, (8, 0)] * 2)]


def test_positives_of_a_group_come_from_the_memory_before_it(
    corpus: Path, tmp_path: Path, whole: tuple[Experiment, dict[str, Any]]
) -> None:
    """So the first step with positives trains alike, and later ones do not."""
    one = settings_of(tmp_path, corpus, ahead=1)
    fit(one)
    losses = [[line["loss"] for line in records(run, "step")] for run in (one.run, whole[0].run)]
    assert losses[0][:5] == losses[1][:5] and losses[0][5:] != losses[1][5:]


@pytest.mark.parametrize("every", [0, 1, 2])
def test_resumed_equals_uninterrupted(
    corpus: Path, tmp_path: Path, whole: tuple[Experiment, dict[str, Any]], every: int
) -> None:
    """The batches break off again and again; checkpoints lie at the ends of groups only."""
    settings = settings_of(tmp_path, corpus, f"training.checkpoints={{every_steps: {every}, keep: 99}}")
    for _ in range(STEPS):
        if checkpoint.steps(settings.run)[-1:] == [STEPS]:
            break
        fit(settings, 6)
    assert checkpoint.steps(settings.run) == ([4, 8, 12] if every == 0 else [3, 4, 7, 8, 11, 12])
    torch.testing.assert_close(content(fit(settings)), whole[1], rtol=0, atol=0)
    for kind in ("step", "epoch", "refresh"):
        assert records(settings.run, kind) == records(whole[0].run, kind)


@pytest.mark.parametrize("calls", [1, 3, 4])
def test_stopped_it_leaves_after_the_group(
    corpus: Path, tmp_path: Path, whole: tuple[Experiment, dict[str, Any]], calls: int
) -> None:
    settings = settings_of(tmp_path, corpus)
    loop, asked = build(settings), iter(range(1, calls + 1))
    loop.state.stopping = Stopping(lambda: next(asked) == calls, every_s=0.0)
    loop.fit(batches(settings, loop))
    assert loop.stopped and loop.step == [3, 4, 7, 8][calls - 1] and checkpoint.steps(settings.run)[-1] == loop.step
    if loop.state.log is not None:
        loop.state.log.close()
    torch.testing.assert_close(content(fit(settings)), whole[1], rtol=0, atol=0)


def test_a_memory_of_classes_is_asked_in_every_step(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", splits=SPLITS)
    settings = experiment(tmp_path / "run", tmp_path / "corpus", *FEW, "memory.ahead=2", method=DASO_METHOD)
    with pytest.raises(ConfigError, match=r"^memory\.ahead=2: method\.name=daso asks .*; set memory\.ahead=1$"):
        resolve(settings)
