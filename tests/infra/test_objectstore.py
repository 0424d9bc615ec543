"""The object store launcher: what was written survives a kill, keys stay, nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import s3fs

ROOT = Path(__file__).parents[2]


def client(environment: dict[str, str]) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        skip_instance_cache=True,
    )


@pytest.mark.s3
def test_objects_survive_a_kill(object_store_launcher: ModuleType, tmp_path: Path) -> None:
    store = object_store_launcher.Store(tmp_path)
    data = os.urandom(3_000_000)
    try:
        first = store.up()
        s3 = client(first)
        s3.call_s3("create_bucket", Bucket="kept")
        s3.pipe_file("kept/object", data)
        pids = [object_store_launcher.running(tmp_path / "run" / f"{name}.pid") for name in ("mon", "osd", "rgw")]
        assert None not in pids
        store.stop(signal.SIGKILL)
        assert [object_store_launcher.start_time(pid) for pid in pids] == [None] * 3
        second = store.up()
        assert second == first  # same port, same keys
        assert client(second).cat_file("kept/object") == data
        assert (tmp_path / "access.json").stat().st_mode & 0o777 == 0o600
    finally:
        store.stop(signal.SIGTERM)
    assert not list((tmp_path / "run").glob("*.pid"))


@pytest.mark.s3
def test_bucket_of_the_session_server(s3_server) -> None:
    uri = s3_server.bucket("launcher-test")
    s3 = client(s3_server.environment)
    s3.pipe_file(f"{uri}/a", b"1")
    assert s3.cat_file(f"{uri}/a") == b"1"
    assert s3_server.bucket("launcher-test") == uri  # creating it again is fine
    wrong = client(s3_server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    with pytest.raises(PermissionError):
        wrong.cat_file(f"{uri}/a")


@pytest.mark.long
def test_a_monitor_that_just_started_is_asked_again(
    object_store_launcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers its first commands with EPERM now and then; seen on a busy machine."""
    store = object_store_launcher.Store(tmp_path)
    (tmp_path / "run").mkdir()
    file, refusals = tmp_path / "run" / "mon.pid", [1, 1]
    file.write_text(f"{os.getpid()} {object_store_launcher.start_time(os.getpid())}\n")

    def answer(words: list[str]) -> None:
        if refusals:
            refusals.pop()
            raise object_store_launcher.StoreError("Error EPERM")

    monkeypatch.setattr(store, "_run", answer)
    store._ask(["ceph", "osd", "new", "x"])
    assert not refusals
    refusals.append(1)
    file.unlink()  # a monitor that has ended will not answer later
    with pytest.raises(object_store_launcher.StoreError, match="EPERM"):
        store._ask(["ceph", "osd", "new", "x"])


def test_a_reused_process_id_is_not_ours(tmp_path: Path) -> None:
    """The file names this test's own process with another start time: stopping the store must leave it alone."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mon.pid").write_text(f"{os.getpid()} 1\n")
    command = [sys.executable, str(ROOT / "infra/local/objectstore.py"), "kill", str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 0


def test_env_without_a_store_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "infra/local/objectstore.py"), "env", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "start one with 'up'" in done.stderr
    assert "Traceback" not in done.stderr
