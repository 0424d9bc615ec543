"""DASO through the verbs: resumed with and without Ray, with other shards, judged by its classifier and by probes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.cli import main
from rayssl.training import checkpoint
from rayssl.training.metrics import read_metrics
from tests.runs import DASO_METHOD, SPLITS, experiment, write_corpus
from tests.small_experiment import write_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def keep_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("few")
    write_corpus(folder / "corpus", (9, 10, 6), splits=SPLITS)
    write_corpus(folder / "test", (12, 9), splits=SPLITS)
    changes = (
        "labels={split: few, ratio: 2}",
        *("training.epoch_steps=3", "training.epochs=2", "ray.workers=1"),
        f"evaluation={{task: classification, corpus: {folder}/test, resamples: 20, probes: [linear, knn, finetune]}}",
        "evaluation.finetune={epochs: 1, steps: 2, batch: 4}",
    )
    settings = experiment(folder / "run", folder / "corpus", *changes, method=DASO_METHOD)
    return write_config(folder / "few.yaml", settings.model_dump(mode="json"))


def weights(run: Path) -> dict[str, Any]:
    loaded = checkpoint.load(checkpoint.locate(str(run), "last"))
    files = sorted(loaded.memory)
    assert "memory-index.npz" in files and len(files) > 1
    arrays = {}
    for name in files:
        with np.load(Path(loaded.uri) / name, allow_pickle=False) as stored:
            arrays |= {f"{name}/{key}": torch.from_numpy(stored[key]) for key in stored.files}
    return loaded.state["method"] | arrays


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in the metrics of ``run``, without what differs in time."""
    timed = {"time", "utterances_per_s", "data_wait", "memory_wait"}
    found = [line for line in read_metrics(f"{run}/metrics.jsonl") if line["kind"] == kind]
    return [{key: value for key, value in line.items() if key not in timed} for line in found]


def test_interrupted_between_epochs_and_with_other_shards(
    ray_cluster: Any, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ends on Ray with two shards, or in one process, after an epoch on Ray: as one process from the start."""
    whole, parts, back = tmp_path / "whole", tmp_path / "parts", tmp_path / "back"
    assert main(["train", config, f"run={whole}", "--local"]) == 0
    assert main(["train", config, f"run={parts}", "training.epochs=1"]) == 0
    shutil.copytree(parts, back)
    assert main(["train", config, f"run={back}", "--local"]) == 0
    assert main(["train", config, f"run={parts}", "memory.shards=2"]) == 0
    for ended in (parts, back):
        torch.testing.assert_close(weights(ended), weights(whole), rtol=0, atol=0)
        for kind in ("classes", "step"):
            assert lines(ended, kind) == lines(whole, kind)
    epochs = [line for line in read_metrics(f"{parts}/metrics.jsonl") if line["kind"] == "epoch"]
    assert epochs[-1]["prototypes_filled"] == 1
    evaluated(str(whole))
    write_corpus(tmp_path / "unlabelled", (9,))
    capsys.readouterr()
    assert main(["evaluate", str(whole), "--local", f"evaluation.corpus={tmp_path}/unlabelled"]) == 2
    assert "unlabelled: no clip has one of the labels s0, s1, s2, s3" in capsys.readouterr().err


def evaluated(run: str) -> None:
    """Its own classifier and three probes, in the folder and on the page."""
    assert main(["evaluate", run]) == 0
    results = json.loads((Path(run) / "evaluation" / "result.json").read_text())
    assert [result["head"] for result in results] == ["model", "linear", "knn", "finetune"]
    assert all(result["n"] == 21 and 0 <= result["balanced_accuracy"] <= 1 for result in results)
    assert [c["train_count"] for c in results[0]["per_class"]] == [2, 2, 2, 2]
    assert main(["evaluate", run, "--local", "--checkpoint", "every", "evaluation.probes=[]"]) == 0
    over = [json.loads(line) for line in (Path(run) / "evaluation" / "over_time.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["head"]) for line in over] == [(1, "model"), (2, "model")]
    assert 0 < over[0]["seconds"] < over[1]["seconds"]
    assert over[1]["balanced_accuracy"] == pytest.approx(results[0]["balanced_accuracy"])
    assert main(["report", run]) == 0
    page = (Path(run) / "report.html").read_text()
    assert "Classification" in page and "Pseudo-labels" in page
