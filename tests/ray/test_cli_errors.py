"""Mistakes that only show on the cluster or in the object store; and the whole walk with everything in the store."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rayssl
from rayssl import storage
from rayssl.cli import main
from tests.conftest import S3Server
from tests.small_experiment import tree, write_config, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(autouse=True)
def keep_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")


def test_damaged_audio_met_in_training(ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, at once: the workers do not start again, since a restart would not help."""
    uri = str(tmp_path / "corpus")
    write_corpus(uri, 64, damaged=37)
    config = write_config(tmp_path / "experiment.yaml", tree(str(tmp_path)))
    assert main(["train", config]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith(f"rayssl train: {uri}/shards/00002.parquet: utterance 's5/r0/037': damaged audio")
    assert printed.err.endswith("run rayssl prepare --verify\n")
    assert "resumes" not in printed.out


def test_gpus_that_the_cluster_lacks(ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if ray_cluster.cluster_resources().get("GPU", 0) >= 2:
        pytest.skip("this cluster has them")
    write_corpus(str(tmp_path / "corpus"), 64)
    config = write_config(tmp_path / "experiment.yaml", tree(str(tmp_path)))
    assert main(["train", config, "ray.gpu=true"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert "ray.gpu=true: 2 workers need as many GPUs" in printed.err and "ray.gpu=false" in printed.err
    for key, value in (("gpus", "1"), ("memory_bytes", "4000000000000000")):
        assert main(["train", config, f"memory.{key}={value}", "memory.shards=2"]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"rayssl train: memory.{key}=") and printed.err.endswith(" lower, or 0\n")
        assert printed.err.count("\n") == 1, printed.err


@pytest.mark.s3
def test_missing_bucket_and_wrong_credentials(s3_server: S3Server, tmp_path: Path) -> None:
    """In a process of its own, as a shell with another AWS_SECRET_ACCESS_KEY would start it."""
    bucket = s3_server.bucket("rayssl-cli-refused")
    write_corpus(f"{bucket}/corpus", 32)
    config = write_config(tmp_path / "experiment.yaml", tree(str(tmp_path)))

    def refused(*overrides: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "rayssl.cli", "train", config, *overrides],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert s3_server.secret_key not in done.stderr and "not-the-secret" not in done.stderr
        return done.stderr

    line = refused("corpus.uri=s3://rayssl-no-such-bucket/corpus")
    assert "s3://rayssl-no-such-bucket/corpus" in line and "there is no bucket 'rayssl-no-such-bucket'" in line
    line = refused(f"corpus.uri={bucket}/corpus", AWS_SECRET_ACCESS_KEY="not-the-secret")
    assert f"{bucket}/corpus" in line and "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in line
    line = refused(f"corpus.uri={bucket}/corpus", "run=s3://rayssl-no-such-bucket/run")
    assert "s3://rayssl-no-such-bucket/run" in line and "create it" in line


@pytest.mark.s3
def test_everything_in_the_object_store(
    s3_server: S3Server, ray_cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Corpus, trials, configuration and run under s3://; the secret key is in no file that was written, nor shown."""
    home = s3_server.bucket("rayssl-cli-walk") + "/walk"
    write_corpus(f"{home}/corpus", 64)
    values = tree(home, memory={"sync": "ahead", "half": True})
    values["training"] = {**values["training"], "epochs": 2}
    storage.write_text(f"{home}/experiment.yaml", json.dumps(values))  # JSON is YAML
    assert main(["train", f"{home}/experiment.yaml"]) == 0
    assert main(["evaluate", f"{home}/run"]) == 0
    assert main(["report", f"{home}/run"]) == 0
    for _ in range(2):
        assert main(["embed", f"{home}/run", f"{home}/corpus", f"{home}/embeddings"]) == 0
    assert main(["export", f"{home}/run"]) == 0
    rows = pq.read_table(io.BytesIO(storage.read_bytes(f"{home}/embeddings/00000.parquet")))
    assert rows["embedding"].type.list_size == rayssl.load(f"{home}/run").dim
    printed = capfd.readouterr()
    assert f"{home}/run (last): EER " in printed.out
    assert f"{home}/embeddings: 64 embeddings [16] of " in printed.out and "(all were there before)" in printed.out
    written = storage.list_files(f"{home}/run")
    wanted = ["config.yaml", "origin.json", "metrics.jsonl", "report.html", "evaluation/result.json"]
    wanted += ["exported/step-0000000008.pt2"]
    assert [name for name in wanted if f"{home}/run/{name}" not in written] == []
    assert [uri for uri in written if uri.endswith("meta.json")] != []
    secret = s3_server.secret_key
    assert [uri for uri in written if secret.encode() in storage.read_bytes(uri)] == []
    assert secret not in printed.out + printed.err
    logs = Path(ray_cluster._private.worker.global_worker.node.get_session_dir_path())
    files = [path for path in logs.rglob("*") if path.is_file()]
    assert files
    assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []
