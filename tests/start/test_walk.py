"""The whole walk on six generated voices, with nothing edited: each command is the one that the last line named."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rayssl
from rayssl.cli import main
from tests.start.voices import voices

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_the_first_hour(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")
    voices(tmp_path / "voices", takes=4)
    command = "rayssl init voices"
    verbs = []
    # smaller than what init writes: a test has no minutes
    changes = {"train": ["training.epochs=2", "training.epoch_steps=2", "encoder.backbone.channels=16"]}
    while len(verbs) < 6:
        _, verb, *rest = shlex.split(command)
        assert main([verb, *rest, *changes.get(verb, [])]) == 0, command
        verbs.append(verb)
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith("next: rayssl "), line
        command = line.removeprefix("next: ").partition("    (")[0]
    assert verbs == ["init", "prepare", "train", "evaluate", "report", "embed"]
    assert {path.name for path in (tmp_path / "runs/voices/run").iterdir()} >= {
        "evaluation",
        "report.html",
        "embeddings",
    }
    assert main(["publish", "runs/voices/run", "published"]) == 0
    recording = min((tmp_path / "voices").rglob("*.wav"))
    ours, theirs = (rayssl.load(place).embed_file(str(recording)) for place in ("runs/voices/run", "published"))
    assert np.array_equal(ours, theirs)
