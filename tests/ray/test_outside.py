"""Components from outside on a cluster, and how many networks a training builds: none on the driver, one a rank."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import rayssl
from rayssl import storage
from rayssl.cli import main
from rayssl.training import checkpoint
from rayssl.training.metrics import read_metrics
from tests import outside
from tests.runs import memory_of
from tests.small_experiment import tree, write_config, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, trials, and an experiment whose method, front end and backbone are in files beside it."""
    path = tmp_path_factory.mktemp("outside")
    write_corpus(str(path / "corpus"))
    method, parts = outside.write(path, outside.METHOD, "own.py"), outside.write(path, outside.BACKBONE, "parts.py")
    values = tree(str(path))
    values["method"]["over"] = {"name": f"{method}:Contrast"}
    backbone = {"name": f"{parts}:Mean", "log": str(path / "built")}
    values["encoder"] = {"frontend": {"name": f"{parts}:Energy"}, "backbone": backbone}
    write_config(path / "experiment.yaml", values)
    return path


def built(folder: Path) -> list[int]:
    """Processes that have built a network since the last look."""
    place = folder / "built"
    found = [int(line) for line in place.read_text().split()] if place.exists() else []
    place.unlink(missing_ok=True)
    return found


@pytest.fixture(scope="module")
def run(ray_cluster: Any, folder: Path) -> str:
    uri = str(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSSL_KEEP_RAY", "1")
        assert main(["train", str(folder / "experiment.yaml"), f"run={uri}"]) == 0
        processes = built(folder)
        assert len(processes) == len(set(processes)) == 2 and os.getpid() not in processes
        assert main(["train", str(folder / "experiment.yaml"), f"run={uri}", "training.epochs=4"]) == 0  # resumed
        processes = built(folder)
        assert len(processes) == len(set(processes)) == 2 and os.getpid() not in processes
    return uri


def test_trained_saved_and_resumed(run: str, folder: Path) -> None:
    saved = yaml.safe_load(Path(run, "config.yaml").read_text())
    assert saved["method"]["over"]["name"] == f"{folder}/own.py:Contrast"
    meta = checkpoint.read_meta(checkpoint.locate(run, "last"))
    assert meta.epoch == 4 and meta.architecture.startswith("ssps over Mean(")
    ends = [line for line in read_metrics(f"{run}/metrics.jsonl") if line["kind"] == "epoch"]
    assert len(ends) == 4 and ends[-1]["coverage"] > 0.5
    starts = yaml.safe_load(storage.read_text(f"{run}/origin.json"))
    assert set(starts["components"]) == {f"{folder}/own.py", f"{folder}/parts.py"}


def test_evaluated_embedded_exported_and_loaded(
    run: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")
    assert main(["evaluate", run, "evaluation.resamples=20"]) == 0
    on_ray = capsys.readouterr().out
    assert "EER" in on_ray
    assert main(["evaluate", run, "evaluation.resamples=20", "--local"]) == 0
    assert capsys.readouterr().out == on_ray
    assert main(["embed", run, str(folder / "corpus"), str(folder / "embedded")]) == 0
    assert main(["export", run, "--out", str(folder / "encoder.pt2")]) == 0
    model = rayssl.load(run)
    table = pq.read_table(sorted((folder / "embedded").glob("*.parquet"))[0])
    assert model.dim == 16 == len(table["embedding"][0].as_py())
    assert main(["report", run]) == 0


def test_one_process_has_the_bits_of_one_worker(
    folder: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--local` against a worker of Ray, memory included: a run that begins here and ends on Ray.

    The other way round, it is DASO's in tests/ray/test_few_labels.py.
    """
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")
    config = [str(folder / "experiment.yaml"), "ray.workers=1"]
    local, both = (str(folder / name) for name in ("local", "both"))
    assert main(["train", "--local", *config, f"run={local}"]) == 0
    # the first epochs here, the last one on Ray; no schedule ends with them
    assert main(["train", "--local", *config, f"run={both}", "training.epochs=2"]) == 0
    assert main(["train", *config, f"run={both}"]) == 0
    mine, other = (checkpoint.load(checkpoint.locate(run, "last")) for run in (local, both))
    for name, value in mine.state["method"].items():
        assert torch.equal(value, other.state["method"][name]), name
    for name, array in memory_of(mine).items():
        assert np.array_equal(array, memory_of(other)[name]), name
