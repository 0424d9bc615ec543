"""Two workers on a cluster judge a run while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl.cli import main
from rayssl.training import checkpoint
from rayssl.training.metrics import read_metrics
from tests.small_experiment import tree, write_config, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_early_stopping_by_the_error_rate(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a patience of one and weights that hardly move, the second validation is not better and ends it."""
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")
    write_corpus(str(tmp_path / "corpus"))
    config = write_config(tmp_path / "x.yaml", tree(str(tmp_path), method={"name": "simclr", "temperature": 0.1}))
    held_out = f"corpus: {tmp_path}/corpus, trials: {tmp_path}/trials.txt"
    validate = f"training.validate={{metric: eer, {held_out}, also: [pseudo_eer, effective_rank], patience: 1}}"
    still = ("training.optimiser.lr=1e-9", "training.epochs=9")
    assert main(["train", config, validate, *still]) == 0
    said = capfd.readouterr().out
    run = str(tmp_path / "run")
    lines = [line for line in read_metrics(f"{run}/metrics.jsonl") if line["kind"] == "validate"]
    meta = checkpoint.read_meta(checkpoint.locate(run, "last"))
    assert 2 <= len(lines) == meta.epoch < 9
    assert meta.metrics["validate/eer"] == lines[-1]["eer"] and meta.validated["waited"] == 1
    assert {"pseudo_eer", "effective_rank"} <= lines[0].keys()
    assert f"trained to epoch {meta.epoch}," in said
    assert main(["train", config, validate, *still]) == 0
    assert "training.validate.patience ended it" in capfd.readouterr().out
    assert checkpoint.read_meta(checkpoint.locate(run, "last")) == meta
