"""Jobs as a user submits them, to a head and two worker nodes that demand a token; the launcher ends all of it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayssl import storage
from rayssl.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a cluster of its own

ROOT = Path(__file__).parents[2]
STACK = [sys.executable, str(ROOT / "infra/local/stack.py")]
RAY = str(Path(sys.executable).parent / "ray")
SMALL = ["speakers=6", "recordings=2", "utterances=3", "seconds=0.7"]
TRAINING = [
    *("views.segment_s=0.3", "views.reference_s=0.5", "method.start_epoch=1", "method.clusters=8"),
    *("training.batch=12", "training.log_every=1", "evaluation.resamples=20"),
    "encoder.backbone={name: ecapa, channels: 16, mfa_channels: 32, embedding_dim: 16, "
    "attention_channels: 8, se_channels: 8}",
]


def outside() -> dict[str, str]:
    """The environment of a user's shell, without what this session knows of its own cluster."""
    ours = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAYSSL_KEEP_RAY", "PYTHONPATH")
    return {key: value for key, value in os.environ.items() if key not in ours}


def below(folder: Path) -> list[str]:
    """Commands of live processes that were started for ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
                if f"{folder}/token".encode() in environment or f"{folder}/".encode() in command:
                    found.append(command.replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


class Cluster:
    def __init__(self, folder: Path, exports: str) -> None:
        self.folder = folder
        variables = dict(shlex.split(line.removeprefix("export "))[0].split("=", 1) for line in exports.splitlines())
        self.environment = outside() | variables

    def ray(self, *words: str, status: int | None = 0, **variables: str) -> str:
        """What the `ray` command says, both outputs together."""
        done = subprocess.run(
            [RAY, *words],
            cwd=ROOT,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert status is None or done.returncode == status, done.stdout[-4000:]
        return done.stdout

    def submit(self, name: str, *words: str, wait: bool = True, status: int = 0) -> str:
        options = ["--working-dir", ".", "--submission-id", name, *([] if wait else ["--no-wait"])]
        return self.ray("job", "submit", *options, "--", "python", *words, status=status)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="rstk-", dir="/tmp"))  # short: Ray puts sockets below it
    try:
        command = [*STACK, "up", str(folder), "--workers", "2", "--cpus", "4", "--without", "store", "grafana"]
        done = subprocess.run(command, env=outside(), capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        yield Cluster(folder, done.stdout)
    finally:
        subprocess.run([*STACK, "down", str(folder)], timeout=300, check=True)
        left = below(folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert left == []


@pytest.fixture(scope="module")
def run(cluster: Cluster) -> str:
    """A run of two epochs; prepared and trained by jobs."""
    corpora = [f"corpora.{part}.{key}" for part in ("train", "test") for key in [f"source.{each}" for each in SMALL]]
    places = [f"corpora.{part}.out={cluster.folder}/{part}" for part in ("train", "test")]
    trials = [f"corpora.test.trials.test.out={cluster.folder}/trials.txt", "corpora.test.trials.test.pairs=20"]
    said = cluster.submit("prepare", "jobs/prepare.py", "configs/synthetic_prepare.yaml", *corpora, *places, *trials)
    assert "Job 'prepare' succeeded" in said
    said = cluster.submit("train", *training(cluster, "run"), "training.epochs=2")
    assert "Job 'train' succeeded" in said
    assert f"{cluster.folder}/run: trained to epoch 2, loss " in said and "resumes" not in said
    return f"{cluster.folder}/run"


def training(cluster: Cluster, run: str) -> list[str]:
    places = [f"run={cluster.folder}/{run}", f"corpus.uri={cluster.folder}/train"]
    places += [f"evaluation.corpus={cluster.folder}/test", f"evaluation.trials={cluster.folder}/trials.txt"]
    return ["jobs/train.py", "configs/synthetic_ssps.yaml", *TRAINING, *places]


def test_three_nodes_and_a_secret(cluster: Cluster) -> None:
    """The head with no CPUs, two workers; the token for the owner's eyes, and on no command line."""
    until, said = time.monotonic() + 60, ""
    while "/8.0 CPU" not in said and time.monotonic() < until:  # the autoscaler's report is some seconds old
        said = cluster.ray("status", status=None)
    assert len(re.findall(r"^ 1 node_", said, re.MULTILINE)) == 3 and "/8.0 CPU" in said
    token = cluster.folder / "token"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
    assert not any(token.read_text() in command for command in below(cluster.folder))
    port = int(cluster.environment["RAY_API_SERVER_ADDRESS"].rpartition(":")[2])
    sockets = [
        line.split()[1:4] for file in ("tcp", "tcp6") for line in Path("/proc/net", file).read_text().splitlines()
    ]
    dashboard = {local for local, _, state in sockets if state == "0A" and local.endswith(f":{port:04X}")}
    assert dashboard == {f"0100007F:{port:04X}"}  # it listens on 127.0.0.1 alone
    status = subprocess.run([*STACK, "status", str(cluster.folder)], capture_output=True, text=True, check=False)
    assert status.returncode == 0 and re.search(r"^worker-2 +running$", status.stdout, re.MULTILINE)
    again = [*STACK, "up", str(cluster.folder), "--without", "store", "grafana"]
    assert subprocess.run(again, env=outside(), capture_output=True, check=False).returncode == 0  # changes nothing


