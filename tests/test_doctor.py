"""What the doctor makes of machines, packages and stores, good ones and bad ones."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from rayssl import storage
from rayssl.cli import main
from rayssl.doctor import machine, packages, store
from rayssl.doctor.findings import Finding, fail, ok, verdict, warn
from rayssl.doctor.machine import GIB
from rayssl.runtime import doctor as ray_doctor

SAID = {
    "ok": [
        machine.python((3, 12, 1)), machine.cores(8, 8, None), machine.cores(8, 8, 8.0), machine.threads(None, 2),
        machine.threads("2,1", 2), machine.memory(8 * GIB, 16 * GIB), machine.shared_memory(5 * GIB, 16 * GIB),
        machine.shared_memory(None, 16 * GIB), machine.disk("/tmp", 50 * GIB, 100 * GIB),
        machine.disk("/tmp", 200 * GIB, 8000 * GIB), machine.open_files(65536), machine.own_address("localhost"),
        store.clock(1.2, "it"), store.clock(-30, "it"),
    ],
    "warn": [
        machine.cores(8, 8, 2.5), machine.cores(1, 8, None), machine.threads("16", 8), machine.threads("many", 8),
        machine.memory(3 * GIB, 16 * GIB), machine.shared_memory(64 << 20, 16 * GIB),
        machine.disk("/tmp", 8 * GIB, 100 * GIB), machine.open_files(1024), machine.own_address("no-such-host.invalid"),
        machine.own_address("x", lambda _: "192.0.2.77"), store.clock(61, "it"),
    ],
    "FAIL": [
        machine.python((3, 10, 4)), machine.python((3, 13, 0)), machine.memory(GIB, 16 * GIB),
        machine.disk("/tmp", 4 * GIB, 100 * GIB), store.clock(-1000, "it"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("state", SAID)
def test_machines(state: str) -> None:
    """Every warning and failure says how to fix it, in one line."""
    for finding in SAID[state]:
        assert finding.state == state, finding
        assert (finding.fix == "") == (state == "ok")
        assert finding.text().count("\n") == (state != "ok")


def test_words() -> None:
    assert machine.cores(8, 8, 2.5).found == "8 usable of 8, but the container may use only 2.5 of them"
    assert "--num-cpus=2" in machine.cores(8, 8, 2.5).fix
    assert "--shm-size" in machine.shared_memory(64 << 20, 16 * GIB).fix
    assert store.clock(-61, "the server").found == "61 s behind the server"
    assert machine.python((3, 10, 4)).text().startswith("FAIL  Python: 3.10.4\n      -> make a virtual environment")


def test_verdict() -> None:
    fine, so_so, bad = ok("a", "b"), warn("a", "b", "c"), fail("a", "b", "c")
    assert verdict([fine, fine]) == (0, "2 checks, all fine")
    assert verdict([fine, so_so]) == (0, "2 checks: 0 failed, 1 with a warning")
    assert verdict([fine, so_so, bad]) == (1, "3 checks: 1 failed, 1 with a warning")


def test_limits_of_cgroups(tmp_path: Path) -> None:
    """Version 2: the least of a process's folder and those above it; version 1: the one there is."""
    (tmp_path / "a/b").mkdir(parents=True)
    assert machine.cpu_quota(tmp_path, "0::/a/b\n") is None
    assert machine.memory_limit(tmp_path, "0::/a/b\n") == (float("inf"), float("inf"))
    (tmp_path / "a/cpu.max").write_text("150000 100000\n")
    (tmp_path / "a/b/cpu.max").write_text("max 100000\n")
    (tmp_path / "a/b/memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cpu_quota(tmp_path, "0::/a/b\n") == 1.5
    assert machine.memory_limit(tmp_path, "0::/a/b\n") == (3 * GIB, 3 * GIB)
    assert machine.memory_limit(tmp_path, "0::/\n")[0] == float("inf")
    (tmp_path / "a/b/memory.current").write_text(f"{2 * GIB}\n")
    (tmp_path / "a/b/memory.stat").write_text(f"anon {GIB}\ninactive_file {GIB}\n")
    assert machine.memory_limit(tmp_path, "0::/a/b\n") == (3 * GIB, 2 * GIB)
    old = tmp_path / "old"
    for name, text in (("cpu/cpu.cfs_quota_us", "200000"), ("cpu/cpu.cfs_period_us", "100000")):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(text)
    assert machine.cpu_quota(old, "1:cpu:/x\n") == 2.0


def test_ports_that_are_taken() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        finding = machine.ports({port: "the head"})
        assert finding.state == "warn" and f"{port} (the head)" in finding.found
        assert "RAY_ADDRESS" in finding.fix
    assert machine.ports({port: "the head"}).state == "ok"


VERSIONS = {"torch": "2.11.0+cpu", "ray": "2.60.0", "numpy": "2.4.6", "msgpack": "1.0", "grpcio": "1.85"}
REQUIRES = {
    "ray": ["msgpack<2.0", "grpcio>=1.90; extra == 'default'", "absent; extra == 'rllib'"],
    "torch": ["numpy>=2", "absent; sys_platform == 'plan9'"],
}


def required(*own: str) -> list[Finding]:
    def version(name: str) -> str:
        if name not in VERSIONS:
            raise importlib.metadata.PackageNotFoundError(name)
        return VERSIONS[name]

    return packages.required(list(own), version, lambda name: REQUIRES.get(name, []))


def test_packages_against_what_they_ask_of_each_other() -> None:
    (finding,) = required("torch==2.11.*", "ray==2.60.*", "nothing; extra == 'test'")
    assert (finding.state, finding.found) == ("ok", "4 are as required (torch 2.11.0+cpu, ray 2.60.0)")
    (finding,) = required("ray[default]==2.60.*")
    assert finding.found == "grpcio 1.85 is installed, ray needs >=1.90"
    assert finding.state == "FAIL" and "pip install 'grpcio>=1.90'" in finding.fix
    found = {finding.found for finding in required("torch==2.10.*", "faiss-cpu", "ray<2")}
    assert found == {
        "torch 2.11.0+cpu is installed, rayssl needs ==2.10.*",
        "faiss-cpu is not installed, rayssl needs it",
        "ray 2.60.0 is installed, rayssl needs <2",
    }


def test_this_environment() -> None:
    """The one that the tests run in is as the pins have it."""
    assert [finding.state for finding in packages.packages()] == ["ok", "ok"]
    assert packages.gpu().state in ("ok", "warn")
    assert {finding.what for finding in machine.machine()} >= {"Python", "CPU cores", "memory", "disk", "ports"}


def test_a_gpu_needs_a_compiler() -> None:
    assert packages.kernels("H200", None).state == "ok"
    finding = packages.kernels("H200", "Python.h (Debian's package python3-dev)")
    assert (
        finding.state == "warn" and finding.found == "H200, but Python.h (Debian's package python3-dev) was not found"
    )
    assert "python3-dev" in finding.fix


def test_a_folder(tmp_path: Path) -> None:
    """Nothing is left, of folders that were made on the way neither."""
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "there", tmp_path / "new/deep"):
        found = store.store(str(place))
        assert [finding.what for finding in found] == ["storage latency", "storage throughput"]
        assert {finding.state for finding in found} <= {"ok", "warn"}
        assert "read" in found[0].found and "MB/s" in found[1].found
    assert os.listdir(tmp_path) == ["there"] and not os.listdir(tmp_path / "there")
    (tmp_path / "file").write_text("x")
    (finding,) = store.store(str(tmp_path / "file"))
    assert finding.state == "FAIL" and finding.found.startswith(f"{tmp_path}/file: ")
    assert (tmp_path / "file").read_text() == "x"


