"""What Ray exports of the figures of two ranks: who gives which, that they stay, and go with their worker."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayssl.cli import main
from rayssl.runtime.telemetry import RayMetrics
from tests.small_experiment import tree, write_config, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

RUN = "s3://bucket/runs/telemetry"
STEP: dict[str, Any] = {"epoch": 1, "lr": 0.1, "utterances_per_s": 200.0, "data_wait": 0.25, "loss": 2.5, "pseudo": 1.5}
GPU = {f"gpu_{name}_bytes": 1e9 for name in ("allocated", "peak", "reserved", "total")}


class Rank:
    """A worker with telemetry; everything is written once, and the telemetry kept."""

    def __init__(self, rank: int) -> None:
        self.metrics = RayMetrics(RUN, "daso", rank, 2)

    def write(self) -> None:
        metrics = self.metrics
        metrics.observe("step", [0.15, 0.25, 0.25])
        metrics.write("step", 10, **STEP, **GPU)
        metrics.write("refresh", 11, epoch=2, seconds=3.0, objective=0.5)
        metrics.write("epoch", 20, epoch=2, coverage=0.75, queue_fill=float("nan"), staleness_steps=1.0)
        counts = {name: list(range(250)) for name in ("predicted", "confident", "right", "truth", "right_linear")}
        metrics.write("classes", 20, epoch=2, names=[f"c{number}" for number in range(250)], **counts)
        metrics.write("probe", 20, unknown=1.0)
        metrics.write("event", 21, event="diverged")


Series = dict[frozenset[tuple[str, str]], float]


@pytest.fixture(scope="module")
def scrape(ray_cluster: Any) -> Callable[..., dict[str, Series]]:
    """The series of ``run`` by name, each by its labels without Ray's own, as the node exports them."""
    (node,) = ray_cluster.nodes()

    def read(run: str = RUN) -> dict[str, Series]:
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, Series] = {}
        for name, labels, value in re.findall(r"^ray_(rayssl_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if pairs.pop("run") == run:
                own = {
                    key: each
                    for key, each in pairs.items()
                    if key in ("method", "rank", "term", "class", "count", "le")
                }
                found.setdefault(name, {})[frozenset(own.items())] = float(value)
        return found

    return read


def labels(**given: str) -> frozenset[tuple[str, str]]:
    return frozenset({"method": "daso", **given}.items())


def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(1)


@pytest.fixture(scope="module")
def ranks(ray_cluster: Any) -> list[Any]:
    """Two workers that have written everything once, before the first test, and hold their telemetry."""
    actors = [ray_cluster.remote(Rank).options(num_cpus=0.1).remote(rank) for rank in (0, 1)]
    ray_cluster.get([actor.write.remote() for actor in actors])
    return actors


@pytest.fixture(scope="module")
def written(ranks: list[Any]) -> float:
    return time.monotonic()


def test_a_run_that_diverges_is_counted(
    written: float,
    scrape: Callable[..., dict[str, Series]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its workers end at once, and their last figures are exported all the same."""
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")
    write_corpus(str(tmp_path / "corpus"))
    config = write_config(tmp_path / "x.yaml", tree(str(tmp_path)))
    assert main(["train", config, "training.optimiser.lr=1e30", "training.log_every=1"]) == 2
    assert "training has diverged" in capsys.readouterr().err
    run = str(tmp_path / "run")
    until(lambda: "rayssl_diverged_total" in scrape(run), 30)
    assert scrape(run)["rayssl_diverged_total"] == {frozenset({("method", "ssps/simclr")}): 1.0}


def test_figures_of_two_ranks(
    ray_cluster: Any, ranks: list[Any], written: float, scrape: Callable[..., dict[str, Series]]
) -> None:
    until(lambda: len(scrape().get("rayssl_step_seconds_count", {})) == 2, 60)
    # Ray forgets a gauge that was not set for two of its intervals, of 5 s here; the training above took as long
    time.sleep(max(0.0, written + 20 - time.monotonic()))
    found = scrape()
    both = {labels(rank="0"), labels(rank="1")}
    assert found["rayssl_utterances_per_second"] == dict.fromkeys(both, 100.0)
    assert found["rayssl_data_wait_ratio"] == dict.fromkeys(both, 0.25)
    for name in GPU:
        assert found[f"rayssl_{name}"] == dict.fromkeys(both, 1e9)
    alone = {"loss": 2.5, "learning_rate": 0.1, "step": 20.0, "epoch": 2.0, "ssps_coverage_ratio": 0.75}
    alone |= {
        "ssps_objective": 0.5,
        "memory_staleness_steps": 1.0,
        "diverged_total": 1.0,
        "clustering_seconds_count": 1.0,
    }
    assert {name: found[f"rayssl_{name}"] for name in alone} == {name: {labels(): alone[name]} for name in alone}
    assert found["rayssl_term"] == {labels(term="pseudo"): 1.5}
    assert "rayssl_memory_queue_fill_ratio" not in found  # it was not finite
    buckets = {
        dict(key)["le"]: value for key, value in found["rayssl_step_seconds_bucket"].items() if ("rank", "0") in key
    }
    assert (buckets["0.1"], buckets["0.2"], buckets["0.3"], buckets["+Inf"]) == (0, 1, 3, 3)
    classes = found["rayssl_pseudo_labels"]
    assert {dict(key)["count"] for key in classes} == {"predicted", "confident", "right", "truth"}
    assert len(classes) == 4 * 201
    assert classes[labels(**{"class": "c199", "count": "right"})] == 199
    assert classes[labels(**{"class": "others", "count": "right"})] == sum(range(200, 250))
    assert abs(found["rayssl_last_step_timestamp_seconds"][labels()] - time.time()) < 300
    for actor in ranks:
        ray_cluster.kill(actor)
    until(lambda: "rayssl_loss" not in scrape(), 60)
    assert scrape()["rayssl_diverged_total"] == {labels(): 1.0}
