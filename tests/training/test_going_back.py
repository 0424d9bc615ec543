"""A damaged checkpoint does not end a run that has one before: the run goes back, and ends with the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.errors import DamagedCheckpoint
from rayssl.experiment import local
from rayssl.experiment.build import check_start
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import resolve
from rayssl.progress import Lines
from rayssl.training import checkpoint
from tests.runs import content, experiment, fit, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, (9, 10, 6))
    return folder


def settings_of(folder: Path, corpus: Path) -> Experiment:
    return experiment(folder, corpus, "training.checkpoints={every_steps: 1, keep: 3}")


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return content(fit(settings_of(tmp_path_factory.mktemp("whole"), corpus)))


@pytest.fixture(scope="module")
def half(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "run"
    fit(settings_of(folder, corpus), 6)
    return folder


def damaged(half: Path, folder: Path, name: str, steps: int = 1) -> list[Path]:
    """A copy of the run in which this file of the last ``steps`` checkpoints has one flipped bit; these checkpoints."""
    shutil.copytree(half, folder)
    last = sorted((folder / "checkpoints").iterdir())[-steps:]
    for uri in last:
        path = next(uri.glob(name))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    return last


@pytest.mark.parametrize("name", ["state.pt", "meta.json", "memory-index.npz", "memory-references-*.npz"])
def test_a_training_goes_back(
    corpus: Path, half: Path, whole: dict[str, Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (last,) = damaged(half, tmp_path / "run", name)
    settings, said = settings_of(tmp_path / "run", corpus), list[str]()
    job = resolve(settings)
    before = checkpoint.steps(settings.run)
    check_start(job, said.append)
    local.train(job, device="cpu", screen=Lines(said.append))
    (line,) = [line for line in said if "left out" in line]
    assert line.startswith(f"{last}/") and ("damaged" in line or "not a checkpoint" in line)
    assert line.endswith(f"it is left out, and the run resumes from the checkpoint before, step {before[-2]}")
    assert "\n" not in line
    torch.testing.assert_close(content(fit(settings)), whole, rtol=0, atol=0)


def test_without_one_before_it_is_an_error(corpus: Path, half: Path, tmp_path: Path) -> None:
    """All are damaged: all but one are left out; the user is told about the one that is left."""
    first, *others = damaged(half, tmp_path / "run", "state.pt", steps=99)
    said: list[str] = []
    job = resolve(settings_of(tmp_path / "run", corpus))
    with pytest.raises(
        DamagedCheckpoint, match=r"state\.pt: damaged \(its hash differs from meta\.json\); delete this"
    ):
        check_start(job, said.append)
    assert len(said) == len(others) > 1 and checkpoint.steps(job.run) == [int(first.name[5:])]


def test_damage_somewhere_else_leaves_the_run_alone(corpus: Path, half: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(half, tmp_path / "run"))
    before = checkpoint.steps(str(run))
    assert checkpoint.go_back(str(run), DamagedCheckpoint("elsewhere/step-0000000004/state.pt: damaged")) is None
    older = sorted((run / "checkpoints").iterdir())[-2]
    assert checkpoint.go_back(str(run), DamagedCheckpoint(f"{older}/state.pt: damaged")) is None
    assert checkpoint.steps(str(run)) == before