def test_a_port_where_nothing_listens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setattr(storage.attempts, "FIRST_WAIT_S", 0.01)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["doctor", "--storage", "s3://bucket/prefix", "--storage", "nope://x/y"]) == 1
    printed = capsys.readouterr()
    assert "FAIL  storage: s3://bucket/prefix: no answer from http://127.0.0.1:9 in 4 attempts" in printed.out
    assert "FAIL  storage: nope://x/y: 'nope://' is not supported\n      -> use s3://bucket/key" in printed.out
    assert "very-secret" not in printed.out + printed.err
    assert re.match(r"15 checks: [2-9] failed", printed.out.splitlines()[-2])
    following = "next: rayssl doctor --storage s3://bucket/prefix --storage nope://x/y "
    assert printed.out.splitlines()[-1].startswith(following)


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    main(["doctor", "--json", "--storage", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert {"what", "state", "found", "fix"} == set(found[0])
    assert "Ray cluster" in [each["what"] for each in found]


def test_checksums_that_a_server_does_not_know() -> None:
    text = "s3://b/x: the object store answered 'An error occurred (MissingContentLength) when calling PutObject'"
    finding = store.refused(storage.StorageError(text))
    assert finding.found == text and "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in finding.fix


def test_addresses_that_are_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert [finding.state for finding in ray_doctor.cluster()] == ["ok"]
    for address, text in {
        "http://head:8265": "jobs API",
        "ray://head:10001": "Ray Client",
        "head": "not HOST:PORT",
        "127.0.0.1:9": "connection refused",
        "no-such-host.invalid:6379": "no answer",
    }.items():
        (finding,) = ray_doctor.cluster(address)
        assert finding.state == "FAIL" and text in finding.found and finding.fix


@pytest.mark.parametrize(
    ("words", "found", "fix"),
    [
        ("x\nRuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n"
         "This process on 192.0.2.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n",
         "there Ray 2.59.0 Python 3.11.7, here Ray 2.60.0 Python 3.11.7", "same versions"),
        ("ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing",
         "it demands a token", "RAY_AUTH_TOKEN_PATH"),
        ("ConnectionError: Could not find any running Ray instance.", "is not a node of it", "submit a job"),
        ("Traceback\n  File x\nValueError: odd\n", "cannot join h:1: ValueError: odd", "gcs_server.out"),
        ("no answer within 90 s", "no answer within 90 s", "ray status"),
    ],
)  # fmt: skip
def test_what_ray_says(words: str, found: str, fix: str) -> None:
    finding = ray_doctor.refused("h:1", words)
    assert finding.state == "FAIL" and found in finding.found and fix in finding.fix
    assert "\n" not in finding.found


def test_nodes_that_differ() -> None:
    same = {"shared_free": 8 * GIB, "store": 4 * GIB, "store_used": 0.0, "skew": 0.0}
    first: dict[str, Any] = {**same, "name": "one", "versions": {"python": "3.11.7", "torch": "2.11.0"}}
    second = {**first, "name": "two", "skew": -90.0, "shared_free": GIB, "versions": {"python": "3.11.7"}}
    seen = {"nodes": [first, second], "silent": ["192.0.2.3"], "resources": {"CPU": 4.0, "memory": 8.0 * GIB}}
    found = ray_doctor.judged("h:1", seen)
    assert found[0].found == "h:1: 3 nodes, 4 CPUs, 0 GPUs, 8.0 GiB memory"
    said = " | ".join(finding.found for finding in found[1:])
    assert "no answer within 30 s from 192.0.2.3" in said and "torch: 2.11.0 on one, absent on two" in said
    assert "two: its clock and this machine's differ by 90 s" in said and "two: 1.0 GiB free in /dev/shm" in said
    assert [finding.state for finding in found] == ["ok", "warn", "FAIL", "warn", "warn"]


@pytest.mark.s3
def test_object_store(s3_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The session's server, then a wrong key, a bucket that is not there, a port where nothing listens."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    bucket = s3_server.bucket("rayssl-doctor")

    def checked(uri: str) -> list[Finding]:
        found = store.store(uri)
        assert s3_server.secret_key not in str(found) and "not-the-secret" not in str(found)
        return found

    assert main(["doctor", "--storage", f"{bucket}/pre/fix"]) == 0
    printed = capsys.readouterr().out
    assert "storage latency: write" in printed and "storage throughput: write" in printed
    assert "ok    clock: agrees with the storage server" in printed
    assert storage.list_files(bucket) == []
    found = checked("s3://rayssl-no-such-bucket/x")
    assert [finding.state for finding in found] == ["FAIL", "ok"]
    assert found[0].found == "s3://rayssl-no-such-bucket/x: there is no bucket 'rayssl-no-such-bucket'"
    with monkeypatch.context() as changed:
        changed.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        found = checked(f"{bucket}/x")
        assert found[0].found == f"{bucket}/x: access denied" and "AWS_SECRET_ACCESS_KEY" in found[0].fix
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        (finding,) = checked(f"{bucket}/x")
        assert finding.state == "FAIL" and "no answer from http://127.0.0.1:9" in finding.found
    assert storage.list_files(bucket) == []


@contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """A server that sends ``answer`` to whoever connects, or nothing; yields its address."""
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                held.append(connection)
                if answer is not None:
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.close()
        for connection in held:
            connection.close()


def test_a_listener_that_is_no_ray_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis, an HTTP server, one that is silent. A gRPC server is let through: Ray says what is wrong with it."""
    monkeypatch.setattr(ray_doctor, "_ANSWER_S", 0.5)
    for answer in (None, b"-ERR wrong number of arguments\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        with listener(answer) as address:
            found = ray_doctor.unusable(address)
            assert found is not None and found.found == f"what listens at RAY_ADDRESS={address} is no Ray head"
    with listener(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100])) as address:
        assert ray_doctor.unusable(address) is None
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert ray_doctor.unusable(f"127.0.0.1:{port}") is None
    server.stop(None)
