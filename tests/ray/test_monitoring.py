"""Prometheus scrapes a run on a Ray cluster of its own, as `rayssl train` starts it, and has its figures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayssl.runtime import telemetry
from tests.small_experiment import tree, write_config, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

MONITORING = Path(__file__).parents[2] / "infra/monitoring"
ROOT = Path(__file__).parents[2]


def end(process: subprocess.Popen[Any], by: int, patience_s: float = 60) -> None:
    if process.poll() is None:
        process.send_signal(by)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path: Ray puts sockets below it."""
    path = Path(tempfile.mkdtemp(prefix="rmon-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def run(place: Path) -> Iterator[str]:
    """A run of SSPS that trains until the tests are done; its URI, which is also its tag."""
    write_corpus(str(place / "corpus"))
    settings = tree(str(place))
    settings["training"] |= {"epochs": 2_000, "checkpoints": {"keep": 1}, "log_every": 2}
    config = write_config(place / "experiment.yaml", settings)
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAYSSL_KEEP_RAY")}
    environment |= {"RAY_TMPDIR": str(place), "PYTHONPATH": str(ROOT), "RAY_metrics_report_interval_ms": "5000"}
    with open(place / "train.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rayssl.cli", "train", config],
            env=environment,
            cwd=place,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield str(place / "run")
    finally:
        end(process, signal.SIGINT)


@pytest.fixture(scope="module")
def ask(place: Path, run: str) -> Iterator[Callable[[str], list[Any]]]:
    """Asks a Prometheus with the project's own configuration, but for where Ray's file lies and how often it looks."""
    if shutil.which("prometheus") is None:
        pytest.skip(
            "prometheus is not installed (package prometheus); infra/local/test.sh installs it as root with apt"
        )
    config = (MONITORING / "prometheus.yaml").read_text()
    discovery = place / "ray/prom_metrics_service_discovery.json"
    for old, new in (("/tmp/ray/prom_metrics_service_discovery.json", str(discovery)), ("15s", "2s")):
        assert old in config
        config = config.replace(old, new)
    (place / "prometheus.yaml").write_text(config)
    shutil.copy(MONITORING / "rules.yaml", place / "rules.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with open(place / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={place / 'prometheus.yaml'}",
                f"--storage.tsdb.path={place / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def query(expression: str) -> list[Any]:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return list(found["data"]["result"])

    try:
        yield query
    finally:
        end(process, signal.SIGTERM)


def wait_for(ask: Callable[[str], list[Any]], expression: str, place: Path, seconds: float = 240) -> list[Any]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if found := ask(expression):
                return found
        except OSError:
            pass
        time.sleep(1)
    logs = "\n".join((place / name).read_text(errors="replace")[-2000:] for name in ("train.log", "prometheus.log"))
    raise AssertionError(f"nothing for {expression} in {seconds} s\n{logs}")


def value(found: list[Any]) -> float:
    (series,) = found
    return float(series["value"][1])


def test_a_live_run_is_seen(ask: Callable[[str], list[Any]], run: str, place: Path) -> None:
    """Utterances a second of the whole run, by the rule, and coverage; both as the run's own file has them."""
    of = f'{{run="{run}"}}'
    coverage = wait_for(ask, f"ray_rayssl_ssps_coverage_ratio{of}", place)
    assert coverage[0]["metric"]["method"] == "ssps/simclr"
    assert 0.5 < value(coverage) <= 1
    ranks = f"ray_rayssl_utterances_per_second{of}"
    # each process reports on a clock of its own: rank 1 may be seen some seconds after rank 0
    wait_for(ask, f"count({ranks}) == 2", place)
    assert {series["metric"]["rank"] for series in ask(ranks)} == {"0", "1"}
    # a rule sees them at its next turn
    rate = value(wait_for(ask, f"run:rayssl_utterances_per_second:sum{of} > 0.6 * scalar(sum({ranks}))", place))
    lines = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    rates = [line["utterances_per_s"] for line in lines if line["kind"] == "step"]
    # each rank times its own windows, so their sum is close to what rank 0 wrote
    assert 0.9 * min(rates) <= rate <= 1.1 * max(rates)


def test_everything_but_a_gpus_figures_is_there(ask: Callable[[str], list[Any]], run: str, place: Path) -> None:
    """What SSPS without a GPU has; names that Prometheus knows are names that telemetry says it exports."""
    absent = {"rayssl_memory_prototypes_filled_ratio", "rayssl_pseudo_labels", "rayssl_fill_seconds", "rayssl_diverged"}
    absent |= {"rayssl_validation"}
    absent |= {name for name in telemetry.RANK_STEP if "_gpu_" in name}
    expected = {name for name in telemetry.exported() if not any(each in name for each in absent)}
    # the processes report on clocks of their own: what is missing may come
    wait_for(ask, f'count(count by (__name__) ({{__name__=~"ray_rayssl_.*"}})) >= {len(expected)}', place)
    assert {series["metric"]["__name__"] for series in ask('{__name__=~"ray_rayssl_.*"}')} == expected
    assert {series["metric"]["term"] for series in ask("ray_rayssl_term")} == {"ntxent"}
    assert value(ask(f'sum by (run) (ray_rayssl_step_seconds_count{{run="{run}"}})')) > 10


def test_a_run_goes_on_and_no_alert_fires(ask: Callable[[str], list[Any]], run: str, place: Path) -> None:
    first = value(wait_for(ask, f'ray_rayssl_step{{run="{run}"}}', place))
    wait_for(ask, f'ray_rayssl_step{{run="{run}"}} > {first}', place)
    assert value(ask(f'ray_rayssl_memory_queue_fill_ratio{{run="{run}"}}')) > 0
    firing = {alert["metric"]["alertname"] for alert in ask('ALERTS{alertstate="firing"}')}
    assert firing == set()
