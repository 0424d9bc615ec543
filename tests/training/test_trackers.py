"""Trackers: what the loop gives them, what a server's failure does, and one run of MLflow or W&B after a restart."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.cli import main
from rayssl.errors import ConfigError, UserError
from rayssl.schema import parse
from rayssl.training.state import TrainingConfig
from rayssl.training.trackers.background import Background
from rayssl.training.trackers.base import (
    Identity,
    MlflowConfig,
    Several,
    TensorboardConfig,
    Tracker,
    WandbConfig,
    keep_id,
    known_id,
)
from rayssl.training.trackers.opening import check, open_all
from tests import runs, small_experiment


class Recorder(Tracker):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int, dict[str, Any]]] = []
        self.durations: list[float] = []
        self.closed: list[bool] = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        self.records.append((kind, step, values))

    def observe(self, name: str, seconds: Sequence[float]) -> None:
        assert name == "step"
        self.durations += seconds

    def close(self, *, failed: bool = False) -> None:
        self.closed.append(failed)


# ---- the loop


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    runs.write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


def test_the_loop_gives_every_step_refresh_and_epoch(tmp_path: Path, corpus: Path) -> None:
    loop = runs.build(runs.experiment(tmp_path / "run", corpus, "training.log_every=3"))
    recorder = Recorder()
    assert loop.state.log is not None
    loop.state.log = Several([loop.state.log, recorder])
    loop.fit(runs.batches(runs.experiment(tmp_path / "run", corpus), loop))
    loop.state.log.close()
    steps = 3 * loop.state.steps_per_epoch
    given = [(kind, step) for kind, step, _ in recorder.records]
    assert [step for kind, step in given if kind == "step"] == list(range(3, steps + 1, 3))
    assert [step for kind, step in given if kind == "epoch"] == [steps // 3, 2 * steps // 3, steps]
    assert [step for kind, step in given if kind == "refresh"] == [steps // 3 + 1, 2 * steps // 3 + 1]
    assert len(recorder.durations) == steps and min(recorder.durations) > 0
    for kind, _, values in recorder.records:  # none that a tracker would have to fetch from a device
        assert not [name for name, value in values.items() if isinstance(value, torch.Tensor)], kind
    assert recorder.closed == [False]


def test_divergence_is_told_before_the_run_ends(tmp_path: Path, corpus: Path) -> None:
    settings = runs.experiment(tmp_path / "run", corpus)
    loop = runs.build(settings)
    recorder = Recorder()
    loop.state.log = recorder
    with torch.no_grad():
        next(loop.state.method.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="the loss is nan"):
        loop.fit(runs.batches(settings, loop))
    assert recorder.records[-1] == ("event", 1, {"event": "diverged"})


# ---- a server that fails


class Server(Recorder):
    """A tracker that waits until it is let, and may fail at a step."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.fails_at, self.ready = fails_at, threading.Event()
        self.ready.set()

    def write(self, kind: str, step: int, **values: Any) -> None:
        assert self.ready.wait(30)
        if step == self.fails_at:
            raise OSError("the server is gone\nand more about it")
        super().write(kind, step, **values)


def test_numbers_come_in_order_with_their_time() -> None:
    server, said = Server(), []
    tracker = Background("x", lambda: server, said.append)
    began = time.time()
    for step in range(50):
        tracker.write("step", step, loss=step / 2, name="a", flag=True, none=None, list=[1])
    tracker.write("event", 50, event="no number")
    tracker.close(failed=True)
    assert [step for _, step, _ in server.records] == list(range(50))
    assert server.records[8][2].keys() == {"time", "loss"} and server.records[8][2]["loss"] == 4.0
    assert began <= server.records[0][2]["time"] <= time.time()
    assert server.closed == [True] and said == []
    tracker.close()
    tracker.write("step", 51, loss=1.0)
    assert server.closed == [True]


def refuses() -> Tracker:
    raise SystemExit("no account")


@pytest.mark.parametrize(
    ("start", "line"),
    [
        (lambda: Server(fails_at=2), "x: the server is gone; training continues without it"),
        (refuses, "x: no account; training continues without it"),
    ],
)
def test_a_failure_is_said_once_and_ends_the_tracker_alone(start: Callable[[], Tracker], line: str) -> None:
    said: list[str] = []
    tracker, other = Background("x", start, said.append), Recorder()
    both = Several([other, tracker])
    for step in range(5):
        both.write("step", step, loss=1.0)
        time.sleep(0.02)
    both.close()
    assert said == [line]
    assert len(other.records) == 5


def test_a_slow_server_holds_nothing_up() -> None:
    server, said = Server(), []
    server.ready.clear()
    tracker = Background("x", lambda: server, said.append, waiting=3, patience_s=0.3)
    began = time.monotonic()
    for step in range(20):
        tracker.write("step", step, loss=1.0)
    assert time.monotonic() - began < 0.3
    assert len(said) == 1 and "the server is too slow; figures are missing there from step" in said[0]
    tracker.close()
    assert time.monotonic() - began < 5
    server.ready.set()


# ---- configuration


def settings_of(*trackers: dict[str, Any]) -> TrainingConfig:
    return parse(TrainingConfig, {"trackers": list(trackers)}, "x.yaml")