@pytest.mark.parametrize(
    "other", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}], ids=["no token", "another token"]
)
def test_refused_without_the_token(cluster: Cluster, other: dict[str, str]) -> None:
    said = cluster.ray("job", "submit", "--no-wait", "--", "true", status=None, **other)
    assert re.search(r"\b40[13]\b|[Aa]uthenticat", said) and "submitted" not in said
    assert "SUCCEEDED" not in cluster.ray("job", "list", status=None, **other)


def test_prepared_trained_and_evaluated(cluster: Cluster, run: str) -> None:
    assert checkpoint.read_meta(checkpoint.locate(run, "last")).epoch == 2
    said = cluster.submit("evaluate", "jobs/evaluate.py", run)
    assert "Job 'evaluate' succeeded" in said and re.search(rf"{run} \(last\): EER [\d.]+%", said)
    assert storage.exists(f"{run}/evaluation/result.json")


def test_a_sweep_is_a_job(cluster: Cluster, run: str) -> None:
    words = training(cluster, "unused")[2:]  # its own run folders
    given = [word for word in words if not word.startswith("run=")]
    sweep = f"{cluster.folder}/sweep"
    said = cluster.submit(
        "sweep",
        *("jobs/sweep.py", "configs/sweep_synthetic.yaml", f"sweep={sweep}", "trials=2", "concurrent=1"),
        "space={method.neighbours: {choices: [0, 1]}, method.over.temperature: {low: 0.1, high: 0.4}}",
        "scheduler={name: asha, reduction: 2, rungs: [1]}",
        *given,
        "training.epochs=2",
    )
    assert "Job 'sweep' succeeded" in said and f"{sweep}: best.yaml" in said
    assert storage.exists(f"{sweep}/best.yaml") and storage.exists(f"{sweep}/report.html")


def test_a_mistake_is_one_line_and_status_2(cluster: Cluster) -> None:
    words = ["jobs/train.py", "configs/synthetic_ssps.yaml", "method.clusterz=3"]
    said = cluster.submit("mistake", *words, status=1)
    assert "Job 'mistake' failed" in said and "failed with exit code 2" in said
    line = "rayssl train: configs/synthetic_ssps.yaml: unknown key 'method.clusterz'; did you mean 'clusters'?"
    logs = cluster.ray("job", "logs", "mistake")
    assert line in logs.splitlines() and "Traceback" not in logs


def test_a_stopped_job_has_saved_and_goes_on(cluster: Cluster, run: str) -> None:
    """`ray job stop` is SIGTERM to the driver; every rank leaves at the same step, with a checkpoint of it."""
    place = f"{cluster.folder}/stopped"
    cluster.submit("stopped", *training(cluster, "stopped"), "training.epochs=9000", wait=False)
    until = time.monotonic() + 200
    while not re.search(r"epoch \d+/9000  loss \d", cluster.ray("job", "logs", "stopped")):
        assert time.monotonic() < until, cluster.ray("job", "logs", "stopped")
    assert "was stopped" in cluster.ray("job", "stop", "stopped")
    logs = cluster.ray("job", "logs", "stopped")
    (step,) = re.findall(rf"^rayssl train: {place}: stopped at step (\d+); the same command resumes$", logs, re.M)
    meta = checkpoint.read_meta(checkpoint.locate(place, "last"))
    assert meta.step == int(step) and "Traceback" not in logs
    epochs = f"training.epochs={meta.epoch + 2}"
    said = cluster.submit("again", *training(cluster, "stopped"), epochs)
    assert f"(step {step})" in said and f"trained to epoch {meta.epoch + 2}, " in said


def test_prometheus_knows_all_nodes(cluster: Cluster) -> None:
    if not (cluster.folder / "run/prometheus.pid").exists():
        pytest.skip("prometheus is not installed (package prometheus)")
    address = re.findall(r"--web.listen-address=(\S+)", " ".join(below(cluster.folder)))[0]
    until, found = time.monotonic() + 90, set()
    while len(found) < 3 and time.monotonic() < until:
        time.sleep(1)
        with urllib.request.urlopen(f"http://{address}/api/v1/targets?state=active", timeout=10) as answer:
            text = answer.read().decode()
        found = set(re.findall(r'"scrapeUrl":"([^"]+)"[^}]*?"health":"up"', text)) or found
    assert len(found) >= 3
