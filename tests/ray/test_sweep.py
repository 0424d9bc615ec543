"""A whole sweep on a cluster: trials beside each other, one stopped, one failed, and nothing to do the second time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayssl import storage
from rayssl.cli import main
from rayssl.training import checkpoint
from rayssl.training.metrics import read_metrics
from tests.small_experiment import write_corpus
from tests.sweeps.plans import write_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SMALL = ["ray.workers=1", "training.epochs=2", "evaluation.resamples=0"]
HALVING = {"name": "asha", "reduction": 2, "rungs": [1]}


@pytest.fixture(autouse=True)
def keep_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(str(tmp_path / "corpus"))
    return tmp_path


def clusters(*values: int) -> dict[str, Any]:
    """A grid over K; 500 clusters are more than the corpus has utterances, which only a trial finds out."""
    space = {"method.clusters": {"choices": list(values)}}
    return {"space": space, "search": "grid", "trials": None, "overrides": SMALL, "scheduler": HALVING}


def test_sweep(ray_cluster: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_sweep(folder, **clusters(4, 8, 500), concurrent=2)
    assert main(["sweep", config]) == 0
    told = capsys.readouterr().out
    sweep = folder / "sweep"
    result = json.loads((sweep / "results.json").read_text())
    ended = {trial["point"]["method.clusters"]: trial for trial in result["trials"]}
    assert ended[500]["state"] == "failed"
    assert ended[500]["reason"].startswith("method.clusters=500 must be above method.neighbours=1")
    assert sorted(trial["state"] for trial in result["trials"]) in (
        ["failed", "finished", "finished"],  # the worse one was first at the rung
        ["failed", "finished", "stopped"],
    )
    best = next(trial for trial in result["trials"] if trial["index"] == result["best"])
    assert best["state"] == "finished" and [rung["epoch"] for rung in best["rungs"]] == [1, 2]
    for line in (f"trial {ended[500]['index']}  failed: method.clusters=500", "epoch 2/2  eer", "rank  trial"):
        assert line in told
    # each a run like any other, trained to its rungs and no further, by schedules of the whole training
    for clusters_, epochs in ((k, ended[k]["epochs"]) for k in (4, 8)):
        run = str(sweep / f"trials/{ended[clusters_]['index']:04d}")
        meta = checkpoint.read_meta(checkpoint.locate(run, "last"))
        assert (meta.epoch, meta.epoch_step) == (epochs, 0)
        ends = [record for record in read_metrics(f"{run}/metrics.jsonl") if record["kind"] == "epoch"]
        assert [record["epoch"] for record in ends] == list(range(1, epochs + 1))
        assert storage.exists(f"{run}/evaluation/result.json")
    assert "</html>" in (sweep / "report.html").read_text()
    assert main(["show", str(sweep / "best.yaml")]) == 0
    assert f'"{sweep}/best"' in capsys.readouterr().out

    before = {path: path.read_bytes() for path in sweep.rglob("*.json") if path.name == "trial.json"}
    assert main(["sweep", config]) == 0
    again = capsys.readouterr().out
    assert "rank  trial" in again and "epoch 2/2" not in again
    assert {path: path.read_bytes() for path in before} == before


def test_a_sweep_of_which_nothing_comes(ray_cluster: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and one line; tried again only where that is asked for."""
    config = write_sweep(folder, **clusters(500, 600))
    for more in ([], ["--retry-failed"]):
        assert main(["sweep", config, *more]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1, printed.err
        assert "every trial failed (2 of them), the first by: method.clusters=" in printed.err
        assert printed.out.count("failed: ") == 2
    assert main(["sweep", config]) == 2
    assert "failed: " not in capsys.readouterr().out


@pytest.mark.slow
def test_population(ray_cluster: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two trials, of which the worse one resumes, after an epoch, from the checkpoint of the better one."""
    space = {"training.optimiser.lr": {"low": 0.0001, "high": 0.01, "log": True}}
    scheduler = {"name": "pbt", "every": 1, "quantile": 0.5}
    overrides = [*SMALL, "method.clusters=8"]
    config = write_sweep(folder, space=space, scheduler=scheduler, overrides=overrides, trials=2, concurrent=2)
    assert main(["sweep", config]) == 0
    told = capsys.readouterr().out
    result = json.loads((folder / "sweep/results.json").read_text())
    assert [trial["state"] for trial in result["trials"]] == ["finished", "finished"]
    ((index, taken),) = [(trial["index"], taken) for trial in result["trials"] for taken in trial["taken"]]
    assert taken["epoch"] == 1 and taken["source"] == 1 - index
    point = next(trial["point"] for trial in result["trials"] if trial["index"] == index)
    line = f"trial {index}  resumes from trial {1 - index} after epoch 1, with training.optimiser.lr="
    assert line in told and point != taken["before"]
    first = json.loads((folder / f"sweep/trials/{index:04d}/origin.json").read_text())
    assert first["origins"]["training.optimiser.lr"] == "override"
    rates = [
        r["lr"] for r in read_metrics(str(folder / f"sweep/trials/{index:04d}/metrics.jsonl")) if r["kind"] == "step"
    ]
    assert rates[0] == pytest.approx(taken["before"]["training.optimiser.lr"])
    assert rates[-1] == pytest.approx(point["training.optimiser.lr"])
