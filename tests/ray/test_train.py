"""Whole runs on a cluster: everything in the folder, and after any interruption the same weights and memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl import storage
from rayssl.cli import main
from rayssl.training import checkpoint
from rayssl.training.metrics import read_metrics
from tests.runs import memory_of
from tests.small_experiment import ROWS, tree, write_config, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

STEPS = 3 * ROWS // 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train")
    write_corpus(str(path / "corpus"))
    write_config(path / "experiment.yaml", tree(str(path)))
    return path


@pytest.fixture(autouse=True)
def keep_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")


def train(folder: Path, run: str, *overrides: str) -> str:
    """Trains the experiment of ``folder`` in its ``run``; returns that."""
    uri = str(folder / run)
    assert main(["train", str(folder / "experiment.yaml"), f"run={uri}", *overrides]) == 0
    return uri


@pytest.fixture(scope="module")
def uninterrupted(ray_cluster: Any, folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSSL_KEEP_RAY", "1")
        return train(folder, "uninterrupted")


def last(run: str) -> checkpoint.Loaded:
    return checkpoint.load(checkpoint.locate(run, "last"))


def differences(left: checkpoint.Loaded, right: checkpoint.Loaded) -> list[str]:
    """Names of the weights, optimiser states and memory arrays that are not equal bit by bit."""
    mine, theirs = memory_of(left), memory_of(right)
    assert mine.keys() == theirs.keys()
    found = [name for name, array in mine.items() if not np.array_equal(array, theirs[name])]
    for part in ("method", "optimiser"):
        one, other = flat(left.state[part]), flat(right.state[part])
        assert one.keys() == other.keys()
        found += [name for name, value in one.items() if not same(value, other[name])]
    return found


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: leaf for key, item in value.items() for name, leaf in flat(item, f"{prefix}.{key}").items()}


def same(left: Any, right: Any) -> bool:
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def train_workers() -> list[int]:
    """Process ids of the Ray Train workers below this process."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return sorted(pid for pid, title in titles.items() if title.startswith("ray::RayTrainWorker") and ours(pid))


