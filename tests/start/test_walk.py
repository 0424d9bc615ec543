"""The whole walk on six generated voices, with nothing edited: each command is the one that the last line named."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

import rayssl
from rayssl.cli import main
from rayssl.start import machine
from tests.start.voices import voices

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def test_the_first_hour(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """So few voices need no Ray, and `init` says so; tests/ray have the same verbs on Ray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "here", lambda: machine.Machine(2))
    voices(tmp_path / "voices", takes=4)
    command = "rayssl init voices"
    verbs, without_ray = [], []
    # smaller than what init writes: a test has no minutes
    changes = {"train": ["training.epochs=2", "training.epoch_steps=2", "encoder.backbone.channels=16"]}
    while len(verbs) < 6:
        _, verb, *rest = shlex.split(command)
        assert main([verb, *rest, *changes.get(verb, [])]) == 0, command
        verbs.append(verb)
        without_ray += [verb] if "--local" in rest else []
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith("next: rayssl "), line
        command = line.removeprefix("next: ").partition("    (")[0]
    assert verbs == ["init", "prepare", "train", "evaluate", "report", "embed"]
    assert without_ray == ["prepare", "train", "evaluate", "embed"]
    assert {path.name for path in (tmp_path / "runs/voices/run").iterdir()} >= {
        "evaluation",
        "report.html",
        "embeddings",
    }
    assert main(["publish", "runs/voices/run", "published"]) == 0
    recording = min((tmp_path / "voices").rglob("*.wav"))
    ours, theirs = (rayssl.load(place).embed_file(str(recording)) for place in ("runs/voices/run", "published"))
    assert np.array_equal(ours, theirs)
