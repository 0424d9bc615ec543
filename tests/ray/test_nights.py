"""The method sleep on a cluster: two workers and a memory actor repeat to the bit, and one worker is ``--local``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.cli import main
from rayssl.training import checkpoint
from rayssl.training.metrics import read_metrics
from tests.night_runs import ANCHORED_SLEEP, night_experiment, write_night_corpus
from tests.runs import write_corpus
from tests.small_experiment import write_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(autouse=True)
def keep_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("nights")
    write_night_corpus(folder / "corpus")
    write_corpus(folder / "noises", (3,))
    # the bank of recorded noises is read in a task, and comes from the object store
    noise = f"views.night.strong.noise={{p: 1, kinds: [corpus], corpus: {folder}/noises, clip_s: 5}}"
    settings = night_experiment(
        folder / "run", folder / "corpus", noise, "ray.workers=2", method=ANCHORED_SLEEP, backbone="soundsleepnet"
    )
    return write_config(folder / "sleep.yaml", settings.model_dump(mode="json"))


def trained(config: str, run: Path, *how: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The weights, moments and queues at the end, and the figures of every step and of the classes."""
    assert main(["train", config, f"run={run}", *how]) == 0
    loaded = checkpoint.load(checkpoint.locate(str(run), "last"))
    arrays = {}
    for name in loaded.memory:
        with np.load(Path(loaded.uri) / name, allow_pickle=False) as stored:
            arrays |= {f"{name}/{key}": torch.from_numpy(stored[key]) for key in stored.files}
    timed = {"time", "utterances_per_s", "data_wait", "memory_wait"}
    lines = [line for line in read_metrics(f"{run}/metrics.jsonl") if line["kind"] in ("step", "classes")]
    figures = [{k: v for k, v in line.items() if k not in timed} for line in lines]
    return {"method": loaded.state["method"], "optimiser": loaded.state["optimiser"], "queues": arrays}, figures


@pytest.mark.slow
def test_two_workers_and_an_actor_twice(ray_cluster: Any, config: str, tmp_path: Path) -> None:
    one, two = (trained(config, tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(one[0], two[0], rtol=0, atol=0)
    assert one[1] == two[1] and len(one[1]) >= 6


def test_one_worker_is_local(ray_cluster: Any, config: str, tmp_path: Path) -> None:
    on_ray = trained(config, tmp_path / "ray", "ray.workers=1")
    here = trained(config, tmp_path / "local", "ray.workers=1", "--local")
    torch.testing.assert_close(on_ray[0], here[0], rtol=0, atol=0)
    assert on_ray[1] == here[1]
    assert on_ray[0]["queues"] and all(float(line["ssc"]) > 0 for line in on_ray[1] if line["kind"] == "step")