def test_the_folder_of_a_run_is_complete(uninterrupted: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics of every epoch, origin, checkpoints; then evaluated, reported, and not trained again."""
    meta = last(uninterrupted).meta
    assert (meta.step, meta.epoch, meta.epoch_step) == (STEPS, 3, 0)
    records = read_metrics(storage.join(uninterrupted, "metrics.jsonl"))
    ends = [record for record in records if record["kind"] == "epoch"]
    assert [(record["epoch"], record["step"]) for record in ends] == [(1, 6), (2, 12), (3, 18)]
    assert all(record["coverage"] > 0.5 and record["staleness_steps"] == 0 for record in ends[1:])
    assert [record["step"] for record in records if record["kind"] == "step"] == list(range(3, STEPS + 1, 3))
    assert checkpoint.steps(uninterrupted)[-2:] == [16, 18]
    origin = json.loads(storage.read_text(storage.join(uninterrupted, "origin.json")))
    assert origin["world_size"] == 2 and len(origin["starts"]) == 1
    capsys.readouterr()
    assert main(["evaluate", uninterrupted, "--checkpoint", "last", "evaluation.resamples=20"]) == 0
    line = capsys.readouterr().out
    assert re.fullmatch(
        r"\S+ \(last\): EER [\d.]+% \[[\d.]+%, [\d.]+%\] on the ROC convex hull, [\d.]+% by max\(FPR, FNR\), "
        r".* over 176 trials \(88 of .*\)\nnext: rayssl report \S+\n",
        line,
    )
    result = json.loads(storage.read_text(storage.join(uninterrupted, "evaluation/result.json")))
    assert (result["trials"], result["targets"], result["norm"]) == (176, 88, "none")
    assert main(["report", uninterrupted]) == 0
    page, following = capsys.readouterr().out.splitlines()
    assert following.startswith(f"next: rayssl embed {uninterrupted} ")
    assert "</html>" in Path(page).read_text()
    written = {storage_name.removeprefix(uninterrupted + "/") for storage_name in storage.list_files(uninterrupted)}
    parts = ("embeddings.parquet", "scores.parquet", "result.json")
    assert {"config.yaml", "origin.json", "metrics.jsonl", "report.html", *(f"evaluation/{p}" for p in parts)} < written
    assert any(name.startswith("tensorboard/") for name in written)


def test_a_finished_run_is_not_trained_again(
    uninterrupted: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = storage.read_bytes(checkpoint.locate(uninterrupted, "last") + "/meta.json")
    train(folder, "uninterrupted")
    assert "already trained to epoch 3; raise training.epochs to train more" in capsys.readouterr().out
    assert storage.read_bytes(checkpoint.locate(uninterrupted, "last") + "/meta.json") == before


def test_a_killed_worker_changes_nothing(uninterrupted: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(folder / "killed")
    killed: list[tuple[int, int]] = []

    def kill() -> None:
        while not (steps := [step for step in checkpoint.steps(run) if step >= 8]):
            time.sleep(0.01)
        pid = train_workers()[0]
        os.kill(pid, signal.SIGKILL)
        killed.append((pid, steps[-1]))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    train(folder, "killed")
    killer.join(1)
    assert killed and killed[0][1] < STEPS, "the run had ended before a worker was killed"
    assert "resumes from the last checkpoint" in capsys.readouterr().out
    assert differences(last(run), last(uninterrupted)) == []
    records = read_metrics(storage.join(run, "metrics.jsonl"))
    assert [record["step"] for record in records if record["kind"] == "epoch"] == [6, 12, 18]


PROGRESS = re.compile(
    r"\S+/terminated: ssps over ecapa|data: 96 utterances, 0\.0 h, 8 speakers; 3 epochs of 6 steps of 16 utterances$|"
    r"joined Ray's cluster in |started 2 workers in |built \d+\.\d+ M parameters on 2 x CPU, 1 threads in |"
    r"memory: 3 shards of \d+\.\d MB, and an index of \d+\.\d MB$|resumed from |first step \d+ s after the start$|"
    r"epoch \d+(/\d+  loss \d+\.\d{4}  .*\d s$|: clustered the memory in |: positives come from other utterances )"
)


def told(out: str) -> list[str]:
    """The lines that were printed, without the time of day."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in out.splitlines()]


@pytest.mark.timeout(400)
def test_terminated_it_saves_and_goes_on(ray_cluster: Any, uninterrupted: str, folder: Path) -> None:
    """SIGTERM to the driver alone: all ranks save at the same step; status 143 and one line; then to the same end.

    `rayssl train` joins the cluster of RAY_ADDRESS; what a person sees is progress and the result, nothing else.
    """
    uri = str(folder / "terminated")
    command = [sys.executable, "-m", "rayssl.cli", "train", str(folder / "experiment.yaml"), f"run={uri}"]
    before = set(train_workers())
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.get_runtime_context().gcs_address}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    driver = subprocess.Popen(command, env=environment, **pipes)
    try:
        while driver.poll() is None and not set(train_workers()) - before:
            time.sleep(0.1)
        driver.send_signal(signal.SIGTERM)
        out, err = driver.communicate(timeout=200)
    finally:
        driver.kill()
    step = last(uri).meta.step
    assert driver.returncode == 143 and 0 < step < STEPS, err
    assert f"rayssl train: {uri}: stopped at step {step}; the same command resumes" in err.splitlines()
    assert "SIGTERM: saves after the current step and then stops; a second signal stops at once" in told(out)
    command += ["memory.shards=3"]  # in other hands, too
    done = subprocess.run(command, env=environment, **pipes, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    # this cluster has seen many runs: its raylet may find its number of processes remarkable
    *progress, result, following = told(done.stdout)
    assert re.fullmatch(rf"{uri}: trained to epoch 3, loss [\d.]+", result)
    assert following == f"next: rayssl evaluate {uri}"
    assert [line for line in progress if not PROGRESS.match(line)] == []
    assert len([line for line in progress if re.match(r"epoch \d/3  loss", line)]) >= 2
    assert "\x1b" not in done.stdout
    # it has no State API either, which Ray Train's cleaner misses, and preemption is watched where others own the nodes
    known = ("(PlacementGroupCleaner", "'PreemptionWatcher'")
    assert [line for line in done.stderr.splitlines() if not any(part in line for part in known)] == []
    assert differences(last(uri), last(uninterrupted)) == []


@pytest.mark.slow
def test_epochs_added_later_equal_one_run(uninterrupted: str, folder: Path) -> None:
    run = train(folder, "longer", "training.epochs=2")
    assert last(run).meta.epoch == 2
    train(folder, "longer", "training.epochs=3", "memory.shards=3")  # in other hands, too
    assert differences(last(run), last(uninterrupted)) == []
    whole, parts = (
        [r for r in read_metrics(storage.join(uri, "metrics.jsonl")) if r["kind"] == "epoch"]
        for uri in (uninterrupted, run)
    )
    timed = {"time", "utterances_per_s", "data_wait", "memory_wait", "seconds"}
    assert [{k: v for k, v in r.items() if k not in timed} for r in parts] == [
        {k: v for k, v in r.items() if k not in timed} for r in whole
    ]