def test_one_tracker_needs_no_list() -> None:
    """A name is enough where no key must be given. TensorBoard may be named, and needs no tracker of its own."""
    for given in ("tensorboard", ["tensorboard"], {"name": "tensorboard"}):
        (only,) = parse(TrainingConfig, {"trackers": given}, "x.yaml").trackers
        assert only == TensorboardConfig(name="tensorboard")
        assert open_all([only], Identity("run"), lambda line: None) == []
    both = parse(TrainingConfig, {"trackers": ["wandb", {"name": "tensorboard"}]}, "x.yaml").trackers
    assert both == [WandbConfig(name="wandb"), TensorboardConfig(name="tensorboard")]
    assert parse(TrainingConfig, {"trackers": [each.model_dump() for each in both]}, "x.yaml").trackers == both
    with pytest.raises(ConfigError, match=r"'trackers': mlflow needs the address of its server: \[\{name: mlflow"):
        parse(TrainingConfig, {"trackers": "mlflow"}, "x.yaml")
    with pytest.raises(ConfigError, match="'trackers': expected tensorboard, wandb, or a list"):
        parse(TrainingConfig, {"trackers": "comet"}, "x.yaml")


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ({"name": "mlflow", "uri": "http://me:secret@host:5000"}, "trackers.0.*MLFLOW_TRACKING_PASSWORD"),
        ({"name": "mlflow", "uri": "mlruns"}, "trackers.0.*sqlite:////ABSOLUTE"),
        ({"name": "wandb", "key": "secret"}, "trackers.0.*key"),
        ({"name": "wandb", "mode": "disabled"}, "trackers.0.*mode"),
        ({"name": "comet"}, "trackers.0"),
    ],
)
def test_a_mistake_is_named(tracker: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        settings_of(tracker)
    assert "secret@" not in str(caught.value)


def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read or started."""
    find = importlib.util.find_spec
    absent = ("mlflow", "wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name, *rest))
    config = small_experiment.write_config(tmp_path / "x.yaml", small_experiment.tree(str(tmp_path)))
    chosen = "training.trackers=[{name: mlflow, uri: 'http://host:5000'}]"
    assert main(["train", config, chosen]) == 2
    assert capsys.readouterr().err == (
        "rayssl train: training.trackers.0.name=mlflow: the package is not installed; pip install mlflow-skinny, "
        "or leave the tracker out\n"
    )
    with pytest.raises(ConfigError, match=r"training\.trackers\.0\.name=wandb.*pip install wandb"):
        check(settings_of({"name": "wandb"}).trackers, str(tmp_path))


def test_wandbs_offline_files_need_a_local_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    offline = settings_of({"name": "wandb", "mode": "offline"}).trackers
    check(offline, str(tmp_path))
    with pytest.raises(ConfigError, match=r"training\.trackers\.0\.mode=offline.*set mode=online"):
        check(offline, "s3://bucket/run")


def test_a_run_is_found_again_at_the_same_place_alone(tmp_path: Path) -> None:
    first, resumed = Identity(str(tmp_path)), Identity(str(tmp_path), resumed=True)
    here, there = (MlflowConfig(name="mlflow", uri=f"http://{host}:5000") for host in "ab")
    assert known_id(here, resumed) is None
    keep_id(here, first, "r1")
    assert (known_id(here, resumed), known_id(there, resumed), known_id(here, first)) == ("r1", None, None)
    assert known_id(WandbConfig(name="wandb"), resumed) is None


# ---- the real ones


def two_lives(run: Path, tracker: dict[str, Any], said: list[str]) -> str:
    """A run that fails after step 2 and resumes to step 4, with the configured tracker; returns what its folder has."""
    config, settings = settings_of(tracker).trackers, {"seed": 3, "training": {"batch": 8}}
    for resumed, steps in ((False, (1, 2)), (True, (2, 3, 4))):
        (opened,) = open_all(config, Identity(str(run), settings, resumed), said.append)
        for step in steps:
            opened.write("step", step, loss=10.0 - step, lr=0.1)
        opened.write("epoch", steps[-1], coverage=0.5)
        opened.close(failed=not resumed)
    (kept,) = (run / "trackers").iterdir()
    found = json.loads(kept.read_text())
    assert found.keys() == {"tracker", "id"}
    return str(found["id"])


@pytest.mark.long
def test_mlflow_has_one_run_of_two_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself, with a store of files."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    uri, said = f"file:{tmp_path / 'store'}", []
    known = two_lives(tmp_path / "run", {"name": "mlflow", "uri": uri, "experiment": "tests"}, said)
    assert said == []
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (known, "FINISHED")
    assert run.data.params == {"seed": "3", "training.batch": "8"}
    assert run.data.tags["rayssl.run"] == str(tmp_path / "run")
    losses = {metric.step: metric.value for metric in client.get_metric_history(known, "step/loss")}
    assert losses == {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.0}
    assert run.data.metrics["epoch/coverage"] == 0.5


def test_an_mlflow_server_that_is_not_there_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    said: list[str] = []
    config = settings_of({"name": "mlflow", "uri": "http://127.0.0.1:9"}).trackers
    (opened,) = open_all(config, Identity(str(tmp_path)), said.append)
    for step in range(5):
        opened.write("step", step, loss=1.0)
    opened.close()
    assert len(said) == 1 and said[0].startswith("mlflow: ") and said[0].endswith("training continues without it")
    assert not (tmp_path / "trackers").exists()


def test_wandb_keeps_two_lives_of_one_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: it is in the extra of its name, and not in test")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "run").mkdir()
    said: list[str] = []
    known = two_lives(tmp_path / "run", {"name": "wandb", "project": "tests", "mode": "offline"}, said)
    assert said == []
    files = list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and {file.name for file in files} == {f"run-{known}.wandb"}
