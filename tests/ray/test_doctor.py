"""The doctor at the session's cluster, which demands a token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayssl.runtime import doctor

pytestmark = pytest.mark.ray


def address_of(ray: Any) -> str:
    return str(ray.get_runtime_context().gcs_address)


def test_cluster_with_its_token(ray_cluster: Any) -> None:
    found = doctor.cluster(address_of(ray_cluster))
    assert [(finding.what, finding.state) for finding in found] == [
        ("Ray cluster", "ok"), ("Ray nodes", "ok"), ("Ray token", "ok"),
    ]  # fmt: skip
    assert "1 node, 8 CPUs" in found[0].found and "torch 2.11.0" in found[1].found


def test_another_token_and_none(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.environ["RAY_AUTH_TOKEN"]
    for mode, token in (("token", "not-the-token"), ("disabled", "")):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        (finding,) = doctor.cluster(address_of(ray_cluster))
        assert finding.state == "FAIL" and "demands a token" in finding.found and "RAY_AUTH_TOKEN" in finding.fix
        assert own not in str(finding) and "not-the-token" not in str(finding)


def test_job_inside_a_cluster(ray_cluster: Any, tmp_path: Path) -> None:
    """`jobs/doctor.py` as a job runs it, with RAY_ADDRESS of the cluster."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "jobs/doctor.py", "--storage", str(tmp_path)],
        cwd=root,
        env={**os.environ, "RAY_ADDRESS": address_of(ray_cluster), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    Ray token: demanded" in done.stdout and "ports: not needed" in done.stdout
    assert os.environ["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr
